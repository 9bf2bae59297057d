"""A 7-step attack in a fori_loop against the same attack unrolled, and with the convolutions of other people's models.

  python benchmarks/loop.py --width=16 --batch_size=64

Prints the median of interleaved runs and the ratios within this run. Target: loop at most 1.1 x unrolled.
"""

import argparse
import platform
import time
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import timing

from infofeat_jax import attacks, convolution, models, objectives, threat
from infofeat_jax.attacks import hoisting
from infofeat_jax.models import layers
from infofeat_jax.runtime import compilation

STEPS = 7
REPLACED, LEFT = "plain convolutions, replaced", "plain convolutions as they are"


def unrolled(forward, key, images, labels, *, epsilon, step_size):
    """attacks.infofeature with its loop written out by Python."""
    model = threat.threat("linf", epsilon)
    clean, objective = forward(images), objectives.infofeature()
    x = threat.random_start(model, key, images)
    for _ in range(STEPS):
        gradient = jax.grad(lambda x: objective(forward(x), clean, labels).sum())(x)
        x = threat.ascend(model, images, x, gradient, step_size)
    return x


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    compilation.tune_cpu()
    module = models.create(args.model, num_classes=10, width=args.width)
    images = jax.random.uniform(jax.random.key(0), (args.batch_size, 32, 32, 3))
    labels = jnp.arange(args.batch_size) % 10
    variables = jax.jit(module.init)(jax.random.key(1), images[:1])
    forward, budget = partial(module.apply, variables), {"epsilon": 8 / 255, "step_size": 2 / 255}
    arguments = jax.random.key(2), images, labels
    # One function each, as JAX keeps what it has traced of a function.
    cases = {
        name: partial(attacks.infofeature, forward, num_steps=STEPS, **budget) for name in ("loop", REPLACED, LEFT)
    }
    cases["unrolled"] = partial(unrolled, forward, **budget)
    compiled = {}
    for name, attack in cases.items():
        convolve = convolution.plain_convolve if name in (REPLACED, LEFT) else layers.convolve
        substituted = (lambda program: program) if name == LEFT else hoisting.substituted
        with (
            mock.patch.object(layers, "convolve", convolve),
            mock.patch.object(hoisting, "substituted", substituted),
        ):
            began = time.perf_counter()
            compiled[name] = jax.jit(attack).lower(*arguments).compile()
            print(f"{name}: compiled in {time.perf_counter() - began:.1f} s")
    calls = {name: lambda run=run: jax.block_until_ready(run(*arguments)) for name, run in compiled.items()}
    medians = timing.medians(calls, args.repeats)
    print(f"{args.model} width {args.width}, batch {args.batch_size}, {STEPS} InfoFeature steps, float32;")
    print(f"{jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}")
    for name, median in medians.items():
        print(f"{name:>30}: {median:.3f} s   {median / medians['unrolled']:.2f} x unrolled")


if __name__ == "__main__":
    main()
