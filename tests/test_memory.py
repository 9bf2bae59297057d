"""The memory available to a process: the machine's, or the limit of a container or a scheduler."""

import os
import pathlib
import re
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from infofeat_jax.runtime import memory
from infofeat_jax.types import InvalidInput

GIB = 2**30


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("", {}, []),
        ("0::/\n", {"memory.max": "max\n"}, []),
        ("0::/\n", {"memory.max": f"{GIB}\n"}, [GIB]),
        ("0::/job/step\n", {"job/memory.max": f"{GIB}\n", "job/step/memory.max": "max\n"}, [GIB]),
        ("0::/job/step\n", {"job/memory.max": f"{2 * GIB}", "job/step/memory.max": f"{GIB}"}, [GIB, 2 * GIB]),
        ("0::/hosts/path\n", {"memory.max": f"{GIB}\n"}, [GIB]),  # a container sees the end of it only
        ("4:memory:/box\n1:cpu:/box\n", {"memory/box/memory.limit_in_bytes": f"{GIB}\n"}, [GIB]),
        ("4:cpu,memory:/hosts/path\n", {"memory/memory.limit_in_bytes": f"{GIB}\n"}, [GIB]),
        ("4:cpuset:/box\n", {"memory/memory.limit_in_bytes": f"{GIB}\n"}, []),
        ("4:memory:/a\n0::/b:c\n", {"memory/memory.limit_in_bytes": "5", "unified/b:c/memory.max": "7"}, [5, 7]),
    ],
)
def test_limits_of_control_groups(tmp_path, groups, limits, expected):
    files = {"proc/self/cgroup": groups} | {f"sys/fs/cgroup/{name}": text for name, text in limits.items()}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory.cgroup_limits(tmp_path) == expected


def test_the_least_limit_holds(tmp_path, monkeypatch):
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limits, expected in (([], physical), ([2**62, 3 * GIB], min(physical, 3 * GIB))):
        monkeypatch.setattr(memory, "cgroup_limits", lambda limits=limits: limits)
        assert memory.available() == expected // jax.local_device_count()


def test_no_control_groups_at_all(tmp_path):
    assert memory.cgroup_limits(tmp_path) == []


def test_an_address_limit_leaves_what_is_not_mapped_yet(monkeypatch):
    """`ulimit -v` counts all that the process has mapped, as its status says."""
    status = pathlib.Path("/proc/self/status").read_text()
    mapped = 1024 * int(re.search(r"VmSize:\s+(\d+) kB", status)[1])
    monkeypatch.setattr(resource, "getrlimit", lambda which: (mapped + GIB, resource.RLIM_INFINITY))
    (left,) = memory.address_limit()
    assert abs(left - GIB) < 2**26
    assert memory.available() <= left // jax.local_device_count()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert memory.address_limit() == []


KEPT = """
import pathlib
import resource
import sys
from infofeat_jax.runtime import compilation

if sys.argv[1] == "tuned":
    compilation.tune_cpu()
resident = lambda: int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
before = resident()
b"x" * 2**27
print((resident() - before) / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is told")
@pytest.mark.parametrize("how", ["default", "tuned"])
def test_freed_memory_is_kept_if_it_was_asked_for(how):
    """After a block of 128 MiB was freed."""
    kept = subprocess.run([sys.executable, "-c", KEPT, how], check=True, capture_output=True, text=True).stdout
    assert float(kept) > 100 if how == "tuned" else float(kept) < 50


def test_the_copies_of_the_state_count(monkeypatch):
    """Training holds them beside a step: it would run out of memory at its first validation."""
    step, state, batch = jax.jit(lambda state, batch: (state + batch.sum(), batch)), jnp.zeros(2**18), jnp.zeros(4)
    bound = memory.needed(step.lower(state, batch).compile()) + 2 * 2**20
    monkeypatch.setattr(memory, "available", lambda: bound - 1)
    with pytest.raises(InvalidInput, match=r"training takes 0\.00 GiB a device, .*: lower something"):
        memory.checked(step, "lower something")(state, batch)
    monkeypatch.setattr(memory, "available", lambda: bound)
    assert memory.checked(step, "lower something")(state, batch)[1].shape == (4,)
