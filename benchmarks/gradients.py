"""Which term of InfoFeature's objective dominates: gradients of the cross-entropy and of the CAM distance on a model.

  python -m infofeat_jax.export.convert runs/cifar10_small/madry madry.npz
  python benchmarks/gradients.py madry.npz --data=cifar10.npz

Over the images still classified correctly after 0, 1, 7 and 20 InfoFeature steps: the median size of each gradient
(mean absolute value over pixels, lambda 0.1 included), and the share of images for which the CAM distance's is larger.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from infofeat_jax import attacks, data, models, objectives
from infofeat_jax.runtime import compilation

BUDGET = {"epsilon": 8 / 255, "step_size": 2 / 255}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a file that models.from_torch reads")
    parser.add_argument("--data", required=True, help=".npz with image_test and label_test, as config.data.name takes")
    parser.add_argument("--images", type=int, default=256)
    args = parser.parse_args()
    compilation.tune_cpu()
    module, variables = models.from_torch(args.checkpoint)
    test = data.load(args.data, validation_size=0).test
    images, labels = jnp.asarray(test.images[: args.images] / 255, jnp.float32), jnp.asarray(test.labels[: args.images])
    forward = partial(module.apply, variables)
    print("| steps | still correct | cross-entropy | maps | maps larger |\n|---|---|---|---|---|")
    for steps in (0, 1, 7, 20):
        attack = partial(attacks.infofeature, forward, num_steps=steps, **BUDGET)
        x = jax.jit(attack)(jax.random.key(0), images, labels)
        correct, entropy, maps = map(np.asarray, jax.jit(partial(sizes, forward))(images, x, labels))
        entropy, maps = entropy[correct], maps[correct]
        row = f"{np.median(entropy):.1e} | {np.median(maps):.1e} | {(maps > entropy).mean():.0%}"
        print(f"| {steps} | {correct.mean():.1%} | {row if correct.any() else ' | | '} |")


def sizes(forward, images, x, labels) -> tuple:
    """(still correct, size of the gradient of cross-entropy, of 0.1 times the maps' distance) of each image."""
    clean, maps = forward(images), objectives.weighted_sum((0.1, objectives.cam_distance()))

    def size(objective):
        gradient = jax.grad(lambda x: objective(forward(x), clean, labels).sum())(x)
        return jnp.abs(gradient).mean((1, 2, 3))

    return forward(x).logits.argmax(-1) == labels, size(objectives.cross_entropy), size(maps)


if __name__ == "__main__":
    main()
