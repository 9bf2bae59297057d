"""What a reader needs to judge, and to repeat, a run."""

import json
import pathlib
import shlex
from typing import NamedTuple

from infofeat_jax import config as configs
from infofeat_jax.report.cells import NONE, Cell, display
from infofeat_jax.report.lines import Line
from infofeat_jax.report.notes import levels
from infofeat_jax.report.runs import RunRecord, Study
from infofeat_jax.report.tables import Table

# The configuration file that changes nothing: with it, the command names every field that differs from the defaults.
PLAIN = "configs/cifar10_resnet18.py"
OF_A_RUN = ("model.mean", "model.std", "model.activation")  # what the run that weights are from determines
UNSAID = ("study.", "data.data_dir", "method.name")  # fields that a command does without
DERIVED = ("attack.step_size", "attack.num_steps", "eval.step_size")  # whose defaults depend on other fields
RENAMED = {"eval.pictures": "eval.cam_images"}  # fields of earlier runs


class Record(NamedTuple):
    """One run on the page."""

    name: str
    gap: str
    facts: list[tuple[str, str]]
    command: str
    config: str


def record(run: RunRecord) -> Record:
    """All that is known of a run; of one with a gap, only its configuration."""
    if run.gap:
        return Record(run.name, run.gap, [], "", json.dumps(run.config, indent=2) if run.config else "")
    if given := run.results.get("given"):
        return Record(run.name, "", facts_of_given(run, given), "", json.dumps(given, indent=2))
    commands = "" if _converted(run) else command(run.config, run.results["config"])
    return Record(run.name, "", facts(run), commands, json.dumps(run.config, indent=2))


def facts(run: RunRecord) -> list[tuple[str, str]]:
    """(what, value) pairs in words."""
    config, results = run.config, run.results
    evaluated, attack, model = results["config"], config["attack"], config["model"]
    budget = evaluated["attack"]
    seconds = (results.get("seconds_per_attack") or {}).items()
    data, images = results.get("data", config["data"]["name"]), results.get("train_images") or 0
    found = [
        ("method", f"weights of {config.get('init_from')}" if _converted(run) else _list(config["method"])),
        ("model", model["name"] + (f", width {model['width']}" if model["width"] else "")),
        ("data", f"{data}; {images:,} training images{_mixture(config['data'])}"),
        ("note on the data", str(config["data"].get("note") or "")),
        ("training", _training(run)),
        ("attack in training", _attack(attack) if _attacked(run) else ""),
        ("optimizer", "" if _converted(run) else _list(config.get("optimizer", {}))),
        ("checkpoint", f"{results['checkpoint']}, step {results.get('checkpoint_step', NONE)}"),
        ("early stopping by", _criterion(run)),
        ("evaluation", f"first {results['num_examples']:,} test images; {_ball(budget)}"),
        ("steps in evaluation", levels(evaluated["eval"]["step_size"])),
        ("seconds per attack", ", ".join(f"{display(name)} {value:g}" for name, value in seconds)),
        ("hardware", str(results.get("hardware", ""))),
        ("jax", str(results.get("jax", ""))),
    ]
    return [(term, fact) for term, fact in found if fact]


def facts_of_given(run: RunRecord, given: dict) -> list[tuple[str, str]]:
    """The same of a model that was given to `infofeat_jax.evaluate`, which does not know how it was trained."""
    results = run.results
    seconds = (results.get("seconds_per_attack") or {}).items()
    found = [
        ("model", str(given.get("model", ""))),
        ("remarks", "; ".join(map(str, given.get("notes") or []))),
        (
            "evaluation",
            f"{results['num_examples']:,} images; {_ball(results['config']['attack'])}, seed {given.get('seed')}",
        ),
        ("steps in evaluation", levels(results["config"]["eval"]["step_size"])),
        ("seconds per attack", ", ".join(f"{display(name)} {value:g}" for name, value in seconds)),
        ("hardware", str(results.get("hardware", ""))),
        ("jax", str(results.get("jax", ""))),
    ]
    return [(term, fact) for term, fact in found if fact]


def runs_table(study: Study) -> Table:
    """One line a run: what it cost and how it was made."""
    columns = [
        "seed", "epochs", "training images", "training attack", "test images", "training s", "evaluation s",
        "hardware", "jax",
    ]  # fmt: skip
    lines = []
    for row in study.rows:
        for run in (*row.runs, *row.gaps):
            lines.append(Line(run.name, [] if run.gap else _cells(run), gap=run.gap))
    return Table("runs", "Runs", columns, lines, [])


def _cells(run: RunRecord) -> list[Cell]:
    results, attack = run.results, run.config["attack"]
    steps = f"{attack['num_steps']} x {levels(attack['step_size'])}"
    values = [
        run.seed, run.config["num_epochs"], results.get("train_images"),
        steps if _attacked(run) else None, results["num_examples"],
        results.get("training_seconds"), results.get("seconds"), results.get("hardware"), results.get("jax"),
    ]  # fmt: skip
    return [Cell(_text(value)) for value in values]


def _converted(run: RunRecord) -> bool:
    return run.config["num_epochs"] == 0  # weights of a file: nothing is known of their training


def _attacked(run: RunRecord) -> bool:
    return run.config["method"]["name"] != "standard" and not _converted(run)


def _training(run: RunRecord) -> str:
    config = run.config
    if _converted(run):
        return "elsewhere"
    return f"{config['num_epochs']} epochs, batches of {config['batch_size']}, seed {config['seed']}{_weights(config)}"


def _weights(config: dict) -> str:
    """What is done to the weights; fields that earlier runs lack are those of a run without."""
    own = dict(configs.flatten(config))
    ema = f", EMA of the weights, decay {decay}" if (decay := own.get("ema.decay")) else ""
    swa = f", SWA from epoch {start} on" if (start := own.get("swa.start_epoch")) else ""
    delay = f" after {warmup} epochs" if (warmup := own.get("awp.warmup_epochs")) else ""
    return ema + swa + (f", AWP of {gamma}{delay}" if (gamma := own.get("awp.gamma")) else "")


def _mixture(data: dict) -> str:
    share, pool = data.get("extra_share"), data.get("extra")
    extra = f"; a share of {share} of each batch from {pool}" if share and pool else ""
    mixed = [f"; {name} {data[field]}" for name, field in (("MixUp", "mixup"), ("CutMix", "cutmix")) if data.get(field)]
    scaled = f"; scaled to {size} pixels" if (size := data.get("image_size")) else ""
    trivial = "; TrivialAugment" if data.get("augment") == "trivial" else ""
    return scaled + extra + trivial + "".join(mixed)


def _criterion(run: RunRecord) -> str:
    if _converted(run):
        return ""
    return f"{run.results['config']['eval']['validation_attack'] if _attacked(run) else 'clean'} accuracy"


def _attack(attack: dict) -> str:
    grown = f", grown over {ramp} epochs" if (ramp := attack.get("ramp_epochs")) else ""
    batch = ", BatchNorm on batch statistics" if attack.get("batch_norm") == "batch" else ""
    noise = f", from noise of {scale} epsilon, not projected" if (scale := attack.get("noise")) else ""
    free = f", replayed {times} times" if (times := attack.get("replays")) else ""
    return f"{_ball(attack)}, {attack['num_steps']} steps of {levels(attack['step_size'])}{noise}{free}{grown}{batch}"


def _ball(attack: dict) -> str:
    return f"{attack['norm']} epsilon {levels(attack['epsilon'])}"


def _list(fields: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items() if value not in (None, ""))


def _text(value: object) -> str:
    if value is None:
        return NONE
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def command(config: dict, evaluated: dict) -> str:
    """A command that trains and evaluates as `config` says, whatever file it came from; a second one that evaluates
    as `evaluated` says, where that has another threat model, steps or validation attack."""
    own, later = _fields(config), _fields(evaluated)
    if (options := config["model"].get("options")) and not config.get("init_from"):
        return f"config.model.options = {options} needs a configuration file of its own, with which it was trained."
    method = config["method"]["name"]
    known = dict(configs.flatten(configs.resolve(configs.for_method(configs.default(), method)).to_dict()))
    judged = {name for name in known if name.startswith("attack.")} | set(configs.JUDGE)
    if all(own.get(name) == later.get(name) for name in judged):
        return _command(method, own | {name: later[name] for name in later if name.startswith("eval.")}, known)
    return f"{_command(method, own, known)}\n{_command(method, later, known, '--mode=evaluate')}"


def _command(method: str, own: dict, known: dict, *flags: str) -> str:
    parts = [f"python main.py --config={PLAIN}:{method}", *flags]
    unsaid = (*UNSAID, *OF_A_RUN) if pathlib.Path(own.get("init_from") or "").is_dir() else UNSAID
    for name, value in own.items():
        changed = name in DERIVED or value != known.get(name)
        if name in known and changed and value is not None and not name.startswith(unsaid):
            value = tuple(value) if isinstance(value, list) else value
            parts.append(shlex.quote(f"--config.{name}={value}"))
    return " \\\n  ".join(parts)


def _fields(config: dict) -> dict:
    """{"attack.epsilon": 8.0, ...} with the current names."""
    own = {RENAMED.get(name, name): value for name, value in configs.flatten(config)}
    own.setdefault("data.split_seed", own.get("seed"))  # the run's seed drew the split until this field did
    return own
