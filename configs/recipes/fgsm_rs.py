"""Fast adversarial training, FGSM-RS (Wong et al., 2020): one step of 1.25 epsilon from a random start, 30 epochs.

Published, clean / AutoAttack at 8/255 on CIFAR-10's test images: 83.34 / 43.21 (RobustBench's Wong2020Fast, of the
authors).
The settings are the authors' (locuslab/fast_adversarial, where 15 epochs are the default): CIFAR-10, PreAct-ResNet18,
one cycle up to 0.2 and back, weight decay 5e-4.
Different here: the momentum is constant (PyTorch's cycle moves it between 0.8 and 0.9). They watch for catastrophic
overfitting and stop early; here the best epoch by robust validation accuracy is kept, and the epochs in which it
collapses are marked. Their attack is on batch statistics too, but moves the running ones.
Not run here. `fgsm_rs.py:infofeature` takes the same single step on InfoFeature's objective.
Hardware: an accelerator; 30 epochs of 49,000 images at 5 to 6 forward passes' worth, about 6 GFLOP, an image.

  python main.py --config=configs/recipes/fgsm_rs.py
"""

from infofeat_jax.configs.recipes import n_fgsm


def get_config(method: str | None = None):
    config = n_fgsm.get_config(method)
    config.attack.noise = 0.0
    config.attack.num_steps, config.attack.step_size = 1, 10.0
    return config
