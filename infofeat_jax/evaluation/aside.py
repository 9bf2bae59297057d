"""What a run was measured with in other settings: kept in evaluations/, until the setting is asked for again."""

import hashlib
import json
import pathlib
from contextlib import suppress

import numpy as np

from infofeat_jax.evaluation.subject import Subject
from infofeat_jax.runtime import processes

FOLDER = "evaluations"
SUFFIXES = ("_latest", "_live")  # what files of other subjects have before this one's suffix


def switch(subject: Subject) -> None:
    """Moves measurements of another setting aside, which would be overwritten, and those of this one back.

    All processes of a run call this. The files are those of the subject: outcomes, resume states, probes, images.
    """
    if processes.is_writer():
        there = setting_there(subject)
        if there != subject.setting:
            if there is not None:
                move(files_of(subject), place(subject, there))
            move(sorted(place(subject, subject.setting).glob("*.npz")), subject.workdir)
    processes.barrier("measurements set aside")


def setting_there(subject: Subject) -> str | None:
    """The setting of what is stored: of the outcomes, or of what an interrupted first measurement has left."""
    for path in (subject.file("outcomes"), *files_of(subject)):
        if (setting := read_setting(path)) is not None:
            with suppress(ValueError, KeyError):  # a resume state's is [setting, ...]
                setting = json.loads(setting)[0]
            return setting
    return None


def read_setting(path: pathlib.Path) -> str | None:
    """The setting that a file of measurements is of; None without a file, or a damaged one."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            return str(saved["setting"])
    except Exception:  # zipfile, zlib and numpy raise a dozen kinds for damaged files
        return None


def files_of(subject: Subject) -> list[pathlib.Path]:
    """The files of arrays that are of this subject: not of one with another suffix, nor a user's own."""
    found = [path for path in subject.workdir.glob(f"*{subject.suffix}.npz") if read_setting(path) is not None]
    return [path for path in found if not path.stem.removesuffix(subject.suffix).endswith(SUFFIXES)]


def place(subject: Subject, setting: str) -> pathlib.Path:
    """The directory of the measurements in a setting."""
    return subject.workdir / FOLDER / (hashlib.sha256(setting.encode()).hexdigest()[:16] + subject.suffix)


def move(files: list[pathlib.Path], directory: pathlib.Path) -> None:
    """Moves files; a kill in between leaves each of them in one place."""
    for path in sorted(files, key=lambda path: path.stem.startswith("outcomes")):  # last: the rest is found by it
        directory.mkdir(parents=True, exist_ok=True)
        path.replace(directory / path.name)
