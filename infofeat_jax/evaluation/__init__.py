"""Evaluation: attacks by name, AutoAttack that resumes, and heuristics for overestimated robustness."""
