"""What a container leaves this process of the machine: the limits of Linux control groups, version 1 and 2.

A limit holds for a group and all below it, so the smallest on the way from the process's own group up to the
root counts. Everywhere else (no /proc, no /sys) there are no limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
UNLIMITED = 1 << 60  # version 1 writes "no limit" as a number close to 2**63


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes of memory that this process's control groups allow, or None. root: where proc/ and sys/ are."""
    found = []
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = read_small(folder / name)
            if text.isdigit() and int(text) < UNLIMITED:
                found.append(int(text))
    return min(found, default=None)


def memory_room(root: Path = ROOT) -> int | None:
    """Bytes of memory that this process's control groups still have, or None without a limit.

    What is in use is that of all processes in a group, files aside that the system keeps only as long as there is room.
    """
    found = []
    for folder in _groups(root, "memory"):
        for most, used, files in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, usage = read_small(folder / most), read_small(folder / used)
            if limit.isdigit() and usage.isdigit() and int(limit) < UNLIMITED:
                rows = dict(line.split(maxsplit=1) for line in read_small(folder / "memory.stat").splitlines())
                found.append(max(0, int(limit) - int(usage) + int(rows.get(files, 0))))
    return min(found, default=None)


def cpu_quota(root: Path = ROOT) -> float | None:
    """Processors' worth of time that this process's control groups allow (1.5 is one and a half), or None."""
    found = []
    for folder in _groups(root, "cpu"):
        new = read_small(folder / "cpu.max").split()
        old = [read_small(folder / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
        found += [pair for pair in (new, old) if len(pair) == 2 and all(map(str.isdigit, pair))]  # neither max nor -1
    return min((int(quota) / int(period) for quota, period in found if int(period)), default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's groups that `controller` (memory, cpu) may limit, its own before those above."""
    mount = root / "sys/fs/cgroup"
    for line in read_small(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:  # version 2, alone or beside version 1
            bases = [mount, mount / "unified"]
        elif controller in controllers.split(","):
            bases = [mount / controllers, mount / controller]
        else:
            continue
        # Inside a container the path may be one of the host's, of which only the root is mounted here.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for base in bases:
            for depth in range(len(parts), -1, -1):
                yield base.joinpath(*parts[:depth])


def read_small(path: Path) -> str:
    """Text of a small file, empty where there is none to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
