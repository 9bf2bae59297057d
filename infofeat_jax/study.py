"""Studies, several runs from one configuration: planning them, and running them, perhaps on several machines."""

import ast
import json
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from infofeat_jax import config as configs
from infofeat_jax import config_checks, run
from infofeat_jax.evaluation import attack_names
from infofeat_jax.report import collect, paper
from infofeat_jax.runtime import console, files, lock, memory, processes, signals
from infofeat_jax.types import InUse, InvalidInput, RunFailed, Stopped, check_choice, one_line

EXAMPLE = "method.weight=0.5"
LONGEST = 30  # seconds between two looks at runs that other processes have

Act = Callable[[ConfigDict, pathlib.Path], object]  # trains or evaluates the run of a configuration in a directory


class Planned(NamedTuple):
    """A planned run of a study."""

    row: str  # of the report's table; runs of one row differ only in the seed
    config: ConfigDict  # resolved

    @property
    def name(self) -> str:
        """The name of its directory, and of its model in transfer attacks (config.eval.attacks)."""
        return f"{self.row}-seed{self.config.seed}"


class Job(NamedTuple):
    """The training or the evaluation of a run."""

    index: int  # of the run in the study
    planned: Planned
    act: str  # "train" or "evaluate"


def plan(config: ConfigDict) -> list[Planned]:
    """The runs of config.study, seed by seed, so that an interrupted study covers all rows. Raises InvalidInput."""
    config_checks.check_types(config, configs.default())
    if not config.study.seeds:
        raise InvalidInput("config.study.seeds is empty: expected seeds such as (0, 1, 2)")
    if config.study.paper:
        check_choice("config.study.paper", config.study.paper, paper.TABLES)
    planned = [Planned(*plan_run(config, text, seed)) for seed in config.study.seeds for text in config.study.rows]
    names = [one.name for one in planned]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInput(f"config.study has {', '.join(twice)} twice: give the rows different labels")
    return planned


def plan_run(config: ConfigDict, text: str, seed: int) -> tuple[str, ConfigDict]:
    """(label, resolved configuration) for a row "METHOD" or "LABEL: FIELD=VALUE FIELD=VALUE". Raises InvalidInput."""
    label, _, changes = (part.strip() for part in text.partition(":"))
    if not re.fullmatch(r"[\w.+=-]{1,200}", label):
        raise InvalidInput(
            f"config.study.rows: label {label!r} becomes a directory: use up to 200 letters, digits and . _ + = -"
        )
    one = ConfigDict(config.to_dict())
    one.study = configs.default().study
    for change in changes.split() or [f"method.name={label}"]:
        field, equals, value = change.partition("=")
        fields = dict(configs.flatten(config.to_dict()))
        if not equals:
            raise InvalidInput(f"config.study.rows: {change!r} in {text!r}: expected FIELD=VALUE, such as {EXAMPLE}")
        if field not in fields:
            unknown = config_checks.unknown(field, fields)
            raise InvalidInput(f"config.study.rows: {change!r} in {text!r}: expected FIELD=VALUE: {unknown}")
        if field == "seed" or field.startswith("study."):
            raise InvalidInput(f"config.study.rows: {change!r} in {text!r}: give --config.study.seeds for all rows")
        try:
            one.update_from_flattened_dict({field: _literal(value)})
        except TypeError as error:
            raise InvalidInput(f"config.study.rows: {change!r}: {' '.join(str(error).split())}") from None
    one.seed = seed
    return label, configs.resolve(one)


def describe(config: ConfigDict, planned: list[Planned], directory: pathlib.Path) -> None:
    """Writes study.json, which tells the report which runs to expect.

    An existing file keeps its rows and title: such a study adds measurements to another's runs (Table 2, Figure 4).
    Raises InvalidInput if that file is damaged.
    """
    path = directory / "study.json"
    directory.mkdir(parents=True, exist_ok=True)
    with lock.lock(directory, wait=True):
        earlier = collect.read_description(path)
        runs = earlier.get("runs", {}) | {one.name: {"row": one.row, "seed": one.config.seed} for one in planned}
        values = {"title": config.study.title, "paper": config.study.paper, "note": config.data.note}
        values = {name: earlier.get(name) or value for name, value in values.items()} | {"runs": runs}
        files.write_atomically(path, json.dumps(values, indent=2) + "\n")


def run_all(planned: list[Planned], directory: pathlib.Path, acts: Mapping[str, Act]) -> dict[str, str]:
    """Trains and evaluates what is unfinished; "train" is not in `acts` if the runs are only to be evaluated.

    Other processes may do the same at the same time. Each takes the first job that can be done and whose directory no
    other has, trainings first: attacks may be crafted on any run of the study, and such a run is evaluated once these
    are trained. When others have all that is left it waits, since a process that dies leaves its run.

    Returns {run: why} of those that failed, whose evaluations and those that need them are left out. Raises Stopped.
    """
    failed: dict[str, str] = {}
    jobs, waiting = [Job(index, one, act) for act in acts for index, one in enumerate(planned)], Waiting()
    seconds: dict[str, list[float]] = {}  # what the jobs of this process took, by act
    left = [job for job in jobs if not is_done(job, directory)]
    for index, one in enumerate(planned):
        if processes.is_writer() and one.name not in {job.planned.name for job in left}:
            print(f"\n[{index + 1}/{len(planned)}] {one.name}: finished", flush=True)
    while left:
        untrained = {job.planned.name for job in left if job.act == "train"}
        for job in (job for job in left if not needs(job) & untrained):
            try:
                with run.own_directory(directory / job.planned.name):
                    if not is_done(job, directory):  # another process has just done it
                        if processes.is_writer():
                            said = f"{job.planned.name}: {job.act}{time_left(seconds, left)}"
                            print(f"\n[{job.index + 1}/{len(planned)}] {said}", flush=True)
                        began = time.monotonic()
                        acts[job.act](job.planned.config, directory / job.planned.name)
                        seconds.setdefault(job.act, []).append(time.monotonic() - began)
            except InUse as error:
                waiting.note(job.planned.name, error)
            except (InvalidInput, RunFailed, ValueError, jax.errors.JaxRuntimeError) as error:
                known = isinstance(error, InvalidInput | RunFailed) or memory.ran_out(error)
                if not known or not processes.is_alone():  # the others of this run may not know of it
                    raise
                failed[job.planned.name] = why = one_line(error)
                print(f"error: {job.planned.name}: {why}", flush=True)
                break
            else:
                left.remove(job)
                waiting = Waiting()
                break
        else:
            waiting.wait()
        left = [
            job for job in left if not is_done(job, directory) and not failed.keys() & {job.planned.name, *needs(job)}
        ]
    return failed


def time_left(seconds: Mapping[str, Sequence[float]], left: Sequence[Job]) -> str:
    """What a study still takes if each job takes as long as those before it; "" if there were none."""
    acts = [job.act for job in left]
    known = [sum(seconds[act]) / len(seconds[act]) for act in acts if act in seconds]
    if not known:
        return ""
    bound = "about" if len(known) == len(acts) else "more than"  # evaluations come after all trainings
    return f" ({bound} {console.in_words(sum(known))} left for the study)"


def needs(job: Job) -> set[str]:
    """The runs that must have been trained before: none for training."""
    if job.act == "train":
        return set()
    return {job.planned.name} | {attack_names.parse(name).source for name in job.planned.config.eval.attacks} - {""}


def is_done(job: Job, directory: pathlib.Path) -> bool:
    """Whether the job's result is on disk; process 0 looks, and all processes of a run get its answer."""
    return processes.agreed(
        processes.is_writer() and _is_done(job.planned.config, directory / job.planned.name, job.act)
    )


def _is_done(config: ConfigDict, workdir: pathlib.Path, act: str) -> bool:
    try:
        trained = act == "train" and run.has_ended(workdir, config.num_epochs)
        return trained or run.is_finished(config, workdir)
    except (InvalidInput, OSError):  # damaged, or just being replaced: training sees to it
        return False


class Waiting:
    """Waits longer from time to time, up to LONGEST seconds, and says once for whom."""

    def __init__(self) -> None:
        self._seconds, self._held, self._said = 1, {}, ""

    def note(self, name: str, error: InUse) -> None:
        """A run that another process has."""
        self._held[name] = error.owner

    def wait(self) -> None:
        """Waits for the runs that were noted. Raises Stopped."""
        text = "; ".join(f"{name} ({owner})" for name, owner in self._held.items())
        if text != self._said and processes.is_writer():
            print(f"waiting for {text}", flush=True)
        for _ in range(self._seconds):
            if signals.requested():
                raise Stopped("stopped while waiting for other processes: the same command goes on from there")
            time.sleep(1)
        self._said, self._held, self._seconds = text, {}, min(2 * self._seconds, LONGEST)


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # the last two: too many brackets
        return text
