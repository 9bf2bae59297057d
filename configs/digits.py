"""Handwritten digits (scikit-learn's, 8x8 greyscale, included): a robust classifier in minutes on any machine.

Not an experiment from the paper. 1,097 training, 200 validation and 500 test images.
Hardware: 2 CPU cores, about 2 minutes.

  python main.py --config=configs/digits.py                 # InfoFeature
  python main.py --config=configs/digits.py:standard        # the baseline: compare the rows
"""

from infofeat_jax import config as base


def get_config(method: str | None = None):
    config = base.default()
    config.batch_size = 64
    config.num_epochs = 20
    config.model.name = "wrn_10_2"
    config.data.name = "digits"
    config.data.validation_size = 200
    config.data.crop_padding = 1
    config.data.flip = False  # a mirrored digit is no longer that digit
    config.attack.epsilon = 48.0  # 3 steps between the 17 grey levels
    config.optimizer.milestones = (12.0, 16.0)
    config.eval.batch_size = 100
    config.eval.autoattack_examples = 100
    return base.for_method(config, method)
