"""How XLA compiles and allocates: the persistent cache, the CPU's convolutions and memory, programs that run once."""

import ctypes
import os
import platform
import sys

import jax

_YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
_MMAP_MAX, _TRIM_THRESHOLD, _ARENA_MAX = -4, -1, -8  # of mallopt(3)
_LEVEL = "xla_backend_optimization_level"


def keep_compiled() -> None:
    """Makes JAX keep compiled programs in the user's cache directory, unless JAX_COMPILATION_CACHE_DIR says where.

    One directory per host, because programs for a CPU are compiled for its exact model.
    """
    if jax.config.jax_compilation_cache_dir is None:  # pyrefly: ignore[missing-attribute] - set at run time
        root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(root, "infofeat_jax", platform.node() or "host"))


def tune_cpu() -> None:
    """Makes XLA:CPU convolve with Eigen, not YNNPACK, unless XLA_FLAGS choose, and keeps memory from call to call.

    To be called before JAX finds its devices. YNNPACK leaves all cores but one idle at up to 64 channels (jax 0.10.2)
    and can be half as fast at 256 and more (0.11.2). Matrix products stay with it. Accelerators
    are not affected.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _YNNPACK not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_YNNPACK}=-individual_convolution".strip()
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Makes glibc keep up to 2 GiB of what is freed instead of giving it back to Linux.

    XLA:CPU allocates the work space of a program for each call, and new pages are cleared one by one: a quarter of a
    step's time in standard training. Kept are only blocks of the main arena, hence one arena. No effect elsewhere.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option:
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1)):
            set_option(option, value)


def once(platform: str) -> dict[str, int] | None:
    """`compiler_options` of `jax.jit` for a program that runs once on such a device ("cpu", ...): quick to compile.

    On a CPU with fewer of LLVM's optimisations, unless XLA_FLAGS choose; accelerators compile as ever (None).
    """
    return {_LEVEL: 1} if platform == "cpu" and _LEVEL not in os.environ.get("XLA_FLAGS", "") else None
