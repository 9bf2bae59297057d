"""Table 5: ResNet18 on SVHN, the best of several models.

Expected (the paper; clean / FGSM / PGD7 / PGD20 / CW20, in %):
  standard                   96.1 / 40.6 /  1.4 /  0.0 /  0.0
  madry                      91.9 / 80.4 / 71.8 / 43.1 / 45.4
  feature_scatter            94.5 / 89.1 / 71.5 / 52.8 / 49.0
  adversarial_interpolation  95.0 / 91.1 / 69.2 / 49.1 / 48.0
  infofeature                94.4 / 89.3 / 72.4 / 54.4 / 50.7
The paper does not say how many models; 3 here. Hardware: an accelerator.

  python main.py --config=configs/studies/table5.py --config.dtype=bfloat16
"""

from infofeat_jax.configs import svhn_resnet18


def get_config():
    config = svhn_resnet18.get_config()
    config.study.title = "Table 5: ResNet18 on SVHN"
    config.study.paper = "table5"
    config.study.rows = ("standard", "madry", "feature_scatter", "adversarial_interpolation", "infofeature")
    config.study.seeds = (0, 1, 2)
    return config
