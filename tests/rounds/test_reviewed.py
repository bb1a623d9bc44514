"""What persons decided reaches the selection and the training of the next round, and of no other."""

import dataclasses
import datetime
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from flaresemi.dataset import load_dataset
from flaresemi.errors import SelectionError
from flaresemi.files import content_hash
from flaresemi.io.images import read_grid, write_label_map
from flaresemi.labels import Label, LabelSet
from flaresemi.planning.preparation import case_versions
from flaresemi.plans import Stage
from flaresemi.pseudolabels.selecting import SelectionRule
from flaresemi.records import load_record, save_record
from flaresemi.reviews import Review, load_review, load_reviews, review_file, reviewed_label, reviews_hash
from flaresemi.rounds.exporting import export_round
from flaresemi.rounds.final import merged, train_final
from flaresemi.rounds.reviewed import TakenReviews, merged_labels, reviewed
from flaresemi.rounds.round import Execution, Round
from flaresemi.rounds.state import RoundConfig, load_state
from flaresemi.selection import CaseScore, OrganScore, SelectedCase, Selection
from flaresemi.training.semi_supervised import SemiSupervisedTrainer, SemiSupervision
from flaresemi.workspace import Workspace

ORGANS = ("liver", "spleen", "pancreas")
DRAWN = {"label_revision": 1, "label_hash": "drawn"}


def score(case_id: str, value: float = 0.9, absent: tuple[str, ...] = ()) -> CaseScore:
    organs = {
        name: OrganScore(agreement=None if name in absent else value, volume_ml=50.0, entropy=0.1) for name in ORGANS
    }
    return CaseScore(case_id=case_id, score=value, organs=organs)


def review(case_id: str, **decided: object) -> Review:
    return Review(
        **{"case_id": case_id, "revision": 1, "by": "Ann", "at": "2026-05-01T10:00:00+00:00", "fold": "0", "round": 1}
        | decided
    )


SCORES = (score("a", 0.95), score("b", 0.85), score("c", 0.4))
BEFORE = Selection(
    round=1,
    fold="0",
    rule="organ",
    thresholds={},
    selected=(
        SelectedCase(case_id="a", score=0.95, supervised=ORGANS, rejected={}),
        SelectedCase(case_id="b", score=0.85, supervised=("liver",), rejected={"spleen": "low", "pancreas": "low"}),
    ),
    rejected={"c": "no organ accepted"},
)


def after(*reviews: Review, fold: str = "0", barred: str = "") -> tuple[dict[str, SelectedCase], Selection]:
    sources = {each.case_id: "corrected" if each.corrected else "pseudo" for each in reviews if each.case_id != barred}
    selection = reviewed(BEFORE, SCORES, reviews, sources, fold=fold)
    return {case.case_id: case for case in selection.selected}, selection


def test_what_was_rejected_is_not_used_and_says_by_whom() -> None:
    cases, selection = after(review("a", rejected=ORGANS), review("b", rejected=("spleen",)))
    assert set(cases) == {"b"}
    assert selection.rejected["a"] == "rejected by Ann, 2026-05-01"
    assert cases["b"].supervised == ("liver",)
    assert cases["b"].rejected == {"spleen": "rejected by Ann, 2026-05-01", "pancreas": "low"}
    assert "2 case(s): 2 rejected" in selection.notes[-1]
    cases, _ = after(review("a", rejected=("liver",)), fold="3")  # in every chain
    assert cases["a"].supervised == ("spleen", "pancreas")
    assert not after(review("b", rejected=("liver",)))[0].keys() & {"b"}


def test_what_was_accepted_is_used_whatever_its_score_in_the_chain_that_it_is_of() -> None:
    looked = review("c", accepted=("pancreas", "liver"), rejected=("spleen",), **DRAWN)
    cases, selection = after(looked)
    assert cases["c"].supervised == ("liver", "pancreas")
    assert set(cases["c"].rejected) == {"spleen"}
    assert "c" not in selection.rejected
    other, selection = after(looked, fold="1")
    assert "c" not in other
    assert selection.rejected["c"].startswith("rejected by Ann")
    assert after(review("b", accepted=("spleen",), **DRAWN))[0]["b"].supervised == ("liver", "spleen")


def test_what_was_corrected_counts_as_labeled_in_these_organs_in_every_chain() -> None:
    drawn = review("c", corrected=("spleen",), accepted=("liver",), **DRAWN)
    for fold in ("0", "1"):
        case = after(drawn, fold=fold)[0]["c"]
        assert (case.source, case.supervised) == ("corrected", ("liver", "spleen"))
        assert case.rejected == {"pancreas": "not looked at"}
    assert "c" not in after(drawn, barred="c")[0]  # of a group of which cases are held out
    other = dataclasses.replace(BEFORE, fold="1", selected=(dataclasses.replace(case, score=0.99),))
    here = dataclasses.replace(BEFORE, selected=(case,))
    better = dataclasses.replace(other, selected=(dataclasses.replace(case, score=1.0, source="pseudo"),))
    assert merged([better, here])[0] == {"c": "0"}
    assert merged([other, here])[0] == {"c": "1"}


def test_organs_of_one_map_and_the_rest_of_another() -> None:
    labels = LabelSet(labels=tuple(Label(name=name, value=value) for value, name in enumerate(ORGANS, start=1)))
    vouched = np.array([[[1, 1, 0, 0, 2, 3]]], np.uint8)
    own = np.array([[[0, 1, 1, 2, 2, 0]]], np.uint8)
    assert merged_labels(vouched, own, labels, [1]).tolist() == [[[1, 1, 0, 2, 2, 0]]]
    crossing = LabelSet(
        labels=(Label(name="tumor", value=1, more_values=(2,)), Label(name="core", value=2)),
    )
    whole = merged_labels(np.array([[[1, 2, 0]]], np.uint8), np.array([[[0, 1, 2]]], np.uint8), crossing, [1])
    assert whole.tolist() == [[[1, 2, 0]]]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({}, "nothing is decided"),
        ({"rejected": ("liver", "liver")}, "decided twice"),
        ({"accepted": ("liver",)}, "need the label map"),
        ({"rejected": ("liver",), "by": " "}, "'by' must be a name"),
        ({"rejected": ("liver",), "by": "A\nB"}, "'by' must be a name"),
        ({"rejected": ("liver",), "slices": ((3, 3),)}, "first < end"),
        ({"corrected": ("liver",), "label_revision": 2, "label_hash": "x"}, "no label map of revision 2"),
    ],
)
def test_a_decision_that_means_nothing_is_refused(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        review("a", **wrong)


def test_decisions_are_read_by_the_names_of_their_cases(tmp_path: Path) -> None:
    assert load_reviews(tmp_path / "none", ["a"]) == ()
    one = review("a", rejected=("liver",), note="blurred")
    save_record(review_file(tmp_path, "a"), one)
    assert load_reviews(tmp_path, ["b", "a"]) == (one,)
    assert reviews_hash([one]) == reviews_hash([dataclasses.replace(one, note="")])
    shutil.copy(review_file(tmp_path, "a"), review_file(tmp_path, "b"))
    with pytest.raises(SelectionError, match="about case 'a'"):
        load_review(tmp_path, "b")


# With a real round. Its networks have learned nothing: every voxel is the first organ.

TAKE_ALL = RoundConfig(selection=SelectionRule(rule="case", best_share=1.0))
TAKE_NONE = RoundConfig(selection=SelectionRule(rule="organ", organ_threshold=1.0, volume_factor=1.0))
ON_CPU = Execution(device=torch.device("cpu"), precision="fp32")


@pytest.fixture(scope="module")
def labeled(trained: Path, phantom_dataset: Path) -> Path:
    """The pool of the first round is labeled, by networks that have learned nothing."""
    make_round((Workspace(trained), phantom_dataset)).run(last_step="label")
    return trained


@pytest.fixture
def place(labeled: Path, phantom_dataset: Path, tmp_path: Path) -> tuple[Workspace, Path]:
    shutil.copytree(labeled, tmp_path / "workspace")
    return Workspace(tmp_path / "workspace"), phantom_dataset


def make_round(place: tuple[Workspace, Path], config: RoundConfig = TAKE_ALL, number: int = 1) -> Round:
    return Round(place[0], load_dataset(place[1]), "0", number, config, ON_CPU)


def decide(round: Round, values_zyx: np.ndarray | None = None, **decided: object) -> Review:
    """Writes a decision about the only unlabeled case, with a label map of the user's values."""
    case, folder = round.dataset.unlabeled[0], round.workspace.reviews
    before = load_review(folder, case.id)
    revision = before.revision + 1 if before else 1
    if values_zyx is not None:
        path = reviewed_label(folder, case.id, revision)
        write_label_map(path, values_zyx, read_grid(case.images[0]))
        decided |= {"label_revision": revision, "label_hash": content_hash(path)}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    image = case_versions([case.id], round.workspace)[case.id]
    made = Review(case_id=case.id, revision=revision, by="Ann", at=now, fold="0", round=1, image=image, **decided)
    save_record(review_file(folder, case.id), made)
    return made


def values(round: Round) -> np.ndarray:
    """A label map with the second and the third organ."""
    drawn = np.zeros(read_grid(round.dataset.unlabeled[0].images[0]).canonical.shape_zyx, np.uint8)
    drawn[10:30, 10:30, 10:22] = 2
    drawn[10:30, 10:30, 22:40] = 3
    return drawn


def trainer(round: Round) -> SemiSupervisedTrainer:
    selection, labels = round.reviews.trained_on(Stage.FINE)
    semi = SemiSupervision(labels=labels, selection=selection, mixing=round.config.mixing)
    return SemiSupervisedTrainer(
        round.tasks[Stage.FINE], round.training_config(Stage.FINE), semi, device=torch.device("cpu")
    )


def test_a_corrected_case_is_a_labeled_one_in_the_organs_and_slices_looked_at(place: tuple[Workspace, Path]) -> None:
    round = make_round(place, TAKE_NONE)
    names = round.plans.labels.names
    decide(round, values(round), corrected=names[1:2], accepted=names[2:3], slices=((12, 20),))
    assert round.run(last_step="select") is not None
    selected = load_record(round.folder.selection, Selection).selected
    assert [(case.source, case.supervised) for case in selected] == [("corrected", names[1:3])]
    cases = trainer(round).training_cases()
    assert [(case.is_pseudo, case.supervised) for case in cases if case.case_id == round.pool[0]] == [(False, (2, 3))]
    assert sum(case.share for case in cases) == pytest.approx(1)
    stored = round.reviews.stores[Stage.FINE].open(round.pool[0])
    label = np.asarray(stored.label_zyx)
    ignored = label == round.plans.labels.ignored
    assert set(np.unique(label)) == {0, 2, 3, round.plans.labels.ignored}
    assert 0.6 < ignored.mean() < 0.9  # 8 of 40 slices were looked at
    assert ignored[[0, -1]].all()  # and in the others the accepted organ is not known, either
    assert stored.record.supervised == (2, 3)
    sample = trainer(round).case_sampler(cases)[(0, 0)]
    assert sample.label_bzyx.min() >= -1
    # It has no value for what was not looked at, and nothing else to export.
    assert export_round(round, place[0].root / "out", selected_only=True) == 0


def test_a_decision_while_a_round_trains_is_for_the_next_one(place: tuple[Workspace, Path]) -> None:
    round = make_round(place)
    names = round.plans.labels.names
    round.run(last_step="select")
    before = load_state(round.folder.state)
    decide(round, rejected=(names[4],))
    round = make_round(place)
    state = round.run(last_step="train COARSE")  # not begun: it counts
    assert state.steps["select"].inputs != before.steps["select"].inputs
    chosen = load_record(round.folder.selection, Selection).selected[0]
    assert names[4] not in chosen.supervised
    decide(round, rejected=(names[5],))
    again = make_round(place)
    after = again.run()
    assert after.next_step is None
    assert after.steps["select"] == state.steps["select"]
    assert load_record(again.folder.selection, Selection).selected == (chosen,)
    assert [each.rejected for each in load_record(again.folder.reviews, TakenReviews).reviews] == [(names[4],)]
    assert again.run() == after
    following = make_round(place, number=2)
    following.run(last_step="select")
    assert names[5] not in load_record(following.folder.selection, Selection).selected[0].supervised
    assert names[4] in load_record(following.folder.selection, Selection).selected[0].supervised


def test_an_accepted_label_map_outlasts_the_round_that_drew_it(place: tuple[Workspace, Path]) -> None:
    round = make_round(place)
    names = round.plans.labels.names
    round.run(last_step="label")
    own = round.labels.stores[Stage.FINE].record(round.pool[0]).label_hash
    decide(round, values(round), accepted=names[1:2], looked_at=own)
    round.run(last_step="select")
    assert load_record(round.folder.selection, Selection).selected[0].source == "pseudo"  # it is this very map
    for decided in ({"looked_at": "of another round"}, {"looked_at": own, "own_map": True}):
        decide(round, values(round), accepted=names[1:2], **decided)
        round = make_round(place)
        round.run(last_step="select")
        case = load_record(round.folder.selection, Selection).selected[0]
        assert (case.source, case.supervised) == ("accepted", names)
        label = np.asarray(round.reviews.stores[Stage.FINE].open(case.case_id).label_zyx)
        assert set(np.unique(label)) == {1, 2}  # the third organ was not accepted
    decide(round, values(round), accepted=names[1:3], looked_at=own, own_map=True)  # the same map, of which more counts
    round = make_round(place)
    round.run(last_step="select")
    label = np.asarray(round.reviews.stores[Stage.FINE].open(case.case_id).label_zyx)
    assert set(np.unique(label)) == {1, 2, 3}
    decide(round, values(round), corrected=names[1:2], own_map=True)  # or less, and as a label
    round = make_round(place)
    round.run(last_step="select")
    assert round.reviews.stores[Stage.FINE].record(case.case_id).supervised == (2,)
    decide(round, values(round), accepted=names[1:3], looked_at=own, own_map=True)
    round = make_round(place)
    round.run(last_step="select")
    assert [each.is_pseudo for each in trainer(round).training_cases() if each.case_id == case.case_id] == [True]
    shutil.rmtree(round.folder.reviewed(Stage.FINE))
    round.run(last_step="select")
    assert round.reviews.are_stored()


def test_a_label_map_that_was_edited_or_another_image_is_refused(place: tuple[Workspace, Path]) -> None:
    round = make_round(place)
    names = round.plans.labels.names
    made = decide(round, values(round), corrected=names[1:3])
    path = reviewed_label(place[0].reviews, made.case_id, 1)
    write_label_map(path, values(round)[..., ::-1], read_grid(round.dataset.unlabeled[0].images[0]))
    with pytest.raises(SelectionError, match="is missing, has changed"):
        round.run(last_step="select")
    write_label_map(path, values(round), read_grid(round.dataset.unlabeled[0].images[0]))
    whole = dataclasses.replace(made, label_hash=content_hash(path))
    drawn = {names[1]: (2,), names[2]: (7,)}  # the dataset gave the third organ another value then
    save_record(review_file(place[0].reviews, made.case_id), dataclasses.replace(whole, values=drawn))
    with pytest.raises(SelectionError, match="by other values than the dataset"):
        make_round(place).run(last_step="select")
    drawn[names[2]] = (3,)
    save_record(review_file(place[0].reviews, made.case_id), dataclasses.replace(whole, values=drawn))
    make_round(place).run(last_step="select")
    save_record(review_file(place[0].reviews, made.case_id), dataclasses.replace(made, image="another"))
    with pytest.raises(SelectionError, match="is about another image"):
        make_round(place).run(last_step="select")
    wrong = dataclasses.replace(made, rejected=("liever",))
    save_record(review_file(place[0].reviews, made.case_id), wrong)
    with pytest.raises(SelectionError, match="organs that this dataset has not: liever"):
        make_round(place).run(last_step="select")


def test_a_round_that_nothing_is_left_of_is_refused(place: tuple[Workspace, Path]) -> None:
    round = make_round(place)
    decide(round, rejected=round.plans.labels.names)
    with pytest.raises(SelectionError, match="leave no pseudo-label"):
        round.run(last_step="select")


def test_without_decisions_nothing_of_a_round_is_another(place: tuple[Workspace, Path]) -> None:
    round = make_round(place)
    round.run(last_step="select")
    assert round.reviews.inputs == ()
    assert not round.folder.reviews.exists()
    assert not (round.folder.root / "reviewed").exists()


def test_final_models_follow_decisions_made_after_the_round_that_draws_their_labels(
    place: tuple[Workspace, Path],
) -> None:
    for number in (1, 2):
        make_round(place, number=number).run()
    names, folder, final = make_round(place).plans.labels.names, place[0].round("0", 2), place[0].final_round
    before = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}
    assert train_final([make_round(place, number=2)]) == final
    weights = final.model(Stage.FINE).final.stat().st_mtime_ns
    train_final([make_round(place, number=2)])
    assert final.model(Stage.FINE).final.stat().st_mtime_ns == weights
    decide(make_round(place), rejected=(names[4],))
    train_final([make_round(place, number=2)])
    assert final.model(Stage.FINE).final.stat().st_mtime_ns != weights
    assert names[4] not in load_record(final.selection, Selection).selected[0].supervised
    # Models of which the training goes on keep what they began with.
    final.model(Stage.FINE).final.unlink()
    decide(make_round(place), rejected=(names[4], names[5]))
    train_final([make_round(place, number=2)])
    assert names[5] in load_record(final.selection, Selection).selected[0].supervised
    # Other options choose anew, or would have to label anew.
    other = dataclasses.replace(TAKE_ALL.selection, case_threshold=0.5)
    train_final([make_round(place, dataclasses.replace(TAKE_ALL, selection=other), number=2)])
    assert {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()} == before
    with pytest.raises(SelectionError, match="round 2 was labeled by other models than would label it now"):
        train_final([make_round(place, dataclasses.replace(TAKE_ALL, tta=True), number=2)])
