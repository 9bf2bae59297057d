"""TRADES with AWP and an average of the weights: CIFAR-10, ResNet18, 200 epochs.

Published, clean / AutoAttack at 8/255 on CIFAR-10's test images: 81.99 / 51.45 (TRADES-AWP, 200 epochs, weight
averaging: DAJAT's README); 51.62 in MAIR's README, which does not say that it averages. AWP: gamma 0.005 after 10
epochs, learning rate 0.1, a tenth at 100 and 150 (csdongxian/AWP). EMA: 0.9996, which DAJAT begins at epoch 150; here
it runs from the start. The authors' count of epochs leaves 9 of them without AWP, here 10.
Not run here. `trades_awp.py:infofeature` is InfoFeature with these ingredients, lambda 0.1; nobody has published it.
Hardware: an accelerator; 200 epochs of 49,000 images at about 34 forward passes' worth, 38 GFLOP, an image.

  python main.py --config=configs/recipes/trades_awp.py
  python main.py --config=configs/recipes/trades_awp.py --config.num_epochs=20 \\
    --config.optimizer.milestones="(10,15)" --workdir=runs/trades_awp/short
"""

from infofeat_jax import config as base


def get_config(method: str | None = None):
    config = base.default()
    config.num_epochs = 200
    config.attack.num_steps = 10
    config.optimizer.milestones = (100.0, 150.0)
    config.optimizer.weight_decay = 5e-4
    config.awp.gamma, config.awp.warmup_epochs = 0.005, 10.0
    config.ema.decay = 0.9996
    return base.for_method(config, method or "trades")
