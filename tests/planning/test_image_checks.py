import pytest

from flaresemi.planning.image_checks import check_image, expected_modality
from flaresemi.plans import ChannelFacts


def facts(low, high, **changes):
    settings = {"minimum": low, "maximum": high, "middle_05": low, "middle_95": high, "tissue_50": (low + high) / 2}
    return ChannelFacts(**(settings | changes))


def problems(channel, *args, **settings):
    return [finding.problem for finding in check_image("x", (), (channel,), args, **settings)]


def test_channels_say_what_dicom_calls_them():
    known = {"CT": "CT", "ct": "CT", "T1": "MR", "T2-FLAIR": "MR", "MRI": "MR", "PET": "PT", "CT_portal": "CT"}
    assert {name: expected_modality(name) for name in known} == known
    assert [expected_modality(name) for name in ("0", "PET/CT", "first")] == [None] * 3


@pytest.mark.parametrize(
    ("channel", "modality", "told"),
    [
        ("CT", "CT", False),
        ("CT", "", False),
        ("CT", "MR", True),
        ("CT", "PT", True),
        ("CT", "RTSTRUCT", True),
        ("CT", "OT", True),
        ("T1", "MR", False),
        ("T1", "CT", True),
        ("contrast", "MR", False),
        ("contrast", "SEG", True),
        ("CT", "CT, MR", True),
    ],
)
def test_a_series_of_another_modality(channel, modality, told):
    assert problems(channel, facts(-1000, 500), modalities=(modality,)) == (["modality"] if told else [])


def test_intensities():
    assert problems("CT", facts(-1000, 500)) == []
    assert problems("CT", facts(0, 1)) == ["no HU"]
    assert problems("CT", facts(0, 0)) == ["no HU"]
    assert problems("CT", facts(0, 2000, middle_05=900)) == ["no HU"]
    assert problems("MR", facts(0, 1)) == []
    assert problems("MR", facts(7, 7)) == ["constant"]
    assert problems("MR", facts(0, 3e38, middle_95=100, stray=1)) == ["stray voxels"]
    assert problems("MR", facts(0, 1), non_finite=3) == ["not finite"]
    assert problems("noNorm", facts(-1000, 65504)) == []
    assert problems("noNorm", facts(0, 70000, stray=1)) == ["intensities"]
    assert problems("rgb_to_0_1", facts(0, 255)) == []
    assert problems("rgb_to_0_1", facts(-1, 200)) == problems("rgb_to_0_1", facts(0, 4095)) == ["intensities"]
    assert problems("rescale_to_0_1", facts(0, 3e38, middle_95=100, stray=1)) == ["stray voxels"]


def test_intensities_are_judged_by_what_is_done_to_them():
    assert problems("noNorm", facts(0, 70000), schemes=("as_is",)) == []
    assert problems("T1", facts(0, 70000), schemes=("none",)) == ["intensities"]
    stray = facts(0, 3e38, middle_95=100, stray=1)
    remedies = [
        next(check_image("x", (), ("MR",), (stray,), schemes=(scheme,))).remedy for scheme in ("zscore", "min_max")
    ]
    assert ["clipped" in remedy for remedy in remedies] == [True, False]
