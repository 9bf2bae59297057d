"""What is missing, damaged or of another setting is named, and never shown as a result."""

import html
import html.parser
import json

import matplotlib
import pytest
from report_runs import MEASURED, create_config, create_results, gaps, simple_run, write_run, write_study

from infofeat_jax import report
from infofeat_jax.report import collect, figures, page, provenance, runs, tables, terminal
from infofeat_jax.types import InvalidInput


def test_what_is_not_there_is_marked(tmp_path):
    names = ("missing", "fresh", "training", "trained", "torn", "text", "early", "broken")
    config = create_config()
    results = create_results(config, MEASURED)
    write_run(tmp_path / "fresh", config, None, 0)
    write_run(tmp_path / "training", config, None, 2)
    write_run(tmp_path / "trained", config, None)
    write_run(tmp_path / "torn", config, results)
    (tmp_path / "torn" / "results.json").write_text(json.dumps(results)[:100])
    write_run(tmp_path / "text", config, results)
    (tmp_path / "text" / "config.json").write_bytes(b"\xff\xfe")
    write_run(tmp_path / "early", config, results | {"finished": False}, 2)
    write_run(tmp_path / "broken", config, results | {"pgd20": float("nan")})
    write_study(tmp_path, {name: (name, 0) for name in names})
    found = gaps(tmp_path)
    assert found.pop("torn").startswith("results.json is damaged: ")
    assert found.pop("text").startswith("config.json is damaged: ")
    assert found == {
        "missing": "missing", "fresh": "in training: epoch 0 of 3", "training": "in training: epoch 2 of 3",
        "trained": "not evaluated", "early": "evaluated before the end of its training: epoch 2 of 3",
        "broken": "results.json is damaged: pgd20 = nan",
    }  # fmt: skip
    table = tables.accuracy_table(collect.collect(tmp_path))
    assert [line.gap for line in table.lines if not line.cells] == [line.gap for line in table.lines]
    page_path = report.write(tmp_path)  # a report of gaps alone
    assert "in training: epoch 2 of 3" in page_path.read_text()


def test_runs_beside_one_in_training_still_have_to_agree_with_each_other(tmp_path):
    """It has no test images yet: those of most others count."""
    config = create_config()
    results = create_results(config, MEASURED)
    for name in ("a", "b"):
        write_run(tmp_path / name, config, results)
    fewer = {"num_examples": 100, "examples": dict.fromkeys(MEASURED, 100)}
    write_run(tmp_path / "few", config, results | fewer)
    write_run(tmp_path / "training", config, None, 2)
    found = gaps(tmp_path / "training")
    assert found.keys() == {"few", "training"}
    assert "number of test images is 100, elsewhere 2000" in found["few"]


@pytest.mark.parametrize(
    "values", [{"pgd20": 1.5}, {"pgd20": "0.5"}, {"num_examples": 0}, {"config": {}}, {"config": 3}]
)
def test_damaged_results_are_not_shown(tmp_path, values):
    config = create_config()
    write_run(tmp_path / "run", config, create_results(config, MEASURED) | values)
    assert gaps(tmp_path)["run"].startswith("results.json is damaged: ")


BROKEN = (None, [[]], {"clean": []}, "x", -1, float("nan"))  # instead of any field


def names_of(fields: dict, prefix: str = ""):
    for name, value in fields.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from names_of(value, f"{prefix}{name}.")


@pytest.mark.parametrize("file", ["results.json", "config.json"])
def test_any_broken_field_is_a_gap_or_shown(tmp_path, file):
    """Each field of either file in turn is absent, or replaced by a value of another kind: never a traceback."""
    config = create_config()
    results = create_results(config, MEASURED, distances={"cw5": 0.1}, flags=["flag"])
    latest = create_results(config, MEASURED)
    parts = {"latest": latest, "live": latest}
    whole = {"results.json": results | parts | {"config": config}, "config.json": config}
    run = write_run(tmp_path / "madry-seed0", config, whole["results.json"])
    write_study(tmp_path, {"madry-seed0": ("madry", 0)}, paper="table1")
    outcomes = {"shown": 0, "gap": 0}
    settings = ("config.", "latest.config.", "live.config.")
    names = [name for name in names_of(whole[file]) if not name.startswith(settings)]
    for index, name in enumerate(names):
        for broken in (BROKEN[index % len(BROKEN)], KeyError):
            changed = json.loads(json.dumps(whole[file]))
            *sections, field = name.split(".")
            inner = changed
            for section in sections:
                inner = inner[section]
            if broken is KeyError:
                del inner[field]
            else:
                inner[field] = broken
            (run / file).write_text(json.dumps(changed))
            the_study = collect.collect(tmp_path)
            text = page.to_html(the_study, tables.create(the_study), [], [])
            ((gap,),) = [[one.gap for one in (*row.runs, *row.gaps)] for row in the_study.rows]
            outcomes["gap" if gap else "shown"] += 1
            assert "\n" not in gap
            assert gap in html.unescape(text), (name, broken)
    assert min(outcomes.values()) > 10


@pytest.mark.parametrize("text", ["[]", "3", "null", '"clean"', "", "[" * 100_000])
def test_results_that_are_no_object_are_a_gap(tmp_path, text):
    run = simple_run(tmp_path)
    (run / "results.json").write_text(text)
    (run / "metrics.jsonl").write_text("3\n[]\n" + '{"epoch": "x"}\n' + '"epoch"\n')
    assert gaps(tmp_path)["madry-seed0"].startswith("results.json is damaged: ")
    terminal.show(collect.collect_run(run))


def test_a_damaged_line_of_metrics_costs_no_epoch(tmp_path):
    """Training passes over it too."""
    run = simple_run(tmp_path)
    whole = runs.read_epochs(run / "metrics.jsonl")
    damaged = b"\xff\xfe" + (run / "metrics.jsonl").read_bytes().partition(b"\n")[2]  # not even UTF-8
    (run / "metrics.jsonl").write_bytes(damaged + b'{"step": ' + b"9" * 5000 + b"}\n")
    assert len(whole) > 1
    assert runs.read_epochs(run / "metrics.jsonl") == whole[1:]


def test_attacks_with_options_have_columns_and_curves_of_their_own(tmp_path):
    config = create_config()
    plain = {f"pgd{steps}": 0.6 - 0.01 * steps for steps in (1, 2, 5, 10, 20)}
    small = {f"pgd{steps}(step_size=1)": 0.7 - 0.01 * steps for steps in (5, 10, 20)}
    others = {"square": 0.6, "apgd-t": 0.4, "cw20": 0.45, "pgd20(step_size=0.5,restarts=2)": 0.51}
    results = create_results(config, {"clean": 0.9} | small | others | plain)
    write_run(tmp_path / "madry-seed0", config, results)
    the_study = collect.collect(tmp_path)
    accuracy, steps = tables.accuracy_table(the_study), tables.steps_table(the_study)
    assert accuracy.columns == [
        "seeds", "clean", "PGD20", "PGD20 (restarts=2, step_size=0.5)", "PGD5 (step_size=1)", "PGD10 (step_size=1)",
        "PGD20 (step_size=1)", "CW20", "APGD-T", "Square", "worst case",
    ]  # fmt: skip
    assert [line.label for line in steps.lines] == ["Madry, PGD", "Madry, PGD (step_size=1)"]
    with matplotlib.rc_context(figures.theme("light")):
        (panel,) = figures.draw_steps(the_study).axes
    assert panel.get_legend_handles_labels()[1] == ["PGD", "PGD (step_size=1)"]
    assert report.write(tmp_path).exists()


@pytest.mark.parametrize(
    ("changes", "more", "field"),
    [
        ({"data.train_size": 8000}, {}, "data.train_size is 8000, elsewhere 0"),
        ({"data.name": "svhn_cropped"}, {}, "data.name is 'svhn_cropped', elsewhere 'cifar10'"),
        ({"attack.epsilon": 4.0}, {}, "attack.epsilon is 4.0, elsewhere 8.0"),
        ({"eval.step_size": 1.0}, {}, "eval.step_size is 1.0, elsewhere 2.0"),
        ({"eval.validation_attack": "pgd3"}, {}, "eval.validation_attack is 'pgd3', elsewhere 'pgd7'"),
        ({}, {"num_examples": 500}, "number of test images is 500, elsewhere 2000"),
        ({}, {"checkpoint": "latest"}, "checkpoint is 'latest', elsewhere 'best'"),
        ({}, {"examples": MEASURED | dict.fromkeys(MEASURED, 2000) | {"cw20": 9}}, "under cw20 is 9, elsewhere 2000"),
    ],
)
def test_runs_of_another_setting_are_left_out_of_a_study(tmp_path, changes, more, field):
    for seed in (0, 1):
        simple_run(tmp_path, seed=seed)
    config = create_config("trades", **changes)
    write_run(tmp_path / "trades-seed0", config, create_results(config, MEASURED) | more)
    write_study(tmp_path, {f"{m}-seed{n}": (m, n) for m, n in (("madry", 0), ("madry", 1), ("trades", 0))})
    (gap,) = gaps(tmp_path).values()
    assert gap.startswith("left out: ")
    assert field in gap


def test_what_may_differ_between_the_rows_of_a_study(tmp_path):
    simple_run(tmp_path)
    simple_run(tmp_path, "infofeature", **{
        "method.weight": 0.5, "attack.num_steps": 3, "attack.step_size": 4.0, "data.data_dir": "elsewhere",
        "eval.batch_size": 100, "model.width": 8, "data.mixup": 1.0, "data.extra": "pool.npz", "data.extra_share": 0.3,
        "data.augment": "trivial", "data.in_memory": False,
    })  # fmt: skip
    write_study(tmp_path, {"madry-seed0": ("madry", 0), "infofeature-seed0": ("infofeature", 0)})
    assert gaps(tmp_path) == {}
    (tmp_path / "study.json").unlink()  # merely neighbours: another model is another table
    assert gaps(tmp_path / "madry-seed0") == {"infofeature-seed0": "left out: model.width is 8, elsewhere 0"}
    assert gaps(tmp_path / "infofeature-seed0") == {"madry-seed0": "left out: model.width is 0, elsewhere 8"}


def test_a_run_s_facts_name_its_recipe(tmp_path):
    simple_run(tmp_path, **{
        "data.mixup": 1.0, "data.extra": "pool.npz", "data.extra_share": 0.3, "swa.start_epoch": 2.0, "awp.gamma": 0.01,
        "data.augment": "trivial", "data.image_size": 64,
    })  # fmt: skip
    simple_run(tmp_path, "trades", **{"data.image_size": 64, "attack.replays": 8, "attack.num_steps": 1})
    mine, plain = (dict(provenance.facts(row.runs[0])) for row in collect.collect(tmp_path).rows)
    images = "training images; scaled to 64 pixels; a share of 0.3 of each batch from pool.npz"
    assert mine["data"].endswith(f"{images}; TrivialAugment; MixUp 1.0")
    assert any(text.endswith("replayed 8 times") for text in plain.values())
    assert not any("replayed" in text for text in mine.values())
    assert mine["training"].endswith("seed 0, SWA from epoch 2.0 on, AWP of 0.01")
    assert plain["data"].endswith("training images; scaled to 64 pixels")
    assert plain["training"].endswith("seed 0")


def test_a_run_that_is_its_own_row_is_named_once(tmp_path):
    simple_run(tmp_path)
    write_run(tmp_path / "mine", create_config("trades"), None)
    lines = {line.label: line.gap for line in tables.accuracy_table(collect.collect(tmp_path)).lines}
    assert lines["mine"] == "not evaluated"
    assert "1 finished run in " in report.write(tmp_path).read_text()


def test_runs_of_a_row_differ_in_the_seed_alone(tmp_path):
    simple_run(tmp_path)
    simple_run(tmp_path, seed=1, **{"method.label_smoothing": 0.5})
    simple_run(tmp_path, seed=2)
    (tmp_path / "madry-seed2").rename(tmp_path / "madry-seed5")
    write_study(tmp_path, {f"madry-seed{seed}": ("madry", seed) for seed in (0, 1, 5)})
    assert gaps(tmp_path) == {
        "madry-seed1": "left out: differs from madry-seed0 in method.label_smoothing (None, 0.5)",
        "madry-seed5": "trained with seed 2, not 5",
    }
    (tmp_path / "study.json").unlink()
    simple_run(tmp_path / "other")
    (tmp_path / "other" / "madry-seed0").rename(tmp_path / "madry")
    assert gaps(tmp_path)["madry-seed0"] == "left out: row and seed of madry"


def test_results_of_another_configuration_are_not_shown(tmp_path):
    run = simple_run(tmp_path)
    (run / "config.json").write_text(json.dumps(create_config(**{"optimizer.momentum": 0.5})))
    assert gaps(tmp_path)["madry-seed0"].endswith("than config.json: optimizer.momentum (0.5, 0.9)")


def test_weights_from_a_file_stand_beside_trained_runs(tmp_path):
    simple_run(tmp_path)
    config = create_config(**{"eval.torch_checkpoint": "robust.pt"}) | {"num_epochs": 0}
    results = create_results(config, MEASURED, checkpoint="robust.pt", finished=False)
    write_run(tmp_path / "robust", create_config(batch_size=7) | {"num_epochs": 0}, results, epochs=0)
    assert gaps(tmp_path) == {}
    title = tables.accuracy_table(collect.collect(tmp_path)).title
    assert title.endswith("best checkpoint, or weights as given")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"runs": []}', '{"runs": {"a": {"row": "a"}}}', '{"runs": {}, "paper": "table9"}']
)
def test_a_study_that_cannot_be_read_is_one_line(tmp_path, text):
    simple_run(tmp_path)
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"study\.json") as caught:
        report.write(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report").exists()


def test_nothing_to_report_is_one_line(tmp_path):
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InvalidInput, match=r"no run in .*: train first"):
            report.write(directory)
    simple_run(tmp_path)
    (tmp_path / "report").write_text("a file where the directory should be")
    with pytest.raises(InvalidInput, match=r"the report cannot be written"):
        report.write(tmp_path)
