"""The numbers of a training: what a killed process left unfinished is dropped, what is damaged is said."""

from pathlib import Path

import pytest

from flaresemi.errors import CheckpointError, ConfigError
from flaresemi.training.history import append_row, cut_history, read_history


def test_an_unfinished_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for iteration in (10, 20, 30):
        append_row(path, {"iteration": iteration, "loss": 0.5})
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"iteration": 40, "lo')
    assert [row["iteration"] for row in read_history(path)] == [10, 20, 30]
    assert [row["iteration"] for row in cut_history(path, 20)] == [10, 20]
    assert [row["iteration"] for row in read_history(path)] == [10, 20]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe", b"[" * 100_000, b"{}", b"3", b'{"iteration": "x"}', b'{"iteration": null}', b"", b"\0",
        b'{"iteration": true}', b'{"iteration": 1%s}' % (b"0" * 400), b'{"iteration": 15, "loss": "0.5"}',
        b'{"iteration": 15, "loss": [0.5]}', b'{"iteration": 15, "loss": NaN}',
        b'{"iteration": 15, "seconds": Infinity}',
        b'{"iteration": 15, "validation_dice": {"liver": null}}', b'{"iteration": 15, "validation_dice": [0.5]}',
        b'{"iteration": 15, "validation_mean": {}}', b'{"iteration": 15, "learning_rate": 1e308}',
    ],
)  # fmt: skip
def test_another_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"iteration": 10}\n' + line + b'\n{"iteration": 20}\n')
    with pytest.raises(CheckpointError, match="line 2 is not the row of an epoch"):
        read_history(path)


def test_a_prepared_link_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "history.jsonl").symlink_to(outside)
    with pytest.raises(ConfigError, match="a link"):
        append_row(tmp_path / "history.jsonl", {"iteration": 10})
    assert outside.read_text() == "mine"
