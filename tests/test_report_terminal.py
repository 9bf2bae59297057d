"""The report on the terminal, and two runs compared image by image."""

import base64
import itertools
import json
import re

import numpy as np
import pytest
from report_runs import create_config, create_results, simple_run, write_run

from infofeat_jax import cli, report
from infofeat_jax import config as configs
from infofeat_jax.report import collect, compare, finding, tables, terminal


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
