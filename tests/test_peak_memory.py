"""What is freed within `bound_heap` is given back to the system, whatever lies between."""

import platform
import subprocess
import sys

import pytest

CODE = """
from contextlib import nullcontext
import psutil
from engine.peak_memory import bound_heap

large = bytearray(24 << 20)
del large  # by itself, glibc takes blocks up to this size from its heap now
before = psutil.Process().memory_info().rss
with {context}:
    large, small = [], []
    for _ in range(40):
        large.append(bytearray(3 << 20))
        small.append(bytearray(100_000))  # stays between two large blocks
    del large
    print((psutil.Process().memory_info().rss - before) >> 20)
"""


def kept(context):
    """MiB that a process still has after it has freed 120 of 124."""
    done = subprocess.run([sys.executable, "-c", CODE.format(context=context)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_large_blocks_go_back_to_the_system():
    assert kept("nullcontext()") > 100
    assert kept("bound_heap()") < 20
