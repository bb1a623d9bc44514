import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from flaresemi.errors import FlaresemiError
from flaresemi.training.loading import failures_told

#: Two other processes, which prepare batches for ever; one of them may fail at its first.
SCRIPT = """
import sys, time
from torch.utils.data import Dataset
from flaresemi.training.loading import load_batches
from flaresemi.training.sampling import AddressSampler

class Source(Dataset):
    def __getitem__(self, address):
        if sys.argv[1] == "fails" and address[0] == 0:
            time.sleep(2)  # until the other one is at work
            raise ValueError("a fault of ours")
        print("at work", flush=True)
        time.sleep(3600)

if __name__ == "__main__":
    batches = load_batches(Source(), AddressSampler(range(5), range(2)), 2)
    next(batches)
"""


def start(tmp_path: Path, what: str) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, script, what], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.timeout(120)
def test_a_fault_in_another_process_ends_the_program(tmp_path: Path) -> None:
    with start(tmp_path, "fails") as process:
        _, told = process.communicate()
    assert process.returncode == 1
    assert "a fault of ours" in told


@pytest.mark.timeout(120)
def test_processes_that_prepare_patches_end_with_their_parent(tmp_path: Path) -> None:
    with start(tmp_path, "works") as process:
        assert process.stdout is not None
        process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
        assert len(children) >= 2
        process.kill()
        process.wait()
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{child}").exists() for child in children):
            assert time.monotonic() < deadline, "they outlived their parent"
            time.sleep(0.1)


@pytest.mark.parametrize(
    "problem",
    [
        MemoryError("Unable to allocate 3 TiB"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried 9"),
    ],
)
def test_memory_that_ran_out_is_told(problem: Exception) -> None:
    with pytest.raises(FlaresemiError, match="memory ran out") as told, failures_told():
        raise problem
    assert "--gpu-memory-gib" in str(told.value)
