"""Does the CAM term, label smoothing or early stopping help where adversarial training overfits robustly?

The paper trains for 120 to 200 epochs, in which robust accuracy falls after the first decay of the learning rate (Rice
et al., 2020); the 8 epochs of cifar10_small do not get there. Here 4,000 images are seen 60 times, with decays at half
and three quarters. Madry is lambda 0; both checkpoints, the best on validation images and the last, are evaluated. The
last two rows train with steps of 1/255, the reading of the paper under which its evaluation makes sense, and every
model is also attacked with such steps (see docs/reproduction.md).
With 4,000 images Madry itself hardly overfits; with 1,000 (`thousand`) it does: width 16, 100 epochs, bfloat16.
Hardware: `few`, at full width, an accelerator, 45 s a run on an H200, four at a time, with the shorter evaluation of
docs/reproduction.md, more with this one; `small`, width 16, 2 CPU cores, about 35 minutes a run; 24 runs. `thousand`:
one CPU core, about 25 minutes a run, two processes on two cores; 18 runs.

  python main.py --config=configs/studies/overfitting.py:few --config.data.name=cifar10.npz
  python main.py --config=configs/studies/overfitting.py:small --config.data.name=cifar10.npz
  python main.py --config=configs/studies/overfitting.py:thousand --config.data.name=cifar10.npz
  python main.py --config=configs/studies/overfitting.py:digits
"""

from infofeat_jax.configs.studies import scales


def get_config(scale: str | None = None):
    config = scales.get_config(scale)
    if scale == "small":
        config = scales.few_images(config)
    config.study.title = "Where adversarial training overfits: CAM term, smoothing, early stopping"
    config.study.seeds = (0, 1, 2)
    half = config.attack.epsilon / 8
    config.study.rows = tuple(
        f"{label}-smoothing{smoothing}: {method} method.label_smoothing={smoothing}"
        for smoothing in (0.0, 0.5)
        for label, method in (
            ("madry", "method.name=madry"), ("lambda0.1", "method.weight=0.1"), ("lambda0.5", "method.weight=0.5"),
        )
    )  # fmt: skip
    if scale != "thousand":  # a question of its own, which is asked where a run is cheaper
        config.study.rows += (
            f"madry-half-step: method.name=madry attack.step_size={half}",
            f"lambda0.1-half-step: attack.step_size={half}",
        )
    config.eval.checkpoint = "both"
    config.eval.attacks = (
        "clean", "fgsm", "pgd7", "pgd20", "cw20",
        f"fgsm(step_size={4 * half:g})", f"pgd7(step_size={half:g})", f"pgd20(step_size={half:g})",
        "autoattack(version=quick)" if scale == "thousand" else "autoattack",
    )  # fmt: skip
    config.eval.autoattack_examples = 500
    return config
