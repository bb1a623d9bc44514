"""Records of self-training: the scores of pseudo-labels per case and organ, and which of them training uses."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

from flaresemi.errors import SelectionError, shown
from flaresemi.ranges import Few, Range, Share, VolumeMl, check_ranges
from flaresemi.records import CAME_LATER
from flaresemi.tables import read_table, write_table

SCHEMA_VERSION = 1

Rule = Literal["case", "organ"]

#: First of what the pseudo-labels of a model from outside of the workspace were made with.
OUTSIDE = "outside"

Threshold = Annotated[float, Range(0, 1e6)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OrganScore:
    """The scores of one organ of one pseudo-label.

    Attributes:
        agreement: Mean Dice of the saved mask with those of the snapshots, 0 to 1; None where the organ is absent from
            all of them.
        predicted_dice: Expected Dice by a calibration on real labels; None without one, or when absent.
        volume_ml: Volume in the saved mask.
        entropy: Mean entropy of the probabilities inside the saved mask, as a share of the largest possible, 0 to 1;
            None when absent.
        touched_faces: How many faces of the region the mask reaches, not counting those at the border of the image.
    """

    agreement: Share | None
    predicted_dice: Share | None = None
    volume_ml: VolumeMl
    entropy: Annotated[float, Range(-0.001, 1.001)] | None  # rounding
    touched_faces: Annotated[int, Range(0, 6)] = 0

    @property
    def is_absent(self) -> bool:
        """Absent from the saved mask and from all snapshots."""
        return self.agreement is None

    @property
    def trust(self) -> float | None:
        """The value that selection compares: the predicted Dice, or else the agreement; None when absent."""
        return self.agreement if self.predicted_dice is None else self.predicted_dice


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CaseScore:
    """One row of the score file.

    Attributes:
        score: Mean agreement of the organs that are not absent; 0 when no organ was found.
        organs: By name, in the order of the label set.
        flags: Anything unusual, such as fallbacks and repairs.
        made_with: Hashes of the checkpoints that labeled and scored it.
        calibration: Of a prediction, the hash of the calibration that the model had; empty in older records. It stands
            in no score file.
    """

    case_id: str
    score: Share
    organs: dict[str, OrganScore]
    flags: tuple[str, ...] = ()
    made_with: tuple[str, ...] = ()
    calibration: str = dataclasses.field(default="", metadata=CAME_LATER)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SelectedCase:
    """A pseudo-labeled case that training uses.

    Attributes:
        supervised: Organs for which its label map is trusted, including trusted absences.
        rejected: The other organs, with the reason.
        weight: Factor of its loss.
        source: Whose label map it is: the round's own (`pseudo`); one that a person accepted in these organs,
            of an earlier round or drawn; or one that a person corrected, which counts as a real one.
    """

    case_id: str
    score: Share
    supervised: tuple[str, ...]
    rejected: dict[str, str]
    weight: Annotated[float, Range(0, 100)] = 1.0
    source: Literal["pseudo", "accepted", "corrected"] = "pseudo"

    @property
    def rank(self) -> tuple[bool, float]:
        """The larger, the better: what a person corrected before all else, then by score."""
        return self.source == "corrected", self.score


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which pseudo-labels a round trains on, and why.

    Attributes:
        round: Number of the round, from 1.
        fold: The chain's fold.
        rule: `case`: whole cases by their score; `organ`: each organ on its own.
        thresholds: The numbers of the rule, by name.
        selected: Best score first.
        rejected: Cases that are not used, with the reason.
        notes: Remarks for the user, for example that too few cases reached the threshold.
        organ_cuts: `organ`: the threshold that was applied, by organ.
    """

    schema_version: int = SCHEMA_VERSION
    round: Few
    fold: str
    rule: Rule
    thresholds: dict[str, Threshold]
    selected: tuple[SelectedCase, ...]
    rejected: dict[str, str]
    notes: tuple[str, ...] = ()
    organ_cuts: dict[str, Share] = dataclasses.field(default_factory=dict)


#: File name of the record beside exported label maps.
EXPORT_RECORD = "exported.json"

EXPORT_SCHEMA_VERSION = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExportRecord:
    """The origin of the exported pseudo-labels in a folder, which never holds those of two rounds.

    Attributes:
        fold: The chain's fold.
        round: Number of the round, from 1.
        made_with: Hashes of the checkpoints that produced them.
        trained_on: Labeled cases that those models were trained on, as far as that is known.
        taught_outside: A model from outside labeled in the chain: nothing says what it was trained on.
        selection: Which of them are trusted; None: all pseudo-labels were exported, without a selection.
    """

    schema_version: int = EXPORT_SCHEMA_VERSION
    fold: str
    round: Few
    made_with: tuple[str, ...]
    trained_on: tuple[str, ...]
    taught_outside: bool = dataclasses.field(default=False, metadata=CAME_LATER)
    selection: Selection | None

    @property
    def is_outside(self) -> bool:
        """Whether a model from outside produced them."""
        return self.made_with[:1] == (OUTSIDE,)

    @property
    def teacher(self) -> tuple[object, ...]:
        """The facts that determine the label maps, whichever of them are selected."""
        known = () if self.is_outside else self.trained_on  # older versions named cases of which nothing is known
        return self.fold, self.round, self.made_with, known


_CASE_COLUMNS = ("case_id", "score", "flags", "made_with")
_ORGAN_COLUMNS = ("agreement", "predicted_dice", "volume_ml", "entropy", "touched_faces")


def save_scores(path: Path, scores: tuple[CaseScore, ...]) -> None:
    """Writes the score file: a row per case, a group of columns per organ; empty cells where there is no value.

    Cases may have been scored for different organs: a group of empty cells is an organ that was not.
    """
    organs = tuple(dict.fromkeys(organ for case in scores for organ in case.organs))
    rows: list[list[object]] = [
        [*_CASE_COLUMNS, *(f"{organ}: {column}" for organ in organs for column in _ORGAN_COLUMNS)]
    ]
    for case in scores:
        cells: list[object] = [case.case_id, _cell(case.score), "; ".join(case.flags), " ".join(case.made_with)]
        for organ in organs:
            found = case.organs.get(organ)
            cells += [_cell(getattr(found, column) if found else None) for column in _ORGAN_COLUMNS]
        rows.append(cells)
    write_table(path, rows)


def load_scores(path: Path) -> tuple[CaseScore, ...]:
    """Reads a score file.

    Raises:
        SelectionError: it is missing or damaged.
    """
    try:
        columns, rows = read_table(path)
        if columns[: len(_CASE_COLUMNS)] != _CASE_COLUMNS:
            raise ValueError("it has other columns")
        return tuple(map(_score, rows))
    except FileNotFoundError:
        raise SelectionError("score file not found", where=path, fix="label the cases of this round first") from None
    except (ValueError, KeyError) as problem:
        raise SelectionError(
            f"the score file is damaged: {shown(str(problem), 200)}",
            where=path,
            fix="delete it: it is written again from the scores of the cases",
        ) from None


def _score(row: dict[str, str]) -> CaseScore:
    organs = dict.fromkeys(column.rsplit(": ", 1)[0] for column in row if ": " in column)
    score = CaseScore(
        case_id=row["case_id"],
        score=_finite(row["score"]),
        organs={
            organ: OrganScore(
                agreement=_number(row[f"{organ}: agreement"]),
                predicted_dice=_number(row[f"{organ}: predicted_dice"]),
                volume_ml=_finite(row[f"{organ}: volume_ml"]),
                entropy=_number(row[f"{organ}: entropy"]),
                touched_faces=int(row[f"{organ}: touched_faces"]),
            )
            for organ in organs
            if any(row[f"{organ}: {column}"] for column in _ORGAN_COLUMNS)
        },
        flags=tuple(row["flags"].split("; ")) if row["flags"] else (),
        made_with=tuple(row["made_with"].split()),
    )
    for judged in (score, *score.organs.values()):
        check_ranges(judged)
    return score


def _cell(value: float | None) -> str:
    return "" if value is None else repr(value)


def _number(cell: str) -> float | None:
    return _finite(cell) if cell else None


def _finite(cell: str) -> float:
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError(f"'{cell}' is no finite number")
    return value
