"""What can go wrong for a user, as exceptions that say what, where and what to do."""

import contextlib
import unicodedata
from collections.abc import Iterator, Sequence

#: Unicode's categories of control characters, of invisible ones (marks of direction among them), of bytes that are no
#: text, and of line ends.
INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")


class FlaresemiError(Exception):
    """Something a user can mend. The command line prints it and exits with code 2.

    Args:
        what: One sentence: what is wrong, with the value found and the value expected.
        where: The file, case or field it was found in.
        fix: What the user can do about it.
    """

    def __init__(self, what: str, *, where: object = None, fix: str | None = None) -> None:
        # Positional storage keeps the exception picklable, so that it survives the way back from a worker process.
        super().__init__(what, where, fix)
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix

    def __reduce__(self) -> tuple:
        return _rebuild, (type(self), self.what, self.where, self.fix)

    def __str__(self) -> str:
        return "\n       ".join(line for line in (self.what, self.where, self.fix) if line)


@contextlib.contextmanager
def about_case(case_id: str) -> Iterator[None]:
    """Puts the name of a case before what goes wrong in the block, where that does not name it."""
    try:
        yield
    except FlaresemiError as error:
        if f"'{case_id}'" in error.what:
            raise
        raise type(error)(f"case '{case_id}': {error.what}", where=error.where, fix=error.fix) from None


def listed(names: Sequence[str]) -> str:
    """The first five of some names, and how many there are besides: for messages."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def shown(text: str, length: int = 80) -> str:
    """A text from a file, for a message: what cannot be seen is escaped, and what is too long cut."""
    short = text if len(text) <= length else f"{text[: length - 20]}…{text[-19:]}"
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in INVISIBLE else char for char in short
    )


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


class CheckpointError(FlaresemiError):
    """A checkpoint is missing, damaged or was made with other plans."""


class PredictionError(FlaresemiError):
    """The networks gave nothing for an image that could be used."""


class SelectionError(FlaresemiError):
    """Pseudo-labels, their scores or their selection are missing, damaged or leave nothing to train on."""
