"""TFDS data sets by name: found where they have been prepared, or else prepared."""

import contextlib
import importlib.util
import os
import pathlib
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator

from infofeat_jax.data.arrays import Source
from infofeat_jax.data.records import broken, newest, read, ways
from infofeat_jax.runtime import lock
from infofeat_jax.types import InvalidInput, summary

REACH_SECONDS = 4.0


def prepared(name: str, url: str, data_dir: str | None = None) -> Source:
    """Returns a TFDS data set, after preparing it if necessary and if TensorFlow and the network allow it.

    `data_dir` defaults to TFDS_DATA_DIR, or TFDS's own ~/tensorflow_datasets; `url` is what TFDS downloads.

    Raises:
      InvalidInput: the data set is missing, partially prepared, in an unsupported format, or damaged.
    """
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = pathlib.Path(os.path.expanduser(chosen))  # unlike pathlib's, leaves an unknown ~user as it is
    return read(newest(_entries(name, root)) or _prepare(name, url, root))


def _entries(name: str, root: pathlib.Path) -> list[pathlib.Path]:
    folder = root / name
    try:
        return list(folder.iterdir()) if os.path.isdir(folder) else []
    except OSError as error:
        raise broken(name, folder, summary(error)) from None


def _prepare(name: str, url: str, root: pathlib.Path) -> pathlib.Path:
    """Prepares the data set, unless another process does at this moment: then waits for it. Returns its directory."""
    installed = importlib.util.find_spec("tensorflow") is not None
    with _alone(name, root) if installed else contextlib.nullcontext():
        entries = _entries(name, root)
        if version := newest(entries):  # meanwhile
            return version
        if unfinished := [entry for entry in entries if "incomplete" in entry.name]:
            raise broken(name, unfinished[0], "an unfinished preparation was left behind")
        if not installed:
            raise _missing(name, root, "TensorFlow, which prepares it, is not installed")
        if not reachable(url):
            raise _missing(name, root, f"{urllib.parse.urlsplit(url).hostname}, its origin, cannot be reached")
        _download(name, root)
        return newest(_entries(name, root)) or root / name


@contextlib.contextmanager
def _alone(name: str, root: pathlib.Path) -> Iterator[None]:
    """Holds the data set's directory, after waiting for whoever does: machines and runs start together."""
    try:
        (root / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _missing(name, root, f"preparing it failed ({summary(error)})") from None
    with lock.lock(root / name, wait=True):
        yield


def _download(name: str, root: pathlib.Path) -> None:
    try:
        import tensorflow_datasets as tfds

        tfds.builder(name, data_dir=str(root), file_format="array_record").download_and_prepare()
    except Exception as error:  # TFDS, TensorFlow and the download share no documented type
        raise _missing(name, root, f"preparing it failed ({summary(error)})") from error


def reachable(url: str, seconds: float = REACH_SECONDS) -> bool:
    """Whether `url` answers a HEAD request within `seconds`, through the proxy if one is set."""
    answered = threading.Event()

    def ask():
        request = urllib.request.Request(url, method="HEAD")
        with contextlib.suppress(Exception), urllib.request.urlopen(request, timeout=seconds):
            answered.set()

    threading.Thread(target=ask, daemon=True).start()  # name resolution ignores timeouts
    return answered.wait(seconds)


def _missing(name: str, root: pathlib.Path, reason: str) -> InvalidInput:
    return InvalidInput(
        f"data set {name!r} is not prepared in {root} (data.data_dir, or TFDS_DATA_DIR), and {reason}: {ways(name)}"
    )
