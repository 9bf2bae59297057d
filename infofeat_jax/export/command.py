"""What the commands that export share: a parser that explains a module by its documentation, whole files."""

import argparse
import os
import pathlib
from collections.abc import Callable
from typing import NoReturn

from infofeat_jax import parts
from infofeat_jax.types import InvalidInput


def parser(name: str, documentation: str) -> argparse.ArgumentParser:
    """The parser of `python -m infofeat_jax.export.NAME`; it raises InvalidInput."""
    summary, details = documentation.split("\n", 1)
    created = argparse.ArgumentParser(
        f"python -m infofeat_jax.export.{name}", description=summary, epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    created.error = _refuse
    trusted = "a part of one's own (package.module:name) of a saved configuration, to import"
    created.add_argument("--trust", type=_trust, action="append", metavar="NAME", help=trusted)
    return created


def _trust(name: str) -> str:
    parts.trust(name)
    return name


def _refuse(message: str) -> NoReturn:
    """In place of argparse's own answer of many lines."""
    raise InvalidInput(f"{message}; --help explains")


def check_directory(path: pathlib.Path) -> None:
    """Raises InvalidInput where `path`, a directory to write into, is a file or is in one."""
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise InvalidInput(f"{path}: {place} is a file: give a directory")


def whole(path: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Has `write` create a file, which appears complete or not at all. Raises InvalidInput."""
    if not path.parent.is_dir():
        raise InvalidInput(f"{path}: no such folder: {path.parent}")
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
