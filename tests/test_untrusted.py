"""Files and configurations from others: a result or an answer in one line, whatever is in them; nothing is executed."""

import io
import json
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from hypothesis.extra.numpy import arrays as arrays_of

from infofeat_jax import checks, data
from infofeat_jax import config as configs
from infofeat_jax.data import sources
from infofeat_jax.evaluation import autoattack
from infofeat_jax.runtime import files
from infofeat_jax.types import InvalidInput


def valid_npz() -> bytes:
    file, rng = io.BytesIO(), np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 6), ("test", 3)):
        arrays[f"image_{split}"] = rng.integers(0, 256, (count, 2, 2, 1), np.uint8)
        arrays[f"label_{split}"] = np.arange(count) % 3
    np.savez_compressed(file, **arrays)
    return file.getvalue()


VALID = valid_npz()
changes = st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=8)


@settings(max_examples=300, deadline=None)
@given(changes=changes, end=st.integers(0, len(VALID)) | st.just(len(VALID)))
def test_any_npz_is_a_data_set_or_one_line(changes, end):
    content = bytearray(VALID)
    for position, value in changes:
        content[position] = value
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "x.npz"
        path.write_bytes(content[:end])
        try:
            loaded = data.load(path, validation_size=1)
        except InvalidInput as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
        else:
            assert loaded.train.images.dtype == np.uint8
            assert loaded.train.labels.max() < loaded.num_classes
        assert files.read_arrays(path, "none") is None
        assert autoattack.load(autoattack.Saved(path, "none")) is None


dtypes = st.sampled_from(["uint8", "int8", "int64", "uint64", "bool", "float32", "complex64", "U2", "M8[s]"])
arrays = arrays_of(dtypes, array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
images = arrays_of(np.uint8, st.tuples(*[st.integers(1, 5)] * 4)) | arrays
labels = arrays_of(np.int64, st.integers(1, 5), elements=st.integers(-1, 3)) | arrays


@settings(max_examples=300, deadline=None)
@given(image_train=images, label_train=labels, image_test=images, label_test=labels)
def test_any_arrays_are_a_data_set_or_one_line(**members):
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "x.npz"
        np.savez(path, **members)
        try:
            loaded = data.load(path, validation_size=1)
        except InvalidInput as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
        else:
            for split in (loaded.train, loaded.validation, loaded.test):
                assert split.images.shape == (len(split.labels), *loaded.test.images.shape[1:])
                assert 0 <= split.labels.min() <= split.labels.max() < loaded.num_classes


def test_an_array_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    (tmp_path / "x.npz").write_bytes(VALID)
    monkeypatch.setattr(sources, "MAX_BYTES", 100)
    with pytest.raises(InvalidInput, match=r"image_train .* it takes 0 GiB: expected at most 0"):
        data.load(tmp_path / "x.npz")


class Explosive:
    """Does harm when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_nothing_is_unpickled(tmp_path):
    arrays = {name: np.array([Explosive()]) for name in ("image_train", "label_train", "image_test", "label_test")}
    np.savez(tmp_path / "x.npz", allow_pickle=True, **arrays)
    with pytest.raises(InvalidInput, match="cannot be read as a plain array"):
        data.load(tmp_path / "x.npz")


anything = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*configs.default(), "x"]), inner),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(saved=anything.map(json.dumps) | st.text(max_size=20))
def test_any_saved_configuration_is_the_same_or_refused(saved):
    with tempfile.TemporaryDirectory() as directory:
        (pathlib.Path(directory) / "config.json").write_text(saved, encoding="utf-8", errors="replace")
        try:
            checks.check_continues(pathlib.Path(directory), configs.resolve(configs.default()), "train")
        except InvalidInput as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
        else:
            assert isinstance(json.loads(saved), dict)


def test_a_run_of_before_a_field_existed_is_the_same_run(tmp_path):
    """Its default is what runs did before."""
    config = configs.resolve(configs.default())
    saved = config.to_dict()
    del saved["accumulate_steps"], saved["optimizer"]["decay"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    checks.check_continues(tmp_path, config, "train")
    config.optimizer.decay = 0.2
    with pytest.raises(InvalidInput, match=r"optimizer.decay: 0.1 there, 0.2 now"):
        checks.check_continues(tmp_path, config, "train")
