"""All parts in order: what the plan needs, further measurements, training, evaluation, what was left out before."""

import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from accelerator_parts import attacks, hardware, planning, profile, runs, steps
from accelerator_parts.planning import METHODS, Plan
from accelerator_parts.state import Call, Options, State
from accelerator_parts.steps import Network
from infofeat_jax.training import checkpoint

GRACE = 30.0  # seconds that a measurement may take beyond the time in which it may begin
RESERVE = 10.0  # seconds for what comes after the evaluation
SIZES = 2  # sizes of batches that each stage of AutoAttack is still to be compiled for, about


class Part(NamedTuple):
    """A piece of work with a result of its own."""

    name: str
    act: Callable[[], dict[str, Any]]
    until: float  # it begins before this moment, and stops at it where it can
    end: float  # it is killed at this moment
    required: bool = False  # the rest makes no sense without it


class Job(NamedTuple):
    """What the parts are made from."""

    options: Options
    call: Call
    state: State
    directory: pathlib.Path  # of the state, the runs and the compiled programs
    out: pathlib.Path  # of what is to be carried away

    @property
    def plan(self) -> Plan:
        """The plan of the training. Raises RuntimeError if none could be made."""
        if not (found := self.state.result("plan")):
            raise RuntimeError("there is no plan: see the part 'plan'")
        return Plan(**{name: found[name] for name in Plan._fields})


def parts(job: Job) -> Iterator[Part]:
    """The parts, each created when its turn has come."""
    yield from needed(job)
    optional = further(job, min(job.call.measure_until, job.call.stop))
    yield from optional
    if job.options.data:
        yield from trained(job)
    yield from (part._replace(until=job.call.stop, end=job.call.end) for part in optional)


def needed(job: Job) -> list[Part]:
    """What the plan cannot be made without."""
    options, network, dtype = job.options, runs.network(job.options), job.options.dtype
    acts: dict[str, Callable] = {"data": lambda: runs.describe_data(options)} if options.data else {}
    acts["device"] = hardware.describe
    acts["matrix product"] = lambda: hardware.matrix_rates(options.tiny)
    acts["memory bandwidth"] = lambda: hardware.bandwidth(options.tiny)
    acts |= dict(step(job, network, method, dtype) for method in reversed(METHODS))
    if options.data:
        acts["end of an epoch"] = lambda: runs.epoch_end(options, job.directory)
    return [Part(name, act, job.call.stop, job.call.end, name == "data") for name, act in acts.items()]


def further(job: Job, until: float) -> list[Part]:
    """Measurements that can be done without, the most important first; the plan derives the first two otherwise."""
    small, large, dtype = runs.network(job.options), runs.larger(job.options), job.options.dtype
    other = "float32" if dtype == "bfloat16" else "bfloat16"
    wanted = [(large, "infofeature", dtype), (small, "infofeature", other), (small, "standard", dtype)]
    wanted += [(large, "infofeature", other), (small, "madry", other), (small, "standard", other)]
    wanted += [(small._replace(batch_size=512), "infofeature", dtype)]
    wanted = wanted[:1] if job.options.tiny else wanted
    size, iterations = (16, 2) if job.options.tiny else (250, 20)
    acts = {
        "evaluation": lambda: attacks.evaluation(small, dtype, size),
        "AutoAttack": lambda: attacks.stages(small, dtype, size, iterations),
        "profile": lambda: profile.profile(small, "infofeature", dtype, job.directory / "profile"),
    }
    acts |= dict(step(job, *one) for one in wanted)
    return [Part(name, act, until, until + GRACE) for name, act in acts.items()]


def step(job: Job, network: Network, method: str, dtype: str) -> tuple[str, Callable]:
    """(name, act) of the part that measures a training step."""
    seconds = 0.5 if job.options.tiny else 4.0
    act = lambda: steps.measure(network, method, dtype, job.state.result("matrix product"), seconds)  # noqa: E731
    return step_name(network, method, dtype), act


def step_name(network: Network, method: str, dtype: str) -> str:
    """The name of the part that measures a training step."""
    return f"step: {network.model}, {method}, {dtype}, batch {network.batch_size}"


def trained(job: Job) -> Iterator[Part]:
    """The plan, training, evaluation, and the files to carry away."""
    call, state = job.call, job.state
    if not any(f"train {method}" in state.parts for method in METHODS):
        state.parts.pop("plan", None)  # of another call, whose time was another
    yield Part("plan", lambda: make_plan(job), call.stop, call.end)
    reserve = 0.0 if call.later else state.result("plan").get("evaluation_seconds", 0.0) + RESERVE
    reserve = min(reserve, (call.stop - time.monotonic()) / 2)  # a short call trains, too
    for method in METHODS:
        yield Part(f"train {method}", lambda method=method: train(job, method), call.stop - reserve, call.end)
    yield from files(job)
    ended = [checkpoint.latest_step(job.directory / method) > 0 for method in METHODS]
    if not call.later or all(state.result(f"train {method}") for method in METHODS):
        for name, chosen in (("evaluate", runs.QUICK), ("AutoAttack on", (*runs.QUICK, "autoattack"))):
            for method in (method for method, has in zip(METHODS, ended, strict=True) if has):
                act = lambda method=method, chosen=chosen: evaluate(job, method, chosen)  # noqa: E731
                yield Part(f"{name} {method}", act, call.stop, call.end)
    yield from files(job)


def make_plan(job: Job) -> dict[str, Any]:
    """Epochs and images of AutoAttack that fit the time, from the rates measured before."""
    options, state, network = job.options, job.state, runs.network(job.options)
    measured = {method: state.result(step_name(network, method, options.dtype)) for method in METHODS}
    if missing := [method for method in METHODS if not measured[method]]:
        raise RuntimeError(f"the training step of {', '.join(missing)} was not measured: no number of epochs follows")
    quick, stages, end = (state.result(name) for name in ("evaluation", "AutoAttack", "end of an epoch"))
    found = {name: quick[name]["images_per_second"] for name in runs.QUICK if name in quick}
    found |= {"survivor": stages["seconds_per_survivor"]} if stages else {}
    found["compiling"] = sum(step["compile_seconds"] for step in measured.values())
    found["compiling"] += SIZES * sum(stage["compile_seconds"] for stage in stages.get("stages", {}).values())
    found["epoch_end"] = end.get("total", 0.0)
    rates = planning.rates({method: step["images_per_second"] for method, step in measured.items()}, found)
    seconds = job.call.stop - time.monotonic() + job.call.later - RESERVE
    data = state.result("data")
    plan = planning.plan(
        rates, seconds, train_images=data["train"], test_images=data["test"], epochs=options.epochs,
        autoattack_images=options.autoattack_images,
    )  # fmt: skip
    if not plan.epochs:
        each = sum(data["train"] / rate for rate in rates.training.values())
        raise RuntimeError(f"an epoch of each method takes {each:.0f} s, and {seconds:.0f} s are left: give more time")
    return {**plan._asdict(), "seconds": round(seconds, 1), "rates": rates._asdict()}


def train(job: Job, method: str) -> dict[str, Any]:
    """Trains a method; what was measured on an earlier state of it no longer counts."""
    for stale in (f"evaluate {method}", f"AutoAttack on {method}", "files"):
        job.state.parts.pop(stale, None)
    return runs.train(job.options, method, job.plan, job.directory)


def evaluate(job: Job, method: str, attacks: tuple[str, ...]) -> dict[str, Any]:
    """Evaluates a method's best checkpoint."""
    job.state.parts.pop("files", None)
    return runs.evaluate(job.options, method, job.plan, job.directory, attacks)


def files(job: Job) -> Iterator[Part]:
    """Writes what is to be carried away, if there is anything, also when the time for everything else is over."""
    if not any(checkpoint.latest_step(job.directory / method) for method in METHODS):
        return
    written = job.state.result("files").get("files", [])
    if not all((job.out / name).exists() for name in written):
        job.state.parts.pop("files", None)
    act = lambda: runs.carry(job.options, job.plan, job.directory, job.out)  # noqa: E731
    yield Part("files", act, job.call.end - 3, job.call.end)
