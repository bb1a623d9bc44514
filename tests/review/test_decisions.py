"""A decision becomes a record and a label map that another program could have written; nobody replaces one unseen."""

import dataclasses

import numpy as np
import pytest

from flaresemi.errors import ConfigError, InUseError, SelectionError
from flaresemi.files import content_hash
from flaresemi.io.images import read_grid, read_label_map, write_label_map
from flaresemi.plans import Stage
from flaresemi.preprocessing.preprocessor import stage_labels
from flaresemi.records import load_record
from flaresemi.review.decisions import OpenCasesOfTabs, ReviewDecision, decide, take_back
from flaresemi.reviews import Review, review_file, reviewed_label, taken_back_file
from tests.review.made_review import MadeReview

CASE = "phantom_0004"


def test_who_decided_what_about_which_label_map(made: MadeReview) -> None:
    material = made.material()
    seen = material.label_hash(CASE, 2)
    names = material.labels.names
    first = decide(
        material, CASE, "Ann", ReviewDecision(revision=0, looked_at=seen, accepted=names[:1], rejected=names[2:3])
    )
    assert (first.revision, first.by, first.fold, first.round, first.looked_at) == (1, "Ann", "0", 2, seen)
    assert first.image
    assert material.review(CASE) == first
    path = reviewed_label(made.workspace.reviews, CASE, 1)
    assert content_hash(path) == first.label_hash
    image = material.unlabeled[CASE].images[0]
    assert read_grid(path).geometry == read_grid(image).geometry
    newest = material.label_map(material.unlabeled[CASE], "newest", 2)
    assert np.array_equal(read_label_map(path).array_zyx, material.labels.to_values(newest.indices_zyx))
    # The second replaces the first, whose label map stays.
    drawn = np.where(newest.indices_zyx == 1, 2, newest.indices_zyx)
    second = decide(
        material,
        CASE,
        "Bob",
        ReviewDecision(revision=1, looked_at=seen, corrected=names[:2], indices_zyx=drawn, note="?"),
    )
    assert (second.revision, second.label_revision) == (2, 2)
    reviewed = material.label_map(material.unlabeled[CASE], "reviewed", 2)
    assert np.array_equal(reviewed.indices_zyx, drawn)
    assert path.is_file()
    take_back(material, CASE, 2)
    assert material.review(CASE) is None
    assert not review_file(made.workspace.reviews, CASE).exists()


def test_an_accepted_label_map_is_trained_on_as_it_was_decided_about(made: MadeReview) -> None:
    material = made.material()
    names, seen = material.labels.names, material.label_hash(CASE, 2)
    newest = material.label_map(material.unlabeled[CASE], "newest", 2).indices_zyx
    drawn = np.where(newest == 1, 0, newest)
    drawn[5:15, 10:20, 10:20] = 1
    decided = ReviewDecision(revision=0, looked_at=seen, accepted=names[:1])
    for revision, indices, source in ((0, None, "pseudo"), (1, drawn, "accepted"), (2, None, "pseudo")):
        review = decide(material, CASE, "Ann", dataclasses.replace(decided, revision=revision, indices_zyx=indices))
        assert review.own_map == (indices is not None)
        selection, reviews = made.taken()
        (case,) = [each for each in selection.selected if each.case_id == CASE]
        assert (case.source, "liver" in case.supervised) == (source, True)
        if indices is not None:
            taught = np.asarray(reviews.stores[Stage.FINE].open(CASE).label_zyx) == 1
            grid = reviews.stores[Stage.FINE].images.record(CASE).grid
            assert np.array_equal(taught, stage_labels(drawn, grid) == 1)
    drawn_but_rejected = dataclasses.replace(decided, revision=3, accepted=(), rejected=names[:1], indices_zyx=drawn)
    assert not decide(material, CASE, "Ann", drawn_but_rejected).own_map  # of which none is kept


def test_no_revision_is_given_twice(made: MadeReview) -> None:
    material = made.material()
    names, seen, folder = material.labels.names, material.label_hash(CASE, 2), made.workspace.reviews
    first = decide(material, CASE, "Ann", ReviewDecision(revision=0, looked_at=seen, accepted=names[:1]))
    take_back(material, CASE, 1)
    assert load_record(taken_back_file(folder, CASE, 1), Review) == first  # who it was stays known
    drawn = np.ones_like(material.label_map(material.unlabeled[CASE], "newest", 2).indices_zyx)
    decided = ReviewDecision(revision=0, looked_at=seen, corrected=names[:1], indices_zyx=drawn)
    second = decide(material, CASE, "Bob", decided)
    assert (second.revision, second.label_revision) == (2, 2)
    # A round that began with the first one still finds its label map, and a page that shows the first replaces nothing.
    assert content_hash(reviewed_label(folder, CASE, 1)) == first.label_hash
    with pytest.raises(InUseError, match="decided meanwhile by Bob"):
        decide(material, CASE, "Ann", ReviewDecision(revision=1, looked_at=seen, rejected=names[:1]))
    review_file(folder, CASE).unlink()  # by hand
    assert decide(material, CASE, "Eve", ReviewDecision(revision=0, looked_at=seen, rejected=names)).revision == 3
    take_back(material, CASE, 3)  # without a label map
    assert decide(material, CASE, "Eve", ReviewDecision(revision=0, looked_at=seen, rejected=names)).revision == 4


def test_what_was_drawn_can_be_saved_though_a_round_has_labeled_the_case_since(made: MadeReview) -> None:
    material = made.material()
    names, former, newest = material.labels.names, material.label_hash(CASE, 1), material.label_hash(CASE, 2)
    assert former != newest
    drawn = np.ones_like(material.label_map(material.unlabeled[CASE], "former", 2).indices_zyx)
    decided = ReviewDecision(revision=0, looked_at=former, accepted=names[:1])
    for without in (decided, dataclasses.replace(decided, accepted=(), rejected=names[:1])):
        with pytest.raises(InUseError, match="made anew meanwhile"):
            decide(material, CASE, "Ann", without)
    review = decide(material, CASE, "Ann", dataclasses.replace(decided, indices_zyx=drawn))
    assert (review.round, review.looked_at, review.own_map) == (1, former, True)
    assert np.array_equal(material.label_map(material.unlabeled[CASE], "reviewed", 2).indices_zyx, drawn)
    selection, reviews = made.taken()
    assert {each.case_id: each.source for each in selection.selected}[CASE] == "accepted"
    assert np.unique(reviews.stores[Stage.FINE].open(CASE).label_zyx).tolist() == [1]
    # Before there was any, or of one that was drawn anew since and is not known any more.
    for revision, looked_at, number in ((1, "", 0), (2, "unknown", 2), (3, newest, 2)):
        again = dataclasses.replace(decided, revision=revision, looked_at=looked_at, indices_zyx=drawn)
        assert decide(material, CASE, "Ann", again).round == number


def test_what_is_refused_leaves_no_label_map(made: MadeReview) -> None:
    material = made.material()
    names, seen = material.labels.names, material.label_hash(CASE, 2)
    decided = ReviewDecision(revision=0, looked_at=seen, accepted=names[:1])
    with pytest.raises(SelectionError, match="on one line"):
        decide(material, CASE, "Ann\nBob", decided)
    with pytest.raises(SelectionError, match="only corrected organs can count in some slices"):
        decide(material, CASE, "Ann", dataclasses.replace(decided, slices=((0, 10),)))
    drawn = dataclasses.replace(decided, accepted=(), corrected=names[:1], slices=((0, 10), (30, 41)))
    with pytest.raises(SelectionError, match="has 40 axial slices, and number 41 is named"):
        decide(material, CASE, "Ann", drawn)
    assert not (made.workspace.reviews / "label_maps").exists()


def test_a_label_map_that_is_lost_is_decided_about_again(made: MadeReview) -> None:
    material = made.material()
    names, seen, case = material.labels.names, material.label_hash(CASE, 2), material.unlabeled[CASE]
    drawn = np.full_like(material.label_map(case, "newest", 2).indices_zyx, 2)
    decided = ReviewDecision(revision=0, looked_at=seen, corrected=names[:2], indices_zyx=drawn)
    review = decide(material, CASE, "Ann", decided)
    assert review.values == {"liver": (1,), "right kidney": (2,)}
    path = reviewed_label(made.workspace.reviews, CASE, 1)
    kept = path.read_bytes()
    write_label_map(path, drawn * 0, read_grid(case.images[0]))  # another program saved over it
    for _ in range(2):
        assert material.label_map(case, "reviewed", 2) is None
        items, _ = material.queue()
        (found,) = [item for item in items if item.case_id == CASE]
        assert (found.reasons[0].kind, found.priority >= 1.0) == ("label map lost", True)
        assert "decided by Ann" in found.reasons[0].text and "decide again" in found.reasons[0].text
        path.unlink(missing_ok=True)
    path.write_bytes(kept)
    assert np.array_equal(material.label_map(case, "reviewed", 2).indices_zyx, drawn)
    material.values["liver"] = (9,)  # dataset.json was changed: what was drawn means something else now
    assert material.label_map(case, "reviewed", 2) is None
    decide(material, CASE, "Bob", dataclasses.replace(decided, revision=1))
    assert material.label_map(case, "reviewed", 2) is not None


def test_nobody_decides_about_what_was_not_seen(made: MadeReview) -> None:
    material = made.material()
    names, seen = material.labels.names, material.label_hash(CASE, 2)
    decide(material, CASE, "Ann", ReviewDecision(revision=0, looked_at=seen, rejected=names[:1]))
    with pytest.raises(InUseError, match="decided meanwhile by Ann"):
        decide(material, CASE, "Bob", ReviewDecision(revision=0, looked_at=seen, rejected=names[:1]))
    with pytest.raises(InUseError, match="made anew"):
        decide(material, CASE, "Bob", ReviewDecision(revision=1, looked_at="other", rejected=names[:1]))
    with pytest.raises(InUseError, match="meanwhile"):
        take_back(material, CASE, 3)
    for case_id in ("phantom_0001", "../../etc/passwd", "none"):  # labeled, held out, none at all
        with pytest.raises(ConfigError, match="no unlabeled case"):
            decide(material, case_id, "Bob", ReviewDecision(revision=0, looked_at="", rejected=names[:1]))
    with pytest.raises(SelectionError, match="not: lver"):
        decide(material, CASE, "Bob", ReviewDecision(revision=1, looked_at=seen, rejected=("lver",)))
    with pytest.raises(SelectionError, match="nothing is decided"):
        decide(material, CASE, "Bob", ReviewDecision(revision=1, looked_at=seen))
    assert material.review(CASE).by == "Ann"


def test_one_tab_has_a_case_until_it_is_closed_or_silent() -> None:
    now = [0.0]
    tabs = OpenCasesOfTabs(lambda: now[0])
    assert tabs.claim("a", "tab 1", "Ann") is None
    assert tabs.claim("a", "tab 2", "Bob") == "Ann"
    with pytest.raises(InUseError, match="Ann has case 'a' open"):
        tabs.require("a", "tab 2", "Bob")
    now[0] = 61.0  # a browser runs what a hidden tab does now and then once a minute
    assert tabs.claim("a", "tab 2", "Bob") == "Ann"
    assert tabs.claim("a", "tab 1", "Ann") is None  # still there
    now[0] = 130.0
    assert tabs.claim("a", "tab 2", "Bob") == "Ann"
    assert tabs.claim("b", "tab 1", "Ann") is None  # and gone on to another case
    assert tabs.claim("a", "tab 2", "Bob") is None
    assert tabs.holders() == {"a": "Bob", "b": "Ann"}
    tabs.release("tab 2")
    now[0] = 251.0
    assert tabs.holders() == {}
    assert tabs.claim("b", "tab 2", "Bob") is None
