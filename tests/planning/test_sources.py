"""What a result of a case stands on: its files, and all that decides how they are read."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from flaresemi.dataset import Case
from flaresemi.labels import Label, LabelSet
from flaresemi.planning.sources import case_content_hash, source_hash
from tests.made_nrrd import segment_fields, write_nrrd

LABELS = LabelSet(labels=(Label(name="liver", value=1), Label(name="spleen", value=2)))
SWAPPED = LabelSet(labels=(Label(name="spleen", value=1), Label(name="liver", value=2)))
REGIONS = LabelSet(
    labels=(Label(name="whole", value=1, more_values=(2,)), Label(name="left", value=2, more_values=(3,)))
)
OTHER_REGIONS = dataclasses.replace(
    REGIONS,
    labels=tuple(dataclasses.replace(one, name=two.name) for one, two in zip(REGIONS.labels, REGIONS.labels[::-1])),
)


def hashes(case: Case, labels: LabelSet) -> tuple[str, str]:
    return source_hash(case, labels, "rules"), case_content_hash(case, labels, "rules")


def labeled(label: Path) -> Case:
    image = label.with_name("image.nii.gz")
    if not image.exists():
        image.write_bytes(b"an image")
    return Case(id="a", images=(image,), label=label)


@pytest.mark.parametrize(("one", "other"), [(LABELS, SWAPPED), (REGIONS, OTHER_REGIONS)])
def test_names_count_where_they_decide_what_a_label_map_holds(tmp_path: Path, one: LabelSet, other: LabelSet) -> None:
    plain, layer = tmp_path / "a.nii.gz", np.ones((2, 3, 4), np.uint8)
    plain.write_bytes(b"a label map")
    flat = write_nrrd(tmp_path / "flat.seg.nrrd", layer, fields=segment_fields(("liver", 1, 0), ("spleen", 2, 0)))
    layers = write_nrrd(
        tmp_path / "layers.seg.nrrd", [layer, 0 * layer], fields=segment_fields(("liver", 1, 0), ("spleen", 1, 1))
    )
    objects = tmp_path / "a.seg.dcm"
    objects.write_bytes(b"a segmentation")
    for path in (plain, flat):
        assert hashes(labeled(path), one) == hashes(labeled(path), other)
    for path in (layers, objects):
        assert all(a != b for a, b in zip(hashes(labeled(path), one), hashes(labeled(path), other), strict=True))


def test_what_was_prepared_from_plain_files_stays(tmp_path: Path) -> None:
    """A hash that changes throws away what users have prepared."""
    label = tmp_path / "a.nii.gz"
    label.write_bytes(b"a label map")
    assert case_content_hash(labeled(label), LABELS, "rules") == "529c21ddc6caeb52"
    flat = write_nrrd(tmp_path / "flat.seg.nrrd", np.ones((2, 3, 4), np.uint8), fields=segment_fields(("liver", 1, 0)))
    assert case_content_hash(labeled(flat), LABELS, "rules") == "697df8446d305f0e"


def test_what_lies_around_segments_counts_where_it_is_not_0(tmp_path: Path) -> None:
    """Such a file was read otherwise once."""
    plain = write_nrrd(tmp_path / "plain.nrrd", np.ones((2, 3, 4), np.uint8))
    flat = write_nrrd(tmp_path / "flat.seg.nrrd", np.ones((2, 3, 4), np.uint8), fields=segment_fields(("liver", 1, 0)))
    one, other = (dataclasses.replace(each, background=9) for each in (LABELS, SWAPPED))
    assert hashes(labeled(plain), one) == hashes(labeled(plain), other)
    assert hashes(labeled(flat), one) != hashes(labeled(flat), other)
