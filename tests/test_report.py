"""The report says what the runs' files say: aggregates, gaps, the paper's values; and its page needs nothing else."""

import base64
import html
import html.parser
import io
import itertools
import json
import math
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
import scipy.stats
from PIL import Image
from sklearn.datasets import load_digits

from infofeat_jax import cli, report
from infofeat_jax import config as configs
from infofeat_jax.report import (
    cam_images,
    cells,
    collect,
    compare,
    estimate,
    figures,
    finding,
    markup,
    notes,
    page,
    paper,
    provenance,
    runs,
    tables,
    terminal,
)  # fmt: skip
from infofeat_jax.report.lines import Line
from infofeat_jax.types import InvalidInput

MEASURED = {"clean": 0.85, "fgsm": 0.7, "pgd7": 0.55, "pgd20": 0.5, "cw20": 0.45}
EPOCHS = 3


def create_config(method: str = "madry", seed: int = 0, **changes) -> dict:
    config = configs.for_method(configs.default(), method)
    config.seed, config.num_epochs = seed, EPOCHS
    config.update_from_flattened_dict(changes)
    return json.loads(configs.to_json(configs.resolve(config)))


def create_results(config: dict, accuracies: dict, **more) -> dict:
    facts = {
        "worst_case": min(accuracies.values()), "examples": dict.fromkeys(accuracies, 2000), "num_examples": 2000,
        "checkpoint": "best", "checkpoint_step": 30, "seconds": 12.5,
        "seconds_per_attack": dict.fromkeys(accuracies, 2.5),
        "training_seconds": 1234.5, "finished": True, "data": config["data"]["name"], "train_images": 49_000,
        "hardware": "1 x cpu (2 x86_64 cores)", "jax": "0.10.2", "config": config,
    }  # fmt: skip
    return accuracies | facts | more


def write_run(directory: pathlib.Path, config: dict, results: dict | None, epochs: int = EPOCHS) -> pathlib.Path:
    """A run's directory, written by hand instead of by training."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    lines = [{"step": 1, "loss": 2.0}]
    for epoch in range(1, epochs + 1):
        accuracy = {"validation_clean_accuracy": 0.2 * epoch, "validation_robust_accuracy": 0.1 * epoch}
        lines.append({"step": 10 * epoch, "epoch": epoch, "epoch_seconds": 9.5, **accuracy})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if results is not None:
        (directory / "results.json").write_text(json.dumps(results))
    return directory


def write_study(directory: pathlib.Path, planned: dict, **fields) -> pathlib.Path:
    directory.mkdir(exist_ok=True)
    rows = {name: {"row": row, "seed": seed} for name, (row, seed) in planned.items()}
    (directory / "study.json").write_text(json.dumps({"title": "", "paper": "", "runs": rows} | fields))
    return directory


def simple_run(directory: pathlib.Path, method: str = "madry", seed: int = 0, shift: float = 0.0, **changes):
    """A finished run whose accuracies are MEASURED + shift."""
    config = create_config(method, seed, **changes)
    accuracies = {name: round(value + shift, 4) for name, value in MEASURED.items()}
    return write_run(directory / f"{method}-seed{seed}", config, create_results(config, accuracies))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three seeds of madry, one of infofeature with everything there can be, and one of alp that is missing."""
    directory = tmp_path_factory.mktemp("studies") / "table1"
    for seed, shift in enumerate((0.0, 0.02, 0.07)):
        simple_run(directory, seed=seed, shift=shift)
    config = create_config("infofeature", **{"data.note": "JPEG re-encoding"})
    more = {f"{name}{steps}": 0.6 - 0.01 * steps for name in ("pgd", "infofeature") for steps in (1, 2, 3, 5, 10)}
    more |= {"autoattack": 0.4, "noise": 0.8, "pgd10@madry-seed0": 0.75, "cw10@../other/standard-seed0": 0.7}
    results = create_results(
        config, MEASURED | more, distances={"cw5": 0.1234},
        flags=["PGD20 leaves <b>12 points</b> more than AutoAttack."],
        latest=create_results(config, {name: value - 0.05 for name, value in MEASURED.items()}),
        live=create_results(config, {name: value - 0.01 for name, value in MEASURED.items()}),
    )  # fmt: skip
    results["examples"]["autoattack"] = 200
    run = write_run(directory / "infofeature-seed0", config, results)
    np.savez(run / "cam_images.npz", **create_cam_images())
    planned = {f"madry-seed{seed}": ("madry", seed) for seed in range(3)}
    planned |= {"infofeature-seed0": ("infofeature", 0), "alp-seed0": ("alp", 0)}
    return write_study(directory, planned, title="Rows & <script>alert(1)</script>_%", paper="table1", note="a {note}")


@pytest.fixture(scope="module")
def written(study):
    """The report's directory."""
    return report.write(study).parent


def create_cam_images() -> dict[str, np.ndarray]:
    rng, count = np.random.default_rng(0), 3
    images = (load_digits().images[:count, ..., None] / 16).astype(np.float32)
    perturbed = np.clip(images + rng.choice([-0.125, 0.125], images.shape), 0, 1).astype(np.float32)
    maps = rng.uniform(size=(2, count, 4, 4)).astype(np.float32)
    return {
        "images": images, "perturbed": perturbed, "cam_clean": maps[0], "cam_perturbed": maps[1],
        "labels": np.arange(count), "predicted_clean": np.arange(count), "predicted_perturbed": np.array([7, 7, 7]),
        "attack": np.array("infofeature20"), "epsilon": np.array(0.125),
    }  # fmt: skip


def lines_of(table: tables.Table, label: str) -> list[Line]:
    """The row `label` with its parts."""
    start = next(index for index, line in enumerate(table.lines) if line.label == label and line.kind == "row")
    rest = table.lines[start + 1 :]
    end = next((index for index, line in enumerate(rest) if line.kind == "row"), len(rest))
    return [table.lines[start], *rest[:end]]


def gaps(directory: pathlib.Path) -> dict[str, str]:
    return {run.name: run.gap for row in collect.collect(directory).rows for run in row.gaps}


# Aggregation


def test_interval_over_seeds_by_hand():
    """t(0.975, 2 degrees of freedom) = 4.302653 from printed tables; standard deviation 0.02 by hand."""
    mean, low, high = estimate.over_seeds([0.48, 0.50, 0.52])
    assert mean == pytest.approx(0.5)
    assert high - mean == pytest.approx(4.302653 * 0.02 / math.sqrt(3), rel=1e-6)
    assert mean - low == pytest.approx(high - mean)
    assert estimate.over_seeds([0.3, 0.3]) == (0.3, 0.3, 0.3)


@pytest.mark.parametrize(("correct", "count"), [(0, 50), (1, 500), (250, 500), (2000, 2000)])
def test_interval_over_images_solves_wilsons_equation(correct, count):
    """Its ends are the shares p with |share - p| = z sqrt(p (1 - p) / n)."""
    share, low, high = estimate.over_images(correct / count, count)
    z = scipy.stats.norm.ppf(0.975)
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / count), rel=1e-6)
    assert 0 <= low <= share <= high <= 1
    assert high - low > 0


def test_a_row_over_seeds(study):
    table = tables.accuracy_table(collect.collect(study))
    pgd20 = table.columns.index("PGD20")
    mean, best, worst, *_ = lines_of(table, "Madry")
    values = np.array([0.5, 0.52, 0.57])
    low, high = scipy.stats.t.interval(0.95, 2, values.mean(), scipy.stats.sem(values))
    assert mean.cells[0].value == "3"
    assert mean.cells[pgd20] == (f"{100 * values.mean():.1f}", f"±{50 * (high - low):.1f}")
    assert (best.label, best.cells[0].value, best.cells[pgd20].value) == ("best by PGD20", "seed 2", "57.0")
    assert (worst.label, worst.cells[0].value, worst.cells[pgd20].value) == ("worst by PGD20", "seed 0", "50.0")


def test_a_row_of_one_seed_has_the_interval_over_its_images(study):
    table = tables.accuracy_table(collect.collect(study))
    row, *_ = lines_of(table, "InfoFeature")
    low, high = scipy.stats.binomtest(900, 2000).proportion_ci(0.95, method="wilson")
    assert row.cells[table.columns.index("CW20")] == ("45.0", f"[{100 * low:.1f}, {100 * high:.1f}]")
    low, high = scipy.stats.binomtest(80, 200).proportion_ci(0.95, method="wilson")  # AutoAttack's own count
    assert row.cells[table.columns.index("AutoAttack")] == ("40.0", f"[{100 * low:.1f}, {100 * high:.1f}]")
    assert any(note.startswith("Few images: AutoAttack on 200 only") for note in table.notes)
    assert any("(Student's t)" in note for note in table.notes)
    assert any("(Wilson)" in note for note in table.notes)


def test_an_attack_that_some_seeds_lack_is_counted(tmp_path):
    simple_run(tmp_path)
    simple_run(tmp_path, seed=1)
    path = tmp_path / "madry-seed1" / "results.json"
    results = json.loads(path.read_text())
    del results["cw20"], results["examples"]["cw20"]
    path.write_text(json.dumps(results))
    table = tables.accuracy_table(collect.collect(tmp_path))
    assert table.lines[0].cells[table.columns.index("CW20")].detail.endswith("(1 of 2)")
    assert "worst case" not in table.columns  # over other attacks in each run


def test_the_worst_case_is_beside_the_other_attacks_on_the_same_images(tmp_path, monkeypatch, capsys):
    """On the first 200 images all is better than on 2,000: the worst case there is above PGD20 on all of them."""
    subset = {"clean": 0.95, "pgd20": 0.6, "cw20": 0.58, "autoattack": 0.55}
    common = subset | {"examples": dict.fromkeys(subset, 200), "worst_case": 0.545}
    whole = {"clean": 0.85, "pgd20": 0.5, "cw20": 0.45, "autoattack": 0.55}
    results = create_results(create_config(), whole, common=common) | {"worst_case": 0.545}
    results["examples"]["autoattack"] = 200
    write_run(tmp_path / "madry-seed0", create_config(), results)
    table = tables.accuracy_table(collect.collect(tmp_path))
    assert table.columns[-1] == "worst case"
    row, same = (line for line in table.lines if line.kind != "part")
    assert [cell.value for cell in row.cells[1:]] == ["85.0", "50.0", "45.0", "55.0", "\N{EN DASH}"]
    assert (same.label, same.kind) == ("first 200 images", "subset")
    assert [cell.value for cell in same.cells[1:]] == ["95.0", "60.0", "58.0", "55.0", "54.5"]
    low, high = scipy.stats.binomtest(109, 200).proportion_ci(0.95, method="wilson")
    assert same.cells[-1].detail == f"[{100 * low:.1f}, {100 * high:.1f}]"
    assert any("among the first 200 images, which all attacks saw" in note for note in table.notes)
    monkeypatch.setenv("COLUMNS", "120")
    terminal.show(collect.collect(tmp_path))
    assert "first 200 images 95.0 60.0 58.0 55.0 54.5" in re.sub(" +", " ", capsys.readouterr().out)
    assert "first 200 images" in markup.to_markdown("", "", [table])
    path = tmp_path / "madry-seed0" / "results.json"
    path.write_text(json.dumps(results | {"common": common | {"pgd20": 1.5}}))
    (gap,) = collect.collect(tmp_path).rows[0].gaps
    assert gap.gap == "results.json is damaged: common: pgd20 = 1.5"
    path.write_text(json.dumps(results | {"common": {}}))  # as earlier versions wrote it
    table = tables.accuracy_table(collect.collect(tmp_path))
    assert table.lines[0].cells[-1].value == "54.5"
    assert any(note.startswith("Worst case:") for note in table.notes)


# The finding


def study_of(directory: pathlib.Path, accuracies: dict[str, dict[str, float]], examples: int = 2000) -> runs.Study:
    for method, values in accuracies.items():
        results = create_results(create_config(method), values)
        results["examples"] = dict.fromkeys(values, examples)
        write_run(directory / method, create_config(method), results)
    return collect.collect(directory)


def test_the_most_robust_method_is_named_if_the_intervals_are_apart(tmp_path):
    """PGD20 would say Madry, CW20 leaves less but Standard lacks it; AutoAttack decides where all have it."""
    values = {
        "madry": {"clean": 0.8, "pgd20": 0.6, "autoattack": 0.4},
        "alp": {"clean": 0.8, "pgd20": 0.5, "autoattack": 0.5},
        "standard": {"clean": 0.9, "noise": 0.0, "pgd20": 0.1, "cw20": 0.0, "autoattack": 0.0, "fgsm(epsilon=99)": 0.0},
    }  # fmt: skip
    low, high = scipy.stats.binomtest(1000, 2000).proportion_ci(0.95, method="wilson")
    second = scipy.stats.binomtest(800, 2000).proportion_ci(0.95, method="wilson")
    assert finding.finding(study_of(tmp_path / "a", values)) == (
        f"ALP is the most robust under AutoAttack, the strongest attack that all have: 50.0 % [{100 * low:.1f},"
        f" {100 * high:.1f}] of 2,000 test images; next is Madry with 40.0 % [{100 * second.low:.1f},"
        f" {100 * second.high:.1f}]. One run each: the randomness of training is not covered."
    )
    without = {method: {name: v for name, v in own.items() if name != "autoattack"} for method, own in values.items()}
    assert finding.finding(study_of(tmp_path / "b", without)).startswith("Madry is the most robust under PGD20, the")
    alone = finding.finding(study_of(tmp_path / "c", {"standard": values["standard"]}))
    assert alone == "Standard classifies 0.0 % [0.0, 0.2] of 2,000 test images correctly under AutoAttack."


def test_methods_with_overlapping_intervals_are_not_told_apart(tmp_path):
    """On 100 images the intervals of 40 % and 25 % overlap, on 2,000 not; 5 % is below both."""
    values = {"madry": {"autoattack": 0.4}, "alp": {"autoattack": 0.25}, "standard": {"autoattack": 0.05}}
    text = finding.finding(study_of(tmp_path / "few", values, 100))
    assert "Madry (40.0 % [30.9, 49.8]) and ALP (25.0 % [17.5, 34.3]) cannot be told apart on 100 test images" in text
    assert "Less robust: Standard. Reduced scale: few test images. One run each" in text
    assert finding.finding(study_of(tmp_path / "many", values)).startswith("Madry is the most robust under AutoAttack")


def test_the_finding_says_what_limits_it(study, tmp_path):
    text = finding.finding(collect.collect(study))  # the interval of Madry's three seeds, 45 to 57, holds InfoFeature's
    assert text.startswith(
        "Under CW20, the strongest attack that all have, Madry (48.0 % ±9.0) and InfoFeature (45.0 %"
    )
    assert "Reduced scale: less than the paper's setting. Flagged (see there): InfoFeature." in text
    assert "One run each" not in text
    apart = study_of(tmp_path / "apart", {"madry": {"clean": 0.8, "fgsm": 0.3}, "alp": {"clean": 0.8, "pgd20": 0.3}})
    assert finding.finding(apart) == finding.NO_ATTACK
    assert finding.finding(study_of(tmp_path / "clean", {"alp": {"clean": 0.8}})) == "No attack has been measured."
    assert finding.finding(runs.Study(tmp_path, "", "", [], [])) == "There is no finished run yet."


@pytest.mark.parametrize(
    ("third", "said"),
    [
        (
            {"clean": 0.8, "pgd20": 0.5},
            "ALP is the most robust under AutoAttack, the strongest attack that these have: 3",
        ),
        (
            {"clean": 0.8, "fgsm": 0.5, "autoattack": 0.3},
            "Madry is the most robust under AutoAttack, the strongest att",
        ),
    ],
)
def test_rows_without_a_common_attack_are_compared_where_they_have_one(tmp_path, third, said):
    """Two runs evaluated as usual, and one that was only tried under a few attacks; image by image likewise."""
    values = {"alp": {"clean": 0.8, "fgsm": 0.6, "autoattack": 0.35}, "standard": {"fgsm": 0.2, "autoattack": 0.0}}
    if "autoattack" in third:
        values["alp"], values["madry"] = {"clean": 0.8, "pgd20": 0.6}, third
    else:
        values["madry"] = third
    text = finding.finding(study_of(tmp_path, values))
    left_out = "ALP" if "autoattack" in third else "Madry"
    assert text.startswith(said), text
    assert f"next is Standard with 0.0 % [0.0, 0.2]. Not compared, as they have other attacks: {left_out}." in text


def test_a_warning_is_on_the_page_once(study, written):
    """The few images concern two tables, the flags a run's own entry too; they are at the head alone."""
    text = (written / "index.html").read_text()
    head, rest = text.split("</header>")
    for warning in ("Few images: AutoAttack on 200 only", "leaves &lt;b&gt;12 points", "Data: JPEG", "Reduced setting"):
        assert head.count(warning) == 1, warning
        assert warning not in rest, warning
    assert finding.finding(collect.collect(study)) in html.unescape(head).replace("\N{NO-BREAK SPACE}", " ")
    everything = notes.few_images(study_of(study.parent / "few", {"madry": {"clean": 0.8, "pgd20": 0.5}}, 100))
    assert everything == ["Few images: all attacks on 100 only; near 50 % a single value is uncertain by 9.6 points."]


@pytest.mark.parametrize(
    ("limits", "given", "said"),
    [
        ({}, {}, "AutoAttack on 100 only"),  # the other 500 are the whole test set
        ({"eval.num_examples": 500}, {}, "AutoAttack on 100 and the others on 500 only"),
        ({"data.test_size": 500}, {}, "AutoAttack on 100 and the others on 500 only"),
        ({}, {"given": {}}, "AutoAttack on 100 and the others on 500 only"),  # it is unknown whether there are more
    ],
)
def test_images_are_few_where_there_are_more(tmp_path, limits, given, said):
    config = create_config(**limits)
    examples = {"clean": 500, "pgd20": 500, "autoattack": 100}
    results = create_results(config, {"clean": 0.8, "pgd20": 0.5, "autoattack": 0.4})
    write_run(tmp_path / "madry", config, results | {"num_examples": 500, "examples": examples} | given)
    (warning,) = notes.few_images(collect.collect(tmp_path))
    assert warning.startswith(f"Few images: {said};")


def test_many_flags_leave_the_page_its_head(tmp_path):
    """The first five are in sight, the others one click away, and all are there."""
    results = create_results(create_config(), MEASURED, flags=[f"flag {index}" for index in range(12)])
    write_run(tmp_path / "madry", create_config(), results)
    the_study = collect.collect(tmp_path)
    head = page.to_html(the_study, tables.create(the_study), [], []).split("</header>")[0]
    in_sight, rest = head.split("<details><summary>7 more</summary>")
    assert in_sight.count("madry: flag") == 5
    assert rest.count("madry: flag") == 7


def test_attacks_are_in_the_papers_order_and_step_counts_in_their_own_table(study):
    everything = {table.name: table for table in tables.create(collect.collect(study))}
    columns = ["seeds", "clean", "noise", "FGSM", "PGD7", "PGD20", "CW20", "InfoFeature10", "AutoAttack"]
    assert everything["accuracy"].columns == columns
    steps = everything["steps"]
    assert steps.columns == ["1", "2", "3", "5", "7", "10", "20"]
    assert [line.label for line in steps.lines] == ["InfoFeature, PGD", "InfoFeature, InfoFeature"]
    assert steps.lines[0].cells[3].value == "55.0"
    assert everything["transfer"].columns == ["seeds", "noise", "../other/standard-seed0 CW10", "madry-seed0 PGD10"]
    assert [cell.value for cell in everything["transfer"].lines[0].cells] == ["1", "80.0", "70.0", "75.0"]
    assert everything["distances"].lines[0].cells == [("0.123", "")]
    last = lines_of(everything["latest"], "InfoFeature")
    assert [line.cells[1].value for line in last] == ["85.0", "80.0", "\N{MINUS SIGN}5.0"]
    live = lines_of(everything["live"], "InfoFeature")
    assert [line.label for line in live] == ["InfoFeature", "live", "live \N{MINUS SIGN} average"]
    assert [line.cells[1].value for line in live] == ["85.0", "84.0", "\N{MINUS SIGN}1.0"]


# Beside the paper


def test_the_difference_is_to_the_papers_value(study):
    """Table 1, Madry, PGD20: 40.3; here 53.0. The setting is reduced, and is said to be."""
    table = tables.accuracy_table(collect.collect(study))
    pgd20 = table.columns.index("PGD20")
    *_, published, apart = lines_of(table, "Madry")
    assert (published.label, published.cells[pgd20].value) == ("paper", "40.3")
    assert (apart.label, apart.cells[pgd20].value) == ("difference (reduced setting)", "+12.7")
    assert apart.cells[table.columns.index("AutoAttack")].value == tables.NONE
    (warning,) = [note for note in table.notes if note.startswith("Reduced setting")]
    assert "num_epochs 3 (paper: 120)" in warning
    assert "test images 2,000 (paper: 10,000)" in warning
    assert "data: JPEG re-encoding, InfoFeature" in warning
    missing = lines_of(table, "ALP")
    assert [line.label for line in missing] == ["ALP", "paper"]  # nothing measured, nothing to compare


def test_best_and_worst_restart_are_compared_with_table_3(tmp_path):
    for seed, shift in enumerate((0.0, 0.03)):
        simple_run(tmp_path, "infofeature", seed, shift)
    write_study(tmp_path, {f"infofeature-seed{n}": ("infofeature", n) for n in range(2)}, paper="table3")
    table = tables.accuracy_table(collect.collect(tmp_path))
    cells = {line.label: line.cells[table.columns.index("PGD20")].value for line in lines_of(table, "InfoFeature")}
    assert cells["paper, best"] == "50.0"
    assert cells["difference, best (reduced setting)"] == "+3.0"
    assert cells["paper, worst"] == "48.5"
    assert cells["difference, worst (reduced setting)"] == "+1.5"


@pytest.mark.parametrize("name", ["cifar10_resnet18", "cifar10_wrn", "cifar100_wrn", "svhn_resnet18", "cifar10_small"])
@pytest.mark.parametrize("method", ["infofeature", "standard", "feature_scatter"])
def test_the_full_configurations_are_the_papers_settings(name, method):
    table = {"cifar10_wrn": "table3", "cifar100_wrn": "table4", "svhn_resnet18": "table5"}.get(name, "table1")
    module = __import__(f"configs.{name}", fromlist=["get_config"])
    config = json.loads(configs.to_json(configs.resolve(module.get_config(method))))
    images = {"cifar10_small": 2000, "svhn_resnet18": 26_032}.get(name, 10_000)
    deviations = paper.find_deviations(config, images, paper.TABLES[table])
    if name == "cifar10_small":
        assert paper.kind(deviations) == "reduced setting"
        assert {d.field for d in deviations} == {
            "model.width", "num_epochs", "training images", "test images", "optimizer.milestones",
        }  # fmt: skip
    else:
        assert deviations == []
        assert paper.kind(deviations) == ""
    config["attack"]["epsilon"] = 4.0
    assert paper.kind(paper.find_deviations(config, images, paper.TABLES[table])) != ""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ema.decay", 0.99),
        ("awp.gamma", 0.01),
        ("optimizer.decay_norm", False),
        ("swa.start_epoch", 60.0),
        ("attack.batch_norm", "batch"),
        ("attack.ramp_epochs", 5.0),
        ("data.cutmix", 1.0),
        ("data.extra", "pool.npz"),
        ("attack.noise", 2.0),
        ("attack.replays", 8),
        ("data.image_size", 64),
        ("data.augment", "trivial"),
        ("method.grad_align", 0.2),
    ],
)
def test_a_recipe_is_a_deviation_and_a_run_of_before_there_was_one_is_none(field, value):
    config = json.loads(configs.to_json(configs.resolve(configs.for_method(configs.default(), "madry"))))
    section, name = field.split(".")
    for given, expected in (({}, []), ({name: value}, [field])):
        kept = {key: other for key, other in config[section].items() if key != name} | given
        found = paper.find_deviations({**config, section: kept}, 10_000, paper.TABLES["table1"])
        assert [deviation.field for deviation in found] == expected


def test_the_papers_tables_have_a_value_for_every_column():
    for published in paper.TABLES.values():
        for row in published.rows.values():
            assert all(len(values) == len(published.columns) for values in row.values())
    assert paper.TABLES["table1"].rows["infofeature"]["mean"] == (85.1, 69.3, 61.3, 49.3, 48.0)
    assert paper.TABLES["table6"].rows["madry"]["mean"] == (88.7, 88.6, 88.4, 75.3, 74.6)


def test_table_6_finds_its_columns_and_judges_the_sources(tmp_path):
    config = create_config("standard")
    attacks = {"clean": 0.9, "noise": 0.8, "pgd10@../one/madry-seed0": 0.824, "cw10@../one/madry-seed0": 0.7}
    write_run(tmp_path / "study" / "standard-seed0", config, create_results(config, attacks))
    write_run(tmp_path / "one" / "madry-seed0", create_config("madry"), None)
    write_study(tmp_path / "study", {"standard-seed0": ("standard", 0)}, paper="table6")
    study = collect.collect(tmp_path / "study")
    table = tables.transfer_table(study)
    _, published, apart = table.lines
    assert [cell.value for cell in published.cells] == ["", "92.1", "82.4", "81.1"]
    assert [cell.value for cell in apart.cells] == ["", "\N{MINUS SIGN}12.1", "0.0", "\N{MINUS SIGN}11.1"]
    assert "../one/madry-seed0: num_epochs 3 (paper: 120)" in " ".join(table.notes)
    assert not any(line.label.startswith("paper") for line in tables.accuracy_table(study).lines)


def test_an_attack_crafted_on_the_model_itself_is_not_called_transferred(tmp_path):
    for method in ("standard", "madry"):
        config = create_config(method)
        write_run(tmp_path / method, config, create_results(config, {"clean": 0.9, "pgd10@madry": 0.4}))
    remarks = tables.transfer_table(collect.collect(tmp_path)).notes
    assert [note for note in remarks if "itself" in note] == [
        "Crafted on the attacked model itself, so not transferred: madry."
    ]


# Gaps


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


@pytest.mark.parametrize(
    ("name", "parts", "shown"),
    [
        ("pgd20", ("pgd", 20, "", ""), "PGD20"),
        ("clean", ("clean", None, "", ""), "clean"),
        (
            "pgd20(step_size=1,restarts=5)",
            ("pgd", 20, "restarts=5, step_size=1", ""),
            "PGD20 (restarts=5, step_size=1)",
        ),
        ("apgd-t", ("apgd-t", None, "", ""), "APGD-T"),
        ("square(num_queries=1000)", ("square", None, "num_queries=1000", ""), "Square (num_queries=1000)"),
        ("pgd10@../a/madry-seed0", ("pgd", 10, "", "../a/madry-seed0"), "../a/madry-seed0 PGD10"),
        ("cw10(step_size=1)@odd(1)@2", ("cw", 10, "step_size=1", "odd(1)@2"), "odd(1)@2 CW10 (step_size=1)"),
        ("package.module:attack", ("package.module:attack", None, "", ""), "package.module:attack"),
        ("pgd20(", ("pgd20(", None, "", ""), "pgd20("),
        ("", ("", None, "", ""), ""),
    ],
)
def test_attack_names(name, parts, shown):
    assert estimate.split_steps(name) == parts
    assert cells.display(name) == shown


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


# What is written


class Elements(html.parser.HTMLParser):
    """All tags with their attributes, and the text outside of style sheets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found, self.words, self.within = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.within = tag

    def handle_data(self, data):
        if self.within != "style":
            self.words.append(data)


def test_the_page_needs_nothing_else(written):
    text = (written / "index.html").read_text()
    elements = Elements(text).found
    assert not {tag for tag, _ in elements} & {"link", "iframe", "object", "embed"}
    assert not [attributes for tag, attributes in elements if tag == "script" and "src" in attributes]
    resources = [a[name] for _, a in elements for name in ("src", "srcset", "href", "data") if name in a]
    assert len(resources) > 8
    for resource in resources:
        assert resource.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,", "#"))
    assert not re.search(
        r"https?://|file:|url\(|@import|import\(|fetch\(|XMLHttpRequest", re.sub(r"base64,[\w+/=]+", "", text)
    )
    for resource in resources:
        if "svg+xml" in resource:
            svg = base64.b64decode(resource.partition(",")[2]).decode()
            assert not re.findall(r'href="(?!#|data:)', svg)
    anchors = {resource[1:] for resource in resources if resource.startswith("#")}
    assert anchors <= {attributes.get("id") for _, attributes in elements}


def test_text_from_outside_is_escaped(written):
    text = (written / "index.html").read_text()
    assert "Rows &amp; &lt;script&gt;alert(1)&lt;/script&gt;_%" in text
    assert "leaves &lt;b&gt;12 points&lt;/b&gt; more" in text
    assert len(re.findall("<script", text)) == 2  # the page's own: what it works on, and what it does
    assert "<b>" not in text


def test_the_page_says_what_a_number_needs(written):
    words = " ".join(" ".join(Elements((written / "index.html").read_text()).words).split())
    for fact in (
        "2,000 test images of cifar10", "linf epsilon 8/255, attack steps of 2/255", "JPEG re-encoding", "a {note}",
        "Few images: AutoAttack on 200 only", "Reduced setting", "1 of 5 runs do not count", "alp-seed0 missing",
        "49,000 training images", "3 epochs, batches of 128, seed 2", "7 steps of 2/255", "1,234", "0.10.2",
        "1 x cpu (2 x86_64 cores)", "infofeature-seed0: PGD20 leaves", '"weight_decay": 0.0002',
    ):  # fmt: skip
        assert fact in words, fact


def test_the_tables_agree_with_the_results(study, written):
    """Every accuracy of results.json stands in Markdown, LaTeX and on the page, in the row and column of its name."""
    results = json.loads((study / "infofeature-seed0" / "results.json").read_text())
    rows = [line.strip("| \n").split(" | ") for line in (written / "table.md").read_text().splitlines()]
    header, row = (next(line for line in rows if line[0] == label) for label in ("method", "InfoFeature"))
    latex = (written / "table.tex").read_text()
    latex_row = next(line for line in latex.splitlines() if line.startswith("InfoFeature &")).split(" & ")
    html_row = re.search(
        r'<tr class="row"><th scope="row">InfoFeature</th>(.*)</tr>', (written / "index.html").read_text()
    )
    html_cells = re.findall(r"<td[^>]*>([\d.]+)", html_row[1])
    for name, column in {"clean": "clean", "pgd20": "PGD20", "autoattack": "AutoAttack"}.items():
        index = header.index(column)
        expected = f"{100 * results[name]:.1f}"
        assert [cells.split()[0] for cells in (row[index], latex_row[index])] == [expected, expected]
        assert html_cells[index - 1] == expected


def test_the_latex_is_well_formed(written):
    """As many cells a line as columns, environments closed, and no character that TeX takes for a command."""
    text = (written / "table.tex").read_text()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 6
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL):
        for line in filter(r"\hline".__ne__, body.strip().split("\n")):
            content = line.removesuffix(r" \hline").removesuffix(r" \\")
            assert content != line
            spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", content)]
            assert len(re.split(r"(?<!\\)&", content)) + sum(spans) - len(spans) == len(columns)
    assert re.sub(r"[\x20-\x7e\n]", "", text) == ""
    assert r"AutoAttack on 200 only; near 50 \% a" in text
    assert markup.to_latex("", [tables.Table("x", r"a_b & 50% {$#} \ ^~", [], [], [])]).count(
        r"a\_b \& 50\% \{\$\#\} \textbackslash{} \textasciicircum{}\textasciitilde{}."
    )
    assert text.count("{") == text.count("}")


def test_the_figures_are_files_of_their_kind(written):
    names = {path.name for path in (written / "figures").iterdir()}
    stems = ("overview", "epochs", "steps", "maps-infofeature-seed0")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    for name in names:
        content = (written / "figures" / name).read_bytes()
        if name.endswith("svg"):
            assert ElementTree.fromstring(content).tag.endswith("svg")
        else:
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                assert min(image.size) > 100
                assert len(np.unique(np.asarray(image.convert("L")))) > 5  # something is drawn


def test_the_plots_show_the_measured_values(study):
    the_study = collect.collect(study)
    with matplotlib.rc_context(figures.theme("light")):
        clean, robust = figures.draw_epochs(the_study).axes
        panels = figures.draw_steps(the_study).axes
        overview = figures.draw_overview(the_study).axes[0]
    np.testing.assert_allclose(clean.lines[0].get_ydata(), [20, 40, 60])
    np.testing.assert_allclose(robust.lines[1].get_ydata(), [10, 20, 30])
    assert [axes.get_title() for axes in panels] == ["InfoFeature"]
    pgd = panels[0].lines[0]
    np.testing.assert_array_equal(pgd.get_xdata(), [1, 2, 3, 5, 7, 10, 20])
    np.testing.assert_allclose(pgd.get_ydata(), [59, 58, 57, 55, 55, 50, 50])
    attacks = ["FGSM", "PGD7", "PGD20", "CW20", "InfoFeature10", "AutoAttack"]
    assert overview.get_legend_handles_labels()[1] == attacks
    np.testing.assert_allclose(overview.containers[2][0].get_xdata(), [53, 50])
    np.testing.assert_allclose(
        overview.containers[5][0].get_xdata(), [40]
    )  # Madry lacks it, and is shown with the rest


def test_validation_curves_are_means_over_seeds(tmp_path):
    for seed in (0, 1):
        simple_run(tmp_path, seed=seed)
    path = tmp_path / "madry-seed1" / "metrics.jsonl"
    path.write_text(path.read_text().replace("0.2,", "0.4,") + '{"step": 31, "epo')  # cut off by a kill
    label, values = figures.validation(collect.collect(tmp_path).rows[0], "validation_clean_accuracy")
    assert label == "Madry"
    np.testing.assert_allclose(values.mean(0), [30, 40, 60])


def test_the_cam_images_are_the_recorded_ones():
    arrays = create_cam_images()
    clean, attacked, difference, *maps = cam_images.tiles(arrays, 1)
    factor = len(clean) // 8
    np.testing.assert_allclose(clean[::factor, ::factor, 0], arrays["images"][1, ..., 0])
    np.testing.assert_allclose(attacked[::factor, ::factor, 2], arrays["perturbed"][1, ..., 0])
    assert cam_images.amplification(arrays) == pytest.approx(4)
    apart = arrays["perturbed"][1] - arrays["images"][1]
    np.testing.assert_allclose(difference[::factor, ::factor], np.broadcast_to(0.5 + 4 * apart, (8, 8, 3)), atol=1e-6)
    assert all(one.shape == clean.shape and one.min() >= 0 and one.max() <= 1 for one in maps)
    strip = cam_images.strip([clean, attacked, difference])
    assert strip.shape == (len(clean), 3 * len(clean) + 2 * cam_images.GAP, 4)
    with Image.open(io.BytesIO(cam_images.to_png(strip))) as image:
        np.testing.assert_allclose(np.asarray(image)[:, : len(clean), :3] / 255, clean, atol=1 / 255)
        assert not np.asarray(image)[:, len(clean) : len(clean) + cam_images.GAP, 3].any()
    grey = np.full((8, 8, 3), 0.5)
    bright = cam_images.overlay(grey, np.array([[0.0, 1.0]]))
    assert bright[:, -1].mean() > bright[:, 0].mean() + 0.2


@pytest.mark.parametrize(
    ("names", "before", "after", "words"),
    [
        (["cat", "dog", "deer"], 0, 1, "cat, taken for dog"),
        (["cat", "dog", "deer"], 0, 0, "cat, recognised"),
        (["cat", "dog", "deer"], 1, 1, "cat, taken for dog even unattacked"),
        (["cat", "dog", "deer"], 1, 2, "cat, taken for deer; unattacked, for dog"),
        (["cat", "dog", "deer"], 2, 0, "cat, recognised; unattacked, for deer"),
        ([], 0, 7, "0, taken for 7"),
        (["cat"], 0, 7, "cat, taken for 7"),
        (None, 0, 7, "0, taken for 7"),
    ],
)
def test_what_an_image_is_taken_for_is_said_by_name(names, before, after, words):
    arrays = create_cam_images() | {"predicted_clean": np.array([before]), "predicted_perturbed": np.array([after])}
    if names is not None:
        arrays["class_names"] = np.array(names, np.str_)
    assert cam_images.predictions(arrays, 0) == words


def test_the_perturbation_is_amplified_until_it_is_legible(tmp_path):
    """A few pixels that change by more do not leave the rest grey; the factor is said."""
    arrays = create_cam_images()
    arrays["images"], rest = np.full_like(arrays["images"], 0.5), 0.02
    arrays["perturbed"] = arrays["images"] + rest
    arrays["perturbed"][0, 0, 0] = 1.0
    assert cam_images.amplification(arrays) == pytest.approx(25)
    assert cam_images.titles(arrays)[2] == "perturbation \N{MULTIPLICATION SIGN}25"
    assert "perturbation \N{MULTIPLICATION SIGN}25." in cam_images.caption(arrays)
    np.testing.assert_allclose(cam_images.tiles(arrays, 1)[2], 1.0, atol=1e-6)
    np.savez(simple_run(tmp_path) / "cam_images.npz", **arrays)
    assert "perturbation \N{MULTIPLICATION SIGN}25" in report.write(tmp_path).read_text()


def test_names_from_outside_are_text_on_the_page_and_in_the_figures(tmp_path):
    """Neither markup, nor what Matplotlib would take for a formula."""
    names = ["<b>cat</b>", "$\\frac{x$", "</script>"] + [f"$unbalanced {index}" for index in range(7)]
    run = write_run(tmp_path / "$x_1$<i>", create_config(), create_results(create_config(), MEASURED))
    np.savez(run / "cam_images.npz", **create_cam_images() | {"class_names": np.array(names)})
    np.savez(run / "outcomes.npz", cw20=np.arange(2000) < 900)
    shutil.copytree(run, tmp_path / "<!--<script>")  # would hide the end of the script that it stands in
    text = report.write(tmp_path).read_text()
    assert "&lt;b&gt;cat&lt;/b&gt;, taken for $unbalanced 4" in text
    assert not re.search(r"<b>|<i>|<!--", text)
    assert text.count("<script") == text.count("</script>") == 2


@pytest.mark.parametrize("name", ["cam_images.npz", "pictures.npz"])
def test_cam_images_that_cannot_be_read_are_left_out(tmp_path, name):
    run = simple_run(tmp_path)
    for content in (b"", b"PK\x03\x04 torn"):
        (run / name).write_bytes(content)
        assert page.draw_panels(collect.collect(tmp_path)) == []
    for lacking in ({"labels": np.array(3)}, {"images": np.zeros((0, 8, 8, 1))}, {"perturbed": np.zeros((2, 8, 8, 1))},
                    {"labels": np.zeros(3)}):  # fmt: skip
        np.savez(run / name, **create_cam_images() | lacking)
        assert page.draw_panels(collect.collect(tmp_path)) == []


def test_cam_images_of_earlier_runs_are_read_too(tmp_path):
    """They are in pictures.npz; cam_images.npz goes first, unless it is damaged."""
    run = simple_run(tmp_path)
    np.savez(run / "pictures.npz", **create_cam_images() | {"attack": np.array("earlier7")})

    def shown() -> str:
        (panel,) = page.draw_panels(collect.collect(tmp_path))
        return panel.caption

    assert "earlier7" in shown()
    np.savez(run / "cam_images.npz", **create_cam_images())
    assert "infofeature20" in shown()
    (run / "cam_images.npz").write_bytes(b"PK\x03\x04 torn")
    assert "earlier7" in shown()


def test_a_second_report_replaces_the_first(tmp_path):
    run = simple_run(tmp_path)
    np.savez(run / "cam_images.npz", **create_cam_images())
    first = report.write(run)
    assert first == tmp_path / "report" / "index.html"
    assert (first.parent / "figures" / "maps-madry-seed0.png").exists()
    (run / "cam_images.npz").unlink()
    simple_run(tmp_path, seed=1)
    text = report.write(tmp_path).read_text()
    assert "madry-seed1" in text
    assert not list(first.parent.rglob("maps-*"))
    assert not list(first.parent.rglob("*.partial"))
    assert report.write(tmp_path).read_text() == text  # the same runs, the same page


@pytest.mark.parametrize("method", ["madry", "feature_scatter"])
def test_the_command_on_the_page_gives_the_same_configuration(method):
    import configs.cifar10_resnet18 as plain

    config = create_config(method, 3, **{
        "optimizer.milestones": (1.0, 2.0), "method.weight": 0.5, "attack.step_size": 1.5,
        "data.note": "it's a \"note\"", "eval.attacks": ("clean",),
    })  # fmt: skip
    words = shlex.split(provenance.command(config).replace("\\\n", ""))
    assert words[:3] == ["python", "main.py", f"--config={provenance.PLAIN}:{method}"]
    code = (
        "import sys; from absl import flags; from ml_collections import config_flags;"
        "from infofeat_jax import config as c; F = flags.FLAGS; config_flags.DEFINE_config_file('config');"
        "F(sys.argv); print(c.to_json(c.resolve(F.config)))"
    )
    root = pathlib.Path(plain.__file__).parent.parent
    process = subprocess.run(
        [sys.executable, "-c", code, *words[2:]], cwd=root, capture_output=True, text=True, check=True
    )
    assert json.loads(process.stdout) == config


@pytest.mark.parametrize("field", ["eval.pictures", "eval.cam_images"])
def test_the_command_of_an_earlier_run_uses_the_field_of_today(field):
    config = create_config()
    config["eval"] = {name: value for name, value in config["eval"].items() if name not in ("pictures", "cam_images")}
    config["eval"][field.partition(".")[2]] = 3
    known = {name for name in ("pictures", "cam_images") if name in configs.default().eval}
    flags = re.findall(r"--config\.eval\.(\w+)=3", provenance.command(config))
    assert set(flags) == (known if field == "eval.pictures" else known & {"cam_images"})


def test_the_terminal_shows_rows_and_gaps(study, capsys):
    cli.execute(configs.default(), "configs/digits.py", workdir=str(study), mode="report", hosts=("", 0, -1))
    lines = capsys.readouterr().out
    assert "Madry" in lines
    assert "ALP: alp-seed0: missing" in lines
    assert str(study / "report" / "index.html") in lines.replace("\n", "")


LONG = "/somewhere/far/away/where/the/data/are/cifar10_with_all_that_belongs_to_it.npz"


@pytest.mark.parametrize("columns", [30, 60, 80, 200])
def test_a_table_breaks_between_columns_and_loses_none(tmp_path, monkeypatch, capsys, columns):
    """Also where the output is no terminal, as here; the title is as wide as the terminal, not as the table."""
    monkeypatch.setenv("COLUMNS", str(columns))
    attacks = ("clean", "pgd20", "cw20", "infofeature20", "autoattack", "pgd20(restarts=5,step_size=0.5)")
    values = {name: 0.111 * (index + 1) for index, name in enumerate(attacks)}
    write_run(tmp_path / "madry", create_config(), create_results(create_config(), values, data=LONG))
    terminal.show(collect.collect(tmp_path))
    shown = capsys.readouterr().out.split("\n")
    table = shown[shown.index("") :]
    numbers = [line.split()[1:] for line in table if line.startswith("Madry")]
    assert list(itertools.chain(*numbers)) == [
        "11.1",
        "22.2",
        "66.6",
        "33.3",
        "44.4",
        "55.5",
        "11.1",
    ]  # the last: worst case
    heads = [line.split() for line in table if line and "Madry" not in line and not line.startswith("\u2500")]
    for word in (
        "method",
        "clean",
        "PGD20",
        "(restarts=5,",
        "step_size=0.5)",
        "CW20",
        "InfoFeature20",
        "AutoAttack",
        "case",
    ):
        assert any(word in head for head in heads), word
    assert all(len(line) <= columns or line == LONG + ";" for line in shown)
    title = shown[: shown.index("")]
    assert " ".join(title).startswith(f"Accuracy in % on 2,000 test images of {LONG}; linf epsilon 8/255, attack")
    assert all(len(line) + 1 + len(after.split()[0]) > columns for line, after in itertools.pairwise(title))
    assert (len(numbers) == 1) == (columns == 200)


def test_evaluating_a_run_shows_that_run_and_the_report_its_neighbours(tmp_path, capsys):
    run = simple_run(tmp_path)
    write_run(tmp_path / "trades-seed0", create_config("trades"), None)
    terminal.show(collect.collect_run(run))
    alone = capsys.readouterr().out
    assert "Madry" in alone
    assert "trades" not in alone
    assert alone.count("Accuracy in %") == alone.count("Madry") == 1
    report.write(run)
    assert "trades: trades-seed0: not evaluated" in capsys.readouterr().out


def test_the_finding_is_on_the_terminal_too(study, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1000")
    terminal.show(collect.collect(study))
    shown = capsys.readouterr().out.split("\n")
    assert shown.count(finding.finding(collect.collect(study))) == 1
    assert len([line for line in shown if line.startswith("warning: Few images")]) == 1


# Two runs, image by image


def test_two_runs_are_compared_image_by_image(tmp_path):
    """A is right on images 0 to 9 alone, B on 10 to 11 alone, both on 12 to 19. By hand: p = 2 (1 + 12 + 66) / 2^12."""
    correct = np.zeros((2, 40), bool)
    correct[0, :10], correct[1, 10:12], correct[:, 12:20] = True, True, True
    for method, values in zip(("madry", "alp"), correct, strict=True):
        config, accuracies = create_config(method), {"clean": 0.9, "pgd20": float(values.mean())}
        results = create_results(config, accuracies, examples=dict.fromkeys(accuracies, 40))
        run = write_run(tmp_path / method, config, results)
        np.savez(run / "outcomes.npz", pgd20=values, clean=np.arange(40) < 36, setting="...")
    the_study = collect.collect(tmp_path)
    (table,) = compare.tables(the_study)
    assert table.title == "Of 40 test images: right under PGD20 in the line's run, wrong in the column's"
    assert {line.label: [cell.value for cell in line.cells] for line in table.lines} == {
        "ALP": [tables.NONE, "2"], "Madry": ["10", tables.NONE],
    }  # fmt: skip
    assert table.lines[0].cells[1].detail == table.lines[1].cells[0].detail == "(p 0.039)"
    assert compare.mcnemar(*correct) == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert compare.mcnemar(correct[0], correct[0]) == 1.0
    text = report.write(tmp_path).read_text()
    stored = json.loads(re.search(r'id="outcomes">(.*)</script>', text)[1])
    assert (stored["attack"], stored["count"]) == ("PGD20", 40)
    for method, values in zip(("madry", "alp"), correct, strict=True):
        bits = np.unpackbits(np.frombuffer(base64.b64decode(stored["runs"][method]), np.uint8))[:40]
        np.testing.assert_array_equal(bits, values)
    assert "Image by image" in text


@pytest.mark.parametrize("values", [np.arange(2000) < 900, np.arange(1999) < 1000, np.full(2000, 0.5), np.array(True)])
def test_outcomes_of_another_evaluation_are_not_compared(tmp_path, values):
    """results.json says 0.5 of 2,000: other outcomes are of before or after it."""
    for seed, own in enumerate((np.arange(2000) < 1000, values)):
        config = create_config(seed=seed)
        run = write_run(tmp_path / f"madry-seed{seed}", config, create_results(config, {"pgd20": 0.5}))
        np.savez(run / "outcomes.npz", pgd20=own)
    assert compare.outcomes(collect.collect(tmp_path)) == ("", {})
    np.savez(run / "outcomes.npz", pgd20=np.arange(2000) >= 1000)
    assert list(compare.outcomes(collect.collect(tmp_path))[1]) == ["madry-seed0", "madry-seed1"]
    assert compare.tables(collect.collect(tmp_path)) == []  # one row
    (run / "outcomes.npz").write_bytes(b"PK\x03\x04 torn")
    assert compare.outcomes(collect.collect(tmp_path)) == ("", {})


# The script of the page, in a browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome", "chromium-browser"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_the_script_sorts_and_compares(study, tmp_path):
    """In a copy of the page that clicks on headings, and chooses two runs, by itself."""
    directory = shutil.copytree(study, tmp_path / "copy")
    for name, first in {"infofeature-seed0": 0, "madry-seed1": 20}.items():
        values = np.zeros(2000, bool)
        count = round(2000 * json.loads((directory / name / "results.json").read_text())["cw20"])
        values[first : first + count] = True
        np.savez(directory / name / "outcomes.npz", cw20=values)
    clicks = """<script>
      const groups = () => [...document.querySelectorAll("#accuracy tbody")];
      const rows = () => groups().map(group => group.rows[0].cells[0].textContent);
      const click = index => document.querySelectorAll("#accuracy thead button")[index].click();
      const said = [rows()];
      for (const index of [2, 2, 8, 8, 0]) { click(index); said.push(rows()); }
      said.push(document.querySelector("#compare p").textContent);
      document.body.dataset.said = JSON.stringify(said);
    </script></body>"""
    page_path = report.write(directory)
    page_path.write_text(page_path.read_text().replace("</body>", clicks))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
    process = subprocess.run(
        [*command, "--dump-dom", f"file://{page_path}"], capture_output=True, text=True, timeout=600, check=True
    )
    (said,) = [attributes["data-said"] for tag, attributes in Elements(process.stdout).found if tag == "body"]
    *orders, words = json.loads(said)
    assert orders == [
        ["Madry", "InfoFeature", "ALP"],
        ["Madry", "InfoFeature", "ALP"],  # by clean accuracy; a row without any is last
        ["InfoFeature", "Madry", "ALP"],
        ["InfoFeature", "Madry", "ALP"],  # by AutoAttack, which InfoFeature alone has
        ["InfoFeature", "Madry", "ALP"],
        ["Madry", "InfoFeature", "ALP"],  # restored
    ]
    assert words == (
        "Of 2000 test images, under CW20 880 are classified correctly by both, 60 by madry-seed1 only"
        f" (numbers {', '.join(map(str, range(900, 940)))}, \N{HORIZONTAL ELLIPSIS}, from 0), 20 by infofeature-seed0"
        f" only (numbers {', '.join(map(str, range(20)))}, from 0), 1040 by neither."
    )


def test_plotting_libraries_are_imported_for_a_report_only():
    code = (
        "import sys, infofeat_jax.cli; print([m for m in ('matplotlib', 'jinja2', 'scipy.stats') if m in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert process.stdout.strip() == "[]"


def test_the_setting_of_no_run_is_said():
    assert notes.setting_line(runs.Study(pathlib.Path(), "", "", [], [])) == "no finished run"
