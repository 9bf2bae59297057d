"""Importing, and the README's own example."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def run(code: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_importing_the_library_loads_nothing_heavy():
    loaded = run(
        "import sys; from infofeat_jax import attacks, models, methods, objectives, data;"
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'torch', 'sklearn', 'orbax', 'clu', 'matplotlib',"
        " 'ml_collections') if m in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_a_run_on_embedded_data_never_loads_tensorflow():
    loaded = run(
        "import sys; from infofeat_jax import cli, data; data.load('digits', validation_size=200);"
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'torch') if m in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_the_readmes_library_example_runs():
    assert "robust accuracy" in run(EXAMPLES[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what foolbox imports
def test_the_readmes_other_libraries_example_runs():
    for package in ("torch", "foolbox", "art"):
        pytest.importorskip(package)
    first, second = EXAMPLES
    setup = first.split("attack = ")[0]
    shown = run(f"{setup}\n{second}\nprint(type(network), attacked.bounds, classifier.predict(images).shape)")
    assert all(part in shown for part in ("TorchModule", "Bounds(lower=0.0, upper=1.0)", "(100, 10)"))
