"""What the command does: its modes, and one-line messages for a user's mistakes. Its flags: `command`."""

import errno
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from infofeat_jax import checks, parts, remarks, report, run, study, weights
from infofeat_jax import config as configs
from infofeat_jax import experiment as experiments
from infofeat_jax.evaluation import attack_names, evaluate
from infofeat_jax.experiment import Experiment
from infofeat_jax.runtime import compilation, memory, processes, signals
from infofeat_jax.training import records
from infofeat_jax.types import InUse, InvalidInput, RunFailed, Stopped, one_line


def execute(
    config: ConfigDict, config_file: str, *, workdir: str, mode: str, hosts: tuple[str, int, int],
    trust: Collection[str] = (),
) -> None:  # fmt: skip
    """Trains, evaluates or reports a run, or all runs of a study.

    Parts of one's own are imported if `config` or `trust` names them; those of configurations on disk are not.
    Raises InvalidInput before anything expensive starts.
    """
    parts.trust(*trust, *parts.names_in(str([value for _, value in configs.flatten(config.to_dict())])))
    logging.set_verbosity(logging.FATAL)  # orbax is verbose; errors are reported here, in one line
    compilation.tune_cpu()
    processes.start(*hosts)
    compilation.keep_compiled()
    signals.listen()
    fields = [one for one in configs.flatten(config.to_dict()) if one[0] not in ("data.data_dir", "data.extra")]
    if not processes.all_have(f"{mode} {fields}"):
        raise InvalidInput("the processes have different configurations: give each of them the same command")
    directory = find_workdir(config, config_file, workdir)
    if not processes.all_have(str((directory / "checkpoints").is_dir())):
        raise processes.not_shared(directory)
    if mode == "report":
        others = not (workdir or config.study.rows or directory.exists()) and directory.parent.exists()
        if processes.is_writer():
            report.write(directory.parent if others else directory)
    elif config.study.rows:
        execute_study(config, directory, mode)
    else:
        config = weights.adopt(configs.resolve(config), directory)
        check(config, directory, mode)
        execute_run(config, directory, mode)
    signals.finish()


def execute_study(config: ConfigDict, directory: pathlib.Path, mode: str) -> None:
    """Trains (unless finished) and evaluates the runs of a study, then writes its report.

    Several processes may do this on one directory at the same time: each takes runs that no other has.
    """
    if config.eval.torch_checkpoint:
        raise InvalidInput("config.eval.torch_checkpoint is not for studies: give the --config of a single run")
    planned = [one._replace(config=weights.adopt(one.config, directory / one.name)) for one in study.plan(config)]
    for one in planned:
        check(one.config, directory / one.name, mode, coming=[other.name for other in planned])
    for config_of_data in {configs.to_json(one.config.data): one.config for one in planned}.values():
        try_data(config_of_data, mode)
    if processes.is_writer():
        study.describe(config, planned, directory)
    acts = {name: partial(create_and, act) for name, act in modes(mode).items()}
    failed = study.run_all(planned, directory, acts)
    with suppress(InUse), run.own_directory(directory):  # in use: another process has just found all runs finished
        if processes.is_writer():
            report.write(directory)
    if failed:
        first, why = next(iter(failed.items()))
        others = "the others are finished, except evaluations with attacks crafted on a failed run"
        raise RunFailed(f"{len(failed)} of {len(planned)} runs failed, {others}; {first}: {why}")


def try_data(config: ConfigDict, mode: str) -> None:
    """Reads the data, with the remarks on it: what is missing is missed before a study's first run, not after it."""
    dataset = experiments.load_data(config)
    if processes.is_writer():
        remarks.show(config, dataset, to_train=mode != "evaluate")


def create_and(act: Callable[[Experiment], Any], config: ConfigDict, directory: pathlib.Path) -> None:
    """Creates the experiment of a study's run, and trains or evaluates it.

    Another process may have begun the run since the study was checked. Raises InvalidInput if it is another's.
    """
    checks.check_continues(directory, config, "train" if act is run.train else "evaluate")
    act(experiments.create(config, directory, to_train=act is run.train))


def execute_run(config: ConfigDict, directory: pathlib.Path, mode: str) -> None:
    """Trains (unless mode is "evaluate") and evaluates one run, from a resolved and checked configuration."""
    to_train = mode != "evaluate"
    experiment = experiments.create(
        config, directory, to_train=to_train
    )  # before the directory is made: it may be refused
    if processes.is_writer():
        remarks.show(config, experiment.data, to_train=to_train)
    with run.own_directory(directory):
        for act in modes(mode).values():
            act(experiment)


def modes(mode: str) -> dict[str, Callable[[Experiment], Any]]:
    """The actions of a mode on a run, in order."""
    return {"evaluate": run.evaluate_run} if mode == "evaluate" else {"train": run.train, "evaluate": run.evaluate_run}


def check(config: ConfigDict, directory: pathlib.Path, mode: str, coming: Collection[str] = ()) -> None:
    """Raises InvalidInput for whatever is known to fail before the data is read.

    `coming`: sibling runs, to craft transfer attacks on, that need not exist yet.
    """
    options = config.eval
    evaluate.check_names(options.attacks, options.distances, options.validation_attack, options.evaluators)
    for source in sorted({attack_names.parse(name).source for name in config.eval.attacks} - {"", *coming}):
        run.check_source(directory, source)
    if config.eval.torch_checkpoint:
        checks.check_only_evaluated(config.eval.torch_checkpoint, directory, mode)
    elif mode == "evaluate" and not (directory / "checkpoints").is_dir():
        raise InvalidInput(f"no finished checkpoint in {directory}: train first, with --mode=train")
    checks.check_writable(directory)
    checks.check_continues(directory, config, mode)
    if mode == "train":
        checks.check_split(config)
    if config.tensorboard:
        records.import_metric_writers()
    experiments.create_method(config, 10), experiments.create_optimizer(config, 10)
    checks.check_size(config)


def find_workdir(config: ConfigDict, config_file: str, workdir: str) -> pathlib.Path:
    """--workdir; by default runs/CONFIG/METHOD, for a study runs/CONFIG[-SCALE], for a checkpoint runs/CONFIG/FILE."""
    if "://" in workdir:
        raise InvalidInput(f"--workdir={workdir}: expected a directory, such as the place where a bucket is mounted")
    if workdir:
        directory = pathlib.Path(workdir)  # its name and its siblings are needed: "." and ".." have none
        return directory if directory.name and ".." not in directory.parts else directory.resolve()
    name, _, argument = pathlib.Path(config_file).name.partition(".py")
    if config.study.rows:
        return pathlib.Path("runs") / (name + argument.replace(":", "-"))
    return (
        pathlib.Path("runs")
        / name
        / (pathlib.Path(config.eval.torch_checkpoint).stem or config.method.name.replace(":", "."))
    )


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Reports errors that a user can fix as one line on stderr, and ends the process.

    Exit status: 2 after InvalidInput, 1 if the run failed, 75 (EX_TEMPFAIL: try again) if it was interrupted.
    """
    try:
        yield
    except InvalidInput as error:
        status, text = 2, f"error: {error}"
    except Stopped as stop:
        print(stop, file=sys.stderr)
        with suppress(jax.errors.JaxRuntimeError):  # another process is gone already
            signals.finish()
        sys.exit(os.EX_TEMPFAIL)
    except RunFailed as error:
        status, text = 1, f"error: {error}"
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough: as SIGPIPE ends other commands
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            status, text = 1, f"error: {error}: free some space, then run the same command again to resume"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP):
            status, text = 1, f"error: {error}: give a file or directory that can be used, or fix its permissions"
        else:
            raise
    except MemoryError as error:
        advice = f"{experiments.LESS_MEMORY}; or eval.batch_size"
        status, text = 1, f"error: the host has too little memory ({error}): {advice}"
    except jax.errors.JaxRuntimeError as error:
        brief = one_line(error)
        if memory.ran_out(error):  # not the training step, whose memory is estimated before it runs
            advice = f"{experiments.LESS_MEMORY}; for the evaluation, lower config.eval.batch_size"
            status, text = 1, f"error: a device has too little memory ({brief}): {advice}"
        elif jax.distributed.is_initialized():
            status, text = 1, f"error: process {jax.process_index()} cannot continue, another may have died: {brief}"
        else:
            raise
    else:
        return
    print(" ".join(text.split()), file=sys.stderr)  # a file's name may hold line breaks
    processes.leave(status)
