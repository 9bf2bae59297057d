"""The commands of the README and the first pages, in the order in which a reader meets them, in one folder; and what
the library examples make of the run that they leave."""

import json
import pathlib
import random
import re
import shlex

import pytest
from processes import ROOT

PAGES = ("README.md", "docs/quickstart.md", "docs/how-to/evaluate.md", "docs/how-to/pytorch.md")
# Of a small network on few images, for one epoch.
TINY = (
    "--config.model.name=wrn_10_1", "--config.model.width=4", "--config.num_epochs=1", "--config.data.train_size=128",
    "--config.data.test_size=20", "--config.attack.num_steps=1", "--config.optimizer.milestones=()",
    "--config.eval.validation_attack=fgsm", "--config.eval.probe_examples=0", "--config.eval.cam_images=2",
    "--config.eval.batch_size=20",
)  # fmt: skip
FEW = {"autoattack": "apgd-ce(num_steps=2)", "pgd50": "pgd2", "infofeature20": "infofeature2"}


def commands(page: str) -> list[list[str]]:
    """The words of each command in the page's blocks of commands; without installations."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in line.split("&&")]
    found = [shlex.split(part, comments=True) for part in parts]
    return [words for words in found if words and words[0] != "pip"]


def examples(page: str) -> list[str]:
    """The Python examples on a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def example(page: str) -> str:
    """The first of them."""
    return examples(page)[0]


def execute(main, folder, code: str) -> str:
    """What a program of this code prints, in `folder`."""
    (folder / "example.py").write_text(code)
    return main(program="example.py", folder=folder).stdout


def reduced(words: list[str]) -> tuple[str, list[str]]:
    """(program, flags) of a command at a small size: `python main.py ...` or `python -m package.module ...`."""
    assert words[0] == "python", words
    program, flags = (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])
    if program == "main.py" and "--mode=report" not in flags:
        given = [flag for flag in flags if flag.startswith("--config.eval.attacks=")]
        for name, cheap in FEW.items():
            given = [flag.replace(f"'{name}'", f"'{cheap}'") for flag in given]
        others = [flag for flag in flags if not flag.startswith("--config.eval.attacks=")]
        flags = [*others, *TINY, *(given or ["--config.eval.attacks=('clean','pgd2')"])]
    return program, flags


def checkout(path: pathlib.Path) -> pathlib.Path:
    """Where the commands run: it has what a checkout has at its root."""
    for name in ("main.py", "configs"):
        (path / name).symlink_to(ROOT / name)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkout(tmp_path_factory.mktemp("checkout"))


def every_command() -> list[list[str]]:
    """Of the pages, each once; then what they lead to: the converted weights evaluated, and a report of all of it."""
    every = dict.fromkeys(tuple(words) for page in PAGES for words in commands(page))
    converted = ["python", "main.py", "--config=digits", "--mode=evaluate", "--workdir=runs/digits/converted"]
    report = ["python", "main.py", "--config=configs/digits.py", "--mode=report"]
    return [*(list(words) for words in every if words[1:3] != ("-m", "pytest")), converted, report]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_the_pages_commands_run_in_any_order(main, tmp_path, seed):
    """Each ends well, or with one line that says what is missing, and so does a report after each of them. Those that
    did not end well are run again, until all have: a command needs what at most three others leave."""

    def ends_well(words):
        program, flags = reduced(words)
        done = main(*flags, program=program, folder=place, check=False)
        assert "Traceback" not in done.stderr, (words, done.stderr[-3000:])
        assert done.returncode == 0 or re.search(r"(^|\n)error: .*\n$", done.stderr), (words, done.stderr)
        return done.returncode == 0

    (*left, report), place = every_command(), checkout(tmp_path)
    random.Random(seed).shuffle(left)
    for _ in range(4):
        failed = []
        for words in left:
            failed += [] if ends_well(words) else [words]
            reported = ends_well(report)
        left = failed
    assert not left
    assert reported


def test_the_pages_commands_run_one_after_the_other(main, folder):
    ran = every_command()
    assert len(ran) >= 12
    for words in ran:
        program, flags = reduced(words)
        main(*flags, program=program, folder=folder)
    runs = folder / "runs" / "digits"
    names = {path.parent.name: json.loads(path.read_text()) for path in runs.glob("*/results.json")}
    assert set(names) == {"infofeature", "standard", "robust", "finetuned", "converted"}
    assert names["converted"]["clean"] == names["robust"]["clean"] == names["infofeature"]["clean"]
    page = (runs / "report" / "index.html").read_text()
    assert all(name in page for name in ("finetuned", "converted"))
    assert (folder / "robust.stablehlo").stat().st_size > 0
    assert not (ROOT / "runs" / "digits" / "converted").exists()


def test_the_library_examples_run_on_what_the_first_command_made(main, folder):
    code = example("README.md")
    assert code == example("docs/quickstart.md")
    assert re.search(r"robust accuracy \S+\n$", execute(main, folder, code))
    for package in ("torch", "foolbox", "art"):
        pytest.importorskip(package)
    setup, second = code.split("attack = ")[0], example("docs/how-to/libraries.md")
    shown = execute(
        main, folder, f"{setup}{second}print(type(network), attacked.bounds, classifier.predict(images).shape)"
    )
    assert all(part in shown for part in ("TorchModule", "Bounds(lower=0.0, upper=1.0)", "(100, 10)"))


def test_a_trained_model_is_used_as_the_page_says(main, folder):
    shown = execute(main, folder, example("docs/how-to/use.md"))
    found = re.findall(r"^class (\d), probability (\d\.\d\d)$", shown, re.MULTILINE)
    assert len(found) == 5
    assert all(0.1 <= float(probability) <= 1 for _, probability in found)


def test_the_adaptive_attacks_break_what_the_standard_ones_do_not(main, tmp_path):
    shown = execute(main, tmp_path, "\n".join(examples("docs/how-to/adaptive.md")))
    assert "warning: zero gradients" in shown
    assert "warning: black-box beats white-box" in shown
    accuracy = {name: float(value) for name, value in re.findall(r"^(\S+) +(\d+\.\d) +\[", shown, re.MULTILINE)}
    bpda, fooled = (
        float(re.search(rf"{said}: (\S+)%", shown)[1]) for said in ("straight-through gradient", "above 0.9")
    )
    assert bpda < accuracy["square(num_queries=1000)"] - 5 < accuracy["pgd20"] - 20
    assert 0 < fooled <= 100 - bpda


def test_the_commands_of_a_page_are_found():
    """Blocks, line continuations, comments, several in a line, quotes."""
    assert ["python", "-m", "pytest"] in commands("README.md")
    assert ["python", "main.py", "--config=configs/digits.py"] in commands("README.md")
    attacks = "--config.eval.attacks=('clean','pgd50','infofeature20')"
    assert attacks in commands("docs/how-to/evaluate.md")[0]
    assert commands("docs/how-to/pytorch.md")[0][-1] == "robust.npz"
