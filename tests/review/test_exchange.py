"""What is exported can be corrected by any program and comes back as a correction; what does not fit is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from flaresemi.cli import review as command
from flaresemi.errors import ConfigError, DatasetError
from flaresemi.io.images import read_grid, read_image, read_label_map, write_label_map
from flaresemi.review.corrections import OrganChange, changes, import_corrections
from flaresemi.review.decisions import ReviewDecision, decide
from flaresemi.review.exchange import SLICER_TABLE, SNAP_TABLE, export_queue
from flaresemi.reviews import Review, reviewed_label
from tests.review.made_review import MadeReview

CASES = ["phantom_0004", "phantom_0005", "phantom_0006"]


def words(made: MadeReview) -> list[str]:
    return ["-d", str(made.dataset), "-w", str(made.workspace.root)]


def change(path: Path, value: int) -> int:
    """Draws a box with another program; the number of voxels that it changes."""
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    box = array[5:15, 10:20, 10:20]
    changed = int((box != value).sum())
    box[:] = value
    drawn = sitk.GetImageFromArray(array)
    drawn.CopyInformation(image)
    sitk.WriteImage(drawn, str(path))
    return changed


def save_again(path: Path) -> None:
    """Saves a label map with another program, which writes the same voxels into another file."""
    before = path.read_bytes()
    image = sitk.ReadImage(str(path))
    sitk.WriteImage(sitk.Cast(image, sitk.sitkInt16), str(path))
    assert path.read_bytes() != before


def test_out_and_back(made: MadeReview, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "queue"
    assert command.main([*words(made), "--export-queue", str(out), "--most", "2"]) == 0
    assert f"--import-corrections {out} --by NAME" in capsys.readouterr().out
    assert sorted(path.name for path in (out / "labels").iterdir()) == [f"{name}.nii.gz" for name in CASES[:2]]
    material = made.material()
    case = material.unlabeled[CASES[0]]
    ours, theirs = read_image(case.images), read_image([out / "images" / f"{CASES[0]}_0000.nii.gz"])
    assert np.array_equal(ours.array_czyx, theirs.array_czyx)
    assert ours.geometry.far_corner_distance_mm(theirs.geometry) < 1e-3
    values = read_label_map(out / "labels" / f"{CASES[0]}.nii.gz").array_zyx
    newest = material.label_map(case, "newest", 2).indices_zyx
    assert np.array_equal(values, material.labels.to_values(newest))
    assert re.search(r'^ +1 .*"liver"$', (out / SNAP_TABLE).read_text(encoding="utf-8"), re.MULTILINE)
    assert "\n2 right_kidney " in (out / SLICER_TABLE).read_text(encoding="utf-8")
    why = (out / "queue.csv").read_text(encoding="utf-8")
    assert "not found, though every labeled case has it: spleen" in why
    count = change(out / "labels" / f"{CASES[0]}.nii.gz", 3)
    save_again(out / "labels" / f"{CASES[1]}.nii.gz")
    assert command.main([*words(made), "--import-corrections", str(out), "--by", "Ann"]) == 0
    told = capsys.readouterr().out
    assert f"spleen +{count} voxels" in told
    assert "1 correction(s) taken" in told  # the other one is as it was
    review = material.review(CASES[0])
    assert (review.by, review.corrected, review.rejected) == ("Ann", material.labels.names, ())
    assert material.review(CASES[1]) is None
    assert command.main([*words(made), "--import-corrections", str(out), "--by", "Ann"]) == 0  # once is enough
    assert material.review(CASES[0]) == review


def test_what_does_not_fit_is_refused_by_name_and_the_rest_is_taken(made: MadeReview, tmp_path: Path) -> None:
    material = made.material()
    out = tmp_path / "queue"
    assert export_queue(material, out, 3) == 3
    with pytest.raises(ConfigError, match="not empty"):
        export_queue(material, out, 3)
    labels = out / "labels"
    change(labels / f"{CASES[0]}.nii.gz", 3)
    change(labels / f"{CASES[1]}.nii.gz", 77)
    shifted = sitk.ReadImage(str(labels / f"{CASES[2]}.nii.gz"))
    shifted.SetOrigin((500.0, 0.0, 0.0))
    sitk.WriteImage(shifted, str(labels / f"{CASES[2]}.nii.gz"))
    for name in ("phantom_0001", "stranger"):
        sitk.WriteImage(shifted, str(labels / f"{name}.nii.gz"))
    with pytest.raises(DatasetError) as caught:
        import_corrections(material, out, "Ann", ["spleen"])
    for told in (
        "4 of 5 label maps cannot be taken; 1 were", "has value 77", "does not lie on its image",
        "'phantom_0001' is no unlabeled case: it is a labeled one", "'stranger' is no unlabeled case",
    ):  # fmt: skip
        assert told in caught.value.what
    assert material.review(CASES[0]).corrected == ("spleen",)
    with pytest.raises(ConfigError, match="no such organ: splen"):
        import_corrections(material, out, "Ann", ["splen"])
    table = out / SNAP_TABLE
    table.write_text(table.read_text(encoding="utf-8").replace('"liver"', '"spleen"', 1), encoding="utf-8")
    with pytest.raises(DatasetError, match="value 1 is 'spleen' in this table, and 'liver' in the dataset"):
        import_corrections(material, out, "Ann")


def decided_on_the_page(made: MadeReview, **more: object) -> Review:
    """The spleen was drawn, the liver accepted, the gallbladder rejected."""
    material = made.material()
    drawn = material.label_map(material.unlabeled[CASES[0]], "newest", 2).indices_zyx.copy()
    drawn[20:25, 20:25, 20:25] = 3
    marks = {"corrected": ("spleen",), "accepted": ("liver",), "rejected": ("gallbladder",)} | more
    decision = ReviewDecision(revision=0, looked_at=material.label_hash(CASES[0], 2), indices_zyx=drawn, **marks)
    return decide(material, CASES[0], "Bob", decision)


@pytest.mark.parametrize(
    ("organs", "value", "corrected", "accepted", "rejected"),
    [
        (["pancreas"], 4, ["spleen", "pancreas"], ["liver"], ["gallbladder"]),
        (["gallbladder", "liver"], 9, ["liver", "spleen", "gallbladder"], [], []),
        (None, 4, "all others", [], ["gallbladder"]),
        (None, 9, "all", [], []),  # the gallbladder was drawn
    ],
)
def test_what_was_decided_before_the_export_stays(
    made: MadeReview,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    organs: list[str] | None,
    value: int,
    corrected: list[str] | str,
    accepted: list[str],
    rejected: list[str],
) -> None:
    before, material, out = decided_on_the_page(made), made.material(), tmp_path / "queue"
    names = material.labels.names
    export_queue(material, out, 3)
    change(out / "labels" / f"{CASES[0]}.nii.gz", value)
    taken = import_corrections(material, out, "Ann", organs)
    assert taken[CASES[0]][names[value - 1]].added_voxels > 0
    after = material.review(CASES[0])
    assert (after.revision, after.by) == (before.revision + 1, "Ann")
    if isinstance(corrected, str):
        corrected = [name for name in names if corrected == "all" or name != "gallbladder"]
    assert (after.corrected, after.accepted, after.rejected) == (tuple(corrected), tuple(accepted), tuple(rejected))
    assert f"{CASES[0]}: takes the place of what Bob" in caplog.text
    stays = {kind: getattr(after, kind) for kind in ("corrected", "accepted", "rejected")}
    for kind, kept in (("corrected", "spleen"), ("accepted", "liver"), ("rejected", "gallbladder")):
        is_kept = kept in stays[kind] and kept not in (names if organs is None and kind != "rejected" else organs or ())
        assert (f"{kind} {kept}" in caplog.text) == is_kept
    assert import_corrections(material, out, "Ann", organs) == {}  # it was taken before
    assert material.review(CASES[0]) == after


def test_slices_that_were_looked_at_stay_and_a_lost_label_map_is_vouched_for_no_more(
    made: MadeReview, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, material = decided_on_the_page(made, slices=((20, 25),)), made.material()
    export_queue(material, tmp_path / "first", 3)
    change(tmp_path / "first" / "labels" / f"{CASES[0]}.nii.gz", 4)
    import_corrections(material, tmp_path / "first", "Ann", ["pancreas"])
    review = material.review(CASES[0])
    assert (review.corrected, review.slices) == (("spleen", "pancreas"), before.slices)
    assert "counts in slices 21 to 25 only, in which spleen was looked at" in caplog.text
    assert import_corrections(material, tmp_path / "first", "Ann", ["pancreas"]) == {}
    export_queue(material, tmp_path / "second", 3)
    change(tmp_path / "second" / "labels" / f"{CASES[0]}.nii.gz", 1)
    import_corrections(material, tmp_path / "second", "Ann", ["pancreas", "spleen"])
    assert material.review(CASES[0]).slices == ()
    reviewed_label(made.workspace.reviews, CASES[0], 3).unlink()
    export_queue(material, tmp_path / "third", 3)  # the pseudo-label
    change(tmp_path / "third" / "labels" / f"{CASES[0]}.nii.gz", 4)
    import_corrections(material, tmp_path / "third", "Ann", ["pancreas"])
    review = material.review(CASES[0])
    assert (review.corrected, review.accepted, review.rejected) == (("pancreas",), (), ("gallbladder",))


def test_a_decision_since_the_export_is_not_replaced(made: MadeReview, tmp_path: Path) -> None:
    material = made.material()
    out = tmp_path / "queue"
    export_queue(material, out, 3)
    other = tmp_path / "other"
    export_queue(material, other, 3)
    change(other / "labels" / f"{CASES[0]}.nii.gz", 3)
    import_corrections(material, other, "Bob")
    change(out / "labels" / f"{CASES[0]}.nii.gz", 4)
    with pytest.raises(DatasetError, match="decided since the export, by Bob"):
        import_corrections(material, out, "Ann")
    assert material.review(CASES[0]).by == "Bob"


def test_organs_that_were_not_looked_at_are_told_where_they_differ(
    made: MadeReview, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    material, out = made.material(), tmp_path / "queue"
    export_queue(material, out, 3)
    count = change(out / "labels" / f"{CASES[0]}.nii.gz", 3)
    taken = import_corrections(material, out, "Ann", ["liver"])
    assert "spleen differ, too, and do not count: --organs does not name them" in caplog.text.replace("'", "")
    assert count > 0 and "spleen" not in taken[CASES[0]]


def test_a_lost_label_map_can_be_brought_back(
    made: MadeReview, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    material, place = made.material(), made.workspace.reviews
    export_queue(material, tmp_path / "first", 3)
    change(tmp_path / "first" / "labels" / f"{CASES[0]}.nii.gz", 3)
    import_corrections(material, tmp_path / "first", "Ann")
    reviewed_label(place, CASES[0], 1).unlink()
    out = tmp_path / "second"
    assert export_queue(material, out, 3) == 3
    assert f"{CASES[0]}: the label map that Ann" in caplog.text
    newest = material.label_map(material.unlabeled[CASES[0]], "newest", 2)
    written = read_label_map(out / "labels" / f"{CASES[0]}.nii.gz").array_zyx
    assert np.array_equal(written, material.labels.to_values(newest.indices_zyx))
    change(out / "labels" / f"{CASES[0]}.nii.gz", 3)
    taken = import_corrections(material, out, "Ann")
    assert [*taken] == CASES[:1] and "spleen" in taken[CASES[0]]
    assert material.label_map(material.unlabeled[CASES[0]], "reviewed", 2) is not None


def test_a_label_map_is_told_by_what_it_was_exported_as(made: MadeReview, tmp_path: Path) -> None:
    """A later round drew the pseudo-labels anew meanwhile."""
    material, out = made.material(), tmp_path / "queue"
    state = material.folder(2).state
    hidden = state.rename(state.with_suffix(".hidden"))
    assert (material.newest, export_queue(material, out, 3)) == (1, 3)
    hidden.rename(state)
    assert material.newest == 2
    count = change(out / "labels" / f"{CASES[1]}.nii.gz", 3)
    taken = import_corrections(material, out, "Ann")
    assert taken[CASES[1]]["spleen"].added_voxels == count
    review = material.review(CASES[1])
    assert (review.round, review.note) == (2, f"imported from {CASES[1]}.nii.gz, exported in round 1")
    assert import_corrections(material, out, "Ann") == {}  # it was taken before


def test_an_image_that_was_exchanged_since_the_export_is_told(
    made: MadeReview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    material, out = made.material(), tmp_path / "queue"
    export_queue(material, out, 1)
    path = next((out / "labels").iterdir())
    change(path, 3)
    monkeypatch.setattr(
        "flaresemi.review.corrections.case_versions", lambda cases, workspace: dict.fromkeys(cases, "another")
    )
    with pytest.raises(DatasetError, match="has another image since the export: export it again"):
        import_corrections(material, out, "Ann")
    assert not made.workspace.reviews.exists()


def test_what_other_programs_do_and_nobody_means_is_told(
    made: MadeReview, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    material, folder = made.material(), tmp_path / "drawn"
    folder.mkdir()
    grid = read_grid(material.unlabeled[CASES[2]].images[0])
    seen = material.label_map(material.unlabeled[CASES[2]], "newest", 2).indices_zyx
    path = folder / f"{CASES[2].upper()}.nii.gz"  # a file system that minds no capitals
    write_label_map(path, np.where(seen > 2, seen - 1, np.where(seen == 2, 0, seen)), grid)
    import_corrections(material, folder, "Ann")
    assert "'right kidney' where 'spleen' was" in caplog.text and "numbered them anew?" in caplog.text
    assert "'liver'" not in caplog.text and "takes the place" not in caplog.text
    caplog.clear()
    write_label_map(path, np.zeros_like(seen), grid)
    import_corrections(material, folder, "Bob")
    assert "nothing is marked in this label map" in caplog.text
    assert f"{CASES[2]}: takes the place of what Ann" in caplog.text
    caplog.clear()
    write_label_map(path, np.roll(seen, 1, 2), grid)  # an honest correction
    import_corrections(material, folder, "Bob")
    assert "numbered" not in caplog.text and "nothing is marked" not in caplog.text


def test_differences_in_voxels_and_millilitres(kept: MadeReview) -> None:
    labels = kept.material().labels
    before, after = np.array([[[1, 1, 0, 2]]]), np.array([[[1, 0, 2, 2]]])
    found = changes(before, after, labels, (10.0, 10.0, 10.0))
    assert found["liver"] == OrganChange(added_voxels=0, removed_voxels=1, voxel_ml=1.0)
    unknown = np.array([[[1, labels.ignored, 2, 2]]])  # nobody says that the second voxel is no liver
    assert "liver" not in changes(before, unknown, labels, (10.0, 10.0, 10.0))
    assert str(found["liver"]) == "-1 voxels (1 ml)"
    assert str(changes(None, after, labels, (10, 10, 10))["right kidney"]) == "+2 voxels (2 ml)"


def test_the_list_in_the_terminal(kept: MadeReview, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*words(kept), "--list"]) == 0
    told = capsys.readouterr().out
    assert "fold 0, pseudo-labels of round 2" in told
    assert "not found, though every labeled case has it: spleen" in told
    assert "to label next" in told
    assert command.main([*words(kept), "--import-corrections", "x"]) == 2
    assert "--by NAME" in capsys.readouterr().err
    assert command.main([*words(kept), "--organs", "liver"]) == 2
