"""The scales at which a study of ResNet18 on CIFAR-10 can be run: FILE.py, or FILE.py:SCALE."""

from infofeat_jax.configs import cifar10_resnet18, cifar10_small, digits


def get_config(scale: str | None):
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}: choose one of {', '.join(filter(None, SCALES))}, or none")
    return SCALES[scale]()


def few():
    """Full width on few images, often enough for InfoFeature to overfit robustly: about 20 s of steps on an H200."""
    config = few_images(cifar10_resnet18.get_config())
    config.dtype = "bfloat16"
    return config


def thousand():
    """Width 16 on 1,000 images, often enough for Madry to overfit robustly: about 25 minutes a run on one CPU core."""
    config = cifar10_small.get_config()
    config.dtype = "bfloat16"
    config.data.train_size, config.num_epochs, config.optimizer.milestones = 1_000, 100, (50.0, 75.0)
    config.eval.validate_every = 4
    config.eval.num_examples = 1_000
    return config


def few_images(config):
    """4,000 training images seen 60 times, with the paper's decays at half and three quarters."""
    config.data.train_size, config.num_epochs, config.optimizer.milestones = 4_000, 60, (30.0, 45.0)
    return config


SCALES = {
    None: cifar10_resnet18.get_config, "few": few, "small": cifar10_small.get_config,
    "thousand": thousand, "digits": digits.get_config,
}  # fmt: skip
