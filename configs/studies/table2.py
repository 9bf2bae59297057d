"""Table 2: distances of other attacks' perturbations from PGD's, on the standard and the Madry model.

Evaluates the runs of Table 1's study in place, so give its --workdir, and repeat its settings, such as --config.dtype
and --config.data.name. The paper's values (x 1e-5, normalisation not stated) on the standard model: 1 iteration:
feature_scatter 2.1, adversarial_interpolation 2.0, cw 2.8, infofeature 2.0; cw / infofeature at 2, 5, 7, 10, 20:
1.8/2.2, 1.6/1.9, 1.5/2.0, 1.5/2.0, 1.6/2.1; on Madry's: 2.1, 2.0, 2.8, 2.0; 1.8/2.7, 1.6/2.7, 1.8/2.8, 2.0/2.8,
2.1/2.8. Ours are means of Euclidean norms in [0, 1] pixel units.

  python main.py --config=configs/studies/table2.py --workdir=runs/table1 --mode=evaluate
  python main.py --config=configs/studies/table2.py:digits --workdir=runs/table1-digits --mode=evaluate
"""

from infofeat_jax.configs.studies import scales


def get_config(scale: str | None = None):
    config = scales.get_config(scale)
    config.study.title = "Table 2: distance to PGD's perturbation"
    config.study.rows = ("standard", "madry")
    config.eval.attacks = ("clean", "pgd20")
    config.eval.distances = (
        "feature_scatter1", "adversarial_interpolation1", "cw1", "infofeature1",
        *(f"{attack}{steps}" for steps in (2, 5, 7, 10, 20) for attack in ("cw", "infofeature")),
    )  # fmt: skip
    return config
