"""The scales at which a study of ResNet18 on CIFAR-10 can be run: FILE.py, FILE.py:small or FILE.py:digits."""

from infofeat_jax.configs import cifar10_resnet18, cifar10_small, digits

SCALES = {None: cifar10_resnet18, "small": cifar10_small, "digits": digits}


def get_config(scale: str | None):
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}: choose one of {', '.join(filter(None, SCALES))}, or none")
    return SCALES[scale].get_config()
