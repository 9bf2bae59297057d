"""Remarks that go with the numbers: settings, intervals, warnings."""

import json
from collections.abc import Iterable, Mapping

from infofeat_jax.report import estimate, paper
from infofeat_jax.report.cells import NONE, display
from infofeat_jax.report.runs import Row, RunRecord, Study

FEW_IMAGES = 1000
WARNINGS = ("Data:", "Few images", "Reduced setting", "Not the paper's setting")  # beginnings of notes that come first


def deviations_of(study: Study, row: Row, published: paper.PaperTable) -> list[paper.Deviation]:
    """How the settings of a row's runs, and of the sources of their transfer attacks, differ from the paper's."""
    found = {}
    for run in row.runs:
        config = run.config | {key: run.results["config"][key] for key in ("attack", "eval")}
        config["attack"] = config["attack"] | {k: run.config["attack"][k] for k in ("step_size", "num_steps")}
        found |= dict.fromkeys(paper.find_deviations(config, run.results["num_examples"], published))
        if published.columns == paper.TRANSFERRED:
            found |= dict.fromkeys(source_deviations(study, run))
    return list(found)


def source_deviations(study: Study, run: RunRecord) -> list[paper.Deviation]:
    """How the settings of the models that transfer attacks were crafted on differ from Table 1's."""
    found = []
    for source in sorted({estimate.split_steps(attack).source for attack in estimate.own_accuracies(run)} - {""}):
        try:
            config = json.loads((study.directory / source / "config.json").read_text())
            test = paper.SIZES["cifar10"][1]
            deviations = paper.find_deviations(config, test, paper.TABLES["table1"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            found.append(paper.Deviation("source", f"{source}, whose configuration is not readable", ""))
            continue
        found += [deviation._replace(field=f"{source}: {deviation.field}") for deviation in deviations]
    return found


def own_sources(study: Study) -> list[str]:
    """Remarks on attacks that look transferred but were crafted on the attacked model itself."""
    crafted = {(run.name, attack) for run in study.runs for attack in estimate.own_accuracies(run)}
    own = {name for name, attack in crafted if estimate.split_steps(attack).source == name}
    return [f"Crafted on the attacked model itself, so not transferred: {name}." for name in sorted(own)]


def paper_notes(study: Study, published: paper.PaperTable | None) -> list[str]:
    """Why measured values may differ from the paper's: the deviations from its setting."""
    if not published:
        return []
    rows = [row for row in study.rows if row.runs and row.label in published.rows]
    by_text: dict[str, list[str]] = {}
    for row in rows:
        for deviation in deviations_of(study, row, published):
            by_text.setdefault(str(deviation), []).append(row.name)
    notes = [f"Paper: {published.title}. A difference is measured minus paper, in percentage points."]
    if by_text:
        texts = [text if len(names) == len(rows) else f"{text}, {', '.join(names)}" for text, names in by_text.items()]
        kinds = {paper.kind(deviations_of(study, row, published)) for row in rows}
        word = "Reduced setting" if "reduced setting" in kinds else "Not the paper's setting"
        warning = f"{word}, so the differences to the paper do not tell whether it is reproduced"
        notes.insert(0, f"{warning}: {'; '.join(texts)}.")
    return notes


def setting_line(study: Study) -> str:
    """The setting that all aggregated runs share, in one line."""
    if not study.runs:
        return "no finished run"
    results = study.runs[0].results
    config = results["config"]
    attack = config["attack"]
    checkpoints = {run.results["checkpoint"] for run in study.runs}
    which = f"{results['checkpoint']} checkpoint" if len(checkpoints) == 1 else "best checkpoint, or weights as given"
    which = "weights as given" if checkpoints == {"as given"} else which
    return (
        f"{results['num_examples']:,} test images of {results.get('data', config['data']['name'])}; {attack['norm']}"
        f" epsilon {attack['epsilon']:g}/255, attack steps of {levels(config['eval']['step_size'])};"
        f" {which}"
    )


def describe_data(study: Study) -> list[str]:
    """The user's remarks on the data, from config.data.note."""
    return [f"Data: {note}." for note in study.notes]


def describe_intervals(rows: Iterable[Row]) -> list[str]:
    """What the intervals cover: those of rows with one seed, and with several."""
    counts = {min(len(row.runs), 2) for row in rows} - {0}
    texts = {
        2: "\N{PLUS-MINUS SIGN}: half of the 95 % confidence interval of the mean over seeds (Student's t); it covers"
        " the training's randomness, not the choice of test images, which all seeds share.",
        1: "[low, high]: 95 % binomial (Wilson) interval of a single run; it covers the choice of test images, not the"
        " training's randomness.",
    }
    return [text for count, text in texts.items() if count in counts]


def few_images(study: Study) -> list[str]:
    """A warning if attacks were measured on too few test images to tell close rows apart, where there are more."""
    by_count: dict[int, set[str]] = {}
    of_parts = set()
    for run in study.runs:
        for attack, (_, count) in estimate.own_accuracies(run).items():
            by_count.setdefault(count, set()).add(attack)
            of_parts |= {count} if not is_whole_test_set(run, count) else set()
    few = sorted(count for count in of_parts if count < FEW_IMAGES)
    if not few:
        return []
    parts = [f"{_attacks(by_count, count)} on {count}" for count in few]
    points = " and ".join(f"{100 * estimate.over_images(0.5, count)[2] - 50:.1f}" for count in few)
    return [f"Few images: {' and '.join(parts)} only; near 50 % a single value is uncertain by {points} points."]


def is_whole_test_set(run: RunRecord, count: int) -> bool:
    """Whether `count` images are all test images that the run's data have; unknown of images that were given."""
    config = run.results["config"]
    limits = config["eval"].get("num_examples"), config["data"].get("test_size")
    return not any(limits) and "given" not in run.results and count == run.results["num_examples"]


def _attacks(by_count: Mapping[int, set[str]], count: int) -> str:
    """Names the attacks measured on `count` images; not one by one if they are most of all."""
    names = by_count[count]
    if sum(map(len, by_count.values())) < 2 * len(names) and len(names) > 1:
        return "all attacks" if len(by_count) == 1 else "the others"
    return ", ".join(display(name) for name in sorted(names, key=estimate.attack_order))


def worst_case(study: Study, columns: list[str]) -> list[str]:
    """Which images the worst case is over, where the attacks saw different numbers of them."""
    if columns[-1:] != ["worst_case"]:
        return []
    counts = {count for run in study.runs for count in estimate.counts_within_budget(run)}
    if len(counts) < 2:
        return []
    return [
        "Worst case: an image counts if it withstands every attack within the threat model, among the first"
        f" {min(counts):,} images, which all of these saw; a column of more images may lie below it."
    ]


def warnings(remarks: Iterable[str]) -> list[str]:
    """The remarks that a reader needs before any of the numbers."""
    return [remark for remark in remarks if remark.startswith(WARNINGS)]


def flags(study: Study) -> list[str]:
    """What the heuristics for overestimated robustness (`evaluation.heuristics`) flagged, each with its runs."""
    flagged: dict[str, list[str]] = {}
    for run in study.runs:
        for flag in run.results.get("flags") or []:
            flagged.setdefault(str(flag), []).append(run.name)
    return [f"{', '.join(names)}: {flag}" for flag, names in flagged.items()]


def levels(value: int | float | None) -> str:
    """A budget or step size, in 8-bit levels, as a fraction of the pixel range."""
    return NONE if value is None else f"{value:g}/255"
