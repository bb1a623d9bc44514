"""Measures of organs, against their definitions."""

import numpy as np
import pytest

from flaresemi.geometry import Geometry
from flaresemi.inference.measurements import MeasuresTable, measure, save_measures
from flaresemi.inference.segmentation import Segmentation
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import Image
from flaresemi.labels import Label, LabelSet
from flaresemi.records import load_record
from flaresemi.tables import read_table

SHAPE = (6, 7, 8)
SPACING = (2.0, 1.5, 0.5)
ORGANS = LabelSet(labels=(Label(name="liver", value=3), Label(name="spleen", value=9), Label(name="heart", value=11)))
REGIONS = LabelSet(
    labels=(Label(name="tumor", value=1, more_values=(2,)), Label(name="core", value=2), Label(name="rest", value=5))
)


def made(labels, indices, channels=1, offset=0.0):
    source = SourceGrid.of(Geometry(shape_zyx=SHAPE, spacing_zyx_mm=SPACING))
    values = np.random.default_rng(0).normal(offset, 100, (channels, *SHAPE)).astype(np.float32)
    segmentation = Segmentation(indices_zyx=indices, labels=labels, source=source, notes=(), seconds={})
    return segmentation, Image(array_czyx=values, source=source)


def random_indices(labels):
    return np.random.default_rng(1).integers(0, labels.channels, SHAPE).astype(np.uint8)


@pytest.mark.parametrize("labels", [ORGANS, REGIONS])
@pytest.mark.parametrize("offset", [0.0, 30000.0])
def test_volume_mean_and_sd(labels, offset):
    segmentation, image = made(labels, random_indices(labels), channels=2, offset=offset)
    case = measure("a", segmentation, image, ("CT", "PET"))
    for number, organ in enumerate(case.organs, start=1):
        mask = labels.mask(segmentation.indices_zyx, number)
        assert organ.voxels == np.count_nonzero(mask)
        assert organ.volume_ml == pytest.approx(organ.voxels * 1.5 / 1000)
        inside = image.array_czyx[:, mask].astype(np.float64)
        assert organ.mean == pytest.approx(inside.mean(axis=1))
        assert organ.sd == pytest.approx(inside.std(axis=1))


def test_extent_and_the_faces_of_the_scan_that_are_reached():
    indices = np.zeros(SHAPE, np.uint8)
    indices[0:3, 2:4, 1:7] = 1
    indices[4, 6, 0] = 2
    segmentation, image = made(ORGANS, indices)
    liver, spleen, heart = measure("a", segmentation, image, ("CT",)).organs
    assert liver.extent_xyz_mm == (3.0, 3.0, 6.0)
    assert (liver.touches, spleen.touches) == (("inferior",), ("posterior", "right"))
    assert (heart.voxels, heart.volume_ml, heart.mean, heart.sd, heart.touches) == (0, 0.0, (), (), ())


def test_the_table_and_the_record_say_the_same(tmp_path):
    segmentation, image = made(ORGANS, random_indices(ORGANS) % 3)
    case = measure("=case", segmentation, image, ("CT",))
    save_measures(tmp_path, (case,))
    assert load_record(tmp_path / "statistics.json", MeasuresTable).cases == (case,)
    columns, rows = read_table(tmp_path / "statistics.csv")
    assert columns[-2:] == ("mean CT", "sd CT")
    assert [(row["case"], row["organ"]) for row in rows] == [("=case", organ.organ) for organ in case.organs]
    assert float(rows[0]["volume_ml"]) == pytest.approx(case.organs[0].volume_ml, rel=1e-5)
    assert float(rows[1]["mean CT"]) == pytest.approx(case.organs[1].mean[0], rel=1e-5)
    assert rows[2]["mean CT"] == ""


def test_cases_of_models_with_other_channels_share_a_table(tmp_path):
    channels = (("CT",), ("MR", "MR"), ("MR",))
    cases = []
    for number, names in enumerate(channels):
        cases.append(measure(str(number), *made(ORGANS, random_indices(ORGANS), channels=len(names)), names))
    save_measures(tmp_path, tuple(cases))
    head, *lines = (tmp_path / "statistics.csv").read_text(encoding="utf-8").splitlines()
    assert head.endswith("mean CT,sd CT,mean MR,sd MR,mean MR,sd MR")
    rows = [line.split(",")[-6:] for line in lines if ",liver," in line]
    filled = [[bool(cell) for cell in row] for row in rows]
    assert filled == [[True] * 2 + [False] * 4, [False] * 2 + [True] * 4, [False] * 2 + [True] * 2 + [False] * 2]
