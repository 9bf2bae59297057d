"""Augmentation by a second image: MixUp and CutMix, pure functions of one key on a whole batch.

They follow the authors' codes: one share, and for CutMix one box, for all images of a batch, and a random partner each.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from infofeat_jax.types import Images, Labels, PRNGKey


class Mixed(NamedTuple):
    """The labels of mixed images. The label is that of an image's larger part, which attack and accuracy take."""

    labels: Labels
    partners: Labels  # of the smaller part
    share: Float[Array, " b"]  # of the larger, 0.5 to 1


def mixup(key: PRNGKey, images: Images, labels: Labels, *, alpha: float) -> tuple[Images, Mixed]:
    """MixUp (Zhang et al., 2018): share * image + (1 - share) * partner, with a share of Beta(alpha, alpha)."""
    share_key, order_key = jax.random.split(key)
    share = jax.random.beta(share_key, alpha, alpha)
    order = jax.random.permutation(order_key, len(labels))
    return share * images + (1 - share) * images[order], _mixed(share, labels, labels[order])


def cutmix(key: PRNGKey, images: Images, labels: Labels, *, alpha: float) -> tuple[Images, Mixed]:
    """CutMix (Yun et al., 2019): a box of the partner's pixels, of area 1 - Beta(alpha, alpha) before it is cropped."""
    share_key, order_key, box_key = jax.random.split(key, 3)
    _, height, width, _ = images.shape
    inside = box(box_key, height, width, 1 - jax.random.beta(share_key, alpha, alpha))
    order = jax.random.permutation(order_key, len(labels))
    pasted = jnp.where(inside[..., None], images[order], images)
    return pasted, _mixed(1 - inside.mean(), labels, labels[order])


def box(key: PRNGKey, height: int, width: int, area: Float[Array, ""]) -> Bool[Array, "h w"]:
    """The pixels of a box around a random pixel, of sides sqrt(area) times the image's, cropped to it."""
    centre = jax.random.randint(key, (2,), 0, jnp.array([height, width]))

    def within(size: int, centre) -> Bool[Array, " n"]:
        half = jnp.floor(size * jnp.sqrt(area)).astype(jnp.int32) // 2
        return (jnp.arange(size) >= centre - half) & (jnp.arange(size) < centre + half)

    return within(height, centre[0])[:, None] & within(width, centre[1])


def _mixed(share: Float[Array, ""], labels: Labels, partners: Labels) -> Mixed:
    larger = share >= 0.5
    shares = jnp.full(labels.shape, jnp.maximum(share, 1 - share))
    return Mixed(jnp.where(larger, labels, partners), jnp.where(larger, partners, labels), shares)
