"""Data sets of TFDS: what is read of them, what is damaged, and errors within seconds without a network."""

import http.server
import importlib.util
import io
import json
import shutil
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tfds_files
from test_data import create_images, message, rows

from infofeat_jax import data, installation
from infofeat_jax.data import prepared, records

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_tfds(root, splits, file_format="array_record"):
    """Prepares a small cifar10."""
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=(32, 32, 3)), "id": tfds.features.Text()}
    features["label"] = tfds.features.ClassLabel(names=CLASSES)
    examples = {
        name: [
            {"image": png(image), "label": int(label), "id": f"example {index}"}
            for index, (image, label) in enumerate(zip(*split, strict=True))
        ]
        for name, split in splits.items()
    }
    tfds_files.prepare(root, "Cifar10", "3.0.2", features, examples, file_format)


def png(image: np.ndarray) -> io.BytesIO:
    from PIL import Image

    written = io.BytesIO()
    Image.fromarray(image).save(written, "PNG")
    written.seek(0)
    return written


CIFAR = {
    "train": data.Split(create_images(23, (32, 32, 3)), np.arange(23) % 9),  # class 9 is in no example
    "test": data.Split(create_images(7, (32, 32, 3), seed=1), np.arange(7) % 9),
}


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    write_tfds(root, CIFAR)
    return root


@pytest.fixture
def tfds_root(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "tfds")


@pytest.fixture
def version(tfds_root):
    return tfds_root / "cifar10" / "3.0.2"


def check_cifar(loaded):
    assert loaded.num_classes == 10
    assert loaded.class_names == tuple(CLASSES)
    assert sorted(rows(loaded.train) + rows(loaded.validation)) == rows(CIFAR["train"])
    assert rows(loaded.test) == rows(CIFAR["test"])


def test_prepared_tfds(tfds_root, monkeypatch):
    check_cifar(data.load("cifar10", data_dir=str(tfds_root), validation_size=5))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_root))
    check_cifar(data.load("cifar10", validation_size=5))
    assert "tensorflow" not in sys.modules
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_root / "elsewhere"))
    check_cifar(data.load("cifar10", data_dir=str(tfds_root), validation_size=5))  # the argument wins


def test_splits_longer_than_one_read(tfds_root, monkeypatch):
    monkeypatch.setattr(records, "READ_CHUNK", 4)
    check_cifar(data.load("cifar10", data_dir=str(tfds_root), validation_size=5))


def test_the_newest_version_is_read_whatever_lies_beside_it(tfds_root, version):
    version.rename(version.parent / "3.0.10")
    for leftover in ("3.0.9", "incomplete.AB12_3.0.2"):
        (version.parent / leftover).mkdir()
    check_cifar(data.load("cifar10", data_dir=str(tfds_root), validation_size=5))


def test_the_download_host_is_not_asked_for_what_is_there(tfds_root, monkeypatch):
    monkeypatch.setattr(prepared, "reachable", pytest.fail)
    data.load("cifar10", data_dir=str(tfds_root), validation_size=5)


def shard(version):
    return next(version.glob("cifar10-test.array_record*"))


def rewrite_info(version, **changes):
    path = version / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGES = {
    "incomplete": (
        lambda v: v.rename(v.parent / "incomplete.AB12_3.0.2"),
        "an unfinished preparation was left",
    ),
    "no info": (lambda v: (v / "dataset_info.json").unlink(), "dataset_info.json is missing"),
    "no features": (lambda v: (v / "features.json").unlink(), "features.json is missing"),
    "cut info": (lambda v: (v / "dataset_info.json").write_text("{"), "dataset_info.json is damaged"),
    "no splits": (lambda v: rewrite_info(v, splits=[]), "its split train is missing"),
    "no shards": (lambda v: shard(v).unlink(), "0 of 1 array_record files of test are there"),
    "empty shard": (lambda v: shard(v).write_bytes(b""), "RuntimeError: ArrayRecord file should be at least"),
    "zeros": (lambda v: shard(v).write_bytes(bytes(200_000)), "RuntimeError: Corrupted Riegeli/records file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tfds(tfds_root, version, damage):
    apply, expected = DAMAGES[damage]
    apply(version)
    text = message(data.load, "cifar10", data_dir=str(tfds_root))
    assert f"'cifar10' in {version.parent}" in text
    assert "half prepared or damaged: " + expected in text
    assert "delete it and run `tfds build cifar10 --file_format=array_record`" in text
    assert ".npz" in text


def test_a_flipped_byte_is_found(tfds_root, version):
    content = bytearray(shard(version).read_bytes())
    content[3000:3003] = b"bad"
    shard(version).write_bytes(content)
    assert "Corrupted Riegeli/records file" in message(data.load, "cifar10", data_dir=str(tfds_root))


def test_another_file_format(version, tfds_root):
    for split in ("train", "test"):
        next(version.glob(f"cifar10-{split}.*")).rename(version / f"cifar10-{split}.tfrecord-00000-of-00001")
    rewrite_info(version, fileFormat="tfrecord")
    text = message(data.load, "cifar10", data_dir=str(tfds_root))
    assert "has the format tfrecord, but only array_record can be read" in text


def test_an_error_in_seconds_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    start = time.monotonic()
    text = message(data.load, "svhn_cropped", data_dir=str(tmp_path))
    assert time.monotonic() - start < 15
    assert f"'svhn_cropped' is not prepared in {tmp_path}" in text
    assert "TensorFlow, which prepares it, is not installed" in text
    for way in (
        "tfds build svhn_cropped --file_format=array_record",
        ".npz with image_train",
        "or to digits",
    ):
        assert way in text


@pytest.fixture
def with_tensorflow(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def test_an_error_in_seconds_without_network(tmp_path, monkeypatch, with_tensorflow):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(60))
    start = time.monotonic()
    text = message(data.load, "cifar100", data_dir=str(tmp_path))
    assert time.monotonic() - start < 5
    assert "www.cs.toronto.edu, its origin, cannot be reached" in text


class FakeBuilder:
    """Stands for the builder that TFDS makes where TensorFlow is installed."""

    def __init__(self, root, error=None):
        self.root, self.error = root, error

    def download_and_prepare(self):
        if self.error:
            raise self.error
        write_tfds(self.root, CIFAR)


def test_preparing_on_the_way(tmp_path, monkeypatch, with_tensorflow):
    import tensorflow_datasets as tfds

    def builder(name, *, data_dir, file_format):
        assert (name, file_format) == ("cifar10", "array_record")
        return FakeBuilder(data_dir)

    monkeypatch.setattr(prepared, "reachable", lambda url: True)
    monkeypatch.setattr(tfds, "builder", builder)
    check_cifar(data.load("cifar10", data_dir=str(tmp_path), validation_size=5))


def test_two_that_begin_at_once_prepare_it_once(tmp_path, monkeypatch, with_tensorflow):
    import tensorflow_datasets as tfds

    calls, began = [], threading.Event()

    class Slow(FakeBuilder):
        def download_and_prepare(self):
            calls.append(self)
            unfinished = tmp_path / "cifar10" / "incomplete.AB12_3.0.2"
            unfinished.mkdir()
            began.set()
            time.sleep(0.5)
            unfinished.rmdir()
            super().download_and_prepare()

    monkeypatch.setattr(prepared, "reachable", lambda url: True)
    monkeypatch.setattr(tfds, "builder", lambda name, *, data_dir, file_format: Slow(data_dir))
    found = []
    load = lambda: found.append(prepared.prepared("cifar10", "http://origin", str(tmp_path)))  # noqa: E731
    first, second = threading.Thread(target=load), threading.Thread(target=load)
    first.start()
    assert began.wait(60)
    second.start()
    first.join(), second.join()
    assert (len(calls), len(found)) == (1, 2)


def test_a_preparation_that_fails(tmp_path, monkeypatch, with_tensorflow):
    import tensorflow_datasets as tfds

    broken = FakeBuilder(tmp_path, OSError("No space left\non device"))
    monkeypatch.setattr(prepared, "reachable", lambda url: True)
    monkeypatch.setattr(tfds, "builder", lambda *args, **kwargs: broken)
    text = message(data.load, "cifar10", data_dir=str(tmp_path))
    assert "preparing it failed (OSError: No space left on device)" in text


@pytest.fixture
def server(monkeypatch):
    """Serves 200 at /there, 404 elsewhere, and yields its address."""
    monkeypatch.setenv("no_proxy", "*")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200 if self.path == "/there" else 404)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as instance:
        thread = threading.Thread(target=instance.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{instance.server_port}"
        instance.shutdown()
        thread.join()


def test_reachable(server):
    assert prepared.reachable(f"{server}/there")
    assert not prepared.reachable(f"{server}/gone", seconds=0.5)


def test_a_host_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        assert not prepared.reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.3)
        assert time.monotonic() - start < 2


def test_importing_data_imports_nothing_heavy():
    names = ("tensorflow", "tensorflow_datasets", "sklearn", "PIL")
    code = f"import sys, infofeat_jax.data; print([m for m in {names} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "module"), [("digits", "sklearn"), ("cifar10", "tensorflow_datasets")])
def test_a_missing_package_is_named(tfds_root, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    text = message(data.load, name, data_dir=str(tfds_root))
    assert module in text
    assert installation.command("train") in text
