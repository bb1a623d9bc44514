"""Training on labeled and pseudo-labeled cases together: a trainer that replaces hooks, and nothing of the loop."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from flaresemi.errors import SelectionError
from flaresemi.io.case_store import CaseStore, LabelStore, StoredCase
from flaresemi.selection import Selection
from flaresemi.training.config import TrainingConfig
from flaresemi.training.sampling import TrainingCase
from flaresemi.training.task import TrainingTask
from flaresemi.training.trainer import Trainer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SemiSupervision:
    """What pseudo-labels add to a training.

    Attributes:
        labels: Label maps of the selected cases, on this stage's grid.
        selection: Which of them, and which organs of each.
        pseudo_share: Share of the patches that come from pseudo-labeled cases (0.5: one of each, the seed's 1:1).
        augmentation: Strength for pseudo-labeled cases; labeled ones keep that of the config.
    """

    labels: LabelStore
    selection: Selection
    pseudo_share: float = 0.5
    augmentation: str = "strong"

    def __post_init__(self) -> None:
        if not 0 < self.pseudo_share < 1:
            raise ValueError("pseudo_share must lie between 0 and 1")


class MixedStore(CaseStore):
    """Labeled cases from one store, pseudo-labeled ones from another.

    Args:
        labeled: The stage's prepared cases.
        pseudo: Label maps of some unlabeled ones.
        pseudo_ids: Which cases are pseudo-labeled.
    """

    def __init__(self, labeled: CaseStore, pseudo: LabelStore, pseudo_ids: Iterable[str]) -> None:
        super().__init__(labeled.folder)
        self.labeled = labeled
        self.pseudo = pseudo
        self.pseudo_ids = frozenset(pseudo_ids)

    def open(self, case_id: str) -> StoredCase:
        return (self.pseudo if case_id in self.pseudo_ids else self.labeled).open(case_id)


class SemiSupervisedTrainer(Trainer):
    """A trainer for labeled plus selected pseudo-labeled cases.

    Rejected organs of a pseudo-labeled case are not supervised in it; its loss has the weight that the selection
    gives; it is augmented more strongly. Validation uses real labels only, as in `Trainer`.

    Args:
        task: Its `training` are the labeled cases of the fold.
        config: As for `Trainer`.
        semi: What pseudo-labels add.
        settings: As for `Trainer`.

    Raises:
        SelectionError: a pseudo-labeled case is also a labeled one of this training.
    """

    def __init__(self, task: TrainingTask, config: TrainingConfig, semi: SemiSupervision, **settings: Any) -> None:
        self.semi = semi
        pseudo_ids = [case.case_id for case in semi.selection.selected]
        twice = sorted(set(pseudo_ids) & {*task.training, *task.validation})
        if twice:
            raise SelectionError(
                f"labeled cases stand among the pseudo-labeled: {', '.join(twice[:5])}",
                where=semi.labels.folder,
                fix="select again: a real label is never replaced",
            )
        mixed = MixedStore(task.store, semi.labels, pseudo_ids)
        super().__init__(dataclasses.replace(task, store=mixed), config, **settings)

    def training_cases(self) -> list[TrainingCase]:
        """Labeled and pseudo-labeled cases, drawn in the ratio of `pseudo_share`."""
        labeled = super().training_cases()
        names = self.task.labels.names
        pseudo = [
            TrainingCase(
                case_id=case.case_id,
                supervised=tuple(index for index, name in enumerate(names, start=1) if name in case.supervised),
                weight=case.weight,
                augmentation=self.semi.augmentation,
            )
            for case in self.semi.selection.selected
        ]
        for_pseudo = self.semi.pseudo_share / len(pseudo)
        for_labeled = (1 - self.semi.pseudo_share) / len(labeled)
        return [dataclasses.replace(case, share=for_labeled) for case in labeled] + [
            dataclasses.replace(case, share=for_pseudo) for case in pseudo
        ]
