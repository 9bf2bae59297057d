"""Evaluation: attacks by name, resumable AutoAttack, and heuristics for overestimated robustness."""
