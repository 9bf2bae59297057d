"""The cost of an iteration of each AutoAttack stage beyond the network's own forward and backward passes.

    python benchmarks/autoattack_profile.py [--model=resnet10 --width=16 --batch_size=72]

Prints milliseconds per iteration, and the share spent outside the passes that the stage needs anyway, measured
in the same kind of loop. Minima over interleaved repetitions.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from infofeat_jax import models, objectives
from infofeat_jax import threat as threats
from infofeat_jax.attacks.search import before_loop
from infofeat_jax.attacks.stages import STAGES, VERSIONS
from infofeat_jax.runtime import compilation

ITERATIONS = 10
BASELINES = {"apgd-ce": "gradient", "apgd-t": "gradient", "fab-t": "gradient+forward", "square": "forward"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet10")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=72)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    compilation.tune_cpu()

    images = jax.random.uniform(jax.random.key(0), (args.batch_size, 32, 32, 3))
    module = models.create(args.model, num_classes=10, width=args.width)
    variables = jax.jit(module.init)(jax.random.key(1), images)
    forward = jax.tree_util.Partial(module.apply, variables)
    loops = _passes(images) | _stages(forward, images)
    times = {name: [] for name in loops}
    for _ in range(args.repeats + 1):
        for name, (loop, carry) in loops.items():
            start = time.perf_counter()
            jax.block_until_ready(loop(forward, carry))
            times[name].append((time.perf_counter() - start) / ITERATIONS)
    best = {name: min(seconds[1:]) for name, seconds in times.items()}  # the first compiles
    for name, seconds in best.items():
        share = max(0.0, 1 - best[BASELINES.get(name, name)] / seconds)
        outside = f", {share:.0%} outside" if name in BASELINES else ""
        print(f"{name:18s} {seconds * 1e3:8.2f} ms{outside}")


def _passes(images):
    def forward_pass(forward, t, x):
        return x + 1e-12 * forward(x).logits.sum()

    def gradient(forward, t, x):
        labels = jnp.zeros(len(x), jnp.int32)
        loss = lambda z: objectives.cross_entropy(forward(z), forward(z), labels).sum()  # noqa: E731
        return x + 1e-12 * jax.grad(loss)(x)

    def both(forward, t, x):
        return forward_pass(forward, t, gradient(forward, t, x))

    bodies = {"forward": forward_pass, "gradient": gradient, "gradient+forward": both}
    return {name: (_loop(body, images), images) for name, body in bodies.items()}


def _stages(forward, images):
    logits = forward(images).logits
    searches = {n: STAGES[n](threats.threat("linf", 8 / 255), 10, (32, 32)) for n in VERSIONS["standard"]}
    labels = jnp.asarray(np.asarray(logits.argmax(-1)), jnp.int32)
    keys, zeros = jax.random.split(jax.random.key(2), len(labels)), jnp.zeros_like(labels)
    return {
        name: (
            _loop(lambda f, t, state, search=search: search.step(f, keys, zeros + t, state), images),
            search.start(keys, images, labels, logits, zeros),
        )
        for name, search in searches.items()
    }


def _loop(body, images):
    """A program of ITERATIONS of `body`, with what does not change computed before them, as AutoAttack does."""

    def program(forward, carry):
        early = before_loop(forward, images)
        return jax.lax.fori_loop(0, ITERATIONS, lambda t, c: body(early, t, c), carry)

    return jax.jit(program)


if __name__ == "__main__":
    main()
