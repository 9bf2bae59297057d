"""Dictionaries of arrays that np.save wrote as a pickle, read without unpickling: nothing in the file is called.

A pickle is a program for a stack machine. This one knows the instructions that build numbers, texts, lists, tuples and
dictionaries, and what NumPy arrays consist of; the few functions that their pickles name are never imported, but
recognised and replaced by `np.frombuffer`. Any other name, and any other instruction, is refused.
"""

import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from infofeat_jax.types import InvalidInput

_CODES = re.compile(r"b1|[iu][1248]|f[248]|c8|c16")  # dtypes of numbers; "O8" is that of arrays of objects


class _Dtype:
    """A dtype whose byte order may still follow."""

    def __init__(self, code: str):
        self.code, self.order = code, "<"

    def build(self, state: tuple) -> None:
        self.order = state[1]

    def numbers(self) -> np.dtype:
        if not _CODES.fullmatch(self.code) or self.order not in ("<", ">", "|", "="):
            raise InvalidInput(f"refused: an array of type {self.order!a:.9} {self.code!a:.9}, expected numbers")
        return np.dtype(self.order.replace("|", "=") + self.code)


class _Array:
    """An array whose shape and contents follow: `value` is an array of numbers, or a list of objects."""

    value: Any = None

    def build(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, content = state
        if dtype.code == "O8" and isinstance(content, list):
            self.value = content
        else:
            flat = np.frombuffer(content, dtype.numbers())
            self.value = flat.reshape(shape, order="F" if is_fortran else "C")


# What pickles of arrays name, and what stands for it here.
_FUNCTIONS: dict[str, Callable | None] = {
    "numpy ndarray": None,
    "numpy dtype": lambda code, *_: _Dtype(code),
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _FUNCTIONS[f"{_module} _reconstruct"] = lambda *_: _Array()
    _FUNCTIONS[f"{_module} scalar"] = lambda dtype, content: np.frombuffer(content, dtype.numbers()).reshape(())


class _Name(str):
    """A key of _FUNCTIONS that the pickle named."""


def read(path: Path) -> Any:
    """The objects in an .npy file of objects: numbers, texts, lists, tuples, dictionaries, and arrays of numbers.

    Raises InvalidInput where it holds anything else, and nearly any exception where it is damaged.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = header(file)
        if not dtype.hasobject:
            raise InvalidInput(f"holds an array of {dtype}, expected dictionaries of arrays by name")
        return _run(file)


def _run(file: BinaryIO) -> Any:
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(file):
        machine.step(opcode.name, argument)
    return _finished(machine.stack.pop())


class _Machine:
    """The stack, its marked heights, and the memo of a pickle's program."""

    def __init__(self):
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """One instruction. Raises InvalidInput for one that could call something."""
        if name in _IGNORED:
            return
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _VALUES:
            self.stack.append(argument)
        elif name in _STEPS:
            _STEPS[name](self, argument)
        else:
            raise _refusal(name)

    def pop(self, count: int) -> list[Any]:
        """The last `count` values, finished."""
        values = [_finished(self.stack.pop()) for _ in range(count)]
        return values[::-1]

    def since_mark(self) -> list[Any]:
        """The values since the last mark, finished."""
        first = self.marks.pop()
        values = [_finished(value) for value in self.stack[first:]]
        del self.stack[first:]
        return values

    def remember(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def extend(self, values: list[Any]) -> None:
        self.stack[-1].extend(values)

    def update(self, values: list[Any]) -> None:
        self.stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def name(self, name: str) -> None:
        if name not in _FUNCTIONS:
            raise _refusal(name)
        self.stack.append(_Name(name))

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        known = _FUNCTIONS.get(function) if isinstance(function, _Name) else None
        if known is None:
            raise _refusal("a call of what is no function")
        self.stack.append(known(*arguments))

    def build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Array | _Dtype):
            raise _refusal("the state of what is no array")
        self.stack[-1].build(state)


def _finished(value: Any) -> Any:
    return value.value if isinstance(value, _Array) else value


def _refusal(what: str) -> InvalidInput:
    return InvalidInput(f"refused: it holds more than arrays ({ascii(what)[1:-1][:100]}); nothing was executed")


_IGNORED = {"PROTO", "FRAME", "STOP"}
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict,
}  # fmt: skip
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "MEMOIZE": lambda machine, _: machine.remember(None),
    "PUT": _Machine.remember, "BINPUT": _Machine.remember, "LONG_BINPUT": _Machine.remember,
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.since_mark())),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.update(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.since_mark()),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": lambda machine, _: machine.name(" ".join(machine.pop(2))),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
}  # fmt: skip
for _get in ("GET", "BINGET", "LONG_BINGET"):
    _STEPS[_get] = lambda machine, index: machine.stack.append(machine.memo[index])
for _count in (1, 2, 3):
    _STEPS[f"TUPLE{_count}"] = lambda machine, _, count=_count: machine.stack.append(tuple(machine.pop(count)))
