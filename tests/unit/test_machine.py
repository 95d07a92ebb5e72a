"""What the machine and the containers around the process leave it, on file systems made for it."""

from __future__ import annotations

from pathlib import Path

from windlass import machine

MIB = 1 << 20


def write(root: Path, files: dict[str, str]) -> Path:
    """Write files below ``root``; return it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def two(root: Path, path: str, files: dict[str, str]) -> Path:
    """A process in the cgroup ``path`` of version 2, with files by their paths below the mount."""
    return write(root, {"proc/self/cgroup": f"0::{path}", **{f"sys/fs/cgroup/{name}": files[name] for name in files}})


def one(root: Path, path: str, files: dict[str, str]) -> Path:
    """The same for version 1."""
    lines = f"9:name=systemd:{path}\n4:memory:{path}\n1:cpu,cpuacct:{path}\n0::/"
    return write(root, {"proc/self/cgroup": lines, **{f"sys/fs/cgroup/{name}": files[name] for name in files}})


def test_limits_of_both_cgroup_versions(tmp_path: Path) -> None:
    new = two(tmp_path / "2", "/", {"memory.max": "1048576", "cpu.max": "150000 100000"})
    cpu = {"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}
    old = one(tmp_path / "1", "/", {"memory/memory.limit_in_bytes": "2097152", **cpu})
    assert (machine.memory_limit(new), machine.cpu_limit(new)) == (1048576, 1.5)
    assert (machine.memory_limit(old), machine.cpu_limit(old)) == (2097152, 0.5)


def test_no_limit_is_none(tmp_path: Path) -> None:
    new = two(tmp_path / "2", "/a", {"a/memory.max": "max", "a/cpu.max": "max 100000"})
    files = {"memory/memory.limit_in_bytes": "9223372036854771712", "cpu,cpuacct/cpu.cfs_quota_us": "-1"}
    old = one(tmp_path / "1", "/", files)
    for root in (new, old, tmp_path / "nothing"):
        assert machine.memory_limit(root) is None
        assert machine.cpu_limit(root) is None
        assert machine.available_bytes(root) is None


def test_the_tightest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    files = {"a/b/c/memory.max": "max", "a/b/memory.max": str(90 * MIB), "a/memory.max": str(70 * MIB)}
    cpus = {"a/b/c/cpu.max": "400000 100000", "a/b/cpu.max": "200000 100000", "a/cpu.max": "max 100000"}
    root = two(tmp_path, "/a/b/c", {**files, **cpus, "other/memory.max": "1"})
    assert machine.memory_limit(root) == 70 * MIB
    assert machine.cpu_limit(root) == 2.0


def test_a_cgroup_that_is_not_visible_leaves_the_outermost_one(tmp_path: Path) -> None:
    root = one(tmp_path, "/docker/0123", {"memory/memory.limit_in_bytes": str(64 * MIB)})
    assert machine.memory_limit(root) == 64 * MIB


def test_memory_that_is_left(tmp_path: Path) -> None:
    files = {"a/memory.max": str(100 * MIB), "a/memory.current": str(60 * MIB)}
    # The cgroup around it allows more, and leaves less.
    around = {"memory.max": str(200 * MIB), "memory.current": str(190 * MIB)}
    root = two(tmp_path / "2", "/a", {**files, **around})
    assert machine.available_bytes(root) == 10 * MIB
    write(root, {"sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {20 * MIB}"})
    assert machine.available_bytes(root) == 30 * MIB
    write(root, {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 1024 kB"})
    assert machine.available_bytes(root) == MIB
    memory = {"limit_in_bytes": str(8 * MIB), "usage_in_bytes": str(9 * MIB)}
    old = one(tmp_path / "1", "/", {f"memory/memory.{name}": text for name, text in memory.items()})
    assert machine.available_bytes(old) == 0
    write(old, {"sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {2 * MIB}"})
    assert machine.available_bytes(old) == MIB


def test_this_machine_has_memory() -> None:
    available = machine.available_bytes()
    assert available is None or 0 < available <= machine.total_bytes()
    assert machine.processor_name()


def test_who_has_files_mapped(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    (tmp_path / "link").symlink_to(tmp_path / "model.gguf")
    lines = {
        7: f"7f0000000000-7f0000001000 r--p 00000000 fe:01 42                         {tmp_path}/model.gguf\n",
        12: f"7f0000000000-7f0000001000 r--p 00000000 fe:01 42 {tmp_path}/model.gguf (deleted)\n",
        13: "7f0000000000-7f0000001000 rw-p 00000000 00:00 0\n7f-80 r--p 0 fe:01 43 /usr/lib/libc.so.6\n",
    }
    for process, text in lines.items():
        (tmp_path / f"root/proc/{process}").mkdir(parents=True)
        (tmp_path / f"root/proc/{process}/maps").write_text(text)
    assert machine.mapping_processes([tmp_path / "link"], tmp_path / "root") == [7]
    assert machine.mapping_processes([tmp_path / "other"], tmp_path / "root") == []
    assert machine.mapping_processes([], tmp_path / "nowhere") == []
