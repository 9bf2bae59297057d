"""Table 1: CIFAR-10, ResNet18, 120 epochs.

Expected (the paper; clean / FGSM / PGD7 / PGD20 / CW20, in %):
  standard     94.7 / 30.7 /  1.8 /  0.0 /  0.0
  madry        85.6 / 68.6 / 56.1 / 40.3 / 41.5
  infofeature  85.1 / 69.3 / 61.3 / 49.3 / 48.0
The paper states no batch size (128 here) and no label smoothing for this table (none here).
Hardware: an accelerator; a full-width InfoFeature epoch costs 49,000 x 20 GFLOP.

  python main.py --config=configs/cifar10_resnet18.py
  python main.py --config=configs/cifar10_resnet18.py:madry --config.dtype=bfloat16
"""

from infofeat_jax import config as base


def get_config(method: str | None = None):
    return base.for_method(base.default(), method)
