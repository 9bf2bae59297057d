"""Eq. 5 and 6 against the formula written out as a [b, h, w, d, k] tensor."""

import hypothesis.extra.numpy as hnp
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infofeat_jax import cam

values = st.floats(-8, 8, width=32)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, (2, 3, 3, 4), elements=values), hnp.arrays(np.float32, (4, 5), elements=values))
def test_positive_cam_is_equation_6(maps, kernel):
    naive = np.maximum(maps[..., None] * kernel, 0).sum(axis=3, dtype=np.float64)
    np.testing.assert_allclose(cam.positive_cam(jnp.asarray(maps), jnp.asarray(kernel)), naive, rtol=1e-5, atol=1e-5)


def test_maps_behind_a_relu_need_one_product_only():
    rng = np.random.default_rng(0)
    maps = jnp.asarray(np.maximum(rng.normal(size=(2, 3, 3, 4)), 0), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
    short = cam.positive_cam(maps, kernel, nonnegative_maps=True)
    np.testing.assert_allclose(short, cam.positive_cam(maps, kernel), rtol=1e-6)


def test_mean_of_signed_cam_is_the_logit():
    """Eq. 5 averaged over the map is the logit without its bias (Zhou et al., 2016)."""
    rng = np.random.default_rng(0)
    maps, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 3, 3, 4), (4, 5)))
    logits = maps.mean((1, 2)) @ kernel
    np.testing.assert_allclose(cam.signed_cam(maps, kernel).mean((1, 2)), logits, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet10", "preact_resnet18", "wrn_10_1"])
def test_models_return_equation_6_of_their_own_maps(name):
    import small

    images, _ = small.batch(2)
    module, variables = small.network(name)
    outputs = module.apply(variables, images)
    head = "fc" if name.startswith("wrn") else "linear"
    kernel = np.asarray(variables["params"][head]["kernel"])
    naive = np.maximum(np.asarray(outputs.maps)[..., None] * kernel, 0).sum(3)
    np.testing.assert_allclose(outputs.cam, naive, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs.features, outputs.maps.mean((1, 2)), rtol=1e-6)
