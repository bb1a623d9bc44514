"""Fixtures for all tests. Nothing heavy is imported here: most tests need no torch."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.made_kernel import KernelFiles

# A busy machine is no failure: pytest's own timeout ends what hangs.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

# Each test process computes with one thread: several of them share the cores (torch reads this when it is imported).
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _on_the_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that is not marked `gpu` sees none, so that it computes the same on every machine."""
    if "torch" in sys.modules and request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes with one thread: as another process did whose results are compared, or faster on tiny volumes."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def kernel_files(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> KernelFiles:
    """Files of a made-up kernel; it limits nothing until a test says so."""
    from flaresemi import machine

    root = tmp_path_factory.mktemp("kernel")
    monkeypatch.setattr(machine, "ROOT", root)
    return KernelFiles(root)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real volumes beside the repository; tests that need it are skipped where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real volumes in ../shared/data")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def phantom_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic dataset in FLARE22's layout: 3 labeled, 1 unlabeled, 1 test case. Read it, write elsewhere."""
    from flaresemi.phantom import write_phantom_dataset

    folder = tmp_path_factory.mktemp("phantom") / "data"
    write_phantom_dataset(folder, labeled=3, unlabeled=1, test=1, size=(40, 48, 48), seed=7)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none; torch is imported only where such a test was collected."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="there is no GPU"))
