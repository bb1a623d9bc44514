"""Names of cases and folds, and the only way from a name to a path: none leads out of the folder that it belongs to."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from flaresemi.errors import INVISIBLE, DatasetError, shown
from flaresemi.portability import NO_NAME

#: Longest name in bytes. Chosen: file systems take 255, and endings (`_0000.nii.gz`) are added to a name.
MOST_BYTES = 240

#: Names of files that stand beside those of cases, without their ending.
RESERVED = ("made_with", "summary")


def check_name(name: str, *, where: object = None) -> str:
    """The name, if a case may have it.

    Args:
        name: Of a case, from wherever it was read.
        where: The file or folder that has it, for the message.

    Raises:
        DatasetError: it is empty, too long, begins with a dot, begins or ends with a space, holds a separator of
            folders or a character that cannot be seen, or is a name of ours.
    """
    problem = _problem(name)
    if problem:
        raise DatasetError(f"'{shown(name)}' cannot be the name of a case: {problem}", where=where, fix="rename it")
    return name


def case_file(folder: Path, name: str, ending: str = "") -> Path:
    """The file or folder of a case directly in `folder`; every path with a case's name in it is made here.

    Raises:
        DatasetError: as `check_name`.
    """
    return folder / (check_name(name, where=folder) + ending)


def is_fold(name: str) -> bool:
    """Whether a name is that of a fold, which becomes a folder: a number, or 'all'."""
    return name == "all" or (name.isascii() and name.isdecimal() and len(name) < 10)


def alike(name: str) -> str:
    """The same for names that some file systems take for one: they differ in case or in Unicode's composition."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def refuse_alike(names: Iterable[str], *, where: object = None) -> None:
    """Checks that no two names are `alike`: the files of one would replace those of the other.

    Raises:
        DatasetError: two are.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(alike(name), name)
        if other != name:
            raise DatasetError(
                f"cases '{other}' and '{name}' differ only in capital letters, or in how their letters are encoded",
                where=where,
                fix="rename one of them: some file systems take the two for one",
            )


def _problem(name: str) -> str | None:
    """The fault of a name; None for a good one."""
    # They make two names look alike, or one name two lines.
    invisible = next((char for char in name if unicodedata.category(char) in INVISIBLE), None)
    if not name:
        return "it is empty"
    if invisible is not None:
        return f"it holds a character that cannot be seen, {shown(invisible)}"
    if "/" in name or "\\" in name:
        return "it holds a separator of folders"
    if name.startswith("."):
        return "it begins with a dot, as hidden files do"
    if name != name.strip():
        return "it begins or ends with a space"
    if len(name.encode()) > MOST_BYTES:
        return f"it has {len(name.encode())} bytes in UTF-8, {MOST_BYTES} are possible"
    if NO_NAME.fullmatch(name):
        return "this system gives no file such a name"
    if alike(name) in RESERVED:
        return "a file of that name stands beside those of the cases"
    return None
