"""Published recipes for robust training beyond the paper, each with InfoFeature beside it: FILE.py:infofeature."""
