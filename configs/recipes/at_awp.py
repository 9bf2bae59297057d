"""PGD adversarial training with AWP and an average of the weights: CIFAR-10, ResNet18, 200 epochs.

Published, AutoAttack at 8/255 on CIFAR-10's test images: 48.67 without and 50.80 with AWP (MAIR's README, which does
not say that it averages the weights; on top of TRADES-AWP an average is reported to change -0.2 to +0.2). AWP: gamma
0.01 from the first epoch on, learning rate 0.1, a tenth at 100 and 150 (csdongxian/AWP). EMA: 0.9995
(FastAT_Benchmark), which combines no AWP with it.
Not run here. Nobody has published InfoFeature with these ingredients: `at_awp.py:infofeature` is that, lambda 0.1.
Hardware: an accelerator; 200 epochs of 49,000 images at 26 forward passes' worth, about 29 GFLOP, an image.

  python main.py --config=configs/recipes/at_awp.py
  python main.py --config=configs/recipes/at_awp.py:infofeature
"""

from infofeat_jax import config as base


def get_config(method: str | None = None):
    config = base.default()
    config.num_epochs = 200
    config.attack.num_steps = 10
    config.optimizer.milestones = (100.0, 150.0)
    config.optimizer.weight_decay = 5e-4
    config.awp.gamma = 0.01
    config.ema.decay = 0.9995
    return base.for_method(config, method or "madry")
