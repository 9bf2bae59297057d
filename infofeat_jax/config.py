"""The configuration: its defaults, its checks, and which fields may change when a run is continued.

Only the outermost layer (cli, study, run, experiment, checks, weights, export) reads it; the rest takes plain values.
Budgets are in 8-bit levels here (epsilon = 8 means 8/255).
"""

import json
from collections.abc import Iterator, Mapping

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from infofeat_jax import config_checks, config_combinations, method_names
from infofeat_jax.types import InvalidInput

# Fields that do not affect the trained parameters: they may change when a run is continued. But not the attack by
# which its best checkpoint is chosen, whose accuracies compare with each other alone, nor that attack's steps.
JUDGE = ("eval.validation_attack", "eval.step_size")
FREE = (
    "eval.", "study.", "log_every", "max_loss", "skip_batches", "tensorboard", "checkpoint.",
    "data.data_dir", "data.note", "data.test_size", "data.in_memory", "remat",
)  # fmt: skip


def default() -> ConfigDict:
    """The paper's training on CIFAR-10 with ResNet18 (Section 4, Table 1)."""
    config = ConfigDict()
    config.seed = 0  # of the initial weights, the order of the examples, augmentation and random starts
    config.batch_size = 128  # over all devices; the paper does not state its own
    config.accumulate_steps = 1  # parts of a batch, processed in turn; BatchNorm and the attack see one part
    config.num_epochs = 120  # the paper: 120 with ResNet18, 200 with WRN-28-10
    config.dtype = "float32"  # of the computation: or bfloat16; parameters stay float32
    config.remat = False  # recompute the blocks' activations in the backward pass: less memory, more time
    # Weights to start from: a PyTorch checkpoint, which determines the model, or a run's directory
    config.init_from = ""
    config.parallel = "jit"  # whole-batch semantics on any number of devices; or pmap: per-device semantics
    config.max_loss = 1e4  # a larger or non-finite loss stops the run
    config.skip_batches = 0  # how many batches with such a loss may be skipped, resuming from the last checkpoint
    config.log_every = 20  # steps
    config.tensorboard = False  # also write TensorBoard event files; needs TensorFlow

    config.model = ConfigDict()
    config.model.name = "resnet18"  # resnet10, resnet18, preact_resnet18, wrn_D_W, or package.module:name
    config.model.width = 0  # channels of a ResNet's first stage, a WideResNet's stem; 0: the paper's, 64 and 16
    # relu or silu; "": relu, or for a file of weights what its authors used: silu for DeepMind's, relu for others
    config.model.activation = ""
    # Normalisation of [0, 1] pixels, (number,) or one per channel; (): 0.5, or that of a file of weights
    config.model.mean = ()
    config.model.std = ()  # as mean
    config.model.options = ConfigDict()  # further properties read from a file of weights: "blocks", "final_norm" ...

    config.data = ConfigDict()
    # digits, cifar10, cifar100, svhn_cropped; the path of an .npz, of a folder of images, or of one that TFDS has
    # prepared; or package.module:name
    config.data.name = "cifar10"
    config.data.data_dir = ""  # where TFDS finds prepared data; "": its default
    # Selects the held-out images, and those of train_size. Separate from `seed`, so that runs started from each other's
    # weights are validated on images that none of them was trained on. None: 0
    config.data.split_seed = placeholder(int)
    config.data.train_size = 0  # images to train on; 0: all but the validation images
    config.data.validation_size = 1000  # held out from the training images, for early stopping
    config.data.test_size = 0  # images of the test split to load; 0: all
    config.data.note = ""  # a remark on the data for reports, such as "JPEG re-encoding"
    # A second pool of training images, such as generated ones: an .npz with image and label, not compressed; "": none
    config.data.extra = ""
    config.data.extra_share = 0.0  # of each batch that comes from it, such as 0.7
    # Of images in a folder, or prepared by TFDS and given by its path: each one's largest square in the middle is
    # scaled to so many pixels a side; 0: as they are
    config.data.image_size = 0
    config.data.in_memory = True  # False: such images are decoded batch by batch, from their files
    config.data.crop_padding = 4  # augmentation: random crops of images padded by so many pixels; 0: none
    config.data.flip = True  # augmentation: random horizontal flips
    config.data.augment = "none"  # augmentation before these: none, or trivial (TrivialAugment, wide)
    config.data.mixup = 0.0  # MixUp with shares of Beta(mixup, mixup), such as 1.0; 0: none
    config.data.cutmix = 0.0  # CutMix with boxes of area Beta(cutmix, cutmix), such as 1.0; 0: none

    config.method = ConfigDict()
    # standard, madry, infofeature, alp, feature_matching, feature_scatter, adversarial_interpolation, bilateral,
    # trades, mart; or package.module:name
    config.method.name = "infofeature"
    config.method.weight = placeholder(float)  # lambda of the method; None: the paper's (InfoFeature: 0.1)
    config.method.label_smoothing = placeholder(float)  # None: the method's default, 0 for most methods
    config.method.variant = placeholder(str)  # for methods whose paper and code differ; None: the method's default
    config.method.distance = "l2"  # between class activation maps: l2, l1, cosine
    config.method.classes = "all"  # whose maps are compared: all, or the label's
    config.method.grad_align = placeholder(float)  # weight of GradAlign's penalty, such as 0.2; None: none

    config.attack = ConfigDict()  # the inner maximisation, and the threat model of the evaluation
    config.attack.norm = "linf"  # linf, l2, l1
    config.attack.epsilon = 8.0  # in 8-bit levels: 8 means 8/255
    config.attack.step_size = placeholder(float)  # None: a quarter of epsilon, or epsilon where there is one step
    config.attack.num_steps = placeholder(int)  # None: 7, or 1 for single-step methods
    # N-FGSM (de Jorge et al., 2022), in training alone: a single step of size epsilon from uniform noise of so many
    # epsilons, such as 2.0, not projected to the ball. 0: the method's own start and projection
    config.attack.noise = 0.0
    # Free-AT (Shafahi et al., 2019), in training alone: so many updates on each batch, 2 or more, the perturbation
    # moving by step_size after each. num_epochs counts passes through the data, of so many updates. 0: no replays
    config.attack.replays = 0
    # in training alone, epsilon and step_size grow linearly over the first epochs
    config.attack.ramp_epochs = 0.0
    config.attack.batch_norm = "running"  # statistics that the attack in training sees: running, or batch

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # sgd, adam, adamw, muon; or package.module:name
    config.optimizer.schedule = "piecewise"  # piecewise (constant), cosine, onecycle, cyclic; package.module:name
    config.optimizer.learning_rate = 0.1  # the largest of the schedule; with scaling, that for batches of 128
    # Of the learning rate with the batch size, relative to 128: none, linear (for SGD) or sqrt (for Adam and AdamW)
    config.optimizer.scaling = "none"
    config.optimizer.warmup_epochs = 0.0  # in which the learning rate grows linearly from 0
    config.optimizer.momentum = 0.9  # Adam, AdamW: beta_1
    config.optimizer.nesterov = False  # Nesterov's momentum
    config.optimizer.weight_decay = 2e-4  # AdamW, Muon: decoupled
    config.optimizer.decay_norm = True  # whether BatchNorm's scales and biases decay, as all other parameters do
    config.optimizer.milestones = (60.0, 90.0)  # of piecewise: epochs at which the rate is multiplied by decay
    config.optimizer.decay = 0.1  # of piecewise: the factor at each milestone

    config.ema = ConfigDict()  # exponential moving average of the weights: the model that is validated and evaluated
    config.ema.decay = 0.0  # such as 0.999; in step n (from 0) at most (1 + n) / (10 + n). 0: no average

    config.swa = ConfigDict()  # equal average of the weights (SWA), validated and evaluated with statistics of its own
    config.swa.start_epoch = 0.0  # the epoch from which the weights after each step count; 0: no average

    config.awp = ConfigDict()  # adversarial weight perturbation (Wu et al., 2020)
    config.awp.gamma = 0.0  # its size relative to the weights, such as 0.01, for TRADES 0.005; 0: none
    config.awp.warmup_epochs = 0.0  # the first epochs, without: 10 for TRADES in the authors' code

    config.eval = ConfigDict()
    # clean, fgsm, noise, pgdN, cwN, infofeatureN, klN, autoattack, or a stage of it such as square; with options:
    # pgd20(step_size=1); package.module:name; pgd10@RUN: crafted on the model of the sibling run RUN
    config.eval.attacks = ("clean", "fgsm", "pgd7", "pgd20", "cw20", "autoattack")
    config.eval.distances = ()  # iterative attacks (cw5) whose perturbations are compared with PGD's (Table 2)
    config.eval.evaluators = ()  # package.module:name, functions of one's own that give each test image a value
    config.eval.cam_images = 8  # test images whose class activation maps are saved for the report
    # With --mode=evaluate: evaluates this file, or a run's directory, instead of the run's checkpoint
    config.eval.torch_checkpoint = ""
    config.eval.step_size = placeholder(float)  # of iterative attacks; None: a quarter of epsilon
    config.eval.batch_size = 250  # over all devices
    config.eval.num_examples = 0  # the first n test images; 0: all
    # best on validation images (early stopping: by robust accuracy; standard training: clean accuracy), latest, or both
    config.eval.checkpoint = "best"
    config.eval.live_weights = False  # with ema or swa: evaluates the weights that training updates beside the average
    config.eval.validation_attack = "pgd7"  # the attack whose accuracy decides early stopping
    config.eval.validate_every = 1  # epochs; only an epoch that is validated can be the best, or have a checkpoint
    config.eval.autoattack_examples = 1000  # the first n test images for the costly AutoAttack; 0: as num_examples
    config.eval.probe_examples = 32  # the first n test images for the probes behind "flags"; 0: none

    config.study = ConfigDict()  # several runs with one command
    config.study.rows = ()  # "madry", or "LABEL: method.name=madry optimizer.weight_decay=5e-4"; (): a single run
    config.study.seeds = (0,)  # each row is run with each seed
    config.study.title = ""  # title of the report
    config.study.paper = ""  # the paper's table to compare with: table1, table3, table4, table5, table6

    config.checkpoint = ConfigDict()
    config.checkpoint.keep = 2  # newest checkpoints, besides the best
    # A checkpoint is written at the end of the first epoch after that many minutes since the one before, and at the
    # end of training: longer epochs have one each, a kill costs these minutes and an epoch. 0: after every epoch
    config.checkpoint.every_minutes = 1.0
    return config


def for_method(config: ConfigDict, method: str | None) -> ConfigDict:
    """Applies the METHOD of --config=FILE.py:METHOD."""
    if method:
        config.method.name = method
    return config


def resolve(config: ConfigDict) -> ConfigDict:
    """A checked copy with every default that depends on the method filled in. Raises InvalidInput."""
    config_checks.check_types(config, default())
    config = ConfigDict(config.to_dict())
    attack = config.attack
    num_steps, step_size = method_names.steps(
        config.method.name, attack.epsilon, attack.num_steps, attack.step_size,
        single=attack.noise > 0 or attack.replays > 0,
    )  # fmt: skip
    _fill(attack, "num_steps", num_steps)
    _fill(attack, "step_size", step_size)
    _fill(config.eval, "step_size", config.attack.epsilon / 4)
    _fill(config.data, "split_seed", 0)
    config_checks.check_ranges(config)
    config_combinations.check(dict(flatten(config.to_dict())))
    return config


def flatten(config: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yields ("model.name", value) pairs."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value


def to_json(config: ConfigDict) -> str:
    """The whole configuration, readable and comparable."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def complete(saved: object, defaults: Mapping | None = None) -> dict:
    """A saved configuration, with defaults for newer fields, which keep the old behaviour. Raises InvalidInput."""
    if not isinstance(saved, Mapping):
        raise InvalidInput(f"a saved configuration has {str(saved)[:80]!r} where fields and values are expected")
    if defaults is None:
        defaults, saved = default().to_dict(), _migrate(saved)
    inner = {
        name: complete(saved.get(name, {}), value) for name, value in defaults.items() if isinstance(value, Mapping)
    }
    return {**defaults, **saved, **inner}


def _migrate(saved: Mapping) -> Mapping:
    """A saved configuration with the current field names, and the split seed that it implies."""
    moved = dict(saved)
    if isinstance(measured := saved.get("eval"), Mapping) and "pictures" in measured:
        moved["eval"] = {"cam_images" if name == "pictures" else name: value for name, value in measured.items()}
    if isinstance(data := saved.get("data", {}), Mapping) and "seed" in saved:
        moved["data"] = {"split_seed": saved["seed"], **data}  # the run's seed drew the split until this field did
    return moved


def check_same(old: object, new: ConfigDict, where: str, free: tuple[str, ...] = ()) -> None:
    """Raises InvalidInput naming the fields, except FREE and `free`, in which `new` would alter the run in `where`."""
    old, new = dict(flatten(complete(old))), dict(flatten(new.to_dict()))
    changed = [
        f"{name}: {old.get(name, 'absent')!r} there, {new.get(name, 'absent')!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith((*free, *(FREE if name not in JUDGE else ())))
    ]
    if changed:
        raise InvalidInput(
            f"{where} holds a run with another configuration ({'; '.join(changed)}):"
            " repeat its settings to continue it, or give another --workdir"
        )


def _fill(config: ConfigDict, field: str, value: float | int) -> None:
    if config[field] is None:
        config[field] = value
