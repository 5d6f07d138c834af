"""Limits of control groups, read from files laid out as Linux lays them out."""

import pytest

from engine.planning.limits import cpu_quota, memory_limit, memory_room


def tree(root, groups, files):
    """root/proc/self/cgroup with the lines `groups`, and files below root/sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("\n".join(groups) + "\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


LAYOUTS = {
    "version 2, a container's root": (["0::/"], {"memory.max": 8 << 30, "cpu.max": "150000 100000"}),
    "version 2, the process's own group": (
        ["0::/user.slice/job.service"],
        {"user.slice/job.service/memory.max": 8 << 30, "user.slice/job.service/cpu.max": "150000 100000"},
    ),
    "version 2, a group above it": (
        ["0::/user.slice/job.service"],
        {
            "user.slice/memory.max": 8 << 30, "user.slice/job.service/memory.max": "max",
            "user.slice/cpu.max": "150000 100000", "user.slice/job.service/cpu.max": "max 100000",
        },
    ),
    "version 1, the process's own group": (
        ["4:memory:/jobs/one", "3:cpu,cpuacct:/jobs/one", "0::/"],
        {
            "memory/memory.limit_in_bytes": 9223372036854771712, "memory/jobs/one/memory.limit_in_bytes": 8 << 30,
            "cpu,cpuacct/jobs/one/cpu.cfs_quota_us": 150000, "cpu,cpuacct/jobs/one/cpu.cfs_period_us": 100000,
        },
    ),
    "version 1, a container that sees the host's path": (
        ["4:memory:/docker/0123", "2:cpu:/docker/0123"],
        {
            "memory/memory.limit_in_bytes": 8 << 30,
            "cpu/cpu.cfs_quota_us": 150000, "cpu/cpu.cfs_period_us": 100000,
        },
    ),
    "version 2 beside version 1": (
        ["4:memory:/", "1:cpu:/", "0::/job"],
        {"unified/job/memory.max": 8 << 30, "unified/job/cpu.max": "150000 100000"},
    ),
    "a path outside the container's own root": (
        ["0::/../other"],
        {"memory.max": 8 << 30, "cpu.max": "150000 100000"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_limit_that_holds_is_found(tmp_path, name):
    root = tree(tmp_path, *LAYOUTS[name])
    assert memory_limit(root) == 8 << 30
    assert cpu_quota(root) == 1.5


def test_of_nested_limits_the_smallest_holds(tmp_path):
    files = {"a/memory.max": 4 << 30, "a/b/memory.max": 6 << 30, "a/cpu.max": "400000 100000", "cpu.max": "1000 2000"}
    root = tree(tmp_path, ["0::/a/b"], files)
    assert memory_limit(root) == 4 << 30
    assert cpu_quota(root) == 0.5


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        (["0::/"], {"memory.max": "max", "cpu.max": "max 100000"}),
        (["0::/"], {"cgroup.controllers": "cpu memory"}),
        (
            ["4:memory:/", "3:cpu:/"],
            {
                "memory/memory.limit_in_bytes": 9223372036854771712,
                "cpu/cpu.cfs_quota_us": -1,
                "cpu/cpu.cfs_period_us": 100000,
            },
        ),
    ],
    ids=["version 2", "no files", "version 1"],
)
def test_no_limit(tmp_path, groups, files):
    root = tree(tmp_path, groups, files)
    assert memory_limit(root) is None
    assert cpu_quota(root) is None


def test_a_system_without_control_groups_has_no_limits(tmp_path):
    assert memory_limit(tmp_path) is None
    assert cpu_quota(tmp_path) is None


USED = {
    "version 2": (
        ["0::/job"],
        {
            "job/memory.max": 8 << 30, "job/memory.current": 6 << 30,
            "job/memory.stat": f"anon 1\ninactive_file {1 << 30}",
        },
    ),
    "version 2, a group above it is fuller": (
        ["0::/all/job"],
        {
            "all/memory.max": 16 << 30, "all/memory.current": 13 << 30, "all/job/memory.max": 8 << 30,
            "all/job/memory.current": 1 << 30,
        },
    ),
    "version 1": (
        ["4:memory:/"],
        {
            "memory/memory.limit_in_bytes": 8 << 30, "memory/memory.usage_in_bytes": 6 << 30,
            "memory/memory.stat": f"total_inactive_file {1 << 30}",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", USED)
def test_what_the_groups_processes_use_is_no_room(tmp_path, name):
    assert memory_room(tree(tmp_path, *USED[name])) == 3 << 30


def test_without_a_limit_there_is_no_room_to_tell(tmp_path):
    assert memory_room(tree(tmp_path, ["0::/"], {"memory.max": "max", "memory.current": 1 << 30})) is None
