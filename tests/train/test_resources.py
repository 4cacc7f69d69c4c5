import math
from pathlib import Path

import pytest

from medssl.train import resources
from medssl.train.resources import MIB, cache_bytes, control_groups, core_limit, loader_threads, memory_limit


def machine(folder: Path, membership: str, files: dict[str, str]) -> dict[str, Path]:
    """Folders as /proc and /sys/fs/cgroup."""
    for name, text in {"proc/self/cgroup": membership, **{f"groups/{k}": v for k, v in files.items()}}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    return {"proc": folder / "proc", "mounted": folder / "groups"}


def test_the_least_limit_from_the_own_group_up_to_the_root_counts(tmp_path: Path) -> None:
    files = {"memory.max": "9000", "pod/memory.max": "4000", "pod/task/memory.max": "max", "other/memory.max": "1"}
    files |= {"pod/cpu.max": "250000 100000", "pod/task/cpu.max": "max 100000"}
    places = machine(tmp_path, "0::/pod/task", files)
    assert memory_limit(control_groups("memory", **places)) == 4000
    assert core_limit(control_groups("cpu", **places)) == 2.5


def test_version_1_has_a_folder_for_each_controller(tmp_path: Path) -> None:
    files = {"memory/a/memory.limit_in_bytes": "5000", "cpu/b/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_quota_us": "50000"}
    files |= {"cpu/b/cpu.cfs_period_us": "100000", "cpu/cpu.cfs_period_us": "100000"}
    places = machine(tmp_path, "4:memory:/a\n1:cpu:/b", files)
    assert memory_limit(control_groups("memory", **places)) == 5000
    assert core_limit(control_groups("cpu", **places)) == 0.5


def test_a_container_that_sees_the_name_of_its_group_on_the_host_takes_the_limit_at_the_root(tmp_path: Path) -> None:
    places = machine(tmp_path, "4:memory:/docker/0a1b", {"memory/memory.limit_in_bytes": "7000"})
    assert memory_limit(control_groups("memory", **places)) == 7000


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    groups = control_groups("memory", proc=tmp_path, mounted=tmp_path)
    assert (memory_limit(groups), core_limit(groups)) == (math.inf, math.inf)


def test_processes_share_cores_and_memory_unless_the_environment_says_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOADER_THREADS", "CACHE_MIB", "SHARING"):
        monkeypatch.delenv(getattr(resources, f"{name}_VARIABLE"), raising=False)
    monkeypatch.setattr(resources, "num_cores", lambda: 8)
    monkeypatch.setattr(resources, "num_memory_bytes", lambda: 4000 * MIB)
    for local, sharing, cores, mib in (
        ("1", None, 8, 1000),
        ("2", None, 4, 500),
        ("2", "4", 2, 250),
        ("9", "", 1, 111),
    ):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
        if sharing is not None:
            monkeypatch.setenv(resources.SHARING_VARIABLE, sharing)
        assert loader_threads(network_on_cpu=False) == cores
        assert cache_bytes() // MIB == mib
        assert loader_threads(network_on_cpu=True) == 1
    monkeypatch.setenv(resources.LOADER_THREADS_VARIABLE, "3")
    monkeypatch.setenv(resources.CACHE_MIB_VARIABLE, "70")
    assert loader_threads(network_on_cpu=True) == loader_threads(network_on_cpu=False) == 3
    assert cache_bytes() == 70 * MIB
