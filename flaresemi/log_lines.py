"""Log records as lines: a name from somewhere cannot make one of its own, nor tell a terminal what to do."""

import copy
import logging
from pathlib import PurePath

from flaresemi.errors import one_line, visible


class LineFormatter(logging.Formatter):
    """INFO as it is; other levels with their name in front.

    Args:
        with_module: Say which module speaks.
    """

    def __init__(self, with_module: bool = False) -> None:
        super().__init__("%(name)s: %(message)s" if with_module else "%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):
            args = tuple(one_line(each) if isinstance(each, PurePath) else each for each in record.args)
            record = copy.copy(record)
            record.args = args
        text = visible(super().format(record))
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"


def format_last_resort() -> None:
    """In a worker process, which has no handlers: what Python prints of its warnings looks as in its parent."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(LineFormatter())
