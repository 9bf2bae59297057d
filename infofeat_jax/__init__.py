"""Adversarial training with informative feature-based attacks, and honest robustness evaluation, in JAX."""
