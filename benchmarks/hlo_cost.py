"""What a compiled program costs, from its optimised HLO: arithmetic, traffic, collectives, and an estimate of time.

An estimate is no measurement. A TPU's is the compiler's own, `estimated_cycles` of each kernel, at an assumed clock. A
GPU's is the sum over kernels of the greatest of arithmetic at the peak rate, traffic at the memory's bandwidth, and a
launch. Asynchronous copies count nothing, kernels never overlap. Convolutions count every tap, those on padding too.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

import hlo
from hlo import Array, Computation, Instruction, Program, Run

CUDNN = re.compile(r'custom_call_target="__cudnn\$conv(\w+)"')
GEMM = re.compile(r'custom_call_target="__cublas\$')
UNKNOWN = 2**63 - 1  # the cycles of a kernel that the compiler cannot estimate


class Rates(NamedTuple):
    """What a device can do; TPUs have a clock, at which their compiler's cycles are counted."""

    flops: dict[str, float]  # a second, of products, by the type of what is multiplied
    bandwidth: float  # bytes a second of the memory
    clock: float = 0.0  # Hz
    launch: float = 0.0  # seconds that a kernel takes at least
    link: float = 0.0  # bytes a second between two devices, each way
    latency: float = 0.0  # seconds that a collective takes at least


class Cost(NamedTuple):
    """Of one execution on each device; loops counted as often as they run."""

    flops: float  # of convolutions and matrix products
    seconds: float  # estimated; 0 without rates
    kernels: int  # carried out
    collectives: int  # carried out
    collective_bytes: float
    looped_collectives: int  # in the text, inside loops
    looped_moves: int  # in the text: transposes and copies to another layout inside loops, of images or activations
    looped_move_bytes: float  # of those, each execution
    convolutions: dict[str, int]  # in the text, by what they read and their layout: "bf16 b01f_01io->b01f"
    spent: dict[str, float]  # the seconds, by kind of kernel: products, collectives, launches (shorter than one), other


def cost(program: Program, rates: Rates | None = None, *, devices: int = 1, assumed_trips: int = 1) -> Cost:
    """The cost of a program on each of `devices`. `assumed_trips`: of loops whose number of iterations is not known."""
    flops = talking = moving = kernels = collectives = looped_collectives = looped_moves = 0
    convolutions, spent = Counter(), Counter()
    for run in hlo.runs(program, assumed_trips):
        parts = list(hlo.inside(program, run))
        operations = run.times * sum(arithmetic(*part) for part in parts)
        flops += operations
        convolutions.update(describe(*part) for part in parts if is_convolution(part[0]))
        kernels += run.times
        exchanged = [received(one) for one, _ in parts if hlo.collective(one)]
        collectives += run.times * len(exchanged)
        talking += run.times * sum(exchanged)
        looped_collectives += run.looped * len(exchanged)
        moved = [size(one.arrays) for one, where in parts if run.looped and hlo.moves(one, where)]
        looped_moves += len(moved)
        moving += run.times * sum(moved)
        if rates and (each := duration(run, parts, rates, devices)):
            kind = "collectives" if exchanged else "launches" if each == rates.launch else "other"
            spent["products" if operations and kind == "other" else kind] += run.times * each
    return Cost(
        flops,
        sum(spent.values()),
        kernels,
        collectives,
        talking,
        looped_collectives,
        looped_moves,
        moving,
        dict(convolutions),
        dict(spent),
    )


def duration(run: Run, parts: list[tuple[Instruction, Computation]], rates: Rates, devices: int) -> float:
    """Estimated seconds of one execution of a run, whose instructions are `parts`; NaN: the compiler knows none."""
    exchanged = sum(received(one) for one, _ in parts if hlo.collective(one))
    if exchanged:
        return max(rates.latency, 2 * (devices - 1) / devices * exchanged / rates.link)
    if rates.clock:
        cycles = re.search(r'"estimated_cycles":"(\d+)"', run.instruction.attributes)
        if cycles and int(cycles[1]) == UNKNOWN:
            return math.nan
        return int(cycles[1]) / rates.clock if cycles else 0.0
    computing = sum(arithmetic(one, where) / rate_of(one, where, rates) for one, where in parts)
    traffic = size(run.instruction.arrays) + size(hlo.operands(run.instruction, run.where))
    return max(computing, traffic / rates.bandwidth, rates.launch)


def rate_of(one: Instruction, where: Computation, rates: Rates) -> float:
    """Operations a second of a product, by the type of its first factor."""
    kinds = [array.kind for array in hlo.operands(one, where)[:1]]
    return rates.flops.get(kinds[0] if kinds else "", rates.flops["f32"])


def size(arrays: tuple[Array, ...] | list[Array]) -> float:
    """Bytes of arrays."""
    return sum(array.bytes for array in arrays)


def received(one: Instruction) -> float:
    """Bytes of a collective's result; one that is only started may name its operands before."""
    started = one.opcode.endswith("-start") and len(one.arrays) > len(one.operands)
    return size(one.arrays[len(one.operands) :] if started else one.arrays)


def is_convolution(one: Instruction) -> bool:
    """Whether an instruction is one, and no matrix product in the form of one, as TPUs have them."""
    plain = one.opcode == "convolution" and "dot_general" not in one.attributes
    return plain or bool(CUDNN.search(one.attributes))


def describe(one: Instruction, where: Computation) -> str:
    """A convolution in words: the widest type that it reads, and its layout, as "bf16 b01f_01io->b01f"."""
    kinds = [array.kind for array in hlo.operands(one, where)[:2]]
    labels = re.search(r"dim_labels=([\w>-]+)", one.attributes)
    return f"{'f32' if 'f32' in kinds else kinds[0]} {labels[1] if labels else ''}"


def arithmetic(one: Instruction, where: Computation) -> float:
    """Operations of a convolution or a matrix product, 2 for each product and sum; 0 of everything else."""
    cudnn = CUDNN.search(one.attributes)
    if cudnn or one.opcode == "convolution":
        return _convolution(one, hlo.operands(one, where), cudnn[1] if cudnn else "")
    if one.opcode == "dot" or GEMM.search(one.attributes):
        left = hlo.operands(one, where)[0].shape
        pattern = r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)'
        contracted = [left[int(axis)] for axis in re.findall(r"\d+", re.search(pattern, one.attributes)[1])]
        return 2 * math.prod(one.arrays[0].shape) * math.prod(contracted)
    return 0.0


def _convolution(one: Instruction, read: list[Array], cudnn: str) -> float:
    """Each of a forward convolution's outputs takes as many products as the kernel has taps and inputs.

    XLA writes the gradients as convolutions too, cuDNN's read and return other arrays of the forward one. Each tap
    meets each pixel of the output at most once, and each of the input: what is padded or dilated with zeros, or a 1x1
    kernel taken for the image, which TPUs do, counts no more.
    """
    left, right, result = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes).groups()
    window = re.search(r"window=\{([^}]*)\}", one.attributes)
    spans = dict(re.findall(r"(\w+)=(\S+)", window[1] if window else ""))
    taps = math.prod(map(int, spans.get("size", "1").split("x")))
    if cudnn == "BackwardInput":
        return 2 * math.prod(read[0].shape) * taps * one.arrays[0].shape[left.index("f")]
    if cudnn == "BackwardFilter":
        return 2 * math.prod(read[1].shape) * taps * read[0].shape[left.index("f")]
    pixels = math.prod(
        min(size, read[0].shape[left.index(axis)]) if axis.isdigit() else size
        for axis, size in zip(result, one.arrays[0].shape, strict=True)
    )
    return 2 * pixels * taps * read[1].shape[right.index("i")]
