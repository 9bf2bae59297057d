"""The finding in words: the most robust method, what limits it, and warnings."""

import html
import html.parser
import pathlib

import pytest
import scipy.stats
from report_runs import MEASURED, create_config, create_results, write_run, write_study

from infofeat_jax.evaluation import heuristics
from infofeat_jax.report import collect, estimate, finding, notes, page, runs, tables


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


def test_rows_that_would_be_called_the_same_are_both_there(tmp_path):
    """A label as the paper writes a method, beside that method."""
    for name, shift in (("madry", 0.0), ("Madry", -0.2)):
        accuracies = {attack: value + shift for attack, value in {"clean": 0.8, "pgd20": 0.5}.items()}
        config = create_config("madry")
        write_run(tmp_path / f"{name}-seed0", config, create_results(config, accuracies))
    write_study(tmp_path, {f"{name}-seed0": (name, 0) for name in ("madry", "Madry")})
    study = collect.collect(tmp_path)
    assert [row.name for row in study.rows] == ["madry", "Madry"]
    assert finding.finding(study).startswith("madry is the most robust under PGD20")
    assert "next is Madry with 30.0 %" in finding.finding(study)


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


def test_rows_with_several_seeds_are_compared_seed_by_seed(tmp_path):
    """Seeds that lie far apart hide no difference that each of them shows; without the pairs the intervals overlap."""
    for seed, base in enumerate((0.3, 0.4, 0.5)):
        for method, gain in {"madry": 0.0, "alp": 0.03, "standard": 0.031 - 0.002 * seed}.items():
            config = create_config(method, seed)
            write_run(tmp_path / f"{method}-seed{seed}", config, create_results(config, {"pgd20": base + gain}))
    planned = {f"{m}-seed{s}": (m, s) for m in ("madry", "alp", "standard") for s in range(3)}
    text = finding.finding(collect.collect(write_study(tmp_path, planned)))
    assert "ALP (43.0 % ±24.8) and Standard (42.9 % ±24.3) cannot be told apart" in text
    assert "the 95 % intervals of the differences to ALP, seed by seed, contain zero. Less robust: Madry." in text


def test_an_attack_that_a_flag_has_added_to_one_run_of_each_row_does_not_decide(tmp_path):
    """Nor which run of a row is its best: its worst case is over other attacks than the others'."""
    quick = "autoattack(version=quick)"
    for method, flagged, base in (("madry", 2, 0.5), ("alp", 0, 0.4)):
        for seed in range(3):
            values = {"clean": 0.8, quick: base + 0.001 * seed} | ({"autoattack": 0.1} if seed == flagged else {})
            config = create_config(method, seed)
            write_run(tmp_path / f"{method}-seed{seed}", config, create_results(config, values))
    write_study(tmp_path, {f"{method}-seed{n}": (method, n) for method in ("madry", "alp") for n in range(3)})
    study = collect.collect(tmp_path)
    said = finding.finding(study)
    assert said.startswith("Madry is the most robust under AutoAttack (version=quick, not standard), the strongest")
    assert "One run each" not in said
    rows = {row.label: row for row in study.rows}
    assert estimate.extremes(rows["madry"].runs) == {}
    assert estimate.complete(rows["madry"]).keys() == {"clean", quick}
    assert tables.accuracy_table(study).lines


def test_quick_autoattack_alone_is_no_flag_of_a_row(tmp_path):
    """The attack's name says it; of rows with other flags the finding warns."""
    quick = "autoattack(version=quick)"
    earlier = f"no certificate: {quick} is a part of AutoAttack, for development; measure autoattack for a result"
    flags = {"madry": [heuristics.incomplete(quick)], "alp": [earlier], "fm": [earlier, "zero gradients: everywhere"]}
    for method, values in flags.items():
        config = create_config(method)
        write_run(tmp_path / f"{method}-seed0", config, create_results(config, {quick: 0.4}, flags=values))
    study = collect.collect(write_study(tmp_path, {f"{method}-seed0": (method, 0) for method in flags}))
    assert finding.finding(study).endswith("Flagged (see there): fm.")


def test_the_images_of_the_worst_case_are_those_of_the_attacks_within_the_threat_model(tmp_path):
    values = {"clean": 0.8, "pgd20": 0.5, "autoattack(epsilon=4)": 0.6}
    results = create_results(create_config(), values, worst_case=0.5)
    results["examples"]["autoattack(epsilon=4)"] = 100
    write_run(tmp_path / "madry-seed0", create_config(), results)
    table = tables.accuracy_table(collect.collect(tmp_path))
    low, high = scipy.stats.binomtest(1000, 2000).proportion_ci(0.95, method="wilson")
    assert table.lines[0].cells[-1].detail == f"[{100 * low:.1f}, {100 * high:.1f}]"
    assert not any("Worst case" in note for note in table.notes)


def test_gains_are_paired_by_seed():
    """Not by position, where a seed of one row is missing."""
    accuracy = {0: 0.3, 1: 0.4, 2: 0.5, 3: 0.6}

    def row(method: str, seeds: tuple[int, ...], shift: float) -> runs.Row:
        records = []
        for seed in seeds:
            config = create_config(method, seed)
            results = create_results(config, {"pgd20": accuracy[seed] + shift})
            records.append(runs.RunRecord(f"{method}-seed{seed}", method, seed, "", config, results, []))
        return runs.Row(method, records, [], method)

    found = estimate.gain(row("alp", (1, 2, 3), 0.03), row("madry", (0, 1, 2), 0.0), "pgd20")
    assert found == pytest.approx((0.03, 0.03, 0.03))
