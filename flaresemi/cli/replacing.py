"""Files that a command may replace: its own; for all others an option has to say so."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from flaresemi.errors import ConfigError, listed


def refuse_foreign(files: Iterable[Path], is_ours: Callable[[Path], bool], *, writer: str, overwrite: bool) -> None:
    """Checks, before anything is computed, that a command may write its files.

    Args:
        files: Those that will be written.
        is_ours: Whether a file that is there was written by this command. Of a link, what it leads to counts; it is
            the link that is replaced.
        writer: The command.
        overwrite: Whether the user allowed to replace other files. Folders are never replaced.

    Raises:
        ConfigError: something else is there.
    """
    there = [path for path in files if os.path.lexists(path)]
    folders = [path for path in there if path.is_dir()]
    if folders:
        raise ConfigError(
            "a folder is in the place of a file that would be written",
            where=folders[0],
            fix="rename it, or name another place with -o",
        )
    foreign = [] if overwrite else [path for path in there if not (path.exists() and is_ours(path))]
    if foreign:
        raise ConfigError(
            f"{len(foreign)} file(s) would be replaced that {writer} did not write, or that were changed since: "
            f"{listed([path.name for path in foreign])}",
            where=foreign[0].parent,
            fix="name another place with -o; --overwrite replaces them",
        )
