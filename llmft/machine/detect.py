"""What machine this is, and how much of it this process may use.

``detect`` only reads; ``measure`` times, ``choose`` chooses and sets.
"""

from __future__ import annotations

import math
import os
import platform
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

# What decides the speed of a matrix multiplication, in torch's names, best first.
_FEATURES = "amx_bf16 avx512_fp16 avx512_bf16 avx512_f avx2 sve2 sve bf16 neon".split()
# What hides some of them from the libraries: another machine, as to speed.
_LIMITS = (
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
    *("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS"),
)
_LAUNCHER_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Machine:
    """The machine as this process sees it."""

    cpu: str  # the processor's name
    architecture: str  # as platform.machine() has it
    cores: int  # that this process may use: affinity, and the cgroup's quota rounded up
    physical_cores: int  # among those; two threads of one core share its multipliers
    logical_cores: int  # of the whole machine
    quota: float | None  # CPUs that the cgroup grants; None where unlimited
    memory_bytes: int  # that this process may use
    total_bytes: int  # of the machine
    available_bytes: int  # free now
    swap_bytes: int  # of the machine's memory, swapped out
    # Those of the CPU that matter here, in torch's names; what hides some, NAME=value.
    features: tuple[str, ...]
    emulated: bool  # whether another processor plays this one
    variables: dict[str, str]  # settings of threads, as OMP_NUM_THREADS=1
    load: float  # cores that other programs keep busy just now

    @property
    def busy(self) -> bool:
        """Whether other programs would disturb a measurement, and a run."""
        return self.load > 0.25 * self.logical_cores


def detect(root: Path = Path("/")) -> Machine:
    """Look at the machine, which takes 0.1 s to see what else runs on it.

    ``root`` is where ``/proc`` and ``/sys`` are found.
    """
    memory = psutil.virtual_memory()
    limit = _cgroup_memory(root)
    has = torch.cpu.get_capabilities()
    name = cpu_name(root)
    return Machine(
        cpu=name,
        architecture=platform.machine(),
        cores=usable_cores(root),
        physical_cores=_physical_cores(root),
        logical_cores=os.cpu_count() or 1,
        quota=_cgroup_quota(root),
        memory_bytes=min(memory.total, limit or memory.total),
        total_bytes=memory.total,
        available_bytes=min(memory.available, limit or memory.available),
        swap_bytes=psutil.swap_memory().used,
        features=(
            *(f for f in _FEATURES if has.get(f)),
            *(f"{n}={os.environ[n]}" for n in _LIMITS if n in os.environ),
        ),
        emulated=_emulated(name),
        variables={n: os.environ[n] for n in _LAUNCHER_VARIABLES if n in os.environ},
        load=psutil.cpu_percent(0.1) / 100 * (os.cpu_count() or 1),
    )


def usable_cores(root: Path = Path("/")) -> int:
    """Return the cores that this process may use: affinity and cgroup quota."""
    cores, quota = len(_affinity()), _cgroup_quota(root)
    return max(1, min(cores, math.ceil(quota))) if quota else cores


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _physical_cores(root: Path) -> int:
    """Return how many whole cores are among those that this process may use."""
    topology = root / "sys/devices/system/cpu"
    siblings = {
        _text(topology / f"cpu{i}/topology/thread_siblings_list") for i in _affinity()
    }
    physical = len(siblings)
    if "" in siblings:  # not Linux: no affinity there either
        physical = psutil.cpu_count(logical=False) or len(_affinity())
    return max(1, min(physical, usable_cores(root)))


def _cgroup_quota(root: Path) -> float | None:
    """Return the CPUs that cgroups (v2 or v1) grant, None where unlimited."""
    granted = []
    for folder in _cgroups(root, "cpu"):
        v1 = (folder / f"cpu.cfs_{part}_us" for part in ("quota", "period"))
        words = (_text(folder / "cpu.max") or " ".join(map(_text, v1))).split()
        if len(words) == 2 and words[0] not in ("max", "-1"):
            granted.append(int(words[0]) / int(words[1]))
    return min(granted, default=None)


def _cgroup_memory(root: Path) -> int | None:
    """Return the bytes that cgroups (v2 or v1) grant, None where unlimited."""
    names = ("memory.max", "memory.limit_in_bytes")
    said = [_text(f / n).strip() for f in _cgroups(root, "memory") for n in names]
    sizes = [int(text) for text in said if text.isdecimal()]
    return min((size for size in sizes if size < 2**60), default=None)


def _cgroups(root: Path, controller: str) -> list[Path]:
    """Return the folders of this process's cgroup and of all above it, of v2 and v1.

    A container sees its own at the top; that of a job of systemd or of a batch system
    is further down.
    """
    paths = {"": "", controller: ""}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        paths |= dict.fromkeys(names.split(","), path)
    top, found = root / "sys/fs/cgroup", []
    for base, path in ((top, paths[""]), (top / controller, paths[controller])):
        parts = [] if ".." in path else [part for part in path.split("/") if part]
        found += [base.joinpath(*parts[:i]) for i in range(len(parts) + 1)]
    return found


def _text(path: Path) -> str:
    """Return what is in a file of the system; nothing where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""


def cpu_name(root: Path = Path("/")) -> str:
    """Return the processor's name as the system gives it."""
    found = re.search(r"^model name\s*:(.*)$", _text(root / "proc/cpuinfo"), re.M)
    known = torch.cpu.get_capabilities().get("cpu_name")
    name = found[1].strip() if found else known
    return str(name or platform.processor() or platform.machine())


def _emulated(name: str) -> bool:
    """Return whether an x86 Python runs on an ARM Mac, or under QEMU's emulation."""
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        return "Apple" in name or "VirtualApple" in name
    return "QEMU TCG" in name


def warnings(machine: Machine) -> list[str]:
    """Return what holds this machine back, each with what to do about it."""
    m, quota = machine, machine.quota or math.inf
    why = "the cgroup's quota" if quota < m.logical_cores else ""
    # Every Xeon with fp16 arithmetic has AMX; a virtual machine or kernel may hide it.
    hides_amx = {"avx512_fp16", "amx_bf16"} & set(m.features) == {"avx512_fp16"}
    found = {
        f"Python is built for {m.architecture}, which this processor only emulates:"
        " install a Python for the processor itself, several times faster": m.emulated,
        "no AVX2: expect a tenth of the speed of a current processor": (
            m.architecture in ("x86_64", "AMD64") and "avx2" not in m.features
        ),
        "this processor has AMX, which the virtual machine or the kernel hides: with"
        " it, bf16 would be several times as fast as fp32": (
            hides_amx and "Intel" in m.cpu
        ),
        f"{m.cores} of {m.logical_cores} cores may be used"
        f" ({why or 'the affinity of the process'}): raise it where you can": (
            m.cores < m.logical_cores
        ),
        f"the cgroup grants {quota:g} of a core: it stalls in between": quota < 1,
    }
    found |= {
        f"{name}=1 is set, by a launcher perhaps, and not heeded: llmft uses"
        f" {m.physical_cores} threads; --num_threads changes that": (
            value == "1" and m.cores > 1
        )
        for name, value in m.variables.items()
    }
    found |= {
        f"{gib(m.memory_bytes)} of {gib(m.total_bytes)} memory may be used (cgroup)": (
            m.memory_bytes < m.total_bytes
        ),
        f"{gib(m.swap_bytes)} are swapped out: training that swaps takes for ever;"
        " close programs or lower the batch size": m.swap_bytes > 2**28,
        f"other programs keep {m.load:.1f} of {m.logical_cores} cores busy: threads"
        " wait for each other, and a measurement now says little; close them": m.busy,
    }
    return [said for said, is_so in found.items() if is_so]


def gib(count: float) -> str:
    """Return bytes in words: ``1.5 GiB``, ``30 MiB``."""
    return f"{count / 2**30:.1f} GiB" if count > 10**8 else f"{count / 2**20:.0f} MiB"


def allowed_bytes(root: Path = Path("/")) -> int:
    """Return how much memory this process may hold in all, in bytes."""
    return min(_limits(root).values())


def allowed_text(root: Path = Path("/")) -> str:
    """Return the same in words, with what limits it: ``1.5 GiB (cgroup)``."""
    limits = _limits(root)
    least = min(limits, key=lambda name: limits[name])
    return f"{gib(limits[least])} ({least})"


def _limits(root: Path) -> dict[str, int]:
    """Return what limits the memory of this process, each with bytes.

    That is what is free beside what it holds already, the limit of a cgroup, and
    RLIMIT_AS, which also counts what is reserved and never touched.
    """
    held = psutil.Process().memory_info()
    limits = {"what is free": psutil.virtual_memory().available + held.rss}
    if limit := _cgroup_memory(root):
        limits["a cgroup grants it"] = limit
    if sys.platform != "win32":
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            limits["ulimit -v, less what libraries reserve"] = (
                soft - held.vms + held.rss
            )
    return limits


def peak_rss_bytes() -> int:
    """Return the most memory that this process has held, in bytes.

    So far, or since ``forget_peak``.
    """
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> None:
    """Have ``peak_rss_bytes`` begin anew, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
