"""Chains of rounds as they lie on disk, made without any training: all that a report reads."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flaresemi.evaluation.flare import OrganMetrics
from flaresemi.evaluation.folders import CaseScores
from flaresemi.evaluation.summary import save_summary, summarize
from flaresemi.geometry import BoundingBox, StageGrid
from flaresemi.io.case_store import CaseRecord, CaseStore, LabelStore
from flaresemi.labels import Label, LabelSet
from flaresemi.planning.findings import Finding, IntegrityReport
from flaresemi.planning.inspection import CaseFacts
from flaresemi.planning.planner import make_plans
from flaresemi.plans import CaseFingerprint, DatasetFingerprint, IntensityStatistics, Stage
from flaresemi.pseudolabels.calibration import Observation, Observations, calibrate
from flaresemi.pseudolabels.selecting import LabeledVolumes, SelectionRule, select
from flaresemi.pseudolabels.vitals import OrganVitals, Vitals
from flaresemi.records import save_record
from flaresemi.rounds.state import STEPS, RoundConfig, RoundState, StepState, save_state
from flaresemi.selection import CaseScore, OrganScore, save_scores
from flaresemi.training.config import TrainingConfig, resolve
from flaresemi.training.runs import RunRecord
from flaresemi.training.validation import CaseResult
from flaresemi.workspace import ModelFolder, Workspace

#: Names that would be markup if nobody escaped them.
HOSTILE_CASE = "a<b>&\"'<script>alert(1)</script>".replace("/", "|")
HOSTILE_ORGAN = "spleen <i>&amp;"

#: Image and label map of a case, (Z, Y, X), and the spacing of both, mm.
Drawn = tuple[np.ndarray, np.ndarray, tuple[float, float, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeChain:
    """What to make.

    Attributes:
        organs: Their names.
        unlabeled: The pool.
        dice: Mean Dice of the held-out cases, from the start on: one round fewer than entries.
        rule: Of the selection.
        held_out: How many cases judge; 0: none.
        falling: An organ that loses 0.03 each round, while the others follow `dice`.
        draw: Image and pseudo-label of an unlabeled case.
        vanishing: An organ that the last round is losing.
    """

    organs: tuple[str, ...] = ("liver", HOSTILE_ORGAN, "pancreas")
    unlabeled: tuple[str, ...] = (HOSTILE_CASE, *(f"case_{number:02d}" for number in range(1, 12)))
    dice: tuple[float, ...] = (0.78, 0.82)
    rule: SelectionRule = dataclasses.field(default_factory=SelectionRule)
    held_out: int = 6
    fold: str = "0"
    falling: str | None = None
    draw: Callable[[str], Drawn] | None = None
    vanishing: str | None = None

    @property
    def labels(self) -> LabelSet:
        return LabelSet(labels=tuple(Label(name=name, value=index) for index, name in enumerate(self.organs, start=1)))

    def write(self, root: Path) -> Workspace:
        """Makes it in a folder."""
        workspace = Workspace(root)
        fingerprint = _fingerprint(self.labels)
        save_record(workspace.fingerprint, fingerprint)
        save_record(workspace.plans, make_plans(fingerprint, stages="two"))
        _write_findings(workspace, self)
        for number in range(len(self.dice)):
            self._write_models(workspace, number)
            if number:
                self._write_round(workspace, number)
        return workspace

    def _write_models(self, workspace: Workspace, number: int) -> None:
        rng = np.random.default_rng(number)
        for stage in Stage:
            model = workspace.round_model(self.fold, number, stage)
            _write_training(model, stage, self.fold, self.dice[number], rng)
            if self.held_out:
                cases = [self._held_out_case(each, number, stage) for each in range(self.held_out)]
                summary = summarize(cases, self.labels, default_tolerance_mm=2.0)
                save_summary(model.validation / "summary.json", summary)
                for case in cases:
                    recall = dict.fromkeys(self.organs, 0.99) if stage is Stage.COARSE else None
                    save_record(
                        model.validation / f"{case.case_id}.json", CaseResult(largest_component_gain={}, recall=recall)
                    )

    def _held_out_case(self, each: int, number: int, stage: Stage) -> CaseScores:
        rng = np.random.default_rng([each, stage is Stage.FINE])
        organs = {}
        for index, organ in enumerate(self.organs):
            level = self.dice[0] - 0.03 * number if organ == self.falling else self.dice[number]
            own = np.random.default_rng([each, index, number]).normal(0, 0.006)
            value = float(np.clip(level - 0.02 * index + rng.normal(0, 0.03) + own, 0.0, 1.0))
            organs[organ] = OrganMetrics(
                dice=value, nsd=value * 0.96, hd95_mm=9 * (1 - value), reference_ml=100.0, prediction_ml=98.0
            )
        return CaseScores(case_id=f"real_{each}", organs=organs)

    def _write_round(self, workspace: Workspace, number: int) -> None:
        folder, config = workspace.round(self.fold, number), RoundConfig(selection=self.rule)
        steps = {
            name: StepState(inputs=f"{index:016x}", seconds=40.0 * 3**index, done=True)
            for index, name in enumerate(STEPS)
        }
        save_state(folder.state, RoundState(fold=self.fold, round=number, config=config, steps=steps))
        scores = tuple(self._score(case_id, number) for case_id in sorted(self.unlabeled))
        if self.held_out:
            scores = self._calibrate(workspace, number, scores)
        save_scores(folder.scores, scores)
        volumes = {name: LabeledVolumes(least_ml=30, most_ml=200, absent=0) for name in self.organs}
        save_record(folder.selection, select(scores, self.rule, volumes, round=number, fold=self.fold))
        save_record(folder.vitals, self._vitals(number))
        self._write_labels(workspace, number)

    def _vitals(self, number: int) -> Vitals:
        """Of students that find what the models before found, but for the organ that is vanishing."""
        lost = self.vanishing if number == len(self.dice) - 1 else None
        volumes = {
            case_id: {name: 20.0 if name == lost else 90.0 for name in self.organs} for case_id in self.unlabeled
        }
        organs = {
            name: OrganVitals(
                labeled_ml=88.0, found_before=1.0, found=1.0, volume_before_ml=90.0,
                volume_ml=20.0 if name == lost else 90.0, missing_before=0.06, missing=0.77 if name == lost else 0.05,
                missing_labeled=0.1, dice_before=0.9, dice=None if name == self.organs[0] else 0.87,
                warning="77% of it is missing" if name == lost else "",
            )
            for name in self.organs
        }  # fmt: skip
        dice = {"real_6": dict.fromkeys(self.organs[1:], 0.87)}
        return Vitals(made_with=("0123456789abcdef",), dice=dice, volumes_ml=volumes, organs=organs)

    def _score(self, case_id: str, number: int) -> CaseScore:
        rng = np.random.default_rng([number, *case_id.encode()])
        quality = rng.beta(8, 1.0)
        organs = {}
        for organ in self.organs:
            agreement = float(np.clip(quality + rng.normal(0, 0.09), 0.02, 0.995))
            volume = float(rng.lognormal(np.log(90), 0.35))
            absent = rng.random() < 0.04
            organs[organ] = OrganScore(
                agreement=None if absent else agreement,
                volume_ml=0.0 if absent else volume,
                entropy=None if absent else 0.3 * (1 - agreement),
                touched_faces=int(rng.random() < 0.05),
            )
        known = [organ.agreement for organ in organs.values() if organ.agreement is not None]
        flags = ("COARSE found no organ: FINE searched the whole body",) if case_id == self.unlabeled[1] else ()
        return CaseScore(
            case_id=case_id, score=float(np.mean(known)) if known else 0.0, organs=organs, flags=flags,
            made_with=("0123456789abcdef", "1123456789abcdef", "2123456789abcdef", "3123456789abcdef"),
        )  # fmt: skip

    def _calibrate(self, workspace: Workspace, number: int, scores: tuple[CaseScore, ...]) -> tuple[CaseScore, ...]:
        folder = workspace.round(self.fold, number)
        observations = []
        for each in range(self.held_out):
            for organ, score in self._score(f"real_{each}", number).organs.items():
                if score.agreement is not None:
                    noise = np.random.default_rng([each, len(organ)]).normal(0, 0.03)
                    dice = float(np.clip(score.agreement - 0.05 + noise, 0, 1))
                    observations.append(Observation(case_id=f"real_{each}", organ=organ, score=score, dice=dice))
        save_record(folder.observations, Observations(observations=tuple(observations)))
        calibration = calibrate(observations, dict.fromkeys(self.organs, 90.0))
        if calibration is None:
            return scores
        save_record(workspace.round_model(self.fold, number - 1, Stage.FINE).calibration, calibration)
        return tuple(
            dataclasses.replace(
                case,
                organs={
                    name: dataclasses.replace(organ, predicted_dice=calibration.predict(name, organ))
                    for name, organ in case.organs.items()
                },
            )
            for case in scores
        )

    def _write_labels(self, workspace: Workspace, number: int) -> None:
        images = CaseStore(workspace.preprocessed(Stage.FINE))
        labels = LabelStore(workspace.round(self.fold, number).labels(Stage.FINE), images)
        for case_id in self.unlabeled:
            image, label, spacing = (self.draw or self._draw)(case_id)
            if not images.has(case_id, "made"):
                grid = StageGrid(
                    canonical_shape_zyx=image.shape, canonical_spacing_zyx_mm=spacing,
                    body_box=BoundingBox.whole(image.shape), shape_zyx=image.shape,
                )  # fmt: skip
                record = CaseRecord.unlabeled(case_id=case_id, preprocessing_hash="made", grid=grid)
                images.write(record, image[None], None)
            labels.write_labels(case_id, label, len(self.organs), tuple(range(1, len(self.organs) + 1)))

    def _draw(self, case_id: str) -> Drawn:
        rng = np.random.default_rng(list(case_id.encode()))
        label = np.zeros((12, 20, 24), np.uint8)
        for index in range(len(self.organs)):
            z, y, x = rng.integers(1, 4, 3)
            label[z : z + 6, y + 4 : y + 11, x + 6 * index : x + 6 * index + 5] = index + 1
        return rng.normal(0, 0.3, label.shape) + (label > 0), label, (3.0, 1.5, 1.5)


def _fingerprint(labels: LabelSet) -> DatasetFingerprint:
    box = BoundingBox(start=(5, 20, 20), stop=(75, 108, 108))
    case = {
        "shape_zyx": (80, 128, 128), "spacing_zyx_mm": (3.0, 2.5, 2.5), "body_box": box, "foreground_box": box,
        "annotated": (True,) * labels.count,
    }  # fmt: skip
    cases = tuple(
        CaseFingerprint(case_id=f"real_{each}", voxels_per_label=(2500 + 600 * each,) * labels.count, **case)
        for each in range(8)
    )
    statistics = IntensityStatistics(
        percentile_00_5=-200,
        percentile_05=-50,
        percentile_50=60,
        percentile_95=150,
        percentile_99_5=250,
        mean=60,
        sd=60,
    )
    return DatasetFingerprint(
        dataset_name="made up", channels=("CT",), labels=labels, cases=cases, intensities=(statistics,)
    )


def _write_findings(workspace: Workspace, chain: MadeChain) -> None:
    strange = chain.unlabeled[0]
    findings = (
        Finding(
            case_id=strange, severity="warning", problem="outlier", file="",
            message="spacing along z is 10 mm (labeled cases: 3 mm)",
        ),
        Finding(case_id="real_0", severity="warning", problem="other", file="", message="of no concern here"),
    )  # fmt: skip
    groups = dict.fromkeys(chain.unlabeled, "unlabeled") | {"real_0": "labeled"}
    facts = {each: CaseFacts(case_id=each, files=(), image=None, label=None, problems=()) for each in groups}
    IntegrityReport(labels=chain.labels, groups=groups, facts=facts, findings=findings, on_image_grid={}).write_csv(
        workspace.integrity_csv
    )


def _write_training(model: ModelFolder, stage: Stage, fold: str, dice: float, rng: np.random.Generator) -> None:
    model.root.mkdir(parents=True)
    rows = []
    for epoch in range(1, 21):
        row = {
            "iteration": 50 * epoch, "epoch": epoch, "loss": 0.4 + 1.5 * np.exp(-epoch / 5) + rng.normal(0, 0.03),
            "learning_rate": 4e-3 * (1 - epoch / 21), "seconds": 30.0,
        }  # fmt: skip
        if epoch % 4 == 0:
            row["validation_mean"] = dice * (1 - np.exp(-epoch / 4))
        rows.append(json.dumps(row))
    model.history.write_text("\n".join(rows) + "\n", encoding="utf-8")
    model.final.write_bytes(b"weights")
    config = TrainingConfig(iterations=1000)
    record = RunRecord(
        command=("flaresemi_semi_round", "--select", "<organ>"), trainer="SemiSupervisedTrainer", stage=stage.value,
        fold=fold, config=config, recipe=resolve(config, 1000), plan_hash="fedcba9876543210",
        training_cases=("real_6", "real_7"), validation_cases=("real_0",), device="CPU", processes=1, precision="fp32",
        versions={"python": "3.11"}, git_revision=None, started="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    save_record(model.run_record, record)
