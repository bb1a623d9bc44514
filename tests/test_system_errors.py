"""A machine that lacks something is told from a file that is damaged."""

import errno
import os
import pickle

import pytest

from flaresemi import records
from flaresemi.image_paths import holds_slices, visible_files
from flaresemi.io import integrity
from flaresemi.planning.sources import file_stamp
from flaresemi.system_errors import SystemTrouble, explained, is_shortage, lacks_gpu_memory, lacks_memory

SHORTAGES = [
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.ENFILE, "x"),
    OSError(errno.ENOMEM, "x"),
    OSError(errno.ENOSPC, "x"),
    OSError(errno.EDQUOT, "x"),
    OSError(errno.EFBIG, "x"),
    BlockingIOError(errno.EAGAIN, "x"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("itk::ERROR: Failed to allocate memory for image."),
    RuntimeError("can't start new thread"),
    RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    OSError("80 requested and 16 written"),
]


@pytest.mark.parametrize("problem", SHORTAGES, ids=repr)
def test_shortages(problem):
    assert is_shortage(problem)
    told = explained(problem, where="the workspace")
    assert told.where == "the workspace" and told.fix
    assert type(pickle.loads(pickle.dumps(told))) is SystemTrouble


@pytest.mark.parametrize(
    "said",
    [
        "CUDA out of memory. Tried to allocate 2 GiB",
        "CUDA error: out of memory",
        "Allocation on device 0 would exceed allowed memory. (out of memory)",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_the_memory_of_a_gpu(said):
    problem = RuntimeError(said)
    assert lacks_gpu_memory(problem) and lacks_memory(problem) and is_shortage(problem)
    assert explained(problem).what == "CUDA is out of memory"


@pytest.mark.parametrize("said", ["GET was unable to find an engine", "FIND was unable to find an engine"])
def test_what_may_be_a_lack_of_gpu_memory_is_tried_with_less_but_not_called_one(said):
    problem = RuntimeError(f"{said} to execute this computation")
    assert lacks_gpu_memory(problem)
    assert not lacks_memory(problem) and not is_shortage(problem) and explained(problem) is None


@pytest.mark.parametrize("problem", [MemoryError(), RuntimeError("can't allocate memory"), RuntimeError("another")])
def test_main_memory_is_not_a_gpus(problem):
    assert not lacks_gpu_memory(problem)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EBUSY, errno.ENOENT, errno.ENOTSUP])
def test_other_errors_of_the_system_are_no_shortage_but_told(number):
    problem = OSError(number, os.strerror(number), "/a/file")
    assert not is_shortage(problem)
    assert explained(problem).where == "/a/file"


@pytest.mark.parametrize("problem", [ValueError("x"), KeyError("x"), RuntimeError("shape mismatch"), TypeError("x")])
def test_bugs_stay_bugs(problem):
    assert not is_shortage(problem)
    assert explained(problem) is None


@pytest.fixture
def no_more_files(monkeypatch):
    """Opening anything fails as at the limit of open files."""

    def fail(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("builtins.open", fail)
    monkeypatch.setattr("io.open", fail)
    monkeypatch.setattr("os.scandir", fail)
    monkeypatch.setattr("os.listdir", fail)


def test_nothing_is_called_damaged_or_absent_for_want_of_files(tmp_path, no_more_files):
    os.close(os.open(tmp_path / "slice.dcm", os.O_CREAT | os.O_WRONLY))
    for look in (
        lambda: records.load_json(tmp_path / "slice.dcm"),
        lambda: visible_files(tmp_path),
        lambda: holds_slices(tmp_path),
        lambda: integrity.opened(tmp_path / "slice.dcm").__enter__(),
        lambda: file_stamp(tmp_path),
    ):
        with pytest.raises(OSError, match="Too many open files"):
            look()


def test_a_reader_that_fails_for_want_of_memory_does_not_blame_the_file(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"x" * 200)
    with pytest.raises(RuntimeError, match="allocate"):
        integrity.raise_shortage(tmp_path / "a.dcm", RuntimeError("Failed to allocate memory for image"))
    integrity.raise_shortage(tmp_path / "a.dcm", RuntimeError("no such tag"))
