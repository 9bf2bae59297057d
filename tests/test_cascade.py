"""AutoAttack's standing on disk: taken up by the same evaluation, ignored by any other."""

import numpy as np

from infofeat_jax.attacks.autoattack import Standing
from infofeat_jax.evaluation import autoattack


def standing(cursor: int = 3) -> Standing:
    rng = np.random.default_rng(0)
    return Standing(2, cursor, np.array([-1, 0, 2], np.int32), rng.uniform(size=(3, 2, 2, 1)).astype(np.float32), 77)


def test_what_was_saved_comes_back(tmp_path):
    path = tmp_path / "autoattack.npz"
    assert autoattack.load(path, "a") is None
    autoattack.save(path, "a", standing())
    loaded = autoattack.load(path, "a")
    for value, expected in zip(loaded, standing(), strict=True):
        np.testing.assert_array_equal(value, expected)
    assert [type(value) for value in loaded] == [int, int, np.ndarray, np.ndarray, int]
    assert [file.name for file in tmp_path.iterdir()] == ["autoattack.npz"]


def test_another_setting_starts_anew(tmp_path):
    autoattack.save(tmp_path / "autoattack.npz", "a", standing())
    assert autoattack.load(tmp_path / "autoattack.npz", "b") is None


def test_what_each_stage_left(tmp_path):
    broken_by = np.array([-1, 0, 1, 2, 3, 4], np.int32)
    done = Standing(4, 6, broken_by, np.zeros((6, 2, 2, 1), np.float32), 77)
    autoattack.save(tmp_path / autoattack.FILE, autoattack.describe_setting("a", 6), done)
    left = autoattack.after_stages(tmp_path, "a", 6)
    assert {name: correct.tolist() for name, correct in left.items()} == {
        "apgd-ce": [True, False, False, True, True, True],
        "apgd-t": [True, False, False, False, True, True],
        "fab-t": [True, False, False, False, False, True],
        "square": [True, False, False, False, False, False],
    }
    assert autoattack.after_stages(tmp_path, "a", 5) == autoattack.after_stages(tmp_path, "b", 6) == {}
