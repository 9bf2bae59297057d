"""The values of the paper's tables, and how a run's setting deviates from the paper's.

Yan & Yeung, "Improving Adversarial Training with Informative Feature-based Attack", Tables 1 to 6; accuracy in %.
"""

from collections.abc import Mapping
from typing import NamedTuple

from infofeat_jax import config as configs

WHITE_BOX = ("clean", "fgsm", "pgd7", "pgd20", "cw20")
TRANSFERRED = ("noise", "pgd10@standard", "cw10@standard", "pgd10@madry", "cw10@madry")
# Table 2, x 1e-5, of an unstated normalisation: L2 distance to the PGD perturbation of as many iterations.
DISTANCES = {
    "standard": {
        "feature_scatter1": 2.1, "adversarial_interpolation1": 2.0, "cw1": 2.8, "infofeature1": 2.0,
        "cw2": 1.8, "infofeature2": 2.2, "cw5": 1.6, "infofeature5": 1.9, "cw7": 1.5, "infofeature7": 2.0,
        "cw10": 1.5, "infofeature10": 2.0, "cw20": 1.6, "infofeature20": 2.1,
    },
    "madry": {
        "feature_scatter1": 2.1, "adversarial_interpolation1": 2.0, "cw1": 2.8, "infofeature1": 2.0,
        "cw2": 1.8, "infofeature2": 2.7, "cw5": 1.6, "infofeature5": 2.7, "cw7": 1.8, "infofeature7": 2.8,
        "cw10": 2.0, "infofeature10": 2.8, "cw20": 2.1, "infofeature20": 2.8,
    },
}  # fmt: skip
# How the paper writes the methods.
NAMES = {
    "standard": "Standard", "madry": "Madry", "alp": "ALP", "feature_matching": "FM", "feature_scatter": "FeaScatter",
    "adversarial_interpolation": "AdvInterp", "infofeature": "InfoFeature",
}  # fmt: skip
# The paper's weights (lambda), and the attacks that its training takes 7 steps of.
WEIGHTS = {"alp": 0.1, "feature_matching": 10.0, "infofeature": 0.1}
SEVEN_STEPS = ("madry", "alp", "feature_matching", "infofeature")


class PaperTable(NamedTuple):
    """A table of the paper. `rows`: {method: {"mean", "best" or "worst" restart: values as `columns` order them}}."""

    title: str
    setting: Mapping[str, object]
    rows: Mapping[str, Mapping[str, tuple[float, ...]]]
    columns: tuple[str, ...] = WHITE_BOX


# What the paper does without, as did runs of versions that lacked these fields.
WITHOUT = {
    "optimizer.name": "sgd", "optimizer.schedule": "piecewise", "optimizer.scaling": "none",
    "optimizer.warmup_epochs": 0.0, "optimizer.nesterov": False, "optimizer.decay_norm": True, "ema.decay": 0.0,
    "swa.start_epoch": 0.0, "awp.gamma": 0.0, "attack.ramp_epochs": 0.0, "attack.batch_norm": "running",
    "attack.noise": 0.0, "attack.replays": 0, "data.image_size": 0,
    "model.activation": "relu", "data.augment": "none", "method.grad_align": None,
    "data.extra": "", "data.mixup": 0.0, "data.cutmix": 0.0,
}  # fmt: skip
CIFAR10 = {
    "data.name": "cifar10", "model.name": "resnet18", "num_epochs": 120, "attack.norm": "linf", "attack.epsilon": 8.0,
    "eval.step_size": 2.0, "optimizer.learning_rate": 0.1, "optimizer.momentum": 0.9, "optimizer.weight_decay": 2e-4,
    "optimizer.milestones": [60.0, 90.0], "optimizer.decay": 0.1, "data.crop_padding": 4, "data.flip": True,
    **WITHOUT,
}  # fmt: skip
WIDE = {"model.name": "wrn_28_10", "num_epochs": 200, "method.label_smoothing": 0.5}
SVHN = {"data.name": "svhn_cropped", "data.flip": False, "optimizer.learning_rate": 0.01}

TABLES = {
    "table1": PaperTable(
        "Table 1: CIFAR-10, ResNet18",
        CIFAR10,
        {
            "standard": {"mean": (94.7, 30.7, 1.8, 0.0, 0.0)},
            "madry": {"mean": (85.6, 68.6, 56.1, 40.3, 41.5)},
            "alp": {"mean": (85.7, 67.6, 56.3, 41.3, 43.0)},
            "feature_matching": {"mean": (85.6, 68.7, 58.0, 42.9, 44.2)},
            "feature_scatter": {"mean": (89.5, 69.8, 61.0, 50.2, 44.2)},
            "adversarial_interpolation": {"mean": (90.0, 70.4, 61.0, 47.5, 44.1)},
            "infofeature": {"mean": (85.1, 69.3, 61.3, 49.3, 48.0)},
        },
    ),
    "table3": PaperTable(
        "Table 3: CIFAR-10, WRN-28-10, best and worst restart",
        CIFAR10 | WIDE,
        {
            "standard": {"mean": (95.8, 42.1, 3.1, 0.0, 0.0)},
            "madry": {"mean": (88.7, 70.8, 59.5, 45.0, 45.7)},
            "feature_scatter": {"best": (92.8, 88.9, 66.8, 55.0, 54.9), "worst": (90.3, 71.4, 59.1, 44.4, 44.5)},
            "adversarial_interpolation": {
                "best": (90.6, 75.1, 71.6, 67.5, 61.4),
                "worst": (88.1, 66.8, 58.2, 48.4, 49.1),
            },
            "infofeature": {"best": (90.6, 73.0, 64.8, 50.0, 49.5), "worst": (89.9, 72.6, 61.6, 48.5, 49.2)},
        },
    ),
    "table4": PaperTable(
        "Table 4: CIFAR-100, WRN-28-10, best models",
        CIFAR10 | WIDE | {"data.name": "cifar100"},
        {
            "standard": {"best": (76.8, 0.1, 0.0, 0.0, 0.0)},
            "madry": {"best": (63.8, 42.7, 33.7, 23.7, 24.2)},
            "feature_scatter": {"best": (72.8, 46.0, 36.7, 25.3, 22.4)},
            "adversarial_interpolation": {"best": (70.3, 44.7, 33.9, 28.2, 19.2)},
            "infofeature": {"best": (63.0, 44.9, 34.4, 28.6, 26.6)},
        },
    ),
    "table5": PaperTable(
        "Table 5: SVHN, ResNet18, best models",
        CIFAR10 | SVHN | {"method.label_smoothing": 0.5},
        {
            "standard": {"best": (96.1, 40.6, 1.4, 0.0, 0.0)},
            "madry": {"best": (91.9, 80.4, 71.8, 43.1, 45.4)},
            "feature_scatter": {"best": (94.5, 89.1, 71.5, 52.8, 49.0)},
            "adversarial_interpolation": {"best": (95.0, 91.1, 69.2, 49.1, 48.0)},
            "infofeature": {"best": (94.4, 89.3, 72.4, 54.4, 50.7)},
        },
    ),
    "table6": PaperTable(
        "Table 6: CIFAR-10, attacks transferred from ResNet18 to WRN-28-10",
        CIFAR10 | WIDE,
        {
            "standard": {"mean": (92.1, 35.8, 30.1, 82.4, 81.1)},
            "madry": {"mean": (88.7, 88.6, 88.4, 75.3, 74.6)},
            "infofeature": {"mean": (89.8, 89.8, 88.3, 76.6, 75.2)},
        },
        TRANSFERRED,
    ),
}  # fmt: skip

# Images for training and for testing of a data set, and channels that width 0 stands for.
SIZES = {"cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000), "svhn_cropped": (73_257, 26_032)}
WIDTHS = {"resnet18": 64, "wrn_28_10": 16}
# A result from a setting that differs in one of these says little about the paper's.
SCALE = ("data.name", "model.name", "model.width", "training images", "num_epochs", "test images")


class Deviation(NamedTuple):
    """One respect in which a run's setting is not the paper's."""

    field: str
    own: str
    paper: str

    def __str__(self) -> str:
        return f"{self.field} {self.own} (paper: {self.paper})" if self.paper else f"{self.field}: {self.own}"


def find_deviations(config: Mapping, num_examples: int, table: PaperTable) -> list[Deviation]:
    """How the setting of a run, evaluated on `num_examples` test images, differs from what the paper states."""
    own, expected = WITHOUT | dict(configs.flatten(config)), dict(table.setting)
    method, (train, test) = config["method"]["name"], SIZES[str(table.setting["data.name"])]
    expected |= {"model.width": WIDTHS[str(table.setting["model.name"])], "training images": train, "test images": test}
    own["model.width"] = own["model.width"] or expected["model.width"]
    own["model.activation"] = own["model.activation"] or expected["model.activation"]
    own |= {"training images": own["data.train_size"] or train, "test images": num_examples}
    if method != "infofeature":  # for the others the paper does not state the label smoothing
        expected.pop("method.label_smoothing", None)
    if method in SEVEN_STEPS:
        expected |= {"attack.num_steps": 7, "attack.step_size": 2.0}
    if own.get("method.weight") is not None and method in WEIGHTS:
        expected["method.weight"] = WEIGHTS[method]
    found = [
        Deviation(name, _text(own.get(name, "not recorded")), _text(value))
        for name, value in expected.items()
        if own.get(name) != value
    ]
    if note := own.get("data.note"):
        found.append(Deviation("data", str(note), ""))
    return sorted(found, key=lambda deviation: deviation.field not in SCALE)


def kind(deviations: list[Deviation]) -> str:
    """How to name the setting beside the paper's: "reduced setting", "other setting", "" for the paper's own."""
    if any(deviation.field.rpartition(": ")[2] in SCALE for deviation in deviations):  # "SOURCE: num_epochs"
        return "reduced setting"
    return "other setting" if deviations else ""


def _text(value: object) -> str:
    if isinstance(value, list):
        return "/".join(_text(item) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
