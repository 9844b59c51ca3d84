"""Memory that is left, by the files of /proc and of control groups."""

import pytest

from rmjax.core import memory
from rmjax.core.errors import InputError

GIB = 2**30


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


MEMINFO = {"proc/meminfo": "MemTotal: 9999999 kB\nMemAvailable:    8388608 kB\nSwapFree: 1048576 kB\nHugePages: 0\n"}


def group(path, version, limit, used, cache=0):
    """Files of a control group."""
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    stat = f"anon 5\n{'' if version == 2 else 'total_'}inactive_file {cache}\n"
    return {
        f"sys/fs/cgroup/{path}/{names[0]}": f"{limit}\n",
        f"sys/fs/cgroup/{path}/{names[1]}": f"{used}\n",
        f"sys/fs/cgroup/{path}/memory.stat": stat,
    }


@pytest.mark.parametrize(
    ("groups", "files", "left", "source"),
    [
        ("", {}, 9 * GIB, "MemAvailable of"),
        ("0::/a/b\n", group("a/b", 2, "max", GIB), 9 * GIB, "MemAvailable of"),
        ("0::/a/b\n", group("a/b", 2, 4 * GIB, 3 * GIB, 2 * GIB), 3 * GIB, "of 4.00 GiB by"),
        # of a group above; and in a container, whose group is the root of what is mounted
        ("0::/a/b\n", group("a/b", 2, "max", 0) | group("a", 2, 2 * GIB, GIB), GIB, "a/memory.max"),
        ("0::/host/path\n", group("", 2, 2 * GIB, GIB), GIB, "cgroup/memory.max"),
        ("3:cpu,memory:/x\n1:name=systemd:/x\n", group("memory/x", 1, 6 * GIB, 0), 6 * GIB, "memory.limit_in_bytes"),
        ("3:memory:/x\n", group("memory/x", 1, (1 << 63) - 4096, 0), 9 * GIB, "MemAvailable of"),
        ("0::/a\n", group("a", 2, GIB, 2 * GIB), 0, "of 1.00 GiB"),
    ],
)
def test_the_least_of_host_and_control_groups_is_left(tmp_path, groups, files, left, source):
    write(tmp_path, MEMINFO | {"proc/self/cgroup": groups} | files)
    found = memory.host_memory(tmp_path)
    assert found.bytes == left
    assert source in found.source


def test_files_that_are_missing_or_of_another_form_are_passed_over(tmp_path):
    assert memory.host_memory(tmp_path).source == "the host's whole memory"
    write(tmp_path, MEMINFO | {"proc/self/cgroup": "0::/a\n"} | group("a", 2, "many", "few"))
    assert memory.host_memory(tmp_path).bytes == 9 * GIB
    assert memory.host_memory().bytes > 0  # of this host


def test_an_estimate_is_compared_with_what_is_left(monkeypatch):
    parts, fix = {"parameters": 3 * GIB, "none": 0}, lambda: "use less"
    assert memory.check("x", parts, None, fix) == ""
    assert memory.check("x", parts, memory.Available(4 * GIB, "s"), fix) == ""
    near = memory.check("x", parts, memory.Available(int(3.1 * GIB), "s"), fix)
    assert near.startswith("x needs about 3.00 GiB (parameters 3.00 GiB), and 3.10 GiB are left (s); if it ends")
    with pytest.raises(
        InputError, match=r"x needs .* 2\.00 GiB are left \(s\); use less\. RMJAX_CHECK_MEMORY=0 starts"
    ):
        memory.check("x", parts, memory.Available(2 * GIB, "s"), fix)
    monkeypatch.setenv("RMJAX_CHECK_MEMORY", "0")
    assert "2.00 GiB are left" in memory.check("x", parts, memory.Available(2 * GIB, "s"), fix)
