"""Score files: what is written is read, and what is damaged is said."""

from pathlib import Path

import pytest

from flaresemi.errors import SelectionError
from flaresemi.selection import CaseScore, OrganScore, load_scores, save_scores

SCORE = CaseScore(
    case_id='a, "b"',
    score=0.5,
    flags=("one", "two"),
    made_with=("h1",),
    organs={"liver: left": OrganScore(agreement=0.5, volume_ml=3.0, entropy=None)},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    save_scores(tmp_path / "scores.csv", (SCORE,))
    assert load_scores(tmp_path / "scores.csv") == (SCORE,)


@pytest.mark.parametrize("order", [1, -1])
def test_cases_of_several_sets_of_organs(tmp_path: Path, order: int) -> None:
    scores = (SCORE, CaseScore(case_id="b", score=0.0, organs={"spleen": SCORE.organs["liver: left"]}))[::order]
    save_scores(tmp_path / "scores.csv", scores)
    assert load_scores(tmp_path / "scores.csv") == scores


@pytest.mark.parametrize(
    ("old", "new"),
    [("0.5", "nan"), ("0.5", "inf"), ("3.0", "-inf"), (",h1", ""), ("0.5", "x" * 10**6), ("a", "\udcff"), ("one", '"')],
)
def test_what_is_damaged_is_said(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "scores.csv"
    save_scores(path, (SCORE,))
    head, _, row = path.read_text().partition("\n")
    path.write_bytes(f"{head}\n{row.replace(old, new)}".encode("utf-8", "surrogateescape"))
    with pytest.raises(SelectionError, match="damaged") as caught:
        load_scores(path)
    assert len(str(caught.value)) < 1000
