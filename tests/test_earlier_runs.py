"""Runs that earlier versions of this package left unfinished are continued: see run_*.zip in golden/README.md."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from small import tiny_model

from infofeat_jax import cli, report
from infofeat_jax import config as configs
from infofeat_jax.training import checkpoint

__all__ = ["tiny_model"]
pytestmark = pytest.mark.usefixtures("tiny_model")
FILES = sorted((Path(__file__).parent / "golden").glob("run_*.zip"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_run_of_an_earlier_version_ends_as_it_would_have_there(path, tmp_path, capsys):
    """By its own configuration, completed with today's defaults; its parameters and averages, to rounding."""
    directory = tmp_path / "run"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(directory)
    earlier = json.loads((directory / "config.json").read_text())
    config = configs.resolve(ConfigDict(configs.complete(earlier)))
    assert len(dict(configs.flatten(earlier))) < len(dict(configs.flatten(config.to_dict())))
    config.eval.attacks = ("clean",)
    cli.check(config, directory, "train")
    cli.execute_run(config, directory, "train")
    assert "continuing at step 5 of 12 steps" in capsys.readouterr().out
    found = flatten_dict(checkpoint.read(directory, "latest"), sep="/")
    with np.load(directory / "uninterrupted.npz", allow_pickle=False) as expected:
        assert set(expected) == {name for name in found if not name.startswith(("opt_state", "step"))}
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    results = json.loads((directory / "results.json").read_text())
    assert results["finished"]
    page = report.write(directory).read_text()
    assert f"{100 * results['clean']:.1f}" in page
