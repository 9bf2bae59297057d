"""The paper's Table 1 on CIFAR-10 at reduced scale: what a 2-core machine can train in half an hour.

ResNet18 of width 16 (not 64), 20,000 training images, 8 epochs (not 120) with the learning rate dropped after half
and three quarters of them as in the paper, 2,000 test images. Results are not comparable with the paper's.
Hardware: 2 CPU cores; about 4 minutes (standard) or 25 minutes (adversarial).

  python main.py --config=configs/cifar10_small.py:infofeature --config.data.data_dir=TFDS_DIRECTORY
  python main.py --config=configs/cifar10_small.py:madry --config.data.name=cifar10.npz
"""

from infofeat_jax import config as base


def get_config(method: str | None = None):
    config = base.default()
    config.num_epochs = 8
    config.model.width = 16
    config.data.train_size = 20_000
    config.optimizer.milestones = (4.0, 6.0)
    config.eval.num_examples = 2_000
    config.eval.autoattack_examples = 200
    return base.for_method(config, method)
