"""Figure 4: accuracy against the iterations of PGD and InfoFeature, on an undefended and a PGD-7-trained model.

Evaluates the runs of Table 1's study in place, so give its --workdir, and repeat its settings, such as --config.dtype
and --config.data.name.

  python main.py --config=configs/studies/figure4.py --workdir=runs/table1 --mode=evaluate
  python main.py --config=configs/studies/figure4.py:digits --workdir=runs/table1-digits --mode=evaluate
"""

from infofeat_jax.configs.studies import scales


def get_config(scale: str | None = None):
    config = scales.get_config(scale)
    config.study.title = "Figure 4: accuracy against iterations"
    config.study.rows = ("standard", "madry")
    steps = (1, 2, 3, 5, 7, 10, 20)
    config.eval.attacks = ("clean", *(f"{attack}{n}" for attack in ("pgd", "infofeature") for n in steps))
    return config
