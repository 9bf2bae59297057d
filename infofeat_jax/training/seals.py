"""Seals of checkpoints: checksums of their files, which tell a whole checkpoint from a damaged one."""

import json
import os
import pathlib
import sys
import zlib

SCORE = "validation_score"  # what "best" means: robust validation accuracy; clean accuracy for standard training
EPOCHS, INTERRUPTED, DAMAGED = "checkpoints", "interrupted", "damaged"
SEAL = "seal.json"  # in each checkpoint: {file: [bytes, CRC-32]}


def finished(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The directories of all finished checkpoints; one that is being written has a name that is not a number."""
    return sorted(path for name in (EPOCHS, INTERRUPTED) for path in (workdir / name).glob("*") if path.name.isdigit())


def seal(directory: pathlib.Path) -> None:
    """Records size and checksum of every file of the checkpoints in `directory` that have no seal yet.

    The sibling directory is left alone: orbax may be deleting old checkpoints there.
    """
    for path in finished(directory.parent):
        if path.parent == directory and not (path / SEAL).exists():
            files = {str(file.relative_to(path)): _checksum(file) for file in path.rglob("*") if file.is_file()}
            partial = path.with_name(f"{path.name}-{SEAL}.partial")
            with partial.open("w") as file:
                file.write(json.dumps(files))
                file.flush()
                os.fsync(file.fileno())  # a seal that is lost in a power failure would condemn the checkpoint
            partial.rename(path / SEAL)


def damage(path: pathlib.Path) -> str:
    """What is wrong with a checkpoint according to its seal; "" if nothing is."""
    try:
        if path.parent.name == EPOCHS:
            json.loads((path / "metrics" / "metrics").read_text())[SCORE]  # orbax reads this file of every checkpoint
        expected = dict(json.loads((path / SEAL).read_text()) if (path / SEAL).exists() else {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    for name, checksum in expected.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if (found := _checksum(path / name)) != checksum:
            what = "its content has changed" if found[0] == checksum[0] else f"{found[0]} bytes, not {checksum[0]}"
            return f"{name}: {what}"
    return ""


def set_aside(path: pathlib.Path, why: str) -> None:
    """Moves a damaged checkpoint out of the way, with a warning."""
    target = path.parent.parent / DAMAGED / f"{path.parent.name}-{path.name}"
    target.parent.mkdir(exist_ok=True)
    while target.exists():
        target = target.with_name(target.name + "-again")
    path.rename(target)
    print(f"warning: checkpoint {path} is damaged ({why}): moved to {target}", file=sys.stderr, flush=True)


def _checksum(path: pathlib.Path, piece: int = 2**24) -> list[int]:
    size, value = 0, 0
    with path.open("rb") as file:
        while data := file.read(piece):
            size, value = size + len(data), zlib.crc32(data, value)
    return [size, value]
