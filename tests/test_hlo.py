"""What is read from compiled programs, against XLA's own account; texts as TPUs' and GPUs' compilers write them."""

import pathlib
import re

import hlo
import hlo_cost
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo_cost import Rates
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

GOLDEN = pathlib.Path(__file__).parent / "golden"
# As libtpu writes them: the loop's end is a constant that is carried, layouts have tiles, cycles are with the kernels.
TPU = (GOLDEN / "loop_tpu.hlo").read_text()
# A convolution and its two gradients as calls of cuDNN, and a product as a call of cuBLAS.
GPU = (GOLDEN / "convolutions_gpu.hlo").read_text()


def compiled(function, *shapes: tuple[int, ...]) -> jax.stages.Compiled:
    return jax.jit(function).lower(*(jnp.zeros(shape) for shape in shapes)).compile()


def convolve(x, w, padding="VALID"):
    return jax.lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_arithmetic_is_xlas_own_count():
    program = compiled(lambda x, w, m: convolve(x, w) + (m @ m.T).sum(), (2, 9, 9, 3), (3, 3, 3, 4), (5, 7))
    flops = hlo_cost.cost(hlo.parse(program.as_text())).flops
    assert flops == 2 * (2 * 7 * 7 * 4 * 27 + 5 * 5 * 7)
    np.testing.assert_allclose(flops, program.cost_analysis()["flops"], rtol=0.1)  # it counts the sums as well


def test_a_loop_within_a_loop_counts_as_often_as_it_runs():
    def repeat(x, w):
        inner = lambda _, y: jnp.sin(convolve(y, w, "SAME"))  # noqa: E731
        return jax.lax.fori_loop(0, 3, lambda _, y: jax.lax.fori_loop(2, 7, inner, y) + 1, convolve(x, w, "SAME"))

    cost = hlo_cost.cost(hlo.parse(compiled(repeat, (2, 6, 6, 4), (3, 3, 4, 4)).as_text()))
    assert cost.flops == (3 * 5 + 1) * 2 * 2 * 6 * 6 * 4 * 9 * 4
    assert cost.convolutions == {"f32 b01f_01io->b01f": 2}


@pytest.mark.parametrize("assumed", [1, 10])
def test_a_loop_with_an_open_end_counts_as_assumed(assumed):
    halve = lambda x: jax.lax.while_loop(lambda x: x.max() > 1, lambda x: x @ x, x)  # noqa: E731
    program = hlo.parse(compiled(halve, (4, 4)).as_text())
    assert hlo_cost.cost(program, assumed_trips=assumed).flops == assumed * 2 * 4**3


def test_collectives_are_counted_inside_of_loops_and_outside():
    mesh = Mesh(np.array(jax.devices()), ("d",))

    def exchange(x):
        x = jax.lax.fori_loop(0, 5, lambda _, y: jax.lax.psum(jnp.sin(y), "d") / 8, x)
        return jax.lax.all_gather(x, "d").sum(0)

    program = compiled(jax.shard_map(exchange, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=False), (8, 6))
    cost = hlo_cost.cost(hlo.parse(program.as_text()), devices=8)
    assert (cost.collectives, cost.looped_collectives) == (5 + 1, 1)
    assert cost.collective_bytes == 5 * 6 * 4 + 8 * 6 * 4


def test_a_tpus_cycles_are_those_of_its_kernels_in_every_iteration():
    cost = hlo_cost.cost(hlo.parse(TPU), Rates({"bf16": 1e12, "f32": 1e12}, 1e9, clock=1e6))
    assert cost.flops == 7 * 2 * 128 * 4 * 4 * 16 * 9 * 8  # from 1 to 8
    np.testing.assert_allclose(cost.seconds, 7 * 3600 / 1e6)
    assert cost.convolutions == {"f32 b01f_01io->b01f": 1}  # the kernel was not converted
    assert (cost.looped_moves, cost.looped_move_bytes) == (1, 7 * 128 * 4 * 4 * 8 * 2)  # `moved` keeps its layout


def test_where_the_compiler_has_no_estimate_there_is_none():
    """Of one kernel, as for some on TPUs: then the program has none either."""
    text = re.sub(r'"estimated_cycles":"\d+"', f'"estimated_cycles":"{2**63 - 1}"', TPU, count=1)
    assert text != TPU
    assert np.isnan(hlo_cost.cost(hlo.parse(text), Rates({"bf16": 1e12, "f32": 1e12}, 1e9, clock=1e6)).seconds)


def test_a_kernel_taken_for_the_image_has_no_more_arithmetic():
    """As a TPU's compiler writes the gradient of a 1x1 convolution to its input."""
    text = """ENTRY %main (k: bf16[1,1,16,160], dy: bf16[128,32,32,160]) -> bf16[128,32,32,16] {
  %k = bf16[1,1,16,160]{3,2,1,0} parameter(0)
  %dy = bf16[128,32,32,160]{3,2,1,0} parameter(1)
  ROOT %dx = bf16[128,32,32,16]{3,2,1,0} convolution(%k, %dy), \
window={size=32x32 pad=31_31x31_31 rhs_reversal=1x1}, dim_labels=01bf_o01i->f01b
}
"""
    assert hlo_cost.cost(hlo.parse(text)).flops == 2 * 128 * 32 * 32 * 16 * 160


def test_cudnns_three_convolutions_have_the_same_arithmetic():
    program = hlo.parse(GPU)
    found = [hlo_cost.arithmetic(run.instruction, run.where) for run in hlo.runs(program)]
    assert found == [2 * 8 * 16 * 16 * 32 * 9 * 16] * 3 + [2 * 10 * 10 * 64]
    assert hlo_cost.cost(program).convolutions == {"bf16 b01f_o01i->b01f": 3}


@pytest.mark.parametrize(
    ("rates", "seconds"),
    [
        (Rates({"bf16": 37748736.0, "f32": 12800.0}, 1e30), 3 * 0.5 + 1),
        (Rates({"bf16": 1e30, "f32": 1e30}, 1e6), 3 * (262144 + 9216 + 131072) / 1e6 + (2 * 2560 + 400 + 99) / 1e6),
        (Rates({"bf16": 1e30, "f32": 1e30}, 1e30, launch=2.0), 4 * 2),
    ],
)
def test_a_gpus_kernel_takes_the_longest_of_arithmetic_traffic_and_launch(rates, seconds):
    found = hlo_cost.cost(hlo.parse(GPU), rates)
    np.testing.assert_allclose(found.seconds, seconds)
    assert found.spent == {"launches" if rates.launch else "products": found.seconds}


def test_a_collective_takes_the_links_time_or_the_latency():
    lines = "  %x = f32[100]{0} parameter(0)", "  ROOT %a = f32[100]{0} all-reduce(%x), to_apply=%add", "}"
    program = hlo.parse("\n".join(["ENTRY %m (x: f32[100]) -> f32[100] {", *lines]))
    rates = Rates({"f32": 1.0}, 1.0, link=1e3, latency=0.5)
    for devices, seconds in ((8, 2 * 7 / 8 * 0.4), (1, 0.5)):
        np.testing.assert_allclose(hlo_cost.cost(program, rates, devices=devices).seconds, seconds)
