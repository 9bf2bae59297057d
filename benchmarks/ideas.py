"""The parts of configs/studies/ideas.py: attacks, and methods that train with them.

As parts of one's own: `ideas:signed(num_steps=20)` in config.eval.attacks, `ideas:train_signed` as config.method.name.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from infofeat_jax import attacks, cam, methods, objectives, threat
from infofeat_jax.attacks.projected import projected_ascent
from infofeat_jax.methods import losses

WEIGHT = 0.1  # of every term, the paper's


def attack(term, base=objectives.cross_entropy):
    """PGD on base + WEIGHT * term, as a part for config.eval.attacks and for `method`."""
    objective = objectives.weighted_sum((1.0, base), (WEIGHT, term))

    def crafted(forward, key, images, labels, *, norm, epsilon, step_size, num_steps=20):
        return projected_ascent(
            forward, key, images, labels, objective=objective, norm=norm, epsilon=epsilon, step_size=step_size,
            num_steps=num_steps,
        )  # fmt: skip

    return crafted


def gated(correct: bool):
    """The maps' distance while an image is classified correctly, or only once it is not."""

    def term(perturbed, clean, labels):
        wrong = objectives.misclassified(perturbed.logits, labels)
        return jnp.where(wrong != correct, objectives.cam_distance()(perturbed, clean, labels), 0.0)

    return term


def difference(view):
    """The Euclidean distance of what `view(outputs, labels)` makes of perturbed and clean outputs."""

    def term(perturbed, clean, labels):
        return objectives.DISTANCES["l2"](*(view(o, labels).reshape(len(labels), -1) for o in (perturbed, clean)))

    return term


def of_two_classes(perturbed, clean, labels):
    """The distance of the maps of the label and of the clean image's most likely wrong class."""
    is_label = jax.nn.one_hot(labels, clean.logits.shape[-1], dtype=bool)
    rivals = jnp.where(is_label, -jnp.inf, clean.logits).argmax(-1)
    both = jnp.stack([labels, rivals], -1)[:, None, None]
    maps = [jnp.take_along_axis(outputs.cam, both, -1).reshape(len(labels), -1) for outputs in (perturbed, clean)]
    return objectives.DISTANCES["l2"](*maps)


def normalized(weight: float):
    """Steps along g / |g| + weight * h / |h|, of the gradients g of the cross-entropy and h of the maps' distance."""

    def crafted(forward, key, images, labels, *, norm, epsilon, step_size, num_steps=20):
        model = threat.threat(norm, epsilon)
        clean = jax.lax.stop_gradient(forward(images))

        def both(x):
            outputs = forward(x)
            terms = objectives.cross_entropy, objectives.cam_distance()
            return jnp.stack([term(outputs, clean, labels).sum() for term in terms])

        def step(_, x):
            along = jax.jacrev(both)(x)
            sizes = optax.safe_norm(along.reshape(2, len(x), -1), 1e-12, axis=-1)
            unit = along / sizes[..., None, None, None]
            return threat.ascend(model, images, x, unit[0] + weight * unit[1], step_size)

        return jax.lax.fori_loop(0, num_steps, step, threat.random_start(model, key, images))

    return crafted


margin = attacks.cw
margin_cam = attack(objectives.cam_distance(), objectives.margin())
normalized_03, normalized_1 = normalized(0.3), normalized(1.0)
while_correct, once_wrong = attack(gated(correct=True)), attack(gated(correct=False))
label_and_rival = attack(of_two_classes)
signed = attack(difference(lambda outputs, labels: cam.signed_cam(outputs.maps, outputs.kernel)))
grad_cam = attack(difference(losses.grad_cam))
features = attack(difference(lambda outputs, labels: outputs.maps))


def method(crafted, loss=losses.adversarial_cross_entropy):
    """Adversarial training with an attack, on the labels as they are."""

    def create(options):
        targets = lambda forward, images, labels: methods.smooth(labels, options.num_classes, 0.0)  # noqa: E731
        return methods.Method(partial(crafted, **options.attack), targets, loss)

    return create


train_margin, train_margin_cam = method(margin), method(margin_cam)
train_normalized_03, train_normalized_1 = method(normalized_03), method(normalized_1)
train_while_correct, train_once_wrong = method(while_correct), method(once_wrong)
train_label_and_rival, train_signed = method(label_and_rival), method(signed)
train_grad_cam, train_features = method(grad_cam), method(features)
train_update_term = method(partial(attacks.infofeature, weight=WEIGHT), losses.cam_pairing(WEIGHT, "l2", "all"))
