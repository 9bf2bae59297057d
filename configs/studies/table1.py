"""Table 1: the seven methods with ResNet18 on CIFAR-10; also gives Figure 3 (validation accuracy over epochs).

Expected (the paper; clean / FGSM / PGD7 / PGD20 / CW20, in %):
  standard                   94.7 / 30.7 /  1.8 /  0.0 /  0.0
  madry                      85.6 / 68.6 / 56.1 / 40.3 / 41.5
  alp                        85.7 / 67.6 / 56.3 / 41.3 / 43.0
  feature_matching           85.6 / 68.7 / 58.0 / 42.9 / 44.2
  feature_scatter            89.5 / 69.8 / 61.0 / 50.2 / 44.2
  adversarial_interpolation  90.0 / 70.4 / 61.0 / 47.5 / 44.1
  infofeature                85.1 / 69.3 / 61.3 / 49.3 / 48.0
Hardware: an accelerator. At reduced scale (width 16, 20,000 images, 8 epochs) 2 CPU cores, about two and a half hours;
on the handwritten digits, about ten minutes.

  python main.py --config=configs/studies/table1.py
  python main.py --config=configs/studies/table1.py:small --config.data.data_dir=TFDS_DIRECTORY
  python main.py --config=configs/studies/table1.py:digits
"""

from infofeat_jax.configs.studies import scales


def get_config(scale: str | None = None):
    config = scales.get_config(scale)
    config.study.title = "Table 1: ResNet18 on CIFAR-10" if scale != "digits" else "Table 1's methods on digits"
    config.study.paper = "table1" if scale != "digits" else ""
    config.study.rows = (
        "standard", "madry", "alp", "feature_matching", "feature_scatter", "adversarial_interpolation", "infofeature",
    )  # fmt: skip
    return config
