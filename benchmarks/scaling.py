"""The communication between devices in a training step, from the compiled program, and the efficiency it implies.

  python benchmarks/scaling.py --model=resnet18 --batch_size=128 --images_per_second=10000 --bandwidth=50

Nothing is run: the step is compiled for 8 virtual devices, its collectives are read from the program, those inside the
attack's loop apart. Implied for a batch of --batch_size per device, --images_per_second of one device alone (measure it
with train_step.py), a ring of links of --bandwidth GB/s in each direction, and --latency microseconds per collective
and doubling of the devices; no overlap with computation: a lower bound.
"""

import argparse
import math
import re

import jax
import jax.numpy as jnp
from train_step import create_experiment

from infofeat_jax import experiment as experiments

DEVICES = 8
COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
SIZES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="infofeature")
    parser.add_argument("--model", default="resnet18", help="resnet18, or wrn_D_W")
    parser.add_argument("--width", type=int, default=0, help="channels of the first stage; 0: the paper's")
    parser.add_argument("--batch_size", type=int, default=128, help="a device")
    parser.add_argument("--images_per_second", type=float, required=True, help="of one device alone")
    parser.add_argument("--bandwidth", type=float, required=True, help="GB/s each way of the slowest link in the ring")
    parser.add_argument("--latency", type=float, default=10.0, help="microseconds")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    bodies, entry = compile_step(args)
    inside, outside = (sum(map(count_bytes, collectives(text))) for text in (bodies, entry))
    print(f"{args.method}, {args.model}: {len(collectives(entry))} collectives a step, {outside / 1e6:.1f} MB;")
    print(f"in the attack's loop {len(collectives(bodies))}, {inside / 1e6:.1f} MB a step of the attack")
    computing = args.batch_size / args.images_per_second
    print(f"\n| devices | global batch | computing s | communicating s at {args.bandwidth:g} GB/s | efficiency |")
    print("|---|---|---|---|---|")
    for count in (1, 8, 256):
        talking = 2 * (count - 1) / count * outside / (args.bandwidth * 1e9)
        talking += len(collectives(entry)) * math.log2(count) * args.latency / 1e6
        efficiency = computing / (computing + talking)
        print(f"| {count} | {count * args.batch_size} | {computing:.4f} | {talking:.4f} | {efficiency:.1%} |")


def compile_step(args) -> tuple[str, str]:
    """The compiled program on DEVICES devices: (its loops' bodies and what they call, everything else)."""
    count = DEVICES * 2  # the collectives are of parameters: independent of the batch
    options = {"batch_size": count, "devices": DEVICES, "dtype": "float32", "steps": 7}
    experiment = create_experiment(argparse.Namespace(**vars(args) | options))
    batch = jnp.zeros((count, 32, 32, 3), jnp.uint8), jnp.zeros(count, jnp.int32)
    step, state = experiments.compile_step(experiment), experiments.describe_state(experiment)
    text = step.lower(state, batch, jax.random.key(0)).compile().as_text()
    return split_loops(text)


def split_loops(text: str) -> tuple[str, str]:
    parts = {m[1]: part for part in text.split("\n\n") if (m := re.match(r"\s*(?:ENTRY )?%([\w.-]+)", part))}
    inside, waiting = set(), set(re.findall(r"body=%([\w.-]+)", text))
    while waiting:
        one = waiting.pop()
        inside.add(one)
        waiting |= set(re.findall(r"(?:calls|to_apply|body)=%([\w.-]+)", parts.get(one, ""))) - inside
    bodies, rest = ([part for name, part in parts.items() if (name in inside) == which] for which in (True, False))
    return "\n".join(bodies), "\n".join(rest)


def collectives(text: str) -> list[str]:
    """Each collective's result type, such as "(f32[64]{0}, f32[])"."""
    return re.findall(rf"= (\(.*?\)|\S+) (?:{COLLECTIVES})(?:-start)?\(", text)


def count_bytes(result: str) -> int:
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", result)
    return sum(SIZES[kind] * math.prod(map(int, filter(None, shape.split(",")))) for kind, shape in arrays)


if __name__ == "__main__":
    main()
