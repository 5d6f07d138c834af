"""What is freed within `bound_heap` is given back to the system, whatever lies between."""

import platform
import subprocess
import sys

import pytest

CODE = """
import psutil

from engine.peak_memory import bound_heap

def kept(context):
    size, small = psutil.Process().memory_info().rss, []
    with context:
        for _ in range(3):  # blocks of growing size, with what stays between them
            for mib in range(3, 12):
                large = [bytearray(mib << 20) for _ in range(6)]
                small += [bytearray(1000) for _ in range(500)]
                del large[::2]
                small.append(bytearray(100_000))
                del large
    return (psutil.Process().memory_info().rss - size) >> 20

print(kept(bound_heap()))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_large_blocks_go_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 32
