"""Class activation maps: Eq. 5 and Eq. 6 of Yan & Yeung, for all classes at once.

`maps` is M_conv, [b, h, w, d]; `kernel` is w_fc, [d, k]; the result is [b, h, w, k].
"""

import jax
from jaxtyping import Array, Float

Maps = Float[Array, "b h w d"]
Kernel = Float[Array, "d k"]
Cam = Float[Array, "b h w k"]


def signed_cam(maps: Maps, kernel: Kernel) -> Cam:
    """Eq. 5: sum_d w_d M_d, the map of Zhou et al. (2016).

    >>> signed_cam(jax.numpy.array([[[[1.0, 2.0]]]]), jax.numpy.array([[3.0, -1.0], [-1.0, 0.5]]))
    Array([[[[1., 0.]]]], dtype=float32)
    """
    return maps @ kernel


def positive_cam(maps: Maps, kernel: Kernel, *, nonnegative_maps: bool = False) -> Cam:
    """Eq. 6: sum_d max(w_d M_d, 0).

    max(wm, 0) = relu(w) relu(m) + relu(-w) relu(-m), hence two matrix products instead of a
    [b, h, w, d, k] tensor. `nonnegative_maps` (maps after a ReLU) drops the second, which is zero.

    >>> maps, kernel = jax.numpy.array([[[[1.0, 2.0]]]]), jax.numpy.array([[3.0, -1.0], [-1.0, 0.5]])
    >>> positive_cam(maps, kernel)  # 1 * 3 for the first class, 2 * 0.5 for the second
    Array([[[[3., 1.]]]], dtype=float32)
    """
    if nonnegative_maps:
        return maps @ jax.nn.relu(kernel)
    return jax.nn.relu(maps) @ jax.nn.relu(kernel) + jax.nn.relu(-maps) @ jax.nn.relu(-kernel)
