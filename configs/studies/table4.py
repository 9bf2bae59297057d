"""Table 4: WideResNet-28-10 on CIFAR-100, the best of several models.

Expected (the paper; clean / FGSM / PGD7 / PGD20 / CW20, in %):
  standard                   76.8 /  0.1 /  0.0 /  0.0 /  0.0
  madry                      63.8 / 42.7 / 33.7 / 23.7 / 24.2
  feature_scatter            72.8 / 46.0 / 36.7 / 25.3 / 22.4
  adversarial_interpolation  70.3 / 44.7 / 33.9 / 28.2 / 19.2
  infofeature                63.0 / 44.9 / 34.4 / 28.6 / 26.6
The paper does not say how many models; 3 here.
Hardware: an accelerator; 15 runs, at most 18 hours of steps on one H200 in bfloat16.

  python main.py --config=configs/studies/table4.py --config.dtype=bfloat16
"""

from infofeat_jax.configs import cifar100_wrn


def get_config():
    config = cifar100_wrn.get_config()
    config.study.title = "Table 4: WRN-28-10 on CIFAR-100"
    config.study.paper = "table4"
    config.study.rows = ("standard", "madry", "feature_scatter", "adversarial_interpolation", "infofeature")
    config.study.seeds = (0, 1, 2)
    return config
