"""A workspace with two rounds, copied for every test that writes."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from flaresemi.workspace import Workspace
from tests.review.made_review import MadeReview, make


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> MadeReview:
    """Read it, write into `made`."""
    return make(tmp_path_factory.mktemp("review"))


@pytest.fixture
def made(kept: MadeReview, tmp_path: Path) -> MadeReview:
    """Of one test alone."""
    shutil.copytree(kept.workspace.root, tmp_path / "workspace")
    return dataclasses.replace(kept, workspace=Workspace(tmp_path / "workspace"))
