"""What one process may use of the machine: cores, threads that prepare batches, memory for decoded images.

In a container the limits of its control group count, not what the machine has. No result depends on any of this.
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path

SHARING_VARIABLE = "MEDSSL_SHARING_PROCESSES"  # set for workers by whoever starts them
LOADER_THREADS_VARIABLE = "MEDSSL_LOADER_THREADS"
CACHE_MIB_VARIABLE = "MEDSSL_CACHE_MIB"
CACHE_SHARE = 1 / 4  # of the memory; the rest is for weights, activations, batches and the files' pages
MIB = 2**20


def num_sharing() -> int:
    """Processes that share the machine, this one included: as its starter says, else those of torchrun."""
    return int(os.environ.get(SHARING_VARIABLE) or os.environ.get("LOCAL_WORLD_SIZE") or 1)


def own_cores() -> int:
    """This process's share of the cores, at least 1."""
    return max(1, num_cores() // num_sharing())


def loader_threads(*, network_on_cpu: bool) -> int:
    """Threads that prepare the batches of this process: MEDSSL_LOADER_THREADS, else by where the network computes.

    Beside a GPU all of the process's cores. Where the network computes on these, one: that is faster than any network
    trains there, and every further thread is waited for by those of the network, which work in step (on two busy
    cores, a second thread made steps longer by a half).
    """
    return int(os.environ.get(LOADER_THREADS_VARIABLE, "0")) or (1 if network_on_cpu else own_cores())


def cache_bytes() -> int:
    """Bytes of decoded images that this process may keep: MEDSSL_CACHE_MIB, else its share of a quarter of the memory.

    Of several cohorts, later ones get what the first leave.
    """
    given = int(os.environ.get(CACHE_MIB_VARIABLE, "0")) * MIB
    return given or int(num_memory_bytes() * CACHE_SHARE) // num_sharing()


def num_cores() -> int:
    """Cores that this process may keep busy: those it may run on, or fewer where its time is limited."""
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), core_limit(control_groups("cpu")))))


def num_memory_bytes() -> int:
    """Memory that this process may use: the machine's, or less where a control group allows less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(machine, memory_limit(control_groups("memory"))))


def core_limit(folders: Iterable[Path]) -> float:
    """Least number of cores' worth of time that these control groups allow, infinite without a limit."""
    limits = [math.inf]
    for folder in folders:
        if text := _read(folder / "cpu.max"):  # version 2
            quota, period = text.split()
        else:
            quota, period = _read(folder / "cpu.cfs_quota_us") or "-1", _read(folder / "cpu.cfs_period_us")
        if quota not in ("max", "-1"):
            limits.append(float(quota) / float(period))
    return min(limits)


def memory_limit(folders: Iterable[Path]) -> float:
    """Least number of bytes that these control groups allow, infinite without a limit."""
    names = ("memory.max", "memory.limit_in_bytes")  # version 2, version 1
    texts = [_read(folder / name) for folder in folders for name in names]
    return min([math.inf, *(float(text) for text in texts if text not in ("", "max"))])


def control_groups(
    controller: str, *, proc: Path = Path("/proc"), mounted: Path = Path("/sys/fs/cgroup")
) -> list[Path]:
    """Folders of the control groups that this process is in, from its own up to the root, of both versions."""
    folders = []
    for line in _read(proc / "self" / "cgroup").splitlines():
        number, controllers, group = line.split(":", 2)
        if number == "0" or controller in controllers.split(","):
            root = mounted if number == "0" else mounted / controller
            # A container may see its group's name on the host, but only its own folder: then the root is its group.
            own = root / group.lstrip("/")
            folders += [folder for folder in (own, *own.parents) if folder.is_relative_to(root)]
    return folders


def _read(path: Path) -> str:
    """The text of a file; empty where there is none or it may not be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
