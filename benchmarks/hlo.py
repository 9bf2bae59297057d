"""What a compiled program does, read from the text of its optimised HLO: what runs, how often, on which arrays.

Pure functions of text: no device, no JAX. `hlo_cost` counts arithmetic, traffic and time with them.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "token": 0, "opaque": 0, "c64": 8, "c128": 16}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
# Instructions that do nothing when the program runs, or whose work is in what they call.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all",
    "partition-id", "replica-id", "opt-barrier", "domain", "add-dependency",
}  # fmt: skip


class Array(NamedTuple):
    """An array's element type, its shape, and its layout: the dimensions from minor to major."""

    kind: str
    shape: tuple[int, ...]
    layout: tuple[int, ...]

    @property
    def bytes(self) -> float:
        """Its size without padding."""
        bits = re.fullmatch(r"[a-z]+?(\d+)\w*", self.kind)
        return math.prod(self.shape) * SIZES.get(self.kind, int(bits[1]) / 8 if bits else 1)


class Instruction(NamedTuple):
    """One line of a program. `arrays`: its results, those of a tuple in order; `operands`: names."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    arguments: str  # what is between the brackets: of a constant, its value
    attributes: str


class Computation(NamedTuple):
    """Instructions by name, and which of them is the result."""

    instructions: dict[str, Instruction]
    root: str


class Program(NamedTuple):
    """Computations by name, and where the program begins."""

    computations: dict[str, Computation]
    entry: str


class Run(NamedTuple):
    """An instruction that is carried out by itself, `times` in all, in a loop or not; `where` is its computation."""

    instruction: Instruction
    where: Computation
    times: int
    looped: bool


def parse(text: str) -> Program:
    """The program whose text `compiled.as_text()` returns."""
    computations, entry, name, root, lines = {}, "", None, "", {}
    for line in text.splitlines():
        if name is None:
            if match := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
                name, root, lines = match[2], "", {}
                entry = name if match[1] else entry
        elif line.startswith("}"):
            computations[name], name = Computation(lines, root), None
        elif match := re.match(r"\s+(ROOT )?%?([\w.-]+) = ", line):
            lines[match[2]] = _instruction(match[2], line[match.end() :])
            root = match[2] if match[1] else root
    return Program(computations, entry)


def runs(program: Program, assumed_trips: int = 1) -> list[Run]:
    """All instructions that are executed individually: not those inside of fusions, for which see `inside`.

    A loop whose number of iterations the text does not tell counts `assumed_trips`.
    """
    found, waiting = [], [(program.entry, 1, False)]
    while waiting:
        name, times, looped = waiting.pop()
        where = program.computations[name]
        for one in where.instructions.values():
            if one.opcode not in FREE and not one.opcode.endswith("-done"):
                found.append(Run(one, where, times, looped))
            if one.opcode == "while":
                trips = trip_count(program, where, one)
                waiting.append((_called(one, "body")[0], times * (assumed_trips if trips is None else trips), True))
            elif one.opcode in ("call", "conditional"):
                called = _called(one, "to_apply|branch_computations|true_computation|false_computation")
                waiting += [(name, times, looped) for name in called]
    return found


def inside(program: Program, run: Run) -> Iterator[tuple[Instruction, Computation]]:
    """A run's own instruction or, if that is a fusion or an asynchronous call, those inside of it; and where."""
    waiting = [(run.instruction, run.where)]
    while waiting:
        one, where = waiting.pop()
        called = _called(one, "calls") if one.opcode in ("fusion", "async-start") else []
        if not called:
            yield one, where
        for name in called:
            waiting += [
                (inner, program.computations[name]) for inner in program.computations[name].instructions.values()
            ]


def trip_count(program: Program, where: Computation, loop: Instruction) -> int | None:
    """How often a `while` runs if it counts up by one to a constant, as those of `fori_loop` and `scan`; else None."""
    if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(match[1])
    condition = program.computations[_called(loop, "condition")[0]]
    test = condition.instructions[condition.root]
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    carried = where.instructions.get(loop.operands[0])
    ends = [_constant(condition, name, where, carried) for name in test.operands]
    return None if None in ends else ends[1] - ends[0]


def operands(one: Instruction, where: Computation) -> list[Array]:
    """The arrays that an instruction reads."""
    return [array for name in one.operands if name in where.instructions for array in where.instructions[name].arrays]


def collective(one: Instruction) -> bool:
    """Whether devices exchange data."""
    return one.opcode.removesuffix("-start") in COLLECTIVES


def moves(one: Instruction, where: Computation) -> bool:
    """Whether an instruction only rearranges an array in memory: a transpose, or a copy to another layout."""
    if one.opcode == "copy" and len(one.arrays) == 1:
        return [array.layout for array in operands(one, where)] != [one.arrays[0].layout]
    return one.opcode == "transpose"


def _constant(where: Computation, name: str, outside: Computation, carried: Instruction | None) -> int | None:
    """The integer that a value is when the loop begins that carries the tuple `carried` from `outside`."""
    one = where.instructions.get(name)
    if one is None:
        return None
    if one.opcode == "constant":
        return int(one.arguments) if re.fullmatch(r"-?\d+", one.arguments) else None
    if one.opcode in ("copy", "bitcast", "convert"):
        return _constant(where, one.operands[0], outside, carried)
    if one.opcode == "get-tuple-element" and carried is not None and carried.opcode == "tuple":
        index = int(re.search(r"index=(\d+)", one.attributes)[1])
        return _constant(outside, carried.operands[index], outside, None)
    return None


def _called(one: Instruction, attribute: str) -> list[str]:
    found = re.findall(rf"(?:{attribute})=(\{{[^}}]*\}}|%?[\w.-]+)", one.attributes)
    return [name for part in found for name in re.findall(r"[\w.-]+", part)]


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    kind, rest = text[:end], text[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing - 1]
    names = () if rest.startswith("constant") else tuple(re.findall(r"%([\w.-]+)", arguments))
    return Instruction(name, rest[:opening], tuple(_arrays(kind)), names, arguments, rest[closing:])


def _arrays(text: str) -> Iterator[Array]:
    for kind, shape, layout in re.findall(r"(\w+)\[([\d,<=]*)\](?:\{([\d,]*))?", text):
        numbers = tuple(map(int, re.findall(r"\d+", shape)))
        order = tuple(map(int, re.findall(r"\d+", layout))) or tuple(reversed(range(len(numbers))))
        yield Array(kind, numbers, order)


def _closing(text: str, opening: int) -> int:
    """Behind the bracket that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.end()
    return len(text)
