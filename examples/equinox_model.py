"""The evaluation of an Equinox model: trains a small one on the embedded digits and prints its robust accuracy.

python examples/equinox_model.py                   # pip install '.[train]' equinox; seconds
"""

import equinox as eqx
import jax
import optax

import infofeat_jax
from infofeat_jax import data

EPSILON = 16 / 255  # one step between the 17 grey levels


class Classifier(eqx.Module):
    """Two convolutions and one linear layer, on one image [c, h, w] as is usual in Equinox."""

    conv1: eqx.nn.Conv2d
    conv2: eqx.nn.Conv2d
    linear: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.conv1 = eqx.nn.Conv2d(1, 16, 3, padding=1, key=keys[0])
        self.conv2 = eqx.nn.Conv2d(16, 32, 3, stride=2, padding=1, key=keys[1])
        self.linear = eqx.nn.Linear(32, 10, key=keys[2])

    def __call__(self, image):
        x = jax.nn.relu(self.conv1(image - 0.5))
        return self.linear(jax.nn.relu(self.conv2(x)).mean((1, 2)))


def classify(model, images):
    """[b, h, w, c] -> logits [b, k]."""
    return jax.vmap(model)(images.transpose(0, 3, 1, 2))


def train(model, images, labels, steps: int = 300):
    optimizer = optax.adam(1e-2)
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def step(model, state, images, labels):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(classify(model, images), labels).mean()

        changes, state = optimizer.update(eqx.filter_grad(loss)(model), state)
        return eqx.apply_updates(model, changes), state

    for index in range(steps):
        rows = jax.random.choice(jax.random.key(index), len(labels), (128,))
        model, state = step(model, state, images[rows], labels[rows])
    return model


def main() -> None:
    digits = data.load("digits", validation_size=0)
    images, labels = jax.numpy.asarray(data.to_unit(digits.train.images)), jax.numpy.asarray(digits.train.labels)
    model = train(Classifier(jax.random.key(0)), images, labels)

    # The model is taken as it is: that it sees one image at a time, channels first, is recognised.
    test = data.to_unit(digits.test.images), digits.test.labels
    print(infofeat_jax.evaluate(model, *test, epsilon=EPSILON, attacks=("clean", "pgd20"), progress=False))


if __name__ == "__main__":
    main()
