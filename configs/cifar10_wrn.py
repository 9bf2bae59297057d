"""Table 3: CIFAR-10, WideResNet-28-10, 200 epochs, labels smoothed by 0.5 (Section 4.2).

Expected (the paper; clean / FGSM / PGD7 / PGD20 / CW20, in %; best and worst of several restarts):
  standard     95.8 / 42.1 /  3.1 /  0.0 /  0.0
  madry        88.7 / 70.8 / 59.5 / 45.0 / 45.7
  infofeature  90.6 / 73.0 / 64.8 / 50.0 / 49.5   worst 89.9 / 72.6 / 61.6 / 48.5 / 49.2
Hardware: an accelerator; on one H200 about 70 minutes of steps in bfloat16, twice that in float32;
about 9 times the FLOPs of ResNet18 per image.

  python main.py --config=configs/cifar10_wrn.py --config.seed=0
"""

from infofeat_jax import config as base


def get_config(method: str | None = None):
    config = base.default()
    config.num_epochs = 200
    config.model.name = "wrn_28_10"
    config.method.label_smoothing = 0.5
    return base.for_method(config, method)
