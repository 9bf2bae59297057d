"""Free adversarial training, Free-AT (Shafahi et al., 2019): CIFAR-10, ResNet18, 50 passes of 4 updates on each batch.

Published, clean / AutoAttack at 8/255 on CIFAR-10's test images: 75.20 / 44.34, means of three seeds (75.68, 74.85,
75.08 / 44.40, 44.14, 44.47) in the logs of FastAT_Benchmark @ 25d2542, whose settings these are: m = 4, a step of
epsilon, one cycle up to 0.1, weight decay 5e-4, labels smoothed by 0.4 (PyTorch's: 0.36 here), EMA. The authors take
m = 8 (`--config.attack.replays=8`) and 80,000 updates; no AutoAttack figure of theirs is known to us.
Different here: a batch's perturbation starts at a random point of the ball, there at the image, in the authors' code
where that of the batch before has ended; the average moves once a batch, with a decay of 0.9995^4, not at every update;
the cycle peaks after 2.5 % of the steps, not 30 %, and the momentum is constant.
Not run here. `free_at.py:infofeature` is refused: the gradient that comes for free is that of the update's loss, and
InfoFeature's objective is another.
Hardware: an accelerator; 50 passes through 49,000 images at 4 updates, 12 forward passes' worth, about 13 GFLOP, an
image.

  python main.py --config=configs/recipes/free_at.py
"""

from infofeat_jax import config as base


def get_config(method: str | None = None):
    config = base.default()
    config.num_epochs = 50
    config.attack.replays = 4
    config.optimizer.schedule, config.optimizer.learning_rate = "onecycle", 0.1
    config.optimizer.weight_decay = 5e-4
    config.method.label_smoothing = 0.36
    config.ema.decay = 0.998
    return base.for_method(config, method or "madry")
