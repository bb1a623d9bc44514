"""Predictions that other programs ask a warm server for: one at a time, the next ones wait, results stay for a while.

Nothing here knows HTTP.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from flaresemi.errors import ConfigError, FlaresemiError
from flaresemi.image_paths import IMAGE_ENDINGS, image_name
from flaresemi.inference.dicom_output import DicomOutput
from flaresemi.inference.measurements import measure
from flaresemi.inference.segmentation import Segmentation, write_segmentation
from flaresemi.inference.segmenter import ImageSegmenter
from flaresemi.io.dicom_headers import ENDINGS
from flaresemi.organ_codes import OrganCode
from flaresemi.pseudolabels.reliability import Reliability
from flaresemi.records import to_plain
from flaresemi.selection import CaseScore
from flaresemi.system_errors import explained

logger = logging.getLogger(__name__)

#: What results may be asked for as, and what their files end with.
FORMATS: dict[str, str] = {ending[1:]: ending for ending in IMAGE_ENDINGS if ending != ".mhd"} | ENDINGS


class BusyError(FlaresemiError):
    """As many predictions wait as may."""


class LateError(FlaresemiError):
    """A prediction took longer than it may."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server takes on.

    Attributes:
        waiting: Predictions that may wait besides the one that is made.
        seconds: How long a request waits for its result.
        kept: Results that are kept, the latest ones.
        kept_seconds: How long.
    """

    waiting: int = 8
    seconds: float = 600.0
    kept: int = 20
    kept_seconds: float = 3600.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The result of a prediction.

    Attributes:
        id: By which its file is asked for.
        file: The label map.
        made: When, on the clock of `time.monotonic`.
        told: Statistics, reliability, notes and warnings, as plain data.
    """

    id: str
    file: Path
    made: float
    told: dict[str, object]


class Predictions:
    """Makes predictions with models that are loaded once, one after the other.

    Args:
        segmenter: The models.
        reliability: Judges every prediction; None: none is judged.
        folder: Where results lie; it belongs to the server alone.
        roots: Folders from which images may be named.
        limits: What is taken on.
        codes: The user's own codes of organs, for results as DICOM objects.
    """

    def __init__(
        self,
        segmenter: ImageSegmenter,
        *,
        reliability: Reliability | None,
        folder: Path,
        roots: Sequence[Path],
        limits: Limits,
        codes: Mapping[str, OrganCode] | None = None,
    ) -> None:
        self._segmenter, self._reliability, self._folder, self.limits = segmenter, reliability, folder, limits
        self._codes = codes or {}
        self._roots = [root.resolve() for root in roots]
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="prediction")
        self._lock = threading.Lock()
        self._pending = 0
        self._made = 0
        self._answers: collections.OrderedDict[str, Answer] = collections.OrderedDict()
        self._closed = threading.Event()
        self._forgetting = threading.Thread(target=self._forget_in_time, name="forgetting", daemon=True)
        self._forgetting.start()

    @property
    def state(self) -> dict[str, object]:
        """What the server is doing."""
        with self._lock:
            return {"status": "ready", "pending": self._pending, "made": self._made}

    @property
    def about(self) -> dict[str, object]:
        """What the models segment."""
        return {
            "organs": {label.name: list(label.values) for label in self._segmenter.labels.labels},
            "channels": list(self._segmenter.channels),
            "models": list(self._segmenter.models),
            "reliability": self._reliability is not None,
            "formats": list(FORMATS),
            "folders": [str(root) for root in self._roots],
        }

    def named(self, paths: Sequence[str]) -> list[Path]:
        """Images that a request names.

        Raises:
            ConfigError: one lies outside of the folders that were allowed, or is not there.
        """
        found = []
        for text in paths:
            path = Path(os.path.realpath(text)) if text and "\0" not in text and os.path.isabs(text) else None
            if path is None or not any(path.is_relative_to(root) for root in self._roots):
                raise ConfigError(
                    "this path may not be read",
                    fix="name an absolute path within a folder that the server was started with",
                )
            if image_name(path) is None or not path.exists():
                raise ConfigError("no image file, and no folder with DICOM slices, is there", where=text)
            found.append(path)
        return found

    def refuse_where_full(self) -> None:
        """Checks whether a prediction may be queued now, before its image is taken.

        Raises:
            BusyError: too many wait.
        """
        if self._pending > self.limits.waiting:
            raise BusyError(f"{self._pending} predictions are under way or waiting", fix="ask again later")

    def start(self, images: Sequence[Path], form: str, own: Path | None = None) -> "concurrent.futures.Future[Answer]":
        """Queues a prediction.

        Args:
            images: One per channel.
            form: Of the label map, one of `FORMATS`.
            own: A folder that goes when the prediction is made or refused, and the images with it.

        Raises:
            BusyError: too many wait.
        """
        with contextlib.ExitStack() as refused:
            if own is not None:
                refused.callback(shutil.rmtree, own, ignore_errors=True)
            with self._lock:
                self.refuse_where_full()
                self._pending += 1
            future = self._worker.submit(self._predict, images, form)
            refused.pop_all()
        future.add_done_callback(lambda _: self._end(own))
        return future

    def answer(self, name: str) -> Answer | None:
        """A result that is kept still."""
        self._forget_old()
        with self._lock:
            return self._answers.get(name)

    def forget(self, name: str) -> bool:
        """Removes a result; whether there was one."""
        with self._lock:
            answer = self._answers.pop(name, None)
        if answer is not None:
            shutil.rmtree(answer.file.parent, ignore_errors=True)
        return answer is not None

    def close(self) -> None:
        """Ends the work: what waits is not begun."""
        self._worker.shutdown(wait=True, cancel_futures=True)
        self._closed.set()
        self._forgetting.join()

    def _end(self, own: Path | None) -> None:
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)
        with self._lock:
            self._pending -= 1

    def _predict(self, images: Sequence[Path], form: str) -> Answer:
        try:
            return self._make(images, form)
        except (OSError, MemoryError, RuntimeError) as problem:
            trouble = explained(problem, where=self._folder)
            if trouble is None:
                raise
            raise trouble from problem

    def _make(self, images: Sequence[Path], form: str) -> Answer:
        started = time.monotonic()
        scores: list[CaseScore] = []
        output = self._dicom(form)
        if output is not None:
            output.check([images])
        image = self._segmenter.read(images)
        judge = None if self._reliability is None else self._reliability.watch("", scores)
        segmentation = self._segmenter.segment(image, watch=judge, name=images[0].name)
        name = secrets.token_hex(16)
        file = self._folder / name / f"labels{FORMATS[form]}"
        file.parent.mkdir()
        if output is None:
            write_segmentation(file, segmentation)
        else:
            output.write(images[0], file, segmentation)
        measured = measure(image_name(images[0]) or name, segmentation, image, self._segmenter.channels)
        told = {
            "id": name,
            "labels": f"/results/{name}/{file.name}",
            "statistics": to_plain(measured.organs),
            "reliability": _told(scores),
            "notes": list(segmentation.notes),
            "warnings": [each.message for each in segmentation.findings],
            "seconds": round(time.monotonic() - started, 3),
            "models": list(self._segmenter.models),
        }
        answer = Answer(id=name, file=file, made=time.monotonic(), told=told)
        with self._lock:
            self._answers[name] = answer
            self._made += 1
        self._forget_old()
        logger.info("a prediction in %.1f s; %s", time.monotonic() - started, _line(segmentation))
        return answer

    def _dicom(self, form: str) -> DicomOutput | None:
        if form not in ENDINGS:
            return None
        return DicomOutput(
            format=form,
            labels=self._segmenter.labels,
            codes=self._codes,
            models=self._segmenter.models,
        )

    def _forget_old(self) -> None:
        now = time.monotonic()
        with self._lock:
            surplus = list(self._answers)[: max(len(self._answers) - self.limits.kept, 0)]
            old = [name for name, each in self._answers.items() if now - each.made >= self.limits.kept_seconds]
        for name in {*surplus, *old}:
            self.forget(name)

    def _forget_in_time(self) -> None:
        """Removes every result when its time has come, also where nobody asks for anything."""
        while True:
            with self._lock:
                oldest = min((each.made for each in self._answers.values()), default=time.monotonic())
            if self._closed.wait(max(oldest + self.limits.kept_seconds - time.monotonic(), 0.0)):
                return
            self._forget_old()


def _told(scores: Sequence[CaseScore]) -> dict[str, object] | None:
    if not scores:
        return None
    return {name: to_plain(organ) for name, organ in scores[-1].organs.items()}


def _line(segmentation: Segmentation) -> str:
    return "; ".join(segmentation.notes) or f"{len(set(segmentation.labels.names))} organs"
