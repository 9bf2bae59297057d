"""Checkpoints on disk: any file of them damaged, the disk full, a process that died before they were sealed."""

import gc
import resource
import shutil
import threading
import zlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from infofeat_jax.training import checkpoint, seals
from infofeat_jax.types import InvalidInput, RunFailed

SIZE = 5000


def state(step: int) -> dict:
    """Arrays that do not compress, and differ from step to step."""
    noise = np.random.default_rng(step).normal(size=SIZE).astype(np.float32)
    return {"noise": jnp.asarray(noise), "step": jnp.asarray(step, jnp.int32)}


LIKE = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))


def write(workdir, steps=(4, 8, 12), **options):
    with checkpoint.opened(workdir, **options) as checkpoints:
        for step in steps:
            checkpoint.save(checkpoints, checkpoint.Snapshot(step, state(step), 1 / step))


def newest(workdir):
    """The step of the state that training would resume from, after comparing all of it."""
    with checkpoint.opened(workdir) as checkpoints:
        found = checkpoint.restore_newest(checkpoints, LIKE)
    if found is None:
        return None
    step = int(found["step"])
    np.testing.assert_array_equal(found["noise"], state(step)["noise"])
    return step


def test_as_many_as_asked_for_are_kept(tmp_path):
    write(tmp_path, (4, 8, 12, 16, 20), keep=3)
    assert [path.name for path in checkpoint.finished(tmp_path)] == ["12", "16", "20", "4"]


def halve(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]


def test_the_newest_and_the_best_are_kept(tmp_path):
    write(tmp_path, (4, 8, 12, 16))
    assert [path.name for path in checkpoint.finished(tmp_path)] == ["12", "16", "4"]
    assert newest(tmp_path) == 16
    assert checkpoint.restore(tmp_path, "best", LIKE)["step"] == 4
    assert checkpoint.restore(tmp_path, "latest", LIKE)["step"] == 16


@pytest.mark.parametrize("damage", [halve, flip, None])
def test_whatever_file_is_damaged_the_one_before_is_taken(tmp_path, capsys, damage):
    """Truncated, with one bit changed, or lost."""
    write(tmp_path)
    directory = tmp_path / "checkpoints" / "12"
    originals = {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}
    assert len(originals) > 8
    for path, data in originals.items():
        path.unlink() if damage is None else path.write_bytes(damage(data))
        expected = 12 if damage is None and path.name == checkpoint.SEAL else 8  # without its seal it may be whole
        assert newest(tmp_path) == expected, path
        assert ("12 is damaged" in capsys.readouterr().err) == (expected == 8), path
        for moved in (tmp_path / "damaged").glob("*"):
            moved.rename(directory)
        path.write_bytes(data)
    assert newest(tmp_path) == 12


def test_when_all_are_damaged_there_is_none(tmp_path):
    write(tmp_path, (4, 8))
    for path in tmp_path.rglob("*/default/manifest.ocdbt"):
        path.write_bytes(b"")
    assert newest(tmp_path) is None
    assert {path.name for path in (tmp_path / "damaged").iterdir()} == {"checkpoints-4", "checkpoints-8"}


def test_evaluation_of_a_damaged_checkpoint_is_refused_and_changes_nothing(tmp_path):
    write(tmp_path)
    (tmp_path / "checkpoints" / "12" / "metrics" / "metrics").write_text("")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidInput, match="12 is damaged"):
        checkpoint.restore(tmp_path, "best", LIKE)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax drops its coroutines
def test_an_unsealed_checkpoint_is_read_if_it_can_be(tmp_path, capfd):
    """A process that is killed leaves its last checkpoint finished, but unsealed."""
    write(tmp_path)
    (tmp_path / "checkpoints" / "12" / checkpoint.SEAL).unlink()
    assert newest(tmp_path) == 12
    (tmp_path / "checkpoints" / "12" / checkpoint.SEAL).unlink()
    (tmp_path / "checkpoints" / "12" / "default" / "manifest.ocdbt").write_bytes(b"")
    assert newest(tmp_path) == 8
    gc.collect()
    assert "12 is damaged" in capfd.readouterr().err


def test_an_interrupted_state_is_sealed_without_looking_at_the_epochs(tmp_path):
    """Old checkpoints may be being deleted there."""
    write(tmp_path)
    leaving = tmp_path / "checkpoints" / "12"
    (leaving / checkpoint.SEAL).unlink()
    with checkpoint.opened(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, checkpoint.Snapshot(14, state(14)))
        checkpoint.finish(checkpoints)
        assert (tmp_path / "interrupted" / "14" / checkpoint.SEAL).exists()
        assert not (leaving / checkpoint.SEAL).exists()


def test_saving_does_not_ask_jax_whether_to_stop(tmp_path, monkeypatch):
    """runtime/signals.py does, in one increasing sequence: a lower number in between could hide the agreed one."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    write(tmp_path)
    assert not asked


def test_another_model_is_refused_and_stays_where_it_is(tmp_path):
    write(tmp_path)
    other = {**LIKE, "noise": jax.ShapeDtypeStruct((7,), jnp.float32, sharding=LIKE["noise"].sharding)}
    with (
        checkpoint.opened(tmp_path) as checkpoints,
        pytest.raises(InvalidInput, match=r"noise: \(5000,\) there, \(7,\) now"),
    ):
        checkpoint.restore_newest(checkpoints, other)
    assert newest(tmp_path) == 12


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of orbax's threads
def test_a_full_disk_is_reported_and_leaves_the_checkpoint_before(tmp_path):
    """A limit on file sizes stands in for a full disk: writes fail in the same places."""
    write(tmp_path, (4, 8))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, hard))
    try:
        with pytest.raises(RunFailed, match=r"could not be written .* is of step 8"):
            write(tmp_path, (12,))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert newest(tmp_path) == 8
    write(tmp_path, (12,))
    assert newest(tmp_path) == 12
    gc.collect()  # what is said of the threads is said here, not in a later test


def test_a_checkpoint_without_room_for_it_is_not_begun(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**14))
    with pytest.raises(RunFailed, match=r"no room for the checkpoint of step 16 in .*: 1.0 MiB needed, 0.0 free"):
        write(tmp_path, (16,))
    monkeypatch.undo()
    assert newest(tmp_path) == 12


def test_after_a_save_that_failed_nothing_is_saved_and_the_next_call_says_so(tmp_path, monkeypatch):
    """The second snapshot would fit: without the first, the best one, it would promise too much."""
    free = iter([2**14])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=next(free, 2**40)))
    with checkpoint.opened(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, checkpoint.Snapshot(4, state(4), 0.5), checkpoint.Snapshot(8, state(8), 0.25))
        with pytest.raises(RunFailed, match="no room for the checkpoint of step 4"):
            checkpoint.save(checkpoints, checkpoint.Snapshot(12, state(12), 0.1))
    assert not checkpoint.finished(tmp_path)


def test_checkpoints_are_written_and_sealed_beside_the_main_thread(tmp_path, monkeypatch):
    threads, begin, seal = [], checkpoint._begin, checkpoint.seal
    monkeypatch.setattr(checkpoint, "_begin", lambda *given: (threads.append(threading.get_ident()), begin(*given))[1])
    monkeypatch.setattr(checkpoint, "seal", lambda *given: (threads.append(threading.get_ident()), seal(*given))[1])
    with checkpoint.opened(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, checkpoint.Snapshot(4, state(4), 0.5))
        checkpoint.finish(checkpoints)
        assert len(threads) == 2
        assert threading.get_ident() not in threads


def test_the_interrupted_state_counts_when_it_is_newer(tmp_path):
    write(tmp_path)
    with checkpoint.opened(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, checkpoint.Snapshot(10, state(10)))
    assert newest(tmp_path) == 12
    with checkpoint.opened(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, checkpoint.Snapshot(14, state(14)))
    assert newest(tmp_path) == 14
    assert [path.name for path in (tmp_path / "interrupted").glob("[0-9]*")] == ["14"]
    assert checkpoint.restore(tmp_path, "latest", LIKE)["step"] == 12


def test_checksums_are_of_the_whole_file(tmp_path):
    """Read in pieces, of which the last is not the only one that counts."""
    content = np.random.default_rng(0).bytes(5_000)
    (tmp_path / "file").write_bytes(content)
    assert seals._checksum(tmp_path / "file", piece=1_000) == [5_000, zlib.crc32(content)]
