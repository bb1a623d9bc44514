"""Kept memory is used again without a page fault."""

import subprocess
import sys

import pytest

# In a process of its own: the setting cannot be undone.
COUNT_FAULTS = """
import ctypes, resource, sys
from flaresemi.compute.allocation import keep_freed_memory
if "keep" in sys.argv and not keep_freed_memory():
    sys.exit(77)
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]
def use():
    block = library.malloc(ctypes.c_size_t(64 << 20))
    ctypes.memset(block, 1, 64 << 20)
    library.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS, *arguments], capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode == 77:
        pytest.skip("needs glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_freed_memory_is_used_again_without_page_faults() -> None:
    assert faults("keep") < 100
