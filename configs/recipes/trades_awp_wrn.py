"""TRADES with AWP on WRN-28-10: CIFAR-10, 200 epochs, no further data.

Published, AutoAttack at 8/255 on CIFAR-10's test images: 55.85, as later tables quote TRADES-AWP; csdongxian/AWP
itself has 56.17 for WRN-34-10. Without an average of the weights.
The rest is as in trades_awp.py. Not run here. `trades_awp_wrn.py:infofeature` is InfoFeature with these ingredients.
Hardware: an accelerator; about 9 times the cost of trades_awp.py, 360 GFLOP an image.

  python main.py --config=configs/recipes/trades_awp_wrn.py --config.dtype=bfloat16
"""

from infofeat_jax.configs.recipes import trades_awp


def get_config(method: str | None = None):
    config = trades_awp.get_config(method)
    config.model.name = "wrn_28_10"
    config.ema.decay = 0.0
    return config
