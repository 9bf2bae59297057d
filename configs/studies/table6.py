"""Table 6: noise, and attacks crafted on Table 1's ResNet18 models, against Table 3's WideResNet-28-10 models.

Evaluates the runs of Table 3's study in place, so give its --workdir; Table 1's study must be in a sibling directory.
Expected (the paper; noise, Standard PGD10, CW10, Madry PGD10, CW10, in %):
  standard     92.1 / 35.8 / 30.1 / 82.4 / 81.1
  madry        88.7 / 88.6 / 88.4 / 75.3 / 74.6
  infofeature  89.8 / 89.8 / 88.3 / 76.6 / 75.2
At reduced scale, on Table 1's study with two seeds: crafted on the models of seed 1, against those of seed 0.

  python main.py --config=configs/studies/table6.py --workdir=runs/table3 --config.dtype=bfloat16 --mode=evaluate
  python main.py --config=configs/studies/table1.py:digits --config.study.seeds="(0,1)"  # first
  python main.py --config=configs/studies/table6.py:digits --workdir=runs/table1-digits --mode=evaluate
"""

from infofeat_jax.configs import cifar10_wrn
from infofeat_jax.configs.studies import scales

SOURCES = ("../table1/standard-seed0", "../table1/madry-seed0")


def get_config(scale: str | None = None):
    config = scales.get_config(scale) if scale else cifar10_wrn.get_config()
    sources = ("standard-seed1", "madry-seed1") if scale else SOURCES
    config.study.title = "Table 6: transfer attacks"
    config.study.paper = "" if scale else "table6"
    config.study.rows = ("standard", "madry", "infofeature")
    transferred = (f"{attack}@{source}" for source in sources for attack in ("pgd10", "cw10"))
    config.eval.attacks = ("clean", "noise", *transferred)
    return config
