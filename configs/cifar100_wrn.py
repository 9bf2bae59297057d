"""Table 4: CIFAR-100, WideResNet-28-10, 200 epochs, labels smoothed by 0.5 (Section 4.2).

Expected (the paper; clean / FGSM / PGD7 / PGD20 / CW20, in %):
  standard     76.8 /  0.1 /  0.0 /  0.0 /  0.0
  madry        63.8 / 42.7 / 33.7 / 23.7 / 24.2
  infofeature  63.0 / 44.9 / 34.4 / 28.6 / 26.6
Hardware: an accelerator; on one H200 about 70 minutes of steps in bfloat16, twice that in float32.

  python main.py --config=configs/cifar100_wrn.py
"""

from infofeat_jax import config as base


def get_config(method: str | None = None):
    config = base.default()
    config.num_epochs = 200
    config.model.name = "wrn_28_10"
    config.data.name = "cifar100"
    config.method.label_smoothing = 0.5
    return base.for_method(config, method)
