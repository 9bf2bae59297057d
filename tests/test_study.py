"""The runs of a study, an interrupted study that resumes where it stopped, and one that several processes do."""

import contextlib
import importlib
import json
import os
import pathlib
import signal
import socket
import time

import jax
import pytest
from processes import QUICK, lines, wait_for

from infofeat_jax import cli, report, run, study
from infofeat_jax import config as configs
from infofeat_jax import experiment as experiments
from infofeat_jax.evaluation import attack_names, evaluate
from infofeat_jax.runtime import lock, signals
from infofeat_jax.types import InvalidInput, RunFailed, Stopped

STUDIES = sorted(pathlib.Path(__file__).parent.parent.glob("configs/studies/[!_s]*.py"))


def config(*rows: str, seeds=(0,)):
    config = configs.default()
    config.study.rows, config.study.seeds = rows, seeds
    return config


def test_rows_times_seeds():
    planned = study.plan(
        config("madry", "strong: method.weight=0.5 attack.num_steps=10 method.classes=label", seeds=(3, 4))
    )
    assert [run.name for run in planned] == ["madry-seed3", "strong-seed3", "madry-seed4", "strong-seed4"]
    madry, strong = planned[0].config, planned[3].config
    assert (madry.method.name, madry.seed, madry.attack.num_steps) == ("madry", 3, 7)
    assert (strong.method.name, strong.seed, strong.attack.num_steps) == ("infofeature", 4, 10)
    assert (strong.method.weight, strong.method.classes) == (0.5, "label")
    assert not strong.study.rows  # a run does not depend on the rows beside it


def test_an_unknown_table_of_the_paper_is_found_before_any_run():
    asked = config("madry")
    asked.study.paper = "table9"
    with pytest.raises(InvalidInput, match=r"unknown config.study.paper .table9.: choose one of .*table1"):
        study.plan(asked)


def test_data_that_a_later_row_names_are_found_before_the_first_run(tmp_path):
    asked = config("first: data.name=digits", "second: data.name=nosuch")
    asked.data.validation_size = 200
    with pytest.raises(InvalidInput, match="nosuch"):
        cli.execute_study(asked, tmp_path / "study", "train")
    assert not (tmp_path / "study").exists()


def test_defaults_of_the_row_not_of_the_base():
    """A single-step method takes a step of epsilon although the base configuration's method takes seven."""
    (planned,) = study.plan(config("feature_scatter"))
    assert (planned.config.attack.num_steps, planned.config.attack.step_size) == (1, 8.0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("a/b: method.name=madry",), "label 'a/b' becomes a directory"),
        (("x: method.nme=madry",), "'method.nme=madry' in 'x: method.nme=madry': expected FIELD=VALUE"),
        (("x: method",), "'method' in 'x: method': expected FIELD=VALUE"),
        (("x: batch_size=many",), "'batch_size=many'"),
        (("x: batch_size=0",), "config.batch_size = 0: expected 1 or more"),
        (("madry", "madry: batch_size=64"), "has madry-seed0 twice"),
        (("x: seed=3",), "give --config.study.seeds"),
    ],
)
def test_mistakes(rows, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        study.plan(config(*rows))
    assert "\n" not in str(caught.value)


def test_no_seeds():
    with pytest.raises(InvalidInput, match="seeds is empty"):
        study.plan(config("madry", seeds=()))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_can_be_planned_at_every_scale(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent.parent.parent)
    module = importlib.import_module(f"configs.studies.{path.stem}")
    scales = [()] if path.stem in ("table3", "table4", "table5") else [(), ("small",), ("digits",)]
    for scale in scales:
        planned = study.plan(module.get_config(*scale))
        assert planned
        for one in planned:
            evaluate.check_names(one.config.eval.attacks, one.config.eval.distances)
            sources = {attack_names.parse(name).source for name in one.config.eval.attacks} - {""}
            assert one.name not in sources  # else it is no transfer attack


def test_finished_runs_are_passed_over(tmp_path):
    planned, done = study.plan(config("standard", "madry")), []
    (tmp_path / "standard-seed0").mkdir()
    results = {"finished": True, "config": json.loads(configs.to_json(planned[0].config))}
    path = tmp_path / "standard-seed0" / "results.json"

    def names(text: str) -> list[str]:
        done.clear()
        path.write_text(text)
        study.run_all(planned, tmp_path, {"train": lambda config, directory: done.append(directory.name)})
        return list(done)

    assert names(json.dumps(results)) == ["madry-seed0"]
    assert names(json.dumps(results | {"finished": False})) == ["standard-seed0", "madry-seed0"]
    assert names(json.dumps(results)[:-5]) == ["standard-seed0", "madry-seed0"]
    results["config"]["num_epochs"] = 3
    assert names(json.dumps(results)) == ["standard-seed0", "madry-seed0"]


def test_a_study_on_anothers_runs_adds_to_it(tmp_path):
    for title, paper, rows in (("Table 1", "table1", ("standard", "madry")), ("Figure 4", "", ("infofeature",))):
        settings = config(*rows)
        settings.study.title, settings.study.paper = title, paper
        study.describe(settings, study.plan(settings), tmp_path)
    described = json.loads((tmp_path / "study.json").read_text())
    assert (described["title"], described["paper"]) == ("Table 1", "table1")
    assert described["runs"]["madry-seed0"] == {"row": "madry", "seed": 0}
    assert list(described["runs"]) == ["standard-seed0", "madry-seed0", "infofeature-seed0"]


def test_a_damaged_description_is_said(tmp_path):
    (tmp_path / "study.json").write_text('{"runs": ')
    with pytest.raises(InvalidInput, match=r"study.json: expected JSON with .* remove it, do the study again"):
        study.describe(config("madry"), study.plan(config("madry")), tmp_path)


def test_all_runs_are_trained_before_the_first_is_evaluated(tmp_path, monkeypatch):
    """A row may craft its attacks on a later one."""
    order = []
    monkeypatch.setattr(experiments, "create", lambda config, directory, **_: directory.name)
    monkeypatch.setattr(run, "train", lambda name: order.append(("train", name)))
    monkeypatch.setattr(run, "evaluate_run", lambda name: order.append(("evaluate", name)))
    monkeypatch.setattr(report, "write", lambda directory: order.append(("report", directory.name)))
    settings = config("madry", "standard")
    settings.data.name, settings.eval.attacks = "digits", ("clean", "pgd2@standard-seed0")
    settings.data.validation_size = 200
    cli.execute_study(settings, tmp_path / "study", "train")
    names = ("madry-seed0", "standard-seed0")
    assert order == [*(("train", name) for name in names), *(("evaluate", name) for name in names), ("report", "study")]


def test_the_time_left_of_a_study(tmp_path, monkeypatch, capsys):
    """Trainings of 60 s and evaluations of 200 s, of two runs, by a clock that only they move."""
    now, planned = [0.0], study.plan(config("standard", "madry"))
    monkeypatch.setattr(study.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(study, "is_done", lambda job, directory: False)

    def take(seconds):
        def act(*given):
            now[0] += seconds

        return act

    study.run_all(planned, tmp_path, {"train": take(60), "evaluate": take(200)})
    assert [line for line in capsys.readouterr().out.splitlines() if line] == [
        "[1/2] standard-seed0: train",
        "[2/2] madry-seed0: train (more than 60 s left for the study)",
        "[1/2] standard-seed0: evaluate",
        "[2/2] madry-seed0: evaluate (about 4 min left for the study)",
    ]


def test_a_run_that_another_process_has_is_left_for_later(tmp_path, monkeypatch, capsys):
    """It is done once the other lets go of it, and what is crafted on it after that; the waiting is said once."""
    crafted = "crafted: method.name=madry eval.attacks=('clean','pgd2@standard-seed0')"
    planned, done, pauses = study.plan(config(crafted, "standard", "trades")), [], []
    other = contextlib.ExitStack()
    (tmp_path / "standard-seed0").mkdir()
    other.enter_context(lock.lock(tmp_path / "standard-seed0"))

    def sleep(seconds):
        pauses.append(list(done))
        if len(pauses) == 5:
            other.close()

    monkeypatch.setattr(time, "sleep", sleep)
    acts = {
        act: lambda config, workdir, act=act: done.append((act, workdir.name.removesuffix("-seed0")))
        for act in ("train", "evaluate")
    }
    study.run_all(planned, tmp_path, acts)
    before = [("train", "crafted"), ("train", "trades"), ("evaluate", "trades")]
    assert all(pause == before for pause in pauses)
    after = [("train", "standard"), ("evaluate", "crafted"), ("evaluate", "standard")]
    assert done == [*before, *after]
    me = f"process {os.getpid()} on {socket.gethostname()}"
    assert [line for line in capsys.readouterr().out.splitlines() if "waiting" in line] == [
        f"waiting for standard-seed0 ({me})"
    ]


def test_a_stop_while_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "requested", lambda: True)
    (tmp_path / "madry-seed0").mkdir()
    with lock.lock(tmp_path / "madry-seed0"), pytest.raises(Stopped, match="while waiting for other processes"):
        study.run_all(study.plan(config("madry")), tmp_path, {"train": lambda *given: None})


def test_three_processes_do_a_study_and_one_is_killed(main, tmp_path):
    """The first is stopped in its first run and, when the others wait for that, killed: they take the run up."""
    directory = tmp_path / "study"
    madry = "madry: method.name=madry eval.attacks=('clean','pgd2@standard-seed0')"
    flags = (
        *QUICK, "--config.num_epochs=8", "--config.eval.attacks=('clean',)", f"--workdir={directory}",
        f'--config.study.rows=("{madry}","standard")', "--config.study.seeds=(0,1)",
    )  # fmt: skip
    victim = main.start(*flags)
    wait_for(victim, (directory / "madry-seed0" / "checkpoints" / "4").exists, seconds=300)
    victim.send_signal(signal.SIGSTOP)
    others = [main.start(*flags) for _ in range(2)]
    rest = [directory / name / "results.json" for name in ("standard-seed0", "madry-seed1", "standard-seed1")]
    wait_for(others[0], lambda: all(path.exists() for path in rest), seconds=300)
    time.sleep(2)
    assert all(process.poll() is None for process in others)
    assert not (directory / "report").exists()
    victim.kill()
    victim.communicate()
    outputs = [process.communicate(timeout=200) for process in others]
    assert [process.returncode for process in others] == [0, 0], outputs
    said = "".join(out for out, _ in outputs)
    assert f"waiting for madry-seed0 (process {victim.pid} on {socket.gethostname()})" in said
    assert said.count("continuing at step") == 1
    for name in ("madry-seed0", "standard-seed0", "madry-seed1", "standard-seed1"):
        assert json.loads((directory / name / "results.json").read_text())["finished"]
        steps = [line["step"] for line in lines(directory / name) if "loss" in line]
        assert steps == list(range(1, 33))  # by one process at a time
        assert said.count(f"{name}: train") == said.count(f"{name}: evaluate") == 1
    table = (directory / "report" / "table.md").read_text()
    assert "Madry" in table
    assert "Standard" in table


@pytest.mark.parametrize(
    "error",
    [RunFailed("the loss is nan"), InvalidInput("a step takes 2 GiB"), jax.errors.JaxRuntimeError("Out of memory")],
)
def test_a_run_that_fails_does_not_end_the_study(error, tmp_path, monkeypatch, capsys):
    """Its evaluation, and one that needs it, are left out; the others are done, and the error is the command's."""
    asked = config("madry", "alp", "other: method.name=trades eval.attacks=('pgd5@alp-seed0',)")
    done = []

    def act(name):
        def do(config, directory):
            if (name, directory.name) == ("train", "alp-seed0"):
                raise error
            done.append((name, directory.name))

        return do

    planned = study.plan(asked)
    monkeypatch.setattr(study, "is_done", lambda job, directory: (job.act, job.planned.name) in done)
    failed = study.run_all(planned, tmp_path, {name: act(name) for name in ("train", "evaluate")})
    assert failed == {"alp-seed0": str(error)}
    assert done == [("train", "madry-seed0"), ("train", "other-seed0"), ("evaluate", "madry-seed0")]
    assert f"error: alp-seed0: {error}" in capsys.readouterr().out
