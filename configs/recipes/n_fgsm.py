"""N-FGSM (de Jorge et al., 2022): one step from noise of twice epsilon, CIFAR-10, PreAct-ResNet18, 30 epochs.

Published, AutoAttack at 8/255 on CIFAR-10's test images: 47.77, of a ResNet18 after 100 epochs, in 0.28 times the
seconds of PGD with 10 steps (FastAT_Benchmark); no AutoAttack figure of the authors' own 30 epochs is known to us.
Different here: the authors' attack is on batch statistics too, but moves the running ones.
Watch metrics.jsonl for catastrophic_overfitting. Not run here. `n_fgsm.py:infofeature` takes the same single step on
InfoFeature's objective; nobody has published it.
Hardware: an accelerator; 30 epochs of 49,000 images at 5 to 6 forward passes' worth, about 6 GFLOP, an image.

  python main.py --config=configs/recipes/n_fgsm.py
"""

from infofeat_jax import config as base


def get_config(method: str | None = None):
    config = base.default()
    config.num_epochs = 30
    config.model.name = "preact_resnet18"
    config.attack.noise = 2.0
    config.attack.batch_norm = "batch"
    config.optimizer.schedule, config.optimizer.learning_rate = "cyclic", 0.2
    config.optimizer.weight_decay = 5e-4
    return base.for_method(config, method or "madry")
