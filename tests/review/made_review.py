"""A workspace with two rounds on disk, made without training: pseudo-labels are the phantoms' labels with faults."""

import dataclasses
from pathlib import Path

import numpy as np

from flaresemi.cli import plan_and_preprocess
from flaresemi.dataset import load_dataset
from flaresemi.geometry import BoundingBox
from flaresemi.io.case_store import CaseStore
from flaresemi.io.images import read_label_map
from flaresemi.phantom import write_phantom_dataset
from flaresemi.plans import Stage, load_fingerprint, load_plans
from flaresemi.preprocessing.preprocessor import stage_labels
from flaresemi.pseudolabels.labeling import LabeledCase
from flaresemi.pseudolabels.pool import PseudoLabels
from flaresemi.pseudolabels.selecting import SelectionRule, labeled_volumes, select, volumes_ml
from flaresemi.records import load_record, save_record
from flaresemi.review.material import Material
from flaresemi.rounds.reviewed import RoundReviews
from flaresemi.rounds.state import RoundConfig, RoundState, StepState, save_state
from flaresemi.selection import CaseScore, OrganScore, Selection, save_scores
from flaresemi.workspace import Workspace


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeReview:
    """Where everything lies.

    Attributes:
        dataset: The dataset folder.
        workspace: The workspace.
        truth: A folder with the true label maps of the unlabeled cases.
    """

    dataset: Path
    workspace: Workspace
    truth: Path

    def material(self) -> Material:
        return Material(self.workspace, load_dataset(self.dataset), "0")

    def taken(self) -> tuple[Selection, RoundReviews]:
        """What a round of the newest pseudo-labels makes of the decisions."""
        folder = self.workspace.round("0", 2)
        pseudo = PseudoLabels(folder, {Stage.FINE: CaseStore(self.workspace.preprocessed(Stage.FINE))})
        labels = load_plans(self.workspace.plans).labels
        reviews = RoundReviews(self.workspace, load_dataset(self.dataset), labels, pseudo)
        scores = tuple(self.material().scores(2).values())
        return reviews.applied(load_record(folder.selection, Selection), scores, {}), reviews


def make(root: Path, *, labeled: int = 3, unlabeled: int = 3, size: object = (40, 48, 48), seed: int = 7) -> MadeReview:
    """Makes it in a folder. The first unlabeled case lacks the spleen, the second has a liver at the wrong place."""
    dataset, everything = root / "data", root / "truth"
    write_phantom_dataset(dataset, labeled=labeled, unlabeled=unlabeled, test=0, size=size, seed=seed)
    write_phantom_dataset(everything, labeled=labeled + unlabeled, unlabeled=0, test=0, size=size, seed=seed)
    workspace = Workspace(root / "workspace")
    words = ["-d", str(dataset), "-w", str(workspace.root), "--preset", "small", "--stages", "one", "--workers", "1"]
    assert plan_and_preprocess.main([*words, "--quiet"]) == 0
    made = MadeReview(dataset=dataset, workspace=workspace, truth=everything / "labeled_mask")
    for number in (1, 2):
        _write_round(made, number)
    return made


def _write_round(made: MadeReview, number: int) -> None:
    plans = load_plans(made.workspace.plans)
    folder = made.workspace.round("0", number)
    images = CaseStore(made.workspace.preprocessed(Stage.FINE))
    labels = PseudoLabels(folder, {Stage.FINE: images})
    cases = load_dataset(made.dataset).unlabeled
    for place, case in enumerate(cases):
        values = read_label_map(made.truth / f"{case.id}.nii.gz").array_zyx
        grid = images.open(case.id).record.grid
        indices = stage_labels(plans.labels.to_indices(values), grid)
        indices = _spoilt(indices, place, number)
        score = _score(case.id, indices, plans.labels.names, grid.spacing_zyx_mm, 0.97 - 0.06 * place - 0.02 * number)
        whole = BoundingBox.whole(indices.shape)
        labels.write(LabeledCase(label_zyx=indices, region=whole, score=score), plans.labels)
    scores = labels.merged_scores([case.id for case in cases], ("made",))
    save_scores(folder.scores, scores)
    fingerprint, names = load_fingerprint(made.workspace.fingerprint), plans.labels.names
    volumes = labeled_volumes(volumes_ml(fingerprint, names, [case.case_id for case in fingerprint.cases]))
    save_record(folder.selection, select(scores, SelectionRule(), volumes, round=number, fold="0"))
    steps = {name: StepState(inputs="made", done=True) for name in ("label", "select")}
    save_state(folder.state, RoundState(fold="0", round=number, config=RoundConfig(), made_with=("made",), steps=steps))


def _spoilt(indices: np.ndarray, place: int, number: int) -> np.ndarray:
    """A label map with the faults of a round: what a network that is not good yet makes of it."""
    spoilt = indices.copy()
    if place == 0 and number == 2:
        spoilt[spoilt == 3] = 0  # the spleen is missed
    if place == 1:
        liver = spoilt == 1
        spoilt[liver] = 0
        moved = np.roll(liver, 12 + 4 * number, axis=0)
        spoilt[moved & (spoilt == 0)] = 1
    if number == 1:
        spoilt[:, : spoilt.shape[1] // 3] = 0  # the first round saw less
    return spoilt


def _score(case_id: str, indices: np.ndarray, names: tuple[str, ...], spacing: tuple, level: float) -> CaseScore:
    counts = np.bincount(indices.ravel(), minlength=len(names) + 1)[1:]
    organs = {
        name: OrganScore(
            agreement=None if not count else min(level + 0.004 * index, 0.99),
            volume_ml=float(count * np.prod(spacing) / 1000),
            entropy=None if not count else 0.1,
        )
        for index, (name, count) in enumerate(zip(names, counts, strict=True))
    }
    found = [organ.agreement for organ in organs.values() if organ.agreement is not None]
    return CaseScore(case_id=case_id, score=float(np.mean(found)) if found else 0.0, organs=organs, made_with=("made",))
