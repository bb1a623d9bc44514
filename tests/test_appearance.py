import dataclasses

import numpy as np
import pytest

from flaresemi.appearance import Look, far_from, norms_of
from flaresemi.geometry import BoundingBox, Geometry
from flaresemi.io.images import read_image
from flaresemi.labels import Label, LabelSet
from flaresemi.plans import CaseFingerprint, ChannelFacts, DatasetFingerprint
from flaresemi.preprocessing.looks import look_at
from flaresemi.preprocessing.preprocessor import prepare

CT = ChannelFacts(minimum=-1024, maximum=1500, middle_05=-100, middle_95=200, tissue_50=40)
USUAL = Look(
    geometry=Geometry(shape_zyx=(100, 200, 200), spacing_zyx_mm=(3.0, 2.0, 2.0)),
    channels=(CT,),
    body_box=BoundingBox(start=(0, 40, 20), stop=(100, 160, 180)),
    body_share=0.4,
)


def fingerprint(looks, channels=("CT",)):
    cases = tuple(
        CaseFingerprint(
            case_id=str(number),
            shape_zyx=look.geometry.shape_zyx,
            spacing_zyx_mm=look.geometry.spacing_zyx_mm,
            body_box=look.body_box,
            foreground_box=None,
            voxels_per_label=(1,),
            annotated=(True,),
            channel_facts=look.channels,
            body_share=look.body_share,
        )
        for number, look in enumerate(looks)
    )
    labels = LabelSet(labels=(Label(name="liver", value=1),))
    return DatasetFingerprint(dataset_name="d", channels=channels, labels=labels, cases=cases, intensities=())


def told(look, looks=(USUAL,)):
    return far_from(norms_of(fingerprint(looks)), look, ("CT",))


def with_channel(**changes):
    return dataclasses.replace(USUAL, channels=(dataclasses.replace(CT, **changes),))


def with_spacing(*spacing):
    return dataclasses.replace(USUAL, geometry=dataclasses.replace(USUAL.geometry, spacing_zyx_mm=spacing))


@pytest.mark.parametrize(
    ("look", "said"),
    [
        (with_channel(minimum=0, middle_05=924, middle_95=1224, tissue_50=1064), "tissue in the middle is 1064 HU"),
        (with_channel(minimum=0, maximum=255, middle_05=20), "the lowest value (down to air) is 0 HU"),
        (with_spacing(9.0, 2.0, 2.0), "spacing along z is 9 mm (labeled cases: 3 mm)"),
        (with_spacing(0.003, 0.002, 0.002), "the body's size along y is 0.24 mm"),
        (dataclasses.replace(USUAL, body_share=0.1), "the body's share of the image is 0.1 (labeled cases: 0.4)"),
    ],
)
def test_a_scan_far_from_the_labeled_ones_is_told(look, said):
    assert any(said in each for each in told(look)), told(look)


def test_a_scan_like_the_labeled_ones_is_not_told():
    assert told(USUAL) == []
    assert told(with_channel(minimum=-3024, maximum=31000, tissue_50=0)) == []
    assert told(with_spacing(5.0, 2.5, 2.5)) == []


@pytest.mark.parametrize(
    ("name", "is_told"), [("noNorm", True), ("rgb_to_0_1", True), ("zscore", False), ("T1", False)]
)
def test_contrasts_are_compared_where_no_normalization_takes_them_out(name, is_told):
    one = ChannelFacts(minimum=0, maximum=100, middle_05=10, middle_95=90, tissue_50=50)
    other = ChannelFacts(minimum=0, maximum=10000, middle_05=1000, middle_95=9000, tissue_50=5000)
    known = [dataclasses.replace(USUAL, channels=(one, other))] * 3
    norms = norms_of(fingerprint(known, (name, name)))
    assert far_from(norms, known[0], (name, name)) == [], "channels of one name are told apart"
    swapped = dataclasses.replace(USUAL, channels=(other, one))
    assert bool(far_from(norms, swapped, (name, name))) == is_told


def test_no_labeled_case_is_far_from_them_all():
    looks = [USUAL] * 20 + [with_spacing(30.0, 2.0, 2.0), with_channel(tissue_50=700)]
    assert [told(look, looks) for look in looks] == [[]] * len(looks)
    assert told(with_spacing(60.0, 2.0, 2.0), looks)


def test_older_fingerprints_allow_fewer_comparisons():
    old = [dataclasses.replace(USUAL, channels=(), body_share=None)]
    assert told(with_channel(tissue_50=700), old) == []
    assert told(with_spacing(30.0, 2.0, 2.0), old)
    assert far_from((), with_spacing(30.0, 2.0, 2.0), ("CT",)) == []


@pytest.mark.parametrize(("name", "every"), [("hippocampus", 2), ("acdc", 5)])
def test_scans_of_the_same_kind_raise_no_alarm(shared_data, name, every):
    paths = sorted((shared_data / name).glob("images*/*.nii.gz"))[::every]
    looks = [look_at(prepare(read_image([path]), "foreground")) for path in paths]
    new, labeled = looks[::5], [look for number, look in enumerate(looks) if number % 5]
    for count in (len(labeled), 4):
        chosen = np.random.default_rng(0).permutation(len(labeled))[:count]
        norms = norms_of(fingerprint([labeled[index] for index in chosen], ("MR",)))
        assert [far_from(norms, look, ("MR",)) for look in new] == [[]] * len(new)
