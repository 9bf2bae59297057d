"""AutoAttack's resume state on disk: used by the same evaluation, ignored by any other."""

import numpy as np
import pytest
from jax.tree_util import Partial

from infofeat_jax.attacks.autoattack import ROBUST, ResumeState
from infofeat_jax.data import Split
from infofeat_jax.evaluation import attack_names, autoattack, summaries
from infofeat_jax.evaluation.attack_names import AttackSpec, Budget
from infofeat_jax.evaluation.measured import Measured
from infofeat_jax.evaluation.subject import Subject
from infofeat_jax.runtime import files


def state() -> ResumeState:
    adversarial = np.random.default_rng(0).uniform(size=(3, 2, 2, 1)).astype(np.float32)
    return ResumeState(2, np.array([1, 0, 1], np.int32), np.array([-1, 0, 2], np.int32), adversarial, 77, 231)


def test_what_was_saved_comes_back(tmp_path):
    saved = autoattack.Saved(tmp_path / "autoattack.npz", "a", 3)
    assert autoattack.load(saved) is None
    autoattack.save(saved, state())
    loaded = autoattack.load(saved)
    for value, expected in zip(loaded, state(), strict=True):
        np.testing.assert_array_equal(value, expected)
    assert [type(value) for value in loaded] == [int, np.ndarray, np.ndarray, np.ndarray, int, int]
    assert [file.name for file in tmp_path.iterdir()] == ["autoattack.npz"]
    assert autoattack.seconds(saved) == 0
    autoattack.save(saved, state(), 12.5)
    assert (autoattack.seconds(saved), autoattack.load(saved).stage) == (12.5, 2)
    assert autoattack.seconds(saved._replace(setting="b")) == 0


def test_another_setting_starts_anew(tmp_path):
    path = tmp_path / "autoattack.npz"
    autoattack.save(autoattack.Saved(path, "a", 3), state())
    assert autoattack.load(autoattack.Saved(path, "b", 3)) is None


@pytest.mark.parametrize(
    "damage",
    [{"broken_by": np.array(["a", "b", "c"])}, {"broken_by": np.int32(1)}, {"stage": np.zeros(2, np.int32)},
     {"adversarial": np.zeros((2, 2, 2, 1), np.float32)}, {"queries": np.float32(3)}, {"attempts": np.int32(3)},
     {"cursor": np.int32(3)}],
)  # fmt: skip
def test_a_damaged_state_counts_as_none(tmp_path, damage):
    saved = autoattack.Saved(tmp_path / "autoattack.npz", "a", 3)
    files.write_arrays_atomically(saved.path, {"setting": "a", **state()._asdict(), **damage})
    assert autoattack.load(saved) is None


def test_what_each_stage_left(tmp_path):
    broken_by = np.array([-1, 0, 1, 2, 3, 4], np.int32)
    done = ResumeState(5, 0 * broken_by, broken_by, np.zeros((6, 2, 2, 1), np.float32), 77, 231)
    one = subject(tmp_path, "a", 6)
    autoattack.save(autoattack.where(one, AttackSpec("autoattack")), done)
    left = autoattack.after_stages(one, ["clean", "autoattack"])
    assert {name: correct.tolist() for name, correct in left.items()} == {
        "apgd-ce": [True, False, False, True, True, True],
        "apgd-t": [True, False, False, False, True, True],
        "fab-t": [True, False, False, False, False, True],
        "square": [True, False, False, False, False, False],
    }
    assert autoattack.after_stages(one, ["pgd20", "autoattack(version=quick)", "autoattack(epsilon=2)"]) == {}
    plus = attack_names.parse("autoattack(version=plus)")
    autoattack.save(autoattack.where(one, plus), done._replace(broken_by=np.full(6, 6, np.int32)))
    left = autoattack.after_stages(one, ["autoattack(version=plus)"])
    assert list(left) == ["apgd-ce-5", "apgd-dlr-5", "fab-5", "square", "apgd-t", "fab-t"]
    assert [int(correct.sum()) for correct in left.values()] == [6, 6, 6, 6, 6, 0]
    assert list(autoattack.after_stages(one, ["autoattack(version=plus)", "autoattack"]))[1] == "apgd-t"
    for setting, count in (("a", 5), ("b", 6)):
        assert autoattack.after_stages(subject(tmp_path, setting, count), ["autoattack"]) == {}


def test_what_square_alone_breaks_raises_a_flag(tmp_path):
    """Gradients are masked where the last of AutoAttack's stages, which needs none, finds more."""
    one, broken_by = subject(tmp_path, "a", 20), np.full(20, ROBUST, np.int32)
    for lost, expected in ((0, []), (8, ["black-box beats white-box"])):
        broken_by[:lost] = 4
        done = ResumeState(5, 0 * broken_by, broken_by, np.zeros((20, 2, 2, 1), np.float32), 77, 231)
        autoattack.save(autoattack.where(one, AttackSpec("autoattack")), done)
        measured = Measured({"autoattack": broken_by == ROBUST}, {}, {})
        assert [flag.split(":")[0] for flag in summaries.find_flags(one, measured)] == expected


def test_a_state_of_random_numbers_by_batch_is_not_resumed_but_its_stages_count(tmp_path):
    """The form of version 0.1."""
    one = subject(tmp_path, "a", 3)
    saved = autoattack.where(one, AttackSpec("autoattack"))
    old = {"stage": 4, "cursor": 3, "broken_by": np.array([-1, 1, 2], np.int32), "queries": 77}
    images = np.zeros((3, 2, 2, 1), np.float32)
    files.write_arrays_atomically(saved.path, {"setting": saved.setting, "adversarial": images, **old})
    assert autoattack.load(saved) is None
    assert autoattack.after_stages(one, ["clean", "autoattack"])["apgd-ce"].tolist() == [True, False, True]


def subject(workdir, setting: str, count: int) -> Subject:
    split = Split(np.zeros((count, 2, 2, 1), np.uint8), np.zeros(count, np.int32))
    budget = Budget("linf", 8 / 255, 2 / 255)
    return Subject(Partial(len), split, 3, None, budget, workdir, setting, source=lambda name: None)
