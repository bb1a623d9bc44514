"""Errors that a user can act on: exceptions that say what is wrong, where, and what to do."""

import contextlib
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import TypeVar

#: Unicode's categories of control characters, of invisible ones (marks of direction among them), of bytes that are no
#: text, and of line ends.
INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")

Error = TypeVar("Error", bound="FlaresemiError")


class FlaresemiError(Exception):
    """Something a user can mend. The command line prints it and exits with code 2.

    Args:
        what: One sentence: what is wrong, with the value found and the value expected.
        where: The file, case or field it was found in; a path stands on one line, whatever its name holds.
        fix: What the user can do about it.
    """

    def __init__(self, what: str, *, where: object = None, fix: str | None = None) -> None:
        # Positional storage keeps the exception picklable, so that it survives the way back from a worker process.
        super().__init__(what, where, fix)
        self.what = what
        self.where = None if where is None else one_line(where) if isinstance(where, PurePath) else str(where)
        self.fix = fix

    def __reduce__(self) -> tuple:
        return _rebuild, (type(self), self.what, self.where, self.fix)

    def __str__(self) -> str:
        return "\n       ".join(part for part in (self.what, self.where, self.fix) if part)


@contextlib.contextmanager
def about_case(case_id: str) -> Iterator[None]:
    """Puts the name of a case before what goes wrong in the block, where that does not name it."""
    try:
        yield
    except FlaresemiError as error:
        if f"'{case_id}'" in error.what:
            raise
        raise type(error)(f"case '{case_id}': {error.what}", where=error.where, fix=error.fix) from None


def without_frames(error: Error) -> Error:
    """An error to keep for later, without the calls that it came through: they hold whole images and their scores."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def listed(names: Sequence[str]) -> str:
    """The first five of some names, and how many there are besides: for messages."""
    return ", ".join(map(one_line, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def shown(text: str, length: int = 80) -> str:
    """A text from a file, for a message: what cannot be seen is escaped, and what is too long cut."""
    return one_line(text if len(text) <= length else f"{text[: length - 20]}…{text[-19:]}")


def one_line(text: object) -> str:
    """A text in which what cannot be seen is escaped: nothing in it begins a line, or tells a terminal what to do."""
    return "".join(_escaped(char) if unicodedata.category(char) in INVISIBLE else char for char in str(text))


def visible(text: str) -> str:
    """The same for a text of several lines, whose ends and tabs stay."""
    if text.isprintable():  # true of nothing that cannot be seen
        return text
    return "".join(char if char in "\n\t" else one_line(char) for char in text)


def is_one_line(text: str) -> bool:
    """Whether all of a text can be seen, on one line."""
    return not any(unicodedata.category(char) in INVISIBLE for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def _rebuild(kind: type[FlaresemiError], what: str, where: str | None, fix: str | None) -> FlaresemiError:
    return kind(what, where=where, fix=fix)


class DatasetError(FlaresemiError):
    """The dataset folder, its dataset.json or the set of its cases is not usable."""


class ImageError(FlaresemiError):
    """One image or label file cannot be read, or is not what it claims to be."""


class PlanError(FlaresemiError):
    """A fingerprint or plans.json is missing, malformed or does not fit the dataset."""


class ConfigError(FlaresemiError):
    """A command's options do not fit together, or a record of an earlier run contradicts them."""


class InUseError(ConfigError):
    """Another process is at work on the same thing."""


class CheckpointError(FlaresemiError):
    """A checkpoint is missing, damaged or was made with other plans."""


class PredictionError(FlaresemiError):
    """The networks gave nothing for an image that could be used."""


class SelectionError(FlaresemiError):
    """Pseudo-labels, their scores or their selection are missing, damaged or leave nothing to train on."""


class LostError(FlaresemiError):
    """Another process of the same launch has died."""


class ToldError(FlaresemiError):
    """Another process of the same launch tells of what ends this one: it is silent."""
