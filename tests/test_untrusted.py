"""Untrusted files and configurations: a result or a one-line error, whatever they contain; nothing is executed."""

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

from infofeat_jax import checks, cli, data, weights
from infofeat_jax import config as configs
from infofeat_jax.data import archives
from infofeat_jax.evaluation import autoattack
from infofeat_jax.runtime import files, lock
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
        assert autoattack.load(autoattack.Saved(path, "none", 3)) is None


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
    monkeypatch.setattr(archives, "MAX_BYTES", 100)
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
    (tmp_path / "checkpoints" / "100").mkdir(parents=True)
    checks.check_continues(tmp_path, config, "train")
    config.optimizer.decay = 0.2
    with pytest.raises(InvalidInput, match=r"optimizer.decay: 0.1 there, 0.2 now"):
        checks.check_continues(tmp_path, config, "train")


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "{", "", "\0", "[" * 100_000, "9" * 5000])
def test_a_file_that_holds_no_object_is_named(tmp_path, text):
    path = tmp_path / "results.json"
    assert files.read_json(path) is None
    path.write_text(text)
    with pytest.raises(InvalidInput, match=r"results.json (is not readable as|holds a) JSON") as caught:
        files.read_json(path)
    assert "\n" not in str(caught.value)
    path.write_text('{"clean": 1}')
    assert files.read_json(path) == {"clean": 1}


def test_saved_values_of_other_types_are_named(tmp_path):
    saved = configs.resolve(configs.default()).to_dict() | {"of_a_newer_version": 1}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(saved))
    assert weights.read_config(tmp_path)["of_a_newer_version"] == 1
    saved["model"]["mean"] = 3
    path.write_text(json.dumps(saved))
    with pytest.raises(InvalidInput, match=r"config.json: config.model.mean = 3: expected numbers"):
        weights.read_config(tmp_path)


# A run's directory


def dangling(directory):
    (directory / "run").symlink_to(directory / "nowhere")


def looping(directory):
    (directory / "run").symlink_to(directory / "run")


@pytest.mark.parametrize(
    ("name", "prepare", "message"),
    [
        ("run", dangling, "run is a dangling link: remove it, or give another --workdir"),
        ("run/deeper", dangling, "run is a dangling link"),
        ("run", looping, "--workdir"),
        ("a" * 300, None, "cannot be written (OSError: File name too long): give another --workdir"),
        (f"new/{'a' * 300}/x", None, "cannot be written (OSError: File name too long)"),
        ("/".join(["a" * 200] * 30), None, "cannot be written (OSError: File name too long)"),
        ("run", lambda directory: (directory / "run").write_text(""), "cannot be written (NotADirectoryError"),
        ("run", lambda directory: (directory / "run/lock").mkdir(parents=True), "run/lock is a directory: remove it"),
        (
            "run",
            lambda d: (d / "run/autoattack.npz").mkdir(parents=True),
            "run/autoattack.npz is a directory: remove it",
        ),
    ],
)
def test_a_directory_that_holds_no_run_is_refused(tmp_path, name, prepare, message):
    if prepare:
        prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidInput) as caught:
        checks.check_writable(tmp_path / name)
    assert message in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_among_the_run_s_directories_is_refused(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(InvalidInput, match="checkpoints is not a directory: remove it"):
        checks.check_writable(tmp_path)


def test_a_directory_of_a_run_passes(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path)
    for directory in (tmp_path, tmp_path / "link", tmp_path / "new/deeper"):
        checks.check_writable(directory)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "config.json", "link"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("runs/a", "runs/a"),
        ("..", "/there"),
        ("../other", "/there/other"),
        (".", "/there/here"),
        ("a/../b", "/there/here/b"),
    ],
)
def test_a_relative_directory_has_a_name_and_neighbours(given, expected, tmp_path, monkeypatch):
    (tmp_path / "there/here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "there/here")
    found = str(cli.find_workdir(configs.default(), "digits.py", given))
    assert found == (expected if expected[0] != "/" else str(tmp_path.resolve()) + expected)


def test_a_bucket_is_no_directory():
    with pytest.raises(InvalidInput, match="--workdir=gs://bucket/run: expected a directory"):
        cli.find_workdir(configs.default(), "digits.py", "gs://bucket/run")


def test_a_lock_that_cannot_be_opened(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(InvalidInput, match=r"lock cannot be opened .*: remove it"), lock.lock(tmp_path):
        pass


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 9 TiB"), OSError(36, "File name too long", "a\nb")])
def test_what_the_system_refuses_is_one_line(error, capsys):
    with pytest.raises(SystemExit) as end, cli.one_line_errors():
        raise error
    assert end.value.code == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
