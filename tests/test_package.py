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

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


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


def test_a_run_on_embedded_data_never_loads_tensorflow():
    loaded = run(
        "import sys; from infofeat_jax import cli, data; data.load('digits', validation_size=200);"
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'torch') if m in sys.modules])"
    )
    assert loaded.strip() == "[]"


def examples(*parts: str) -> str:
    """The README's blocks that contain these, one after the other."""
    return "\n".join(next(block for block in EXAMPLES if part in block) for part in parts)


def test_the_readmes_library_example_runs():
    assert "robust accuracy" in run(examples("attacks.infofeature"))


def test_the_readmes_evaluations_run_and_need_nothing_that_only_the_extras_bring():
    pytest.importorskip("equinox")
    shown = run(
        examples("def forward", "class LinenModel", "class NnxModel", "equinox_model =")
        + f"\nimport sys; print([m for m in {set(HEAVY) - {'sklearn', 'scipy'}} if m in sys.modules])"  # of the digits
    )
    titles = re.findall(r"^(\w+): accuracy in % on 100 images, linf epsilon 0.06275 \(16/255\)$", shown, re.MULTILINE)
    assert titles == ["forward", "LinenModel", "NnxModel", "Sequential"]
    assert re.search(r"^0\.\d+ \(100,\) \(100, 8, 8, 1\)$", shown, re.MULTILINE)
    assert shown.splitlines()[-1] == "[]"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what foolbox imports
def test_the_readmes_other_libraries_example_runs():
    for package in ("torch", "foolbox", "art"):
        pytest.importorskip(package)
    setup, second = examples("attacks.infofeature").split("attack = ")[0], examples("adapters.pytorch")
    shown = run(f"{setup}\n{second}\nprint(type(network), attacked.bounds, classifier.predict(images).shape)")
    assert all(part in shown for part in ("TorchModule", "Bounds(lower=0.0, upper=1.0)", "(100, 10)"))
