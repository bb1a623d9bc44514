"""How fast a model may predict: steps and windows, each with the Dice and the time that held-out cases gave."""

import dataclasses
from pathlib import Path
from typing import Literal

from flaresemi import __version__
from flaresemi.errors import CheckpointError, ConfigError
from flaresemi.inference.predictor import WindowMode
from flaresemi.ranges import Few, PositiveShare, Seconds, Share, ShareChange
from flaresemi.records import load_record

#: Its file in the folder of an export.
SPEED_LEVELS = "speed_levels.json"

LevelName = Literal["fast", "balanced", "exact"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSetting:
    """A step and a window, measured.

    Attributes:
        step: Distance of neighboring windows, as a share of the window.
        window: As for `StagePredictor`.
        mean_dice: Mean over the held-out cases of their mean Dice.
        seconds: Per case, from the image to the label map, of one fold.
        ahead: By how much the mean Dice is above that of the default, paired by case.
        ahead_within: Half of the 95 % interval of that; None for a single case.
    """

    step: PositiveShare
    window: WindowMode
    mean_dice: Share
    seconds: Seconds
    ahead: ShareChange = 0.0
    ahead_within: Seconds | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SpeedLevels:
    """What each level means for some models.

    Attributes:
        dataset: Its name.
        machine: The processor or card that the times are of.
        folds: Whose held-out cases were predicted, each by the models that did not train on them.
        cases: How many these are.
        networks: See `LoadedModels.networks`.
        curve: All that was measured, the default first.
        levels: The place in the curve of `exact`, which is the default, of `balanced` and `fast`.
    """

    schema_version: int = 1
    flaresemi: str = __version__
    dataset: str
    machine: str
    folds: tuple[str, ...]
    cases: Few
    networks: tuple[str, ...]
    curve: tuple[MeasuredSetting, ...]
    levels: dict[str, Few]

    def __post_init__(self) -> None:
        if self.levels.keys() != {"exact", "balanced", "fast"} or self.levels["exact"] != 0:
            raise ValueError("'levels' must have exact, which is the first of the curve, balanced and fast")
        if max(self.levels.values()) >= len(self.curve):
            raise ValueError("'levels' names a place beyond the curve")

    def setting(self, level: LevelName) -> MeasuredSetting:
        """What a level means."""
        return self.curve[self.levels[level]]

    def told(self, level: LevelName) -> str:
        """A level in words: what it means and costs."""
        found, exact = self.setting(level), self.curve[0]
        what = f"{level}: step {found.step:g}, window {found.window}"
        where = f"on {self.cases} held-out case{'s' if self.cases > 1 else ''}"
        if found == exact:
            return f"{what}, the default: mean Dice {exact.mean_dice:.4f} {where}"
        within = "" if found.ahead_within is None else f" ± {found.ahead_within:.4f}"
        share = found.seconds / max(exact.seconds, 1e-9)
        return f"{what}: Dice {found.ahead:+.4f}{within} {where}, {share:.2f} of the time ({self.machine})"

    def refuse_others(self, networks: tuple[str, ...]) -> None:
        """Checks that these networks are of those that were measured.

        Raises:
            CheckpointError: one is not.
        """
        if not {*networks} <= {*self.networks}:
            raise CheckpointError(
                "the speed levels were measured with other weights than these",
                fix="measure them again with flaresemi_export --speed-levels, or leave --fast and --balanced out",
            )


def load_levels(folder: Path) -> SpeedLevels:
    """The levels of the models in a folder.

    Raises:
        ConfigError: they were not measured.
        CheckpointError: the file is damaged.
    """
    path = folder / SPEED_LEVELS
    if not path.is_file():
        raise ConfigError(
            "nothing says what --fast and --balanced would cost these models",
            where=path,
            fix="measure it on the held-out cases: flaresemi_export -o FOLDER --speed-levels, then -m FOLDER; or set "
            "--step and --window yourself",
        )
    return load_record(path, SpeedLevels, error=CheckpointError)
