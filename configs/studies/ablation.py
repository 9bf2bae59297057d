"""Ablations of InfoFeature, one choice at a time: lambda, steps, step size, distance, whose maps, label smoothing.

The paper's choices are lambda 0.1, 7 steps of 2 levels, and (not stated unambiguously) the l2 distance of all classes'
maps. Its supplement reports 3 to 7 steps as best. A step of 1 level is what "2/255" would mean for inputs in [-1, 1].

  python main.py --config=configs/studies/ablation.py
  python main.py --config=configs/studies/ablation.py:digits
"""

from infofeat_jax.configs.studies import scales


def get_config(scale: str | None = None):
    config = scales.get_config(scale)
    step = config.attack.epsilon / 4
    config.study.title = "InfoFeature, one choice at a time"
    config.study.rows = (
        "infofeature",
        *(f"lambda{weight}: method.weight={weight}" for weight in (0.0, 0.05, 0.2, 0.5, 1.0)),
        *(f"steps{steps}: attack.num_steps={steps} attack.step_size={step}" for steps in (1, 3, 5, 10)),
        f"half-step: attack.step_size={step / 2}",
        f"double-step: attack.step_size={step * 2}",
        "l1: method.distance=l1",
        "cosine: method.distance=cosine",
        "label-map: method.classes=label",
        "smoothing0.2: method.label_smoothing=0.2",
        "smoothing0.5: method.label_smoothing=0.5",
    )
    return config
