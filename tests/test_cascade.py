"""AutoAttack's standing on disk: taken up by the same evaluation, ignored by any other."""

import numpy as np

from infofeat_jax import cascade
from infofeat_jax.attacks.autoattack import Standing


def standing(cursor: int = 3) -> Standing:
    rng = np.random.default_rng(0)
    return Standing(2, cursor, np.array([-1, 0, 2], np.int32), rng.uniform(size=(3, 2, 2, 1)).astype(np.float32), 77)


def test_what_was_saved_comes_back(tmp_path):
    path = tmp_path / "autoattack.npz"
    assert cascade.load(path, "a") is None
    cascade.save(path, "a", standing())
    loaded = cascade.load(path, "a")
    for value, expected in zip(loaded, standing(), strict=True):
        np.testing.assert_array_equal(value, expected)
    assert [type(value) for value in loaded] == [int, int, np.ndarray, np.ndarray, int]
    assert [file.name for file in tmp_path.iterdir()] == ["autoattack.npz"]


def test_another_setting_starts_anew(tmp_path):
    cascade.save(tmp_path / "autoattack.npz", "a", standing())
    assert cascade.load(tmp_path / "autoattack.npz", "b") is None
