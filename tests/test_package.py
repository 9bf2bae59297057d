"""Importing, and the README's own example."""

import importlib.metadata
import importlib.resources
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import infofeat_jax
from infofeat_jax import installation
from infofeat_jax.types import InvalidInput

ROOT = pathlib.Path(__file__).parent.parent


def examples(path: str) -> list[str]:
    """The Python examples on a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


def example(path: str) -> str:
    """The first Python example on a page."""
    return examples(path)[0]


def run(code: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


HEAVY = (
    "tensorflow", "tensorflow_datasets", "torch", "sklearn", "scipy", "orbax", "clu", "matplotlib", "ml_collections",
    "jinja2", "PIL", "art", "foolbox",
)  # fmt: skip


def test_importing_the_library_loads_nothing_heavy():
    """Nor what only the extra `train` brings; rich and absl come with Flax."""
    loaded = run(f"import sys, infofeat_jax; print([m for m in {HEAVY} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_the_package_alone_gives_the_public_library():
    shown = run(
        "import infofeat_jax as j; from infofeat_jax import *; print(j.attacks.pgd.__name__, j.models.create.__name__,"
        " sorted(j.methods.METHODS)[0], j.objectives.cross_entropy.__name__, j.threat.threat.__name__,"
        " j.sinkhorn.cosine_cost.__name__, j.cam.positive_cam.__name__, j.adapters.pytorch.__name__,"
        " j.data.load.__name__, j.types.Outputs.__name__, j.evaluate.__name__, j.load.__name__, attacks is j.attacks)"
    )
    expected = (
        "pgd create adversarial_interpolation cross_entropy threat cosine_cost positive_cam pytorch load Outputs"
        " evaluate load"
    )
    assert shown.split() == [*expected.split(), "True"]


def test_the_command_without_the_extra_says_what_to_install():
    code = "import sys; sys.modules['ml_collections'] = None; from infofeat_jax.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: the command needs more than the library \(.*ml_collections.*\): pip install .*\n", done.stderr
    )


def test_reports_without_the_extra_say_what_to_install():
    shown = run(
        "import sys; sys.modules['ml_collections'] = None\n"
        "try:\n  from infofeat_jax import report\nexcept ImportError as error:\n  print(error)"
    )
    assert re.fullmatch(r"reports need more than the library \(.*ml_collections.*\): pip install .*\n", shown)


def test_what_cannot_be_loaded_is_named_with_what_was_expected():
    with pytest.raises(
        InvalidInput, match=r"^runs/absent: no such file or directory: expected a run's directory, or a"
    ):
        infofeat_jax.load("runs/absent")


def test_importing_the_library_leaves_the_devices_to_be_chosen():
    shown = run("import infofeat_jax, jax; jax.config.update('jax_num_cpu_devices', 3); print(jax.device_count())")
    assert shown.strip() == "3"


def test_the_version_is_the_installed_ones_and_known_without_an_installation():
    assert infofeat_jax.__version__ == importlib.metadata.version("infofeat_jax")
    shown = run(
        "import flax, jaxtyping, optax, wadler_lindig\nfrom importlib import metadata\n"
        "def absent(name): raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = absent\nimport infofeat_jax; print(infofeat_jax.__version__)"
    )
    assert shown.strip() == "0+unknown"


def test_type_checkers_are_told_of_the_annotations():
    """PEP 561: the marker lies in the package and is shipped with it."""
    assert importlib.resources.files("infofeat_jax").joinpath("py.typed").is_file()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "py.typed" in settings["tool"]["setuptools"]["package-data"]["infofeat_jax"]


def test_a_run_on_embedded_data_never_loads_tensorflow_nor_scikit_learn_whose_file_they_are():
    loaded = run(
        "import sys; from infofeat_jax import cli, data; data.load('digits', validation_size=200);"
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'torch', 'sklearn') if m in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_the_evaluations_of_any_model_run_and_need_nothing_that_only_the_extras_bring():
    pytest.importorskip("equinox")
    shown = run(
        "\n".join(examples("docs/how-to/any-model.md"))
        + f"\nimport sys; print([m for m in {HEAVY} if m in sys.modules and m != 'scipy'])"  # of JAX's lstsq
    )
    titles = re.findall(r"^(\w+): accuracy in % on 100 images, linf epsilon 0.06275 \(16/255\)$", shown, re.MULTILINE)
    assert titles == ["forward", "LinenModel", "NnxModel", "Sequential", "smoothed"]
    assert re.search(r"^0\.\d+ \(100,\) \(100, 8, 8, 1\)$", shown, re.MULTILINE)
    assert shown.splitlines()[-1] == "[]"
    assert examples("README.md")[1] == example("docs/how-to/any-model.md")


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ('{"url": "file:///a%20b", "dir_info": {"editable": true}}', "pip install -e '/a b[train]'"),
        ('{"url": "file:///w.whl", "archive_info": {}}', "pip install 'infofeat_jax[train] @ file:///w.whl'"),
        (None, "pip install 'infofeat_jax[train]'"),
        ("damaged", "pip install 'infofeat_jax[train]'"),
    ],
)
def test_an_extra_is_installed_from_where_the_package_came_from(monkeypatch, origin, command):
    installed = type("Installed", (), {"read_text": staticmethod({"direct_url.json": origin}.get)})
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: installed)
    assert installation.command("train") == command
