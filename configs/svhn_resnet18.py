"""Table 5: SVHN (without the extra training set), ResNet18, 120 epochs, labels smoothed by 0.5 (from Section 4.2).

Expected (the paper; clean / FGSM / PGD7 / PGD20 / CW20, in %):
  standard     96.1 / 40.6 /  1.4 /  0.0 /  0.0
  madry        91.9 / 80.4 / 71.8 / 43.1 / 45.4
  infofeature  94.4 / 89.3 / 72.4 / 54.4 / 50.7
Hardware: an accelerator.

  python main.py --config=configs/svhn_resnet18.py
"""

from infofeat_jax import config as base


def get_config(method: str | None = None):
    config = base.default()
    config.data.name = "svhn_cropped"
    config.data.flip = False  # a mirrored digit is no longer that digit
    config.method.label_smoothing = 0.5
    config.optimizer.learning_rate = 0.01
    return base.for_method(config, method)
