"""What was found out about computing networks on one machine, kept beside the models for the next process.

Kept files spare time and nothing else: one that is missing, damaged, or of other weights, versions or processors is as
good as none, and where nothing can be written nothing is kept.

A program is what a library wrote for itself and reads back without much of a check, so one is only taken where this
machine wrote it: a copy of the folder, which anybody may have made, has other inodes and times of change.
"""

import dataclasses
import hashlib
import os
import time
from pathlib import Path

from flaresemi.errors import FlaresemiError
from flaresemi.files import atomic_path, open_regular
from flaresemi.records import load_record, record_hash, save_record

#: Days after which an answer is asked for again: it may have been found in a busy moment. Chosen.
_OLD_DAYS = 30


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeptFile:
    """Something kept.

    Attributes:
        about: Hash of all that it depends on.
        answer: A text; of a program, the hash of its file.
        place: Of that file: its inode, and when it was last changed in any way; empty without one.
    """

    about: str
    answer: str
    place: str = ""


class Kept:
    """A folder of such findings.

    Args:
        folder: It is made when something is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def answer(self, name: str, about: object) -> str | None:
        """The text that was kept of late.

        Args:
            name: Of the file: a later text of this name takes its place.
            about: All that it depends on, as a record or a list.
        """
        path = self._folder / f"{name}.json"
        try:
            old = abs(time.time() - path.stat().st_mtime) > _OLD_DAYS * 86400
        except OSError:
            return None
        found = None if old else self._found(name, about)
        return None if found is None else found.answer

    def keep_answer(self, name: str, about: object, answer: str) -> None:
        """Keeps a text, if that is possible."""
        self._keep(name, KeptFile(about=record_hash(about), answer=answer))

    def program(self, name: str, about: object) -> bytes | None:
        """The bytes that were kept, whole and by this machine; see `answer`."""
        found = self._found(name, about)
        if found is None:
            return None
        try:
            with open(self._folder / f"{name}.bin", "rb", opener=open_regular) as file:
                if _place(os.fstat(file.fileno())) != found.place:
                    return None
                content = file.read()
        except OSError:
            return None
        return content if hashlib.sha256(content).hexdigest() == found.answer else None

    def keep_program(self, name: str, about: object, content: bytes) -> None:
        """Keeps bytes, if that is possible."""
        path = self._folder / f"{name}.bin"
        try:
            self._make_folder()
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
            place = _place(path.stat())  # of another process's file, perhaps, which then has another hash
        except (OSError, FlaresemiError):
            return
        answer = hashlib.sha256(content).hexdigest()
        self._keep(name, KeptFile(about=record_hash(about), answer=answer, place=place))

    def _found(self, name: str, about: object) -> KeptFile | None:
        try:
            found = load_record(self._folder / f"{name}.json", KeptFile)
        except (OSError, FlaresemiError):
            return None
        return found if found.about == record_hash(about) else None

    def _keep(self, name: str, kept: KeptFile) -> None:
        try:
            self._make_folder()
            save_record(self._folder / f"{name}.json", kept)
        except (OSError, FlaresemiError):
            return

    def _make_folder(self) -> None:
        """Makes the folder, beside models that are there.

        Raises:
            OSError: it cannot be made.
        """
        if self._folder.is_symlink():
            raise OSError(f"{self._folder} is a link")
        self._folder.mkdir(exist_ok=True)


def _place(state: os.stat_result) -> str:
    return f"{state.st_ino} {state.st_ctime_ns}"
