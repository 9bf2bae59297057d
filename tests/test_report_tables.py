"""The report's tables say what the runs' files say: means, intervals, the worst case, the paper's values."""

import importlib
import json
import math
import re

import numpy as np
import pytest
import scipy.stats
from report_runs import MEASURED, create_config, create_results, lines_of, simple_run, write_run, write_study

from infofeat_jax import config as configs
from infofeat_jax.report import cells, collect, estimate, markup, paper, tables, terminal


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
    assert any("among the first 200 images, which all of these saw" in note for note in table.notes)
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


def test_distances_and_evaluators_are_means_over_seeds(tmp_path):
    for seed, value in enumerate((0.1, 0.3)):
        measured = {"distances": {"cw5": value}, "evaluators": {"own:shifted": 2 * value}}
        config = create_config(seed=seed)
        write_run(tmp_path / f"madry-seed{seed}", config, create_results(config, MEASURED, **measured))
    study = collect.collect(tmp_path)
    assert tables.distance_table(study).lines[0].cells == [("0.200", "")]
    assert tables.evaluator_table(study).lines[0].cells == [("0.4", "")]


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
        ("model.activation", "silu"),
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


@pytest.mark.parametrize("table", list(paper.TABLES))
def test_the_papers_tables_are_those_in_the_studies_docstrings(table):
    """Two copies from the paper: for the report, and for readers of the configurations."""
    docstring = importlib.import_module(f"configs.studies.{table}").__doc__
    copied = {}
    for line in docstring.splitlines():
        if found := re.fullmatch(r"  (\w+) +([\d ./]+?)(?: +worst ([\d ./]+))?", line):
            method, *parts = found.groups()
            copied[method] = [tuple(map(float, part.split("/"))) for part in parts if part]
    assert copied == {method: list(row.values()) for method, row in paper.TABLES[table].rows.items()}


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
