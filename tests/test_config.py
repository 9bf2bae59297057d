"""The configuration: its defaults, the meaning of earlier files, and one-line errors for any value of any field."""

import json
import pathlib
import tempfile
import warnings
from contextlib import suppress

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict, config_flags
from small import tiny_model

from infofeat_jax import checks, cli, command, config_checks, data, models, study, weights
from infofeat_jax import config as configs
from infofeat_jax.types import InvalidInput, RunFailed

__all__ = ["tiny_model"]
ROOT = pathlib.Path(__file__).parent.parent


MADRY = {"name": "madry"}


def changed(**fields) -> ConfigDict:
    """The default configuration with FIELD=value or GROUP={FIELD: value}, whatever the types."""
    config = configs.default()
    with config.ignore_type():
        for name, value in fields.items():
            for inner, one in value.items() if isinstance(value, dict) else [(None, value)]:
                (config if inner is None else config[name])[inner or name] = one
    return config


def parse(*arguments: str) -> ConfigDict:
    """The configuration that main.py's flags parse from the command line."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=list(arguments))
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of ml_collections' own
        command.parse_flags(values, ["main.py", *arguments])
    return values["config"].value


def refused(call, *args, **kwargs) -> str:
    with pytest.raises(InvalidInput) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert text.isprintable()
    return text


# Defaults that depend on other fields


def test_steps_of_the_evaluation_follow_epsilon_unless_given():
    def step(**fields):
        return configs.resolve(changed(**fields)).eval.step_size

    assert step() == 2.0
    assert step(attack={"epsilon": 128.0, "norm": "l2"}) == 32.0
    assert step(attack={"epsilon": 128.0}, eval={"step_size": 3.0}) == 3.0
    assert configs.resolve(parse(f"--config={ROOT}/configs/digits.py")).eval.step_size == 12.0


def test_the_split_does_not_follow_the_seed():
    assert configs.resolve(changed(seed=5)).data.split_seed == 0
    assert configs.resolve(changed(seed=5, data={"split_seed": 2})).data.split_seed == 2
    seeds = study.plan(changed(study={"rows": ("madry",), "seeds": (3, 4)}))
    assert [run.config.data.split_seed for run in seeds] == [0, 0]


# Files of earlier versions


def earlier(seed: int = 0) -> dict:
    """A configuration as it was saved before data.split_seed, eval.cam_images and the optimizer's name existed."""
    saved = configs.resolve(changed(seed=seed)).to_dict()
    for name in ("name", "schedule", "nesterov"):
        del saved["optimizer"][name]
    del saved["data"]["split_seed"]
    saved["eval"]["pictures"] = saved["eval"].pop("cam_images")
    return json.loads(json.dumps(saved))


def test_earlier_configurations_mean_what_they_meant(tmp_path):
    completed = configs.complete(earlier(seed=3) | {"eval": {"pictures": 5}})
    assert completed["data"]["split_seed"] == 3  # the seed drew the split
    assert completed["eval"]["cam_images"] == 5
    assert "pictures" not in completed["eval"]
    config = configs.resolve(configs.default())
    assert json.loads(json.dumps(configs.complete(earlier()))) == json.loads(configs.to_json(config))
    (tmp_path / "config.json").write_text(json.dumps(earlier(seed=3)))
    (tmp_path / "checkpoints" / "100").mkdir(parents=True)
    checks.check_continues(tmp_path, configs.resolve(changed(seed=3, data={"split_seed": 3})), "train")
    text = refused(checks.check_continues, tmp_path, configs.resolve(changed(seed=3)), "train")
    assert "data.split_seed: 3 there, 0 now" in text


@pytest.mark.parametrize(
    ("there", "now", "message"),
    [
        ({"split_seed": 2}, {"split_seed": 2}, ""),
        ({"split_seed": 2}, {}, "give config.data.split_seed=2, as it had, not 0"),
        ({}, {"validation_size": 2000}, "give config.data.validation_size=1000 or less, as it had, not 2000"),
        ({}, {"validation_size": 500}, ""),  # the first half of the same images
        ({"split_seed": 2}, {"name": "cifar100"}, ""),
    ],
)
def test_images_that_the_first_run_trained_on_do_not_validate_the_second(tmp_path, there, now, message):
    (tmp_path / "config.json").write_text(configs.to_json(configs.resolve(changed(data=there))))
    config = configs.resolve(changed(init_from=str(tmp_path), seed=7, data=now))
    if message:
        text = refused(checks.check_split, config)
        assert message in text
        assert text == refused(cli.check, config, tmp_path / "second", "train")
    else:
        checks.check_split(config)


def test_nor_by_way_of_a_directory_that_the_run_was_converted_to(tmp_path):
    stored = configs.resolve(changed(data={"split_seed": 2})).to_dict()
    for name, values in (
        ("run", stored),
        ("converted", stored | {"num_epochs": 0, "init_from": str(tmp_path / "run")}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values))
    config = configs.resolve(changed(init_from=str(tmp_path / "converted")))
    assert "give config.data.split_seed=2, as it had, not 0" in refused(checks.check_split, config)


def test_held_out_images_of_a_training_that_got_nowhere_bind_nobody(tmp_path):
    (tmp_path / "config.json").write_text(configs.to_json(configs.resolve(changed(data={"split_seed": 2}))))
    for seed in (0, 2):
        assert weights.adopt(configs.resolve(changed()), tmp_path).data.split_seed == seed
        (tmp_path / "checkpoints" / "100").mkdir(parents=True, exist_ok=True)


def test_nor_by_way_of_a_run_on_other_data(tmp_path):
    for name, values in (
        ("first", {"data": {"split_seed": 2}}),
        ("second", {"data": {"name": "cifar100"}, "init_from": str(tmp_path / "first")}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(configs.to_json(configs.resolve(changed(**values))))
    config = configs.resolve(changed(init_from=str(tmp_path / "second")))
    assert "give config.data.split_seed=2, as it had, not 0" in refused(checks.check_split, config)


def test_weights_that_no_run_of_ours_trained_have_no_split(tmp_path):
    converted = configs.resolve(changed(data={"split_seed": 2})).to_dict() | {"num_epochs": 0}
    (tmp_path / "config.json").write_text(json.dumps(converted))
    checks.check_split(configs.resolve(changed(init_from=str(tmp_path))))
    checks.check_split(configs.resolve(changed(init_from=str(tmp_path / "robust.pt"))))


# Mistakes


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("nosuch=1", "config.nosuch: no such field; the nearest are config."),
        ("flip=False", "config.flip: no such field; the nearest are config.data.flip, "),
        ("optimizer.momentun=1", "the nearest are config.optimizer.momentum, "),
        ("model.options.blocks=(1,)", "no such field; the nearest are config.model.options, "),
        ("seed=9223372036854775808", "config.seed = 9223372036854775808: expected 0 to 4294967295"),
        ("seed=4294967296", "config.seed = 4294967296: expected 0 to 4294967295"),
        ("eval.attacks=(3,)", "config.eval.attacks = (3,): expected texts, such as ('pgd20',)"),
        ("eval.distances=(1,)", "config.eval.distances = (1,): expected texts"),
        ("study.rows=5", "config.study.rows = (5,): expected texts"),
        ("study.seeds=('a',)", "config.study.seeds = ('a',): expected integers, such as (0, 1)"),
        ("study.seeds=(-1,)", "config.study.seeds = (-1,): expected integers, 0 to 4294967295"),
        ("optimizer.milestones=('a',)", "config.optimizer.milestones = ('a',): expected numbers, such as (0.5,)"),
        ("optimizer.milestones=(1e400,)", "config.optimizer.milestones = (inf,): expected increasing epochs above 0"),
        ("ema.decay=1.0", "config.ema.decay = 1.0: expected at least 0 (no average) and below 1"),
        ("ema.decay=nan", "config.ema.decay = nan: expected at least 0 (no average) and below 1"),
        ("awp.gamma=-0.01", "config.awp.gamma = -0.01: expected 0 to 1"),
        ("awp.warmup_epochs=-1.0", "config.awp.warmup_epochs = -1.0: expected 0 to 1000000"),
        ("optimizer.decay_norm=2", "decay_norm"),
        ("swa.start_epoch=-1.0", "config.swa.start_epoch = -1.0: expected 0 to 1000000"),
        ("data.mixup=nan", "config.data.mixup = nan: expected 0 (none) or more"),
        ("data.cutmix=-1.0", "config.data.cutmix = -1.0: expected 0 (none) or more"),
        ("attack.ramp_epochs=-1.0", "config.attack.ramp_epochs = -1.0: expected 0 to 1000000"),
        ("data.extra_share=1.0", "config.data.extra_share = 1.0: expected at least 0 and below 1"),
        ("attack.noise=inf", "config.attack.noise = inf: expected 0 (none) or more epsilons"),
        ("method.grad_align=-1.0", "config.method.grad_align = -1.0: expected 0 to 1000000"),
        ("attack.batch_norm=live", "config.attack.batch_norm = 'live': expected running or batch"),
        ("optimizer.milestones=(3,2)", "config.optimizer.milestones = (3, 2): expected increasing epochs above 0"),
        ("model.width=1000000000", "config.model: resnet18 of width 1000000000 has 2.72e+21 parameters, which take "),
        ("model.name=wrn_100000_1", "a WideResNet's depth is 10, 16, 22, 28, ... up to 1000"),
        (
            "model.options={'blocks':(9,387420489)}",
            "model option blocks = (9, 387420489): expected how many each stage has",
        ),
        ("model.mean=('a',)", "config.model.mean = ('a',): expected numbers"),
        ("model.std=(0.0,)", "config.model.std = (0.0,): expected finite numbers above 0"),
        ("model.std=(-1.0,)", "config.model.std = (-1.0,): expected finite numbers above 0"),
        ("model.std=(1e400,)", "config.model.std = (inf,): expected finite numbers above 0"),
        ("attack.step_size=fast", "flag --config.attack.step_size=fast: could not convert"),
        ("attack.step_size=nan", "config.attack.step_size = nan: expected 0 or more 8-bit levels"),
        ("attack.replays=1", "config.attack.replays = 1: expected 0 (none), or 2 to 1000000"),
        ("attack.num_steps=3000000000", "config.attack.num_steps = 3000000000: expected 0 to 1000000"),
        ("eval.batch_size=10000000000", "config.eval.batch_size = 10000000000: expected 1 to 1048576"),
        ("method.weight=inf", "config.method.weight = inf: expected 0 to 1000000"),
        ("method.distance=l3", "config.method.distance = 'l3': expected l2, l1 or cosine"),
        ("data.note=a\nb", "config.data.note = 'a\\nb': expected one line of printable characters"),
        (f"data.name={'a' * 300}.npz", "expected a name of at most 255 bytes"),
        (f"eval.attacks=pgd7@{'a' * 300}", "expected a name of at most 255 bytes"),
        ("study.rows='x: optimizer.momentun=1'", "the nearest are config.optimizer.momentum, "),
        (f"study.rows='x: model.name={'(' * 900}'", "config.model.name = '((((("),
    ],
)
def test_mistakes_in_flags(flag, message, tmp_path):
    def run():
        config = parse(f"--config={ROOT}/configs/cifar10_resnet18.py", f"--config.{flag}")
        for one in [run.config for run in study.plan(config)] if config.study.rows else [configs.resolve(config)]:
            cli.check(one, tmp_path / "run", "train")

    assert message in refused(run)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": True}, "config.batch_size = True: expected an integer"),
        ({"attack": {"step_size": "2"}}, "config.attack.step_size = '2': expected a number"),
        ({"method": {"variant": 3}}, "config.method.variant = 3: expected text"),
        ({"eval": {"attacks": "clean"}}, "config.eval.attacks = 'clean': expected texts"),
        ({"eval": 3}, "config.eval: no such field"),
        (
            {"optimizer": {"momentun": 0.5}},
            "config.optimizer.momentun: no such field; the nearest are config.optimizer.",
        ),
        ({"data": {"flip": None}}, "config.data.flip = None: expected True or False"),
    ],
)
def test_mistakes_in_files(fields, message):
    assert message in refused(configs.resolve, changed(**fields))


def test_a_field_that_is_gone_is_missing():
    config = configs.default()
    del config.eval.attacks
    assert refused(configs.resolve, config) == "config.eval.attacks is missing: expected texts, such as ('pgd20',)"


def test_every_field_has_a_test_of_its_range_or_is_free():
    names = {name for name, _ in configs.flatten(configs.default().to_dict())}
    checked_elsewhere = {
        "model.name", "method.name", "method.variant", "optimizer.name", "optimizer.schedule", "data.name",
        "eval.attacks", "eval.distances", "eval.evaluators", "eval.validation_attack", "data.extra", "study.rows",
        "init_from", "eval.torch_checkpoint",
    }  # fmt: skip
    free = {
        "remat", "data.data_dir", "data.in_memory", "data.note", "data.flip", "optimizer.nesterov",
        "optimizer.decay_norm", "eval.live_weights", "study.title", "study.paper", "tensorboard",
    }  # fmt: skip
    assert names == set(config_checks.RULES) | checked_elsewhere | free
    assert set(config_checks.ELEMENTS) <= names


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"awp": {"warmup_epochs": 5.0}}, "awp.warmup_epochs = 5.0 with config.awp.gamma = 0.0: there is no perturb"),
        (
            {"awp": {"warmup_epochs": 8.0, "gamma": 0.01}, "num_epochs": 8},
            "awp.warmup_epochs = 8.0 with config.num_epochs = 8: no epoch would be left",
        ),
        (
            {"optimizer": {"warmup_epochs": 1.0, "schedule": "onecycle"}},
            "optimizer.warmup_epochs = 1.0 with config.optimizer.schedule = 'onecycle': this schedule has a warm-up",
        ),
        ({"optimizer": {"warmup_epochs": 1.0, "schedule": "cyclic"}}, "this schedule has a warm-up of its own"),
        ({"optimizer": {"warmup_epochs": 9.0}, "num_epochs": 8}, "the learning rate would never be reached"),
        ({"optimizer": {"nesterov": True, "momentum": 0.0}}, "there is no momentum to look ahead along"),
        ({"optimizer": {"decay_norm": False, "weight_decay": 0.0}}, "nothing decays"),
        ({"swa": {"start_epoch": 2.0}, "ema": {"decay": 0.9}}, "with config.ema.decay = 0.9: there is one average"),
        ({"swa": {"start_epoch": 8.0}, "num_epochs": 8}, "no weights would be left to average"),
        ({"attack": {"ramp_epochs": 9.0}, "num_epochs": 8}, "epsilon would never be reached"),
        ({"attack": {"ramp_epochs": 1.0}, "method": {"name": "standard"}}, "there is no attack in training"),
        ({"attack": {"batch_norm": "batch"}, "method": {"name": "standard"}}, "there is no attack in training"),
        ({"attack": {"noise": 2.0}, "method": {"name": "trades"}}, "its attack has a start of its own"),
        ({"attack": {"noise": 2.0}, "method": {"name": "standard"}}, "or there is none"),
        ({"attack": {"noise": 2.0, "num_steps": 7}}, "attack.noise = 2.0 with config.attack.num_steps = 7: a single"),
        ({"attack": {"replays": 8}, "method": {"name": "infofeature"}}, "the gradient of its update is not"),
        ({"attack": {"replays": 8, "num_steps": 7}, "method": MADRY}, "there is one step between two updates"),
        ({"attack": {"replays": 8, "noise": 2.0}, "method": MADRY}, "a batch's perturbation starts in the ball"),
        ({"attack": {"replays": 8, "ramp_epochs": 1.0}, "method": MADRY}, "the budget of replays is constant"),
        ({"attack": {"replays": 8, "batch_norm": "batch"}, "method": MADRY}, "that of the update, on"),
        ({"attack": {"replays": 8}, "method": MADRY, "accumulate_steps": 2}, "perturbation of a whole batch"),
        ({"attack": {"replays": 8}, "method": MADRY, "swa": {"start_epoch": 1.0}}, "would move with every replay"),
        ({"method": {"name": "madry", "weight": 0.5}}, "config.method.name = 'madry': it has no term to weigh"),
        ({"method": {"name": "trades", "distance": "l1"}}, "it compares no maps by a distance"),
        ({"method": {"name": "feature_matching", "classes": "label"}}, "it compares no maps by a distance"),
        ({"data": {"extra": "a.npz"}}, "a second pool and its share of each batch belong together"),
        ({"data": {"extra_share": 0.7}}, "a second pool and its share of each batch belong together"),
        ({"data": {"extra": "a.npz", "extra_share": 0.01}, "batch_size": 16}, "an example of either pool"),
        ({"data": {"mixup": 1.0, "cutmix": 1.0}}, "a batch is mixed in one way"),
        ({"data": {"mixup": 1.0}, "method": {"name": "mart"}}, "its loss or its labels are those of one class"),
        ({"data": {"cutmix": 1.0}, "method": {"name": "bilateral"}}, "its loss or its labels are those of one class"),
        ({"eval": {"live_weights": True}}, "eval.live_weights = True with config.ema.decay = 0.0: there is no average"),
        (
            {"eval": {"live_weights": True, "torch_checkpoint": "a.pt"}, "ema": {"decay": 0.9}},
            "with config.eval.torch_checkpoint = 'a.pt': there is one set of weights",
        ),
        ({"eval": {"checkpoint": "both", "torch_checkpoint": "a.pt"}}, "leave checkpoint out"),
    ],
)
def test_what_would_do_nothing_is_refused(fields, message):
    assert message in refused(configs.resolve, changed(**fields))


def test_a_single_step_is_of_epsilon():
    for fields, expected in (({}, 2.0), ({"num_steps": 1}, 8.0), ({"num_steps": 1, "step_size": 3.0}, 3.0)):
        assert configs.resolve(changed(attack=fields)).attack.step_size == expected


def test_each_of_a_pair_is_fine_without_the_other():
    for fields in (
        {"awp": {"warmup_epochs": 7.5, "gamma": 0.01}, "num_epochs": 8}, {"awp": {"gamma": 0.01}},
        {"optimizer": {"schedule": "cyclic"}}, {"optimizer": {"nesterov": True}}, {"optimizer": {"decay_norm": False}},
        {"optimizer": {"warmup_epochs": 8.0, "schedule": "cosine"}, "num_epochs": 8},
        {"optimizer": {"momentum": 0.0, "weight_decay": 0.0}},
        {"method": {"name": "tiny_net:method", "weight": 0.5, "distance": "l1"}},
        {"method": {"name": "feature_matching", "weight": 1.0, "distance": "l1", "variant": "paper"}},
        {"method": {"name": "mart", "weight": 1.0}}, {"method": {"classes": "label"}},
        {"eval": {"live_weights": True}, "ema": {"decay": 0.9}},
        {"eval": {"live_weights": True}, "swa": {"start_epoch": 1.0}},
    ):  # fmt: skip
        configs.resolve(changed(**fields))


# The normalisation and the data


@pytest.mark.parametrize(
    ("model", "channels", "message"),
    [
        ({"mean": (0.5, 0.5)}, 1, "model mean = (0.5, 0.5): expected one number, or 1, one for each channel"),
        ({"mean": (0.5, 0.5)}, 3, "model mean = (0.5, 0.5): expected one number, or 3, one for each channel"),
        ({"std": (0.5, 0.5)}, 3, "model std = (0.5, 0.5): expected one number, or 3"),
        ({"mean": (0.4, 0.5, 0.6), "std": (0.2,)}, 3, ""),
        ({"mean": (0.5,), "std": (0.2,)}, 1, ""),
        ({}, 2, ""),
    ],
)
def test_a_normalisation_is_one_number_or_one_a_channel(model, channels, message):
    """Two numbers on one channel would broadcast to images of two."""
    config = configs.resolve(changed(model=model | {"name": "wrn_10_1", "width": 1}))
    module, shape = weights.create(config.model.to_dict(), 10), (1, 8, 8, channels)
    if message:
        assert message in refused(checks.check_data, config, dataset(*shape[1:]))
        assert message in refused(models.layers.normalize, jnp.zeros(shape), module.mean, module.std, "float32")
    else:
        checks.check_data(config, dataset(*shape[1:]))
        assert models.layers.normalize(jnp.zeros(shape), module.mean, module.std, "float32").shape == shape


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), ("a",), (), ((0.5,),), None, (0.5, float("nan"))])
def test_a_normalisation_is_finite(name, value, unchecked):
    assert f"model {name} = " in refused(models.create, "wrn_10_1", num_classes=10, **{name: value})


def dataset(*shape: int, count: int = 4) -> data.Dataset:
    """Black images of one shape; as many as asked for take no memory."""
    split = data.Split(np.broadcast_to(np.uint8(0), (count, *shape)), np.broadcast_to(np.int32(0), count))
    return data.Dataset(split, split, split, 10, "black")


def test_a_crop_holds_some_of_the_image():
    config = configs.resolve(changed(data={"crop_padding": 9}))
    text = refused(checks.check_data, config, dataset(8, 12, 1))
    assert "config.data.crop_padding = 9: expected at most the images' side, 8" in text
    checks.check_data(config, dataset(9, 12, 1))


@pytest.mark.parametrize("fields", [{"num_epochs": 10**6}, {"optimizer": {"milestones": (2.0, 1e6)}}])
def test_steps_are_counted_in_32_bits(fields):
    config = configs.resolve(changed(batch_size=10, **fields))
    text = refused(checks.check_data, config, dataset(32, 32, 3, count=50_000))
    assert "expected at most 429496 epochs of 5000 steps each" in text
    checks.check_data(config, dataset(32, 32, 3, count=20_000))


# Anything at all

DEFAULT = configs.default()
FIELDS = sorted(name for name, _ in configs.flatten(DEFAULT.to_dict()))
NUMBERS = [0, 1, 2, -1, 7, 2**31, 2**32, 2**63, -(2**63), 10**30, 10**400]
FLOATS = [0.0, 0.5, 1.0, -1.0, 1e-300, 1e300, 3e38, float("nan"), float("inf"), -float("inf")]
WORDS = [
    "", " ", "\n", "\0", "..", "/", "~nobody", "@", "pgd0", "pgd20@", "cw99999999999", "wrn_28_10", "wrn_4_4",
    "wrn_10_99999", "mart", "madry: seed=3", "x: seed=", "x: attack.epsilon=nan", "l1", "label", "a" * 300, "\ud800",
    "b.npz", "\N{SNOWMAN}",
]  # fmt: skip
scalars = st.sampled_from([None, True, *NUMBERS, *FLOATS, *WORDS])
anything = scalars | st.lists(scalars, max_size=3).map(tuple) | st.just({}) | st.integers() | st.floats() | st.text()


def kind(name: str) -> type:
    group, _, field = name.rpartition(".")
    return (DEFAULT[group] if group else DEFAULT).get_type(field)


def like(name: str):
    """Values that a flag of this field accepts."""
    same = {
        bool: st.booleans(), int: st.integers() | st.sampled_from(NUMBERS), str: st.text() | st.sampled_from(WORDS),
        float: st.floats() | st.sampled_from(FLOATS), tuple: st.lists(scalars, max_size=3).map(tuple),
    }[kind(name)]  # fmt: skip
    default = dict(configs.flatten(DEFAULT.to_dict()))[name]
    return st.just(tuple(default) if isinstance(default, list) else default) | same


def assign(config: ConfigDict, name: str, value: object) -> None:
    with config.ignore_type(), suppress(OverflowError):  # of ml_collections, for integers that no float is as large as
        group, _, field = name.rpartition(".")
        (config[group] if group else config)[field] = value


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_configuration_passes_the_checks_or_is_answered_in_one_line(drawn):
    config = configs.default()
    for name in drawn.draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=3, unique=True)):
        assign(config, name, drawn.draw(like(name) | anything, name))
    with tempfile.TemporaryDirectory() as directory:
        workdir = pathlib.Path(directory) / "run"
        try:
            planned = [run.config for run in study.plan(config)] if config.study.rows else [configs.resolve(config)]
            for one in planned:
                cli.check(weights.adopt(one, workdir), workdir, "train")
                checks.check_data(one, dataset(32, 32, 3))
        except InvalidInput as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
        assert not workdir.exists()


RUNNABLE = [
    name
    for name in FIELDS
    if not name.startswith("study.") and name not in ("tensorboard", "init_from", "eval.torch_checkpoint")
]
# What would take long although it is valid, and "tiny" for the models
SHORT = {
    "num_epochs": st.sampled_from([1, 2, 0]), "attack.num_steps": st.sampled_from([0, 1, 2, -1]),
    "model.name": st.sampled_from(["tiny", "vgg"]), "model.width": st.sampled_from([1, 0, -1]),
    "eval.attacks": st.sampled_from([("clean",), ("pgd1", "noise"), (), ("clean", "clean")]),
    "eval.batch_size": st.sampled_from([8, 16, 3, 104]), "data.name": st.sampled_from(["digits", "digit"]),
    "eval.distances": st.sampled_from([(), ("cw1",)]), "eval.validation_attack": st.sampled_from(["clean", "pgd1"]),
    "eval.probe_examples": st.sampled_from([0, 1, 3]), "eval.autoattack_examples": st.just(8),
}  # fmt: skip


def tiny() -> ConfigDict:
    """Two steps on digits."""
    config = parse(f"--config={ROOT}/configs/digits.py:madry")
    config.update_from_flattened_dict({
        "model.name": "tiny", "num_epochs": 1, "batch_size": 16, "data.train_size": 32, "data.test_size": 16,
        "data.validation_size": 16, "attack.num_steps": 1, "eval.attacks": ("clean", "fgsm"), "log_every": 1,
        "eval.validation_attack": "pgd1", "eval.batch_size": 16, "eval.probe_examples": 0, "eval.cam_images": 0,
        "optimizer.milestones": (),
    })  # fmt: skip
    return config


def run_anything(drawn) -> None:
    """A run of a few steps gives results, or a one-line error and no files."""
    config = tiny()
    for name in drawn.draw(st.lists(st.sampled_from(RUNNABLE), min_size=1, max_size=3, unique=True)):
        assign(config, name, drawn.draw(SHORT.get(name, like(name)), name))
    with tempfile.TemporaryDirectory() as directory:
        workdir = pathlib.Path(directory) / "run"
        try:
            cli.execute(config, "digits.py", workdir=str(workdir), mode="train", hosts=("", 0, -1))
        except InvalidInput as error:
            assert "\n" not in str(error)  # noqa: PT017 - any of the three outcomes is right
            assert not workdir.exists()
        except RunFailed as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            results = json.loads((workdir / "results.json").read_text())
            assert all(0 <= results[name] <= 1 for name in config.eval.attacks)


@settings(max_examples=10, deadline=None, phases=[Phase.generate])
@given(st.data())
def test_any_run_of_few_steps_has_results_or_one_line(tiny_model, drawn):
    run_anything(drawn)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, phases=[Phase.generate], derandomize=False)
@given(st.data())
def test_more_runs_of_few_steps_have_results_or_one_line(tiny_model, drawn):
    run_anything(drawn)


def test_the_attack_that_chooses_the_best_checkpoint_is_kept(tmp_path):
    """Its accuracies compare with each other alone; an evaluation does not choose. Nothing trained binds nobody."""
    first, other = (configs.resolve(changed(eval={"validation_attack": name})) for name in ("pgd7", "fgsm"))
    (tmp_path / "config.json").write_text(configs.to_json(first))
    checks.check_continues(tmp_path, configs.resolve(changed(batch_size=64)), "train")
    (tmp_path / "checkpoints" / "100").mkdir(parents=True)
    assert "eval.validation_attack: 'pgd7' there, 'fgsm' now" in refused(
        checks.check_continues, tmp_path, other, "train"
    )
    steps = configs.resolve(changed(eval={"validation_attack": "pgd7", "step_size": 1.0}))
    assert "eval.step_size: " in refused(checks.check_continues, tmp_path, steps, "train")
    assert "batch_size" in refused(checks.check_continues, tmp_path, configs.resolve(changed(batch_size=64)), "train")
    for allowed in (other, steps):
        checks.check_continues(tmp_path, allowed, "evaluate")
    checks.check_continues(tmp_path, configs.resolve(changed(eval={"attacks": ("clean",)}, remat=True)), "train")
