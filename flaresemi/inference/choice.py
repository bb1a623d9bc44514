"""What `flaresemi_find_best` found: which models predict, and the numbers that say so."""

import dataclasses
import os
from pathlib import Path

from flaresemi import __version__
from flaresemi.errors import CheckpointError
from flaresemi.ranges import AtLeastOne, Few, Seconds, Share, ShareChange, SpacingTriple
from flaresemi.records import load_record, save_record

#: Its file in the folder that the command writes.
CHOICE = "best.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ComparedModel:
    """One of the models that were compared.

    Attributes:
        name: In the results.
        folder: Where it lay, from the root of the file system.
        beside: The same from the record's folder, so that both can be moved together.
        stages: 2 where COARSE finds the region, else 1.
        spacing_zyx_mm: Of FINE.
        networks: Stage, fold and weights of every network that was compared.
    """

    name: str
    folder: str
    beside: str
    stages: AtLeastOne
    spacing_zyx_mm: SpacingTriple
    networks: tuple[str, ...]

    @classmethod
    def at(cls, folder: Path, record_folder: Path, **facts: object) -> "ComparedModel":
        """A model in a folder, for a record in another."""
        try:
            beside = os.path.relpath(folder.resolve(), record_folder.resolve())
        except ValueError:  # Windows: on another drive
            beside = str(folder.resolve())
        return cls(folder=str(folder.resolve()), beside=Path(beside).as_posix(), **facts)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ComparedResult:
    """What one model, or the average of several, scored on the held-out cases.

    Attributes:
        members: Names of the models.
        mean_dice: Mean over the cases of their mean Dice.
        dice: The mean Dice of every case.
        organs: The mean Dice of every organ over the cases that annotate it.
        seconds: Per case, from the image to the label map, of one fold.
        ahead: By how much the mean Dice is above that of the best single model, paired by case; 0 for that one.
        ahead_within: Half of the 95 % interval of that; None for a single case.
    """

    members: tuple[str, ...]
    mean_dice: Share
    dice: dict[str, Share]
    organs: dict[str, Share]
    seconds: Seconds
    ahead: ShareChange = 0.0
    ahead_within: Seconds | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BestConfiguration:
    """The models that predict, and all that were compared.

    Attributes:
        dataset: Its name.
        folds: Whose held-out cases were predicted, each by the models that did not train on them.
        cases: How many these are.
        models: All that were compared.
        results: Of each by itself and of their averages, best first.
        chosen: Names of the models that predict: one, or several whose probabilities are averaged.
        why: In words.
    """

    schema_version: int = 1
    flaresemi: str = __version__
    dataset: str
    folds: tuple[str, ...]
    cases: Few
    models: tuple[ComparedModel, ...]
    results: tuple[ComparedResult, ...]
    chosen: tuple[str, ...]
    why: tuple[str, ...]

    def __post_init__(self) -> None:
        names = [model.name for model in self.models]
        if len(set(names)) != len(names):
            raise ValueError("two models have one name")
        if not self.folds:
            raise ValueError("'folds' names none")
        if not self.chosen or len(set(self.chosen)) != len(self.chosen) or not {*self.chosen} <= {*names}:
            raise ValueError("'chosen' must name some of the models, each once")

    @property
    def chosen_models(self) -> tuple[ComparedModel, ...]:
        """The models that predict, in the order of `chosen`."""
        by_name = {model.name: model for model in self.models}
        return tuple(by_name[name] for name in self.chosen)


def choice_file(model: Path) -> Path | None:
    """The record that a user names, by its folder or itself; None for models."""
    if model.suffix == ".json" and not model.is_dir():
        return model
    return model / CHOICE if (model / CHOICE).is_file() else None


def load_choice(path: Path) -> BestConfiguration:
    """Reads what `save_choice` wrote.

    Raises:
        CheckpointError: the file is missing or is no such record.
    """
    return load_record(path, BestConfiguration, error=CheckpointError)


def save_choice(path: Path, choice: BestConfiguration) -> None:
    """Writes the record, atomically."""
    save_record(path, choice)


def place_of(model: ComparedModel, record: Path) -> Path:
    """Where a model lies now: beside the record as it did then, else in the same place.

    Raises:
        CheckpointError: in neither.
    """
    places = [Path(os.path.normpath(record.parent / model.beside)), Path(model.folder)]
    place = next((each for each in places if each.is_dir()), None)
    if place is None:
        raise CheckpointError(
            f"the models of '{model.name}', which {record.name} chose, are no longer there",
            where=" or ".join(map(str, dict.fromkeys(places))),
            fix="put them back, or compare again with flaresemi_find_best",
        )
    return place
