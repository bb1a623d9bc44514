"""The numbers of a training, one JSON object per epoch, cut back when a run resumes from an earlier point."""

import json
from pathlib import Path

from flaresemi.errors import CheckpointError
from flaresemi.files import open_no_link, read_text, write_text

Row = dict[str, object]


def read_history(path: Path) -> list[Row]:
    """All rows; a last line that a killed process left unfinished is dropped.

    Raises:
        CheckpointError: another line is not the row of an epoch.
    """
    if not path.exists():
        return []
    rows: list[Row] = []
    lines = read_text(path, errors="replace").split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and _is_row(row):
            rows.append(row)
        elif number < len(lines):
            raise CheckpointError(f"line {number} is not the row of an epoch", where=path, fix="remove that line")
    return rows


def _is_row(row: dict[str, object]) -> bool:
    """Whether all that is read of a row is what it should be; what is not known of an epoch may be missing or null."""
    dice = row.get("validation_dice") or {}
    if type(row.get("iteration")) is not int or not isinstance(dice, dict):
        return False
    numbers = [row[name] for name in _NUMBERS if row.get(name) is not None]
    return all(type(value) in (int, float) and abs(value) < _MOST for value in [*numbers, *dice.values()])  # no NaN


#: What is drawn of a row, and what no number of it comes near. Chosen: it can be drawn.
_NUMBERS = ("iteration", "loss", "learning_rate", "seconds", "validation_mean")
_MOST = 1e100


def append_row(path: Path, row: Row) -> None:
    """Adds one row and flushes it.

    Raises:
        ConfigError: the file is a link: those of a workspace are not written through.
        OSError: it cannot be written.
    """
    with open(path, "a", encoding="utf-8", opener=open_no_link) as file:
        file.write(json.dumps(row) + "\n")


def cut_history(path: Path, iteration: int) -> list[Row]:
    """Drops the rows after an iteration, so that history and checkpoint agree; returns what is left."""
    rows = [row for row in read_history(path) if int(row["iteration"]) <= iteration]  # type: ignore[call-overload]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows
