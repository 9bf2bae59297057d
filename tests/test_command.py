"""The command's flags: configurations by name, and the help that explains every field."""

import ast
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
from test_config import parse, refused

import infofeat_jax
from infofeat_jax import command, config_help
from infofeat_jax import config as configs

ROOT = pathlib.Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (ROOT / "configs").rglob("*.py") if path.stem not in ("__init__", "scales"))


def run(*flags: str) -> subprocess.CompletedProcess:
    """What the installed command does with these flags."""
    code = "import sys; from infofeat_jax.__main__ import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *flags], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_configurations_name_stands_for_its_file(name):
    (path,) = (ROOT / "configs").rglob(f"{name}.py")
    by_path = parse(f"--config={path}", "--config.seed=3")
    assert parse(f"--config={name}", "--config.seed=3").to_dict() == by_path.to_dict()
    assert by_path.seed == 3


def test_what_follows_the_name_is_passed_on():
    assert parse("--config=digits:madry").method.name == "madry"
    assert parse("--config=studies/table1:digits").data.name == "digits"
    assert parse("--config=recipes/n_fgsm:infofeature").method.name == "infofeature"


def test_an_unknown_name_lists_the_configurations():
    text = refused(parse, "--config=cifar11")
    assert text == f"--config=cifar11: choose one of {', '.join(NAMES)}, or give a FILE.py"


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["report", "runs/digits"], "--mode=report --workdir=runs/digits"),
        (["report"], "--config=CONFIG --mode=report"),
        (["evaluate", "--config=digits"], "--config=CONFIG --mode=evaluate"),
        (["runs/digits"], "--config=CONFIG --workdir=runs/digits"),
        (["--config=digits", "madry"], "--config=CONFIG --workdir=madry"),
    ],
)
def test_words_that_are_no_flags_are_refused_with_the_flags(words, advice):
    text = refused(parse, *words)
    assert text.endswith(f": the command takes only flags, such as {advice}; --help has examples")


def test_the_report_of_a_directory_needs_no_configuration(tmp_path):
    done = run("--mode=report", f"--workdir={tmp_path}")
    assert done.stderr == f"error: no run in {tmp_path}: train first, or give the directory of a run or a study\n"


def test_the_help_has_every_field_with_its_default_and_an_explanation():
    found = config_help.fields()
    leaves = dict(configs.flatten(configs.default().to_dict()))
    groups = {name for name, (default, _) in found.items() if default == "ConfigDict()"}
    assert found.keys() - groups == leaves.keys()
    for name, value in leaves.items():
        default, explanation = found[name]
        read = ast.literal_eval(default)
        assert (list(read) if isinstance(read, tuple) else read) == value, name
        assert explanation, name


@pytest.mark.parametrize(("flag", "everything"), [("--help", False), ("--helpfull", True)])
def test_help_lists_the_flags_and_ends_well(flag, everything):
    done = run(flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert command.USAGE in done.stdout
    for name in ("config", "workdir", "mode", "trust", "coordinator", "num_processes", "process_id"):
        assert f"\n  --{name}: " in done.stdout
    assert ("  --config.method.weight=None\n      lambda of the method" in done.stdout) == everything


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--version")
    assert not end.value.code
    assert capsys.readouterr().out == f"infofeat_jax {infofeat_jax.__version__}\n"


def test_a_reader_that_has_seen_enough_ends_the_command_without_a_traceback():
    """As in `infofeat-jax ... | head`."""
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from infofeat_jax import cli\nwith cli.one_line_errors(): print('row\\n' * 10**5)"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, timeout=300, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_the_page_on_the_command_has_every_flag_and_its_default():
    page = (ROOT / "docs/reference/command.md").read_text()
    listed = dict(re.findall(r"^\| `--(\w+)` \| (\S*) ?\|", page, re.MULTILINE))
    defined = re.findall(r"^  --(\w+): .*?\(default: '([^']*)'\)", run("--help").stdout, re.MULTILINE | re.DOTALL)
    assert {name: text.strip("`") or "None" for name, text in listed.items()} == {
        name: default or "None" for name, default in defined
    }


def test_a_platform_without_a_device_is_named_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "unknown")
    done = run("--config=digits", f"--workdir={tmp_path}/run")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: JAX finds no device (Unable to initialize backend 'unknown'")
    assert "with JAX_PLATFORMS=unknown: unset it to take what is there" in done.stderr
    assert not list(tmp_path.iterdir())
