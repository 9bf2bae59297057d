"""What has been done: one file, state.json, replaced as a whole before and after each part. Needs no JAX."""

import json
import pathlib
from typing import Any, NamedTuple

RUNNING, DONE, FAILED, STOPPED = "running", "done", "failed", "stopped"
TRIES = 2  # of a part that fails, in different calls


class Options(NamedTuple):
    """What is measured and trained; the same in all calls on one directory."""

    data: str = ""  # an .npz, or TFDS's data_dir; "": nothing is trained
    dtype: str = "bfloat16"
    epochs: int = 120  # of each method, if they fit the time
    autoattack_images: int = 1000  # if they fit the time
    tiny: bool = False


class Call(NamedTuple):
    """The time of one call of the command, in seconds of time.monotonic()."""

    number: int  # from 1
    measure_until: float  # no optional measurement begins later
    stop: float  # everything begins to end
    end: float  # everything has ended
    later: float = 0.0  # seconds in further calls


class State(NamedTuple):
    """The parts that were begun, by name: status, seconds, result or error, tries."""

    path: pathlib.Path
    parts: dict[str, dict[str, Any]]

    def result(self, name: str) -> dict[str, Any]:
        """What a part has found; {} unless it is done."""
        part = self.parts.get(name, {})
        return part.get("result", {}) if part.get("status") == DONE else {}

    def note(self, name: str, **fields) -> None:
        """Records what is known of a part."""
        self.parts[name] = {**self.parts.get(name, {}), **fields}
        self.save()

    def save(self) -> None:
        """Replaces the file."""
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps(self.parts, indent=1) + "\n")
        partial.replace(self.path)

    def is_due(self, name: str, call: int) -> bool:
        """Whether a part is to be run, perhaps again; one that failed is run again in the next call, once."""
        part = self.parts.get(name, {})
        if part.get("status") == FAILED:
            return part["tries"] < TRIES and part["call"] < call
        return part.get("status") != DONE

    def fail(self, name: str, error: str, call: int) -> None:
        """Records that a part failed."""
        tries = self.parts.get(name, {}).get("tries", 0) + 1
        self.note(name, status=FAILED, error=error, tries=tries, call=call)

    def running(self) -> dict[str, dict[str, Any]]:
        """The parts that were begun and have not ended: at most one while a worker lives."""
        return {name: part for name, part in self.parts.items() if part["status"] == RUNNING}


def read(directory: pathlib.Path) -> State:
    """The state in a directory; an empty one without the file."""
    path = directory / "state.json"
    return State(path, json.loads(path.read_text()) if path.exists() else {})
