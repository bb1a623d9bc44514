"""Organs that a round may lose: looked at before and after it, and kept from what would teach them away."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

from flaresemi.errors import SelectionError
from flaresemi.pseudolabels.calibration import Observations
from flaresemi.pseudolabels.outside import dice_reached
from flaresemi.pseudolabels.selecting import SelectionRule
from flaresemi.pseudolabels.vitals import (
    LABELED_CASES,
    POOL_CASES,
    Vitals,
    compared,
    dice_of_labeled,
    median_present,
    no_teacher,
    spread,
    volumes_of_pool,
)
from flaresemi.records import load_record, save_record
from flaresemi.rounds.pieces import Looks
from flaresemi.selection import CaseScore
from flaresemi.workspace import RoundFolder, Workspace

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """The organs of one round, in the chain of one fold.

    Attributes:
        workspace: Where the round and those before it lie.
        fold: The chain's fold.
        number: Of the round.
        training: Labeled cases that its models and those before are trained on.
        labeled_ml: By organ, volumes in those that annotate it, 0 where it is absent; without those of which voxels are
            ignored.
        parts_ml: By organ, what is annotated of it in these.
    """

    workspace: Workspace
    fold: str
    number: int
    training: Sequence[str]
    labeled_ml: Mapping[str, Sequence[float]]
    parts_ml: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)

    @property
    def median_ml(self) -> tuple[float, ...]:
        """Of every organ, the median of its volumes, or of its parts where nothing else is known."""
        return tuple(median_present(found or self.parts_ml.get(name, ())) for name, found in self.labeled_ml.items())

    @property
    def _folder(self) -> RoundFolder:
        return self.workspace.round(self.fold, self.number)

    def look_before(self, looks: Looks, scores: Mapping[str, CaseScore]) -> None:
        """Records what the models that label make of every organ.

        Args:
            looks: Of these models.
            scores: Of all cases of the pool.
        """
        pool = spread(tuple(scores), POOL_CASES)
        volumes = {case: {name: organ.volume_ml for name, organ in scores[case].organs.items()} for case in pool}
        save_record(self._folder.vitals_before, self._seen(looks, volumes))

    def look_at_start(self, looks: Looks | None) -> None:
        """Records what the supervised models make of the cases of `look_before`, where a model from outside labels.

        Args:
            looks: Of these models; None: they label themselves.
        """
        path = self._folder.vitals_start
        if looks is None:
            path.unlink(missing_ok=True)
            return
        before = load_record(self._folder.vitals_before, Vitals, error=SelectionError)
        save_record(path, self._seen(looks, looks(volumes_of_pool, tuple(before.volumes_ml))))

    def knows_start(self, made_with: tuple[str, ...]) -> bool:
        """Whether `look_at_start` has seen these models, if any."""
        path = self._folder.vitals_start
        if not made_with:
            return True
        return path.is_file() and load_record(path, Vitals, error=SelectionError).made_with == made_with

    def look_after(self, looks: Looks) -> None:
        """Records what the students make of every organ in the same cases, and warns of those that are vanishing."""
        before = load_record(self._folder.vitals_before, Vitals, error=SelectionError)
        first = self.workspace.round(self.fold, 1)
        known = [path for path in (first.vitals_start, first.vitals_before) if path.is_file()]
        start = load_record(known[0], Vitals, error=SelectionError) if known else before
        after = self._seen(looks, looks(volumes_of_pool, tuple(before.volumes_ml)))
        after = dataclasses.replace(after, organs=compared(start, before, after, self.labeled_ml))
        save_record(self._folder.vitals, after)
        for organ, why in after.vanishing.items():
            logger.warning("round %d: %s is vanishing: %s", self.number, organ, why)

    def _seen(self, looks: Looks, volumes_ml: dict[str, dict[str, float]]) -> Vitals:
        dice = looks(dice_of_labeled, spread(self.training, LABELED_CASES))
        return Vitals(made_with=looks.made_with, dice=dice, volumes_ml=volumes_ml)

    def dice_reached(self, records: Sequence[Observations]) -> dict[str, float]:
        """What a model from outside that labels reaches with every organ that a labeled case measures.

        Args:
            records: What was observed of the held-out cases of every chain.
        """
        before = load_record(self._folder.vitals_before, Vitals, error=SelectionError)
        return dice_reached([each for record in records for each in record.observations], before.dice)

    def barred(
        self, scores: Sequence[CaseScore], rule: SelectionRule, reached: Mapping[str, float] | None = None
    ) -> dict[str, str]:
        """Organs of which no pseudo-label may be learned in this round, each with the reason; not by whole cases.

        Those that were vanishing in the round before, that the models never learned, or that they label too small; and
        where a model from outside labels, those that no labeled case says anything of.

        Args:
            scores: Of all cases of the pool.
            rule: The numbers of the selection.
            reached: Of a model from outside, see `dice_reached`; None: others label.
        """
        if rule.rule != "organ":
            return {}
        teachers = load_record(self._folder.vitals_before, Vitals, error=SelectionError)
        barred = no_teacher(scores, teachers, self.labeled_ml, rule.organ_threshold / 2)
        barred |= {name: f"vanishing in round {self.number - 1}: {why}" for name, why in self._vanishing().items()}
        known = {name for name, volumes in self.labeled_ml.items() if any(volumes)}
        if reached is not None:
            barred |= dict.fromkeys(sorted(known - reached.keys()), "its Dice is not measured on any labeled case")
        if set(barred) >= (known or {*self.labeled_ml}):
            logger.warning(
                "the models that label know no organ well enough: none is barred for that; train them longer"
            )
            return {}
        return barred

    def _vanishing(self) -> dict[str, str]:
        """Organs that the round before was losing."""
        path = self.workspace.round(self.fold, self.number - 1).vitals
        return load_record(path, Vitals, error=SelectionError).vanishing if path.is_file() else {}


def vanishing_organs(workspace: Workspace, folds: Sequence[str], number: int) -> dict[str, str]:
    """Organs that a round is losing in at least half of the chains, each with the reason of one of them.

    Raises:
        SelectionError: what was found of them is damaged.
    """
    paths = [workspace.round(fold, number).vitals for fold in folds]
    found = [load_record(path, Vitals, error=SelectionError).vanishing for path in paths if path.is_file()]
    reasons = {organ: why for of_fold in reversed(found) for organ, why in of_fold.items()}
    return {
        organ: why for organ, why in sorted(reasons.items()) if 2 * sum(organ in each for each in found) >= len(folds)
    }
