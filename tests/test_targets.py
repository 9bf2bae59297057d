"""Programs for accelerators on a machine without: the target's forms, not the host's; and the benchmark of them."""

import json
import re
from collections import Counter
from functools import cache

import compile_only
import compile_only_page
import hlo
import hlo_cost
import jax
import jax.numpy as jnp
import programs
import pytest
import targets
from jax.sharding import Mesh
from programs import Setting
from test_step import create_experiment

from infofeat_jax import convolution, models
from infofeat_jax import experiment as experiments
from infofeat_jax.models import layers
from infofeat_jax.runtime import devices

OTHERS = ("tpu", "cuda")
FORMS = ("convolution", "dot_general", "custom_call", "transpose", "reverse")  # what CPUs' differ in
CLEAN = Setting("cpu", 8, "digits", "clean", "", "float32", 2, "jit", 1, 0)


@cache
def trace(mesh: Mesh | None = None, convolve=layers.convolve) -> jax.stages.Traced:
    """InfoFeature's step in bfloat16, with strides and 1x1 kernels."""
    experiment = create_experiment("infofeature")
    module = models.create("wrn_10_1", num_classes=5, width=4, dtype="bfloat16")
    experiment = experiment._replace(module=module, mesh=mesh or experiment.mesh)
    batch = jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.uint8), jax.ShapeDtypeStruct((16,), jnp.int32)
    state, key = experiments.describe_state(experiment), jax.eval_shape(jax.random.key, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "convolve", convolve)
        return experiments.compile_step(experiment).trace(state, batch, key)


@cache
def step(platform: str, convolve=layers.convolve) -> str:
    """The step's StableHLO."""
    return trace(convolve=convolve).lower(lowering_platforms=(platform,)).as_text()


def forms(text: str) -> Counter:
    """How many operations of FORMS there are."""
    return Counter(re.findall(rf"stablehlo\.({'|'.join(FORMS)})\b", text))


@pytest.mark.parametrize("platform", OTHERS)
def test_a_program_for_another_target_has_none_of_the_hosts_forms(platform):
    text = step(platform)
    assert forms(text) == forms(step(platform, convolution.plain_convolve))
    assert "inlineable" not in text
    assert forms(step("cpu")) != forms(text)
    assert "inlineable" in step("cpu")


@pytest.mark.parametrize("platform", OTHERS)
def test_bfloat16_convolutions_read_and_write_nothing_wider(platform):
    types = re.findall(r"stablehlo\.convolution.* : \((\S+), (\S+)\) -> (\S+)", step(platform))
    assert len(types) == forms(step(platform))["convolution"] > 20
    assert all(kind.endswith("xbf16>") for one in types for kind in one)


@pytest.mark.skipif(not targets.installed("v5e"), reason="libtpu is not installed")
def test_compiled_for_eight_tpus_nothing_is_moved_or_exchanged_in_the_attack():
    targets.prepare("v5e", 8)
    compiled = trace(targets.mesh("v5e", 8)).lower(lowering_platforms=("tpu",)).compile()
    found = hlo_cost.cost(hlo.parse(compiled.as_text()), targets.TARGETS["v5e"].rates, devices=8)
    assert found.collectives > 0
    assert found.seconds > 0
    assert found.looped_collectives == 0
    assert found.looped_move_bytes / 2 < 2 * 8 * 8 * 3 * 4  # an iteration: the head's few pixels, not even the images
    assert {name.split()[0] for name in found.convolutions} == {"bf16"}


@pytest.mark.skipif(not targets.installed("h100"), reason="jax's packages for CUDA 13 are not installed")
def test_compiled_for_a_gpu_nothing_of_the_state_is_copied():
    targets.prepare("h100", 1)
    program = hlo.parse(trace(targets.mesh("h100", 1)).lower(lowering_platforms=("cuda",)).compile().as_text())
    copied = [run.instruction.arrays[0] for run in hlo.runs(program) if run.instruction.opcode == "copy"]
    assert all(array.shape in ((), (1,)) for array in copied)  # counters
    assert {name.split()[0] for name in hlo_cost.cost(program).convolutions} == {"bf16"}


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
def test_a_step_takes_over_the_state_except_on_gpus(platform):
    """There XLA would copy all of it first, and hold the copies beside it."""
    assert devices.donated(platform) == (() if platform == "gpu" else (0,))
    assert ("jax.buffer_donor" in step("cpu")) or ("tf.aliasing_output" in step("cpu"))


def test_what_the_benchmark_compiles_is_written_once_and_shown(tmp_path, capsys):
    """For this machine's own processor, which needs no further package."""
    output = tmp_path / "rows.jsonl"
    flags = ["--target=cpu", "--chips=8", "--config=digits", "--program=clean", "--dtype=float32", "--images=2"]
    for _ in range(2):
        assert compile_only.main([*flags, f"--output={output}"]) == 0
    (row,) = map(json.loads, output.read_text().splitlines())
    assert Setting(*(row[field] for field in Setting._fields)) == CLEAN
    assert row["memory"] > row["workspace"] > 0
    assert row["convolutions"]
    assert row["flops"] > 2 * 2 * 8 * 8 * 9 * 16
    assert "clean, float32" in capsys.readouterr().out


@pytest.mark.parametrize("program", ["step", "pgd20", "apgd-t", "fab-t", "square"])
def test_every_program_of_training_and_evaluation_can_be_lowered(program):
    text = programs.lower(CLEAN._replace(program=program, method="standard", parallel="pmap")).as_text()
    assert "num_partitions = 8" in text
    assert '[{"batch"}, {}' in text.split("->")[0]  # images, or the state of a search
    assert "stablehlo.while" in text


def test_the_page_shows_before_and_after(tmp_path):
    page = tmp_path / "rows.md"
    page.write_text(f"above\n{compile_only_page.BEGIN}old\n{compile_only_page.END}below\n")
    row = {
        "collectives": 3,
        "collective_bytes": 4e6,
        "kernels": 7,
        "memory": 2**20,
        "share": 0.5,
        "spent": {"other": 1e-3},
    }
    rows = [CLEAN._asdict() | row | {"label": label, "seconds": s} for label, s in (("before", 2e-3), ("after", 1e-3))]
    fails = CLEAN._replace(chips=1, dtype="bfloat16")._asdict() | {"label": "before", "error": "too large"}
    page.with_suffix(".jsonl").write_text("".join(json.dumps(one) + "\n" for one in [*rows, fails]))
    assert compile_only.main(["--report", f"--output={page.with_suffix('.jsonl')}"]) == 0
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("above", "below")
    assert "old" not in lines
    assert "| 8 x cpu | `digits`, clean, float32 | 2 | 1 | 3, 4.0 MB | 7 | 2.00 → 1.00 | 50 % | other 100 % |" in lines
    assert any(line.startswith("| 1 x cpu | `digits`, clean, bfloat16 | 2 | does not fit") for line in lines)


def test_each_row_of_the_page_is_in_the_first_table_that_asks_for_it():
    step = CLEAN._replace(program="step", method="infofeature", dtype="bfloat16", images=128)
    other = [step._replace(method="madry"), step._replace(remat=1, method="madry"), CLEAN]
    rows = [setting._asdict() | {"error": "too large"} for setting in [*other, step]]
    lines = [line for line in compile_only_page.tables(rows) if line.startswith(("**", "| 8 x cpu"))]
    assert [line[:4] for line in lines] == ["**De", "| 8 ", "**Me", "| 8 ", "**Op", "| 8 ", "**Ev", "| 8 "]
    assert ["madry" in line for line in lines[1::2]] == [False, True, True, False]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target=v5e"], "--target=v5e: compiling for it needs libtpu, no device (pip install"),
        (["--target=h100"], "--target=h100: compiling for it needs jax_plugins.xla_cuda13"),
        (["--chips=3"], "--chips=3: choose from 1, 8, 32, 256"),
        (["--images=0"], "--images=0: expected an integer of 1 or more"),
        (["--config=digits,table1"], "--config=table1: choose from cifar10_resnet18"),
        (["--program=pgd"], "unknown attack 'pgd'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(flags, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(targets, "installed", lambda name: name == "cpu")
    assert compile_only.main(["--target=cpu", "--chips=8", f"--output={tmp_path / 'rows'}", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("compile_only.py: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "rows").exists()
