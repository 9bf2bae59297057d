"""Exported models: reloaded with JAX alone, in another process, they compute the same."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.export
import numpy as np
import pytest
import small

from infofeat_jax import models
from infofeat_jax.models.own import Own
from infofeat_jax.types import InvalidInput

MODULE, VARIABLES = small.network()
SHAPE = (8, 8, 3)
RELOAD = """
import sys, jax, numpy as np
served = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
np.save(sys.argv[2], served.call(np.load(sys.argv[3])))
assert "infofeat_jax" not in sys.modules and "flax" not in sys.modules
"""


class Plain(nn.Module):
    """A model of one's own, without a layer conv1."""

    @nn.compact
    def __call__(self, images):
        return nn.Dense(4)(images.reshape(images.shape[0], -1))


def test_a_model_of_ones_own_is_exported(tmp_path):
    module, images = Own(Plain()), small.batch(3)[0]
    variables = module.init(jax.random.key(0), images)
    models.export(module, variables, tmp_path / "own.stablehlo", SHAPE)
    served = jax.export.deserialize(bytearray((tmp_path / "own.stablehlo").read_bytes()))
    np.testing.assert_allclose(served.call(images), module.apply(variables, images).logits, atol=1e-6)


def test_another_process_computes_the_same_without_this_package(tmp_path):
    images, program = small.batch(6)[0], tmp_path / "model.stablehlo"
    models.export(MODULE, VARIABLES, program, SHAPE)
    np.save(tmp_path / "images.npy", images)
    files = [program, tmp_path / "logits.npy", tmp_path / "images.npy"]
    subprocess.run([sys.executable, "-c", RELOAD, *map(str, files)], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(files[1]), MODULE.apply(VARIABLES, images).logits, atol=1e-6)


@pytest.mark.parametrize("batch", ["symbolic", 2])
def test_batch_dimension_is_as_stated(batch, tmp_path):
    models.export(MODULE, VARIABLES, tmp_path / "m", SHAPE, batch, platforms=("cpu",))
    served = jax.export.deserialize(bytearray((tmp_path / "m").read_bytes()))
    assert served.platforms == ("cpu",)
    for count in (2, 3):
        images = small.batch(count)[0]
        if batch in ("symbolic", count):
            logits = MODULE.apply(VARIABLES, images).logits
            np.testing.assert_allclose(jax.jit(served.call)(images), logits, atol=1e-6)
        else:
            with pytest.raises(ValueError, match="Shape mismatch"):
                served.call(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch 0: expected 1 or more"),
        ({"image_shape": (8, 8, 1)}, r"\(8, 8, 1\): the model takes 3 channels"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_written(options, message, tmp_path):
    with pytest.raises(InvalidInput, match=message):
        models.export(MODULE, VARIABLES, tmp_path / "m", **{"image_shape": SHAPE, **options})
    assert not (tmp_path / "m").exists()
