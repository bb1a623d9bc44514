"""What is trained, on what, into which folder."""

import dataclasses

from flaresemi.io.case_store import CaseStore
from flaresemi.labels import LabelSet
from flaresemi.plans import StagePlan
from flaresemi.workspace import ModelFolder


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTask:
    """One training: a stage on a fold.

    Attributes:
        plan: The stage's plan.
        body: How the patient is found in an image (goes into the checkpoint, for prediction).
        labels: The organs.
        channels: Names of the image channels.
        fold: Number of the fold, or 'all'.
        store: The stage's prepared cases.
        training: Names of the cases to train on.
        validation: Names of the held-out cases; empty for 'all'.
        folder: Where everything is written.
    """

    plan: StagePlan
    body: str
    labels: LabelSet
    channels: tuple[str, ...]
    fold: str
    store: CaseStore
    training: tuple[str, ...]
    validation: tuple[str, ...]
    folder: ModelFolder
