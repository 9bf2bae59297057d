"""Parts of one's own: `package.module:name` wherever the configuration takes the name of a part.

Importing a module executes it. Therefore a name is imported only after `trust`, which the command calls with the names
on its command line and in its --config file: a configuration that was saved by others executes nothing.
"""

import difflib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from infofeat_jax.types import InvalidInput, summary

IDENTIFIER = r"[A-Za-z_]\w*"
NAME = rf"{IDENTIFIER}(?:\.{IDENTIFIER})*:{IDENTIFIER}"

_trusted: set[str] = set()


def is_own(name: str) -> bool:
    """Whether a name is `package.module:name`."""
    return re.fullmatch(NAME, name) is not None


def names_in(text: str) -> list[str]:
    """The names `package.module:name` within a text such as an attack's name with options, or a study's row."""
    return re.findall(rf"(?<![\w.:]){NAME}", text)


def trust(*names: str) -> None:
    """Allows this process to import these names. Raises InvalidInput for what is no `package.module:name`."""
    for name in names:
        if not is_own(name):
            raise InvalidInput(f"trusted name {name!r}: expected package.module:name")
    _trusted.update(names)


def find(field: str, name: str) -> Callable[..., Any]:
    """The function or class `name` = "package.module:name"; `field`: the configuration's, for messages.

    Modules in the current directory are found after all installed ones. Raises InvalidInput.
    """
    what = f"{field} = {name!r}"
    if name not in _trusted:
        raise InvalidInput(
            f"{what} comes from a saved configuration and was not imported, which would execute its code:"
            f" if you trust it, add --trust={name} (in Python: infofeat_jax.parts.trust)"
        )
    module_name, _, attribute = name.partition(":")
    module = _import(what, module_name)
    part = getattr(module, attribute, None)
    if not callable(part):
        where = getattr(module, "__file__", None) or module_name
        found = "no such name" if part is None else f"a value of type {type(part).__name__}"
        near = difflib.get_close_matches(attribute, vars(module), n=3)
        raise InvalidInput(
            f"{what}: {where} has {found}: expected a function or class{f', such as {chr(32).join(near)}' * bool(near)}"
        )
    return part


def call(field: str, name: str, kind: Any, expected: str, /, *args: Any, **options: Any) -> Any:
    """What the part returns for these arguments: a `kind`, in words `expected`. Raises InvalidInput."""
    part = find(field, name)
    check_call(field, name, part, *args, **options)
    try:
        returned = part(*args, **options)
    except InvalidInput:
        raise
    except Exception as error:  # a user's code raises anything
        raise InvalidInput(f"{field} = {name!r} failed: {summary(error)}") from error
    if not isinstance(returned, kind):
        raise InvalidInput(f"{field} = {name!r} returned {type(returned).__name__}: expected {expected}")
    return returned


def check_call(field: str, name: str, part: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Raises InvalidInput unless `part` takes these arguments."""
    try:
        signature = inspect.signature(part)
    except (TypeError, ValueError):  # written in C
        return
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        given = ", ".join([*("..." for _ in args), *(f"{option}=" for option in options)])
        raise InvalidInput(
            f"{field} = {name!r}: called as ({given}), but {error}: see docs/how-to/own-parts.md"
        ) from None


def _import(what: str, module: str) -> Any:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # last: a file here replaces no installed module
        importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            advice = "check the spelling, or run the command in the folder that has it"
            raise InvalidInput(f"{what}: no module {error.name!r}, neither in {here} nor installed: {advice}") from None
        raise InvalidInput(f"{what}: importing {module} failed: {summary(error)}") from error
