"""How XLA compiles: the persistent cache, and the choice of the CPU's convolutions."""

import os
import platform

import jax

_YNNPACK = "xla_cpu_experimental_ynn_fusion_type"


def keep_compiled() -> None:
    """Has JAX keep compiled programs in the user's cache directory, unless JAX_COMPILATION_CACHE_DIR says where.

    One directory a host, because programs for the CPU are made for its very model.
    """
    if jax.config.jax_compilation_cache_dir is None:  # pyrefly: ignore[missing-attribute] - set at run time
        root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(root, "infofeat_jax", platform.node() or "host"))


def tune_cpu() -> None:
    """Has XLA:CPU convolve with Eigen instead of YNNPACK, unless XLA_FLAGS choose; before JAX meets its devices.

    YNNPACK leaves all cores but one idle at up to 64 channels (jax 0.10.2) and can be half as fast at 256 and more
    (0.11.2): docs/performance.md. Matrix products stay with it. Accelerators do not notice.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _YNNPACK not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_YNNPACK}=-individual_convolution".strip()
