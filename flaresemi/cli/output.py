"""Standard output and error, which never stop the work: what cannot be written there is dropped.

They may be closed (daemons start programs so), lead to a disk that is full or to a reader that has left, or take
another encoding. All output passes through here, and control characters in texts from files are escaped.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from flaresemi.errors import FlaresemiError, visible

#: Control sequences of progress bars: to the start of the line, and up.
_BARS = re.compile(r"(\r|\x1b\[A)")

#: Replacements for the characters of our own texts beyond ASCII, for terminals that do not.
_PLAIN = {"±": "+-", "×": "x", "–": "-", "…": "...", "·": "-", "→": "->"}


class Outlet:
    """A text stream whose `write` and `flush` do not fail; all else is the stream's.

    Args:
        stream: The stream that is written to.
        bars: Progress bars may move the cursor.

    Attributes:
        problem: The last reason why something was not written; None: everything was.
    """

    def __init__(self, stream: TextIO, *, bars: bool = False) -> None:
        self.stream = stream
        self.problem: OSError | ValueError | None = None
        self._bars = bars

    def write(self, text: str) -> int:
        parts = _BARS.split(text) if self._bars else [text]
        safe = "".join(part if number % 2 else visible(part) for number, part in enumerate(parts))
        with self._lenient():
            try:
                self.stream.write(safe)
            except UnicodeEncodeError:
                self.stream.write(_in_encoding(safe, self.stream.encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._lenient():
            self.stream.flush()

    def finish(self) -> None:
        """Writes what is left. Where that fails it is given up, or Python would complain of it on exit."""
        try:
            self.stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as null:
                os.dup2(null.fileno(), self.stream.fileno())
                self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextlib.contextmanager
    def _lenient(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as problem:  # ValueError: it was closed
            self.problem = problem


@contextlib.contextmanager
def unfailing_output() -> Iterator[None]:
    """While in force, nothing that is printed, logged or warned of raises an error."""
    if isinstance(sys.stdout, Outlet) and isinstance(sys.stderr, Outlet):  # a command inside a command
        yield
        return
    before = sys.stdout, sys.stderr
    _fill_descriptors()
    with open(os.devnull, "w", encoding="utf-8") as null:
        out, err = Outlet(sys.stdout or null), Outlet(sys.stderr or null, bars=True)
        if sys.stdout is None:
            out.problem = ValueError("it is closed")
        sys.stdout, sys.stderr = out, err
        try:
            yield
        finally:
            out.finish()
            err.finish()
            sys.stdout, sys.stderr = before


class ReaderLeft(Exception):
    """The reader of standard output, such as `head`, has closed it."""


def require_printed() -> None:
    """Checks that all that was printed has arrived, for commands that make nothing else.

    Raises:
        ReaderLeft: nobody reads it any more.
        FlaresemiError: it could not be written.
    """
    if not isinstance(sys.stdout, Outlet):
        return
    sys.stdout.flush()
    problem = sys.stdout.problem
    if isinstance(problem, BrokenPipeError):
        raise ReaderLeft
    if problem is not None:
        raise FlaresemiError(
            f"standard output cannot be written to: {getattr(problem, 'strerror', None) or problem}",
            fix="what this command prints is all that it makes: send it somewhere else",
        )


def _fill_descriptors() -> None:
    """Opens the standard descriptors that are closed: else the next file takes one, and what a library prints."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)


def _in_encoding(text: str, encoding: str) -> str:
    """A text with what an encoding lacks replaced."""
    lacking = "".join(_PLAIN.get(char, char) if not _fits(char, encoding) else char for char in text)
    return lacking.encode(encoding, errors="backslashreplace").decode(encoding)


def _fits(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
