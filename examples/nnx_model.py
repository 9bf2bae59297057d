"""The evaluation of a Flax NNX model: trains a small one on the embedded digits and prints its robust accuracy.

python examples/nnx_model.py                       # pip install '.[train]'; seconds
"""

import jax
import optax
from flax import nnx

import infofeat_jax
from infofeat_jax import data

EPSILON = 16 / 255  # one step between the 17 grey levels


class Classifier(nnx.Module):
    """Two convolutions, batch normalisation, one linear layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.linear = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.norm(self.conv1(images - 0.5)))
        return self.linear(nnx.relu(self.conv2(x)).mean((1, 2)))


@nnx.jit
def train_step(model, optimizer, images, labels):
    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    optimizer.update(model, nnx.grad(loss)(model))


def main() -> None:
    digits = data.load("digits", validation_size=0)
    images, labels = data.to_unit(digits.train.images), jax.numpy.asarray(digits.train.labels)
    model = Classifier(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    for step in range(200):
        rows = jax.random.choice(jax.random.key(step), len(labels), (128,))
        train_step(model, optimizer, jax.numpy.asarray(images[rows]), labels[rows])

    # The model is taken as it is, in training mode too: it is evaluated as after model.eval().
    test = data.to_unit(digits.test.images), digits.test.labels
    print(infofeat_jax.evaluate(model, *test, epsilon=EPSILON, attacks=("clean", "pgd20"), progress=False))


if __name__ == "__main__":
    main()
