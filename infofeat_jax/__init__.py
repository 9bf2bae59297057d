"""Adversarial training with informative feature-based attacks, and honest robustness evaluation, in JAX.

The public library. What trains and evaluates from the command line needs the extra `train` and is not imported here.
"""

from importlib import metadata as _metadata

from infofeat_jax import adapters, attacks, cam, data, methods, models, objectives, parts, sinkhorn, threat, types
from infofeat_jax.evaluator import Result, evaluate, load

try:
    __version__ = _metadata.version("infofeat_jax")
except _metadata.PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "Result",
    "__version__",
    "adapters",
    "attacks",
    "cam",
    "data",
    "evaluate",
    "load",
    "methods",
    "models",
    "objectives",
    "parts",
    "sinkhorn",
    "threat",
    "types",
]
