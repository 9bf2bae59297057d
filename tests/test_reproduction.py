"""docs/reproduction.md and the tables in results/ say what the records in results/ say."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from infofeat_jax.report import collect, compare, finding, markup, tables

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def reproduction():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import reproduction

    yield reproduction
    sys.path.remove(str(ROOT / "benchmarks"))


def test_the_tables_of_the_pages_are_made_from_the_records(reproduction):
    pages = [path.read_text() for path in reproduction.PAGES]
    named = [name for page in pages for name in re.findall(r"<!-- ([\w ]+) -->", page) if name != "end"]
    assert sorted(named) == sorted(reproduction.TABLES)
    for page in pages:
        assert reproduction.renewed(page) == page
    wrong = pages[0].replace("| 73.1 |", "| 74.1 |")
    assert wrong != pages[0]
    assert reproduction.renewed(wrong) == pages[0]


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*/table.md")), ids=lambda path: path.parent.name)
def test_the_tables_of_studies_are_what_the_report_writes_of_their_records(path):
    study = collect.collect(path.parent)
    all_tables = [*tables.create(study), *compare.tables(study)]
    assert path.read_text() == markup.to_markdown(study.title, finding.finding(study), all_tables)


def test_a_difference_is_paired(reproduction):
    rng = np.random.default_rng(0)
    one, other = rng.random((3, 400)) < 0.6, rng.random((3, 400)) < 0.5
    found = reproduction.difference(one, other)
    wins, losses = (one & ~other).mean(), (other & ~one).mean()
    assert found.mean == pytest.approx(100 * (wins - losses))
    assert found.seeds == pytest.approx([100 * (a.mean() - b.mean()) for a, b in zip(one, other, strict=True)])
    means = [100 * (one.astype(int) - other).mean(0)[rng.integers(0, 400, 400)].mean() for _ in range(4000)]
    assert found.half == pytest.approx(1.96 * np.std(means), rel=0.1)  # the bootstrap over images
    assert reproduction.difference(one, one) == (0, 0, (0, 0, 0))
