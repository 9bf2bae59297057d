"""Table 3: WideResNet-28-10 on CIFAR-10, several restarts; their best and worst by PGD20.

Expected (the paper; clean / FGSM / PGD7 / PGD20 / CW20, in %):
  standard                   95.8 / 42.1 /  3.1 /  0.0 /  0.0
  madry                      88.7 / 70.8 / 59.5 / 45.0 / 45.7
  feature_scatter            92.8 / 88.9 / 66.8 / 55.0 / 54.9   worst 90.3 / 71.4 / 59.1 / 44.4 / 44.5
  adversarial_interpolation  90.6 / 75.1 / 71.6 / 67.5 / 61.4   worst 88.1 / 66.8 / 58.2 / 48.4 / 49.1
  infofeature                90.6 / 73.0 / 64.8 / 50.0 / 49.5   worst 89.9 / 72.6 / 61.6 / 48.5 / 49.2
The paper does not say how many restarts; 5 here.
Hardware: an accelerator; 25 runs, at most 29 hours of steps on one H200 in bfloat16.

  python main.py --config=configs/studies/table3.py --config.dtype=bfloat16
"""

from infofeat_jax.configs import cifar10_wrn


def get_config():
    config = cifar10_wrn.get_config()
    config.study.title = "Table 3: WRN-28-10 on CIFAR-10"
    config.study.paper = "table3"
    config.study.rows = ("standard", "madry", "feature_scatter", "adversarial_interpolation", "infofeature")
    config.study.seeds = (0, 1, 2, 3, 4)
    return config
