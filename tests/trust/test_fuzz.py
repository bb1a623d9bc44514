"""A bounded sample of benchmarks/fuzz.py, and whether it would see what it looks for."""

import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flaresemi.errors import ImageError
from tests.trust import batches, targets
from tests.trust.targets import Target

INPUTS = 60


@pytest.mark.parametrize("kind", targets.targets())
def test_a_spoilt_file_is_refused_or_read(kind: str) -> None:
    outcome = batches.fuzz(kind, 0, INPUTS, None)
    assert outcome.findings == []
    assert outcome.counts["refused"] + outcome.counts["read"] == INPUTS
    assert outcome.counts["refused"] > 0


def _allocate(path: Path) -> None:
    np.ones(3 * batches.MOST_BYTES // 8)


def _refuse_at_length(path: Path) -> None:
    raise ImageError("x" * 3000)


@pytest.mark.parametrize(
    ("read", "found"),
    [
        (lambda path: {}["absent"], "KeyError"),
        (lambda path: os.kill(os.getpid(), signal.SIGSYS), "SIGSYS"),  # of others pytest would print the stack
        (lambda path: time.sleep(5), "it waited for more than 1 s"),
        (lambda path: next(each for each in itertools.count() if each < 0), "more than 1 s"),
        (_allocate, "Unable to allocate"),
        (_refuse_at_length, "a message of 3000 characters"),
    ],
)
def test_what_must_not_happen_is_seen(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object], found: str
) -> None:
    monkeypatch.setattr(batches, "targets", lambda shared: {"odd": lambda: Target(seeds={"a": b"abc"}, read=read)})
    waits = found.startswith("it waited")  # only one of the two limits can be meant
    monkeypatch.setattr(batches, "MOST_SECONDS", 60 if waits else 1)
    monkeypatch.setattr(batches, "MOST_WAITING_SECONDS", 1 if waits else 60)
    outcome = batches.fuzz("odd", 7, 2, None)
    assert [number for number, _ in outcome.findings] == [7, 8]
    assert all(found in text for _, text in outcome.findings)
