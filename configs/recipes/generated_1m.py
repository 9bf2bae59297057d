"""Training on generated images (Wang et al., 2023): CIFAR-10, WRN-28-10 with SiLU, 1 million images of EDM.

Published, clean / AutoAttack at 8/255 on CIFAR-10's test images: 91.12 / 63.35 (Wang et al., 2023; RobustBench lists
their models of more images). TRADES with beta 5, 70
% of each batch of 512 generated, 400 epochs (of as many images as the training set has), one cycle up to 0.2 with
Nesterov's momentum, weight decay 5e-4 but for BatchNorm, labels smoothed by 0.1 (PyTorch's, which counts the label
among the classes: 0.09 here), BatchNorm on batch statistics in the attack, EMA 0.995 (wzekai99/DM-Improves-AT).
Different here: the attack starts at TRADES' Gaussian noise, not uniformly; the average begins at once, not after 2.5
% of the steps; the learning rate moves with every step, not every epoch, and the momentum does not cycle; BatchNorm's
momentum is 0.1, not 0.01; the model normalises by mean and standard deviation 0.5; early stopping is by 7-step PGD on
1,000 images.
Not run here. `generated_1m.py:infofeature` is InfoFeature with these ingredients, lambda 0.1; nobody has published
it.
1m.npz is the authors' file; compressed members have to be rewritten once, the error says how.
Hardware: an accelerator; 400 epochs of 49,000 images at 28 forward passes' worth, 294 GFLOP, an image.

  python main.py --config=configs/recipes/generated_1m.py --config.data.extra=1m.npz --config.dtype=bfloat16
"""

from infofeat_jax import config as base


def get_config(method: str | None = None):
    config = base.for_method(base.default(), method or "trades")
    config.batch_size = 512
    config.num_epochs = 400
    config.model.name, config.model.activation = "wrn_28_10", "silu"
    config.data.extra, config.data.extra_share = "1m.npz", 0.7
    config.method.label_smoothing = 0.09
    if config.method.name == "trades":
        config.method.weight = 5.0
    config.attack.num_steps, config.attack.batch_norm = 10, "batch"
    config.optimizer.schedule, config.optimizer.learning_rate = "onecycle", 0.2
    config.optimizer.nesterov, config.optimizer.decay_norm = True, False
    config.optimizer.weight_decay = 5e-4
    config.ema.decay = 0.995
    return config
