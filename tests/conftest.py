"""Eight virtual CPU devices for all tests; jaxtyping's annotations are checked (see addopts in pyproject.toml)."""

import gc
import os
import tempfile
from importlib.metadata import version

# Most of the suite's time is compilation: five times quicker without LLVM's optimisations, and three times again with
# XLA's older code generator for fusions, which jaxlib 0.11 no longer has (an unknown flag ends the process). YNNPACK:
# as in main.py. Flags from outside come last and win:
# XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true" compiles as a user's run does.
os.environ["XLA_FLAGS"] = " ".join([
    "--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else "",
    "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution", os.environ.get("XLA_FLAGS", ""),
])  # fmt: skip

import hypothesis
import jax
import jaxtyping
import pytest
from processes import finished, main

__all__ = ["finished", "main"]  # fixtures

# Tracing makes many objects and little garbage: at the usual threshold of 700, collecting takes a tenth of the time.
gc.freeze()
gc.set_threshold(100_000)

# Every run of the suite tries the same examples; --hypothesis-profile=default tries others.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile("same")
jax.config.update("jax_num_cpu_devices", 8)
# Tests compile many programs that another test has compiled already: they are kept. Each process has a directory of its
# own, empty at first, as JAX does not write entries atomically; JAX_COMPILATION_CACHE_DIR names another.
if jax.config.jax_compilation_cache_dir is None:
    COMPILED = tempfile.TemporaryDirectory(prefix="infofeat_jax-")
    jax.config.update("jax_compilation_cache_dir", COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_collection_modifyitems(items):
    """The longest file first: left for the end, one worker would wait for it."""
    items.sort(key=lambda item: item.path.name != "test_faults.py")


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """The directory of a study with everything that a report can show."""
    import report_runs  # here: the annotation checks begin after this file has been read

    return report_runs.full_study(tmp_path_factory.mktemp("studies") / "table1")


@pytest.fixture(scope="session")
def written(study):
    """The directory of its report."""
    from infofeat_jax import report

    return report.write(study).parent


@pytest.fixture
def unchecked():
    """Switches the annotation checks off, to see the errors of a user without them for a wrong type."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
