"""Where a gain over Madry comes from, at equal budget: the CAM term, label smoothing, early stopping, the step size.

Three seeds each; the best and the last checkpoint of each run, evaluated with PGD20, CW20 and AutoAttack.
lambda0 must equal madry without smoothing: it is the same computation under another name.

  python main.py --config=configs/studies/attribution.py
  python main.py --config=configs/studies/attribution.py:digits
"""

from infofeat_jax.configs.studies import scales


def get_config(scale: str | None = None):
    config = scales.get_config(scale)
    half = config.attack.epsilon / 8
    config.study.title = "What a gain over Madry comes from"
    config.study.seeds = (0, 1, 2)
    config.study.rows = (
        *(
            f"madry-smoothing{smoothing}: method.name=madry method.label_smoothing={smoothing}"
            for smoothing in (0.0, 0.2, 0.5)
        ),
        *(
            f"lambda{weight}-smoothing{smoothing}: method.weight={weight} method.label_smoothing={smoothing}"
            for weight in (0.1, 0.5)
            for smoothing in (0.0, 0.2, 0.5)
        ),
        "lambda0: method.weight=0.0",
        f"madry-half-step: method.name=madry attack.step_size={half}",
        f"lambda0.1-half-step: attack.step_size={half}",
    )
    config.eval.checkpoint = "both"
    config.eval.attacks = ("clean", "pgd20", "cw20", "autoattack")
    return config
