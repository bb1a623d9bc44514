"""Training on labeled and pseudo-labeled cases together: a trainer that replaces hooks, and nothing of the loop."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from flaresemi.errors import ConfigError, SelectionError
from flaresemi.io.case_store import CaseStore, LabelStore, StoredCase
from flaresemi.selection import Selection
from flaresemi.training.config import TrainingConfig
from flaresemi.training.mixing import Mixing
from flaresemi.training.pasting import PastingSampler
from flaresemi.training.sampling import PatchSampler, TrainingCase
from flaresemi.training.task import Teaching, TrainingTask
from flaresemi.training.trainer import Trainer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SemiSupervision:
    """The pseudo-labels of a training, and how they are used.

    Attributes:
        labels: Per selected case, where its label map on this stage's grid is.
        selection: Which cases, and which organs of each.
        mixing: How they are mixed with the labeled cases.
        taught_by: Where the label maps came from, for the record; None where a round made them.
    """

    labels: Mapping[str, LabelStore]
    selection: Selection
    mixing: Mixing = dataclasses.field(default_factory=Mixing)
    taught_by: Teaching | None = None


class MixedStore(CaseStore):
    """Labeled cases from one store, pseudo-labeled ones from others.

    Args:
        labeled: The stage's prepared cases.
        pseudo: Per pseudo-labeled case, the store of its label map.
    """

    def __init__(self, labeled: CaseStore, pseudo: Mapping[str, LabelStore]) -> None:
        super().__init__(labeled.folder)
        self.labeled = labeled
        self.pseudo = pseudo

    def open(self, case_id: str) -> StoredCase:
        return self.pseudo.get(case_id, self.labeled).open(case_id)


class SemiSupervisedTrainer(Trainer):
    """A trainer for labeled plus selected pseudo-labeled cases.

    Rejected organs of a pseudo-labeled case are not supervised in it; its loss has the weight that the selection
    gives; it is augmented more strongly. Some patches get a box of a patch of the other kind of case. Validation uses
    real labels only, as in `Trainer`.

    Args:
        task: Its `training` are the labeled cases of the fold.
        config: As for `Trainer`.
        semi: What pseudo-labels add.
        settings: As for `Trainer`.

    Raises:
        SelectionError: a pseudo-labeled case is also a labeled one of this training.
        DatasetError: the file of a pseudo-label has changed since it was written.
        ConfigError: fine-tuning at the end of a training whose length is not known yet.
    """

    device_augmentation: ClassVar[bool] = True

    #: Pseudo-labels were made in the turn that was surest. Turned once more, two hearts of ACDC were lost.
    _knows_turns: ClassVar[bool] = True

    #: Rounds were measured with the plain mean; the one that was tried with roots lost what its start had gained.
    _counts_roots: ClassVar[bool] = False

    def __init__(self, task: TrainingTask, config: TrainingConfig, semi: SemiSupervision, **settings: Any) -> None:
        self.semi = semi
        pseudo_ids = [case.case_id for case in semi.selection.selected]
        twice = sorted(set(pseudo_ids) & {*task.training, *task.validation})
        if twice:
            raise SelectionError(
                f"labeled cases stand among the pseudo-labeled: {', '.join(twice[:5])}",
                where=semi.labels[twice[0]].folder,
                fix="select again: a real label is never replaced",
            )
        if semi.mixing.fine_tune and config.fixed_iterations is None:
            raise ConfigError("fine-tuning needs a training of known length", fix="give --iterations or --epochs")
        for case_id in pseudo_ids:
            semi.labels[case_id].refuse_edited(case_id)
            semi.labels[case_id].open(case_id)  # this version of it, from now on
        mixed = MixedStore(task.store, semi.labels)
        super().__init__(dataclasses.replace(task, store=mixed, taught_by=semi.taught_by), config, **settings)

    def training_cases(self) -> list[TrainingCase]:
        """Labeled cases, corrected ones among them, and pseudo-labeled ones, drawn in the ratio of `pseudo_share`.

        Labeled cases keep their shares among each other; corrected ones have the mean of these.
        """
        mixing, given = self.semi.mixing, super().training_cases()
        usual = sum(case.share for case in given) / len(given)
        labeled = [*given, *(dataclasses.replace(case, share=usual) for case in self._selected(corrected=True))]
        pseudo = self._selected(corrected=False)
        for_pseudo = mixing.pseudo_share / len(pseudo) if pseudo else 0.0
        for_labeled = ((1 - mixing.pseudo_share) if pseudo else 1.0) / len(labeled)
        return [dataclasses.replace(case, share=for_labeled * (case.share / usual)) for case in labeled] + [
            dataclasses.replace(case, share=for_pseudo) for case in pseudo
        ]

    def _selected(self, *, corrected: bool) -> list[TrainingCase]:
        """The selected cases that a person corrected, which are labeled ones, or the others."""
        mixing, names = self.semi.mixing, self.task.labels.names
        last = None
        if mixing.fine_tune and self.config.fixed_iterations and not corrected:
            last = round(self.config.fixed_iterations * (1 - mixing.fine_tune))
        return [
            TrainingCase(
                case_id=case.case_id,
                supervised=tuple(index for index, name in enumerate(names, start=1) if name in case.supervised),
                weight=case.weight,
                augmentation=self.config.augmentation if corrected else mixing.pseudo_augmentation,
                last_iteration=last,
                is_pseudo=not corrected,
            )
            for case in self.semi.selection.selected
            if (case.source == "corrected") is corrected
        ]

    def case_sampler(self, cases: Sequence[TrainingCase], **settings: Any) -> PatchSampler:
        """Random patches, some with a box of the other kind of case."""
        share = self.semi.mixing.paste_share
        return super().case_sampler(cases, **{"kind": PastingSampler, "paste_share": share, **settings})
