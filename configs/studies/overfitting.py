"""Does the CAM term, label smoothing or early stopping help where adversarial training overfits robustly?

The paper trains for 120 to 200 epochs, in which robust accuracy falls after the first decay of the learning rate (Rice
et al., 2020); the 8 epochs of cifar10_small do not get there. Here 4,000 images are seen 60 times, with decays at half
and three quarters. Madry is lambda 0; both checkpoints, the best on validation images and the last, are evaluated.
Hardware: 2 CPU cores, about 35 minutes a run for training, 18 runs.

  python main.py --config=configs/studies/overfitting.py:small --config.data.name=cifar10.npz
  python main.py --config=configs/studies/overfitting.py:digits
"""

from infofeat_jax.configs.studies import scales


def get_config(scale: str | None = None):
    config = scales.get_config(scale)
    if scale == "small":
        config.data.train_size, config.num_epochs, config.optimizer.milestones = 4_000, 60, (30.0, 45.0)
        config.eval.autoattack_examples = 500
    config.study.title = "Where adversarial training overfits: CAM term, smoothing, early stopping"
    config.study.seeds = (0, 1, 2)
    config.study.rows = tuple(
        f"{label}-smoothing{smoothing}: {method} method.label_smoothing={smoothing}"
        for smoothing in (0.0, 0.5)
        for label, method in (
            ("madry", "method.name=madry"), ("lambda0.1", "method.weight=0.1"), ("lambda0.5", "method.weight=0.5"),
        )
    )  # fmt: skip
    config.eval.checkpoint = "both"
    config.eval.attacks = ("clean", "pgd20", "cw20", "autoattack")
    return config
