"""What an organ is, in codes that other programs know, by its name or by the user's word."""

import json

import pytest
from pydicom.sr import _concepts_dict

from flaresemi import flare22, organ_codes
from flaresemi.description import Description
from flaresemi.errors import ConfigError, DatasetError
from flaresemi.organ_codes import Code, code_of, codes_of, load_codes, read_codes

#: Code and meanings, as DICOM's tables have them.
KNOWN: dict[str, set[str]] = {}
for found in _concepts_dict.concepts["SCT"].values():
    for code, (meaning, _) in found.items():
        KNOWN.setdefault(code, set()).add(meaning.lower())

#: Taken from TotalSegmentator's table.
ELSEWHERE = {
    "74281007",
    "110765007",
    "181674001",
    "78333006",
    "75297007",
    "244849004",
    "68455001",
    "67769002",
    "65985001",
}


@pytest.mark.parametrize("code", sorted({*organ_codes._ORGANS.values()}, key=lambda each: each.value), ids=str)
def test_the_table_says_what_the_standard_says(code):
    if code.value in ELSEWHERE or code.meaning.endswith(" rib"):
        assert code.value not in KNOWN
    else:
        assert code.meaning.lower() in KNOWN[code.value]


def test_categories_sides_and_what_is_abnormal_are_the_standard_s():
    for value, meaning in organ_codes._ABNORMALITIES.values():
        assert meaning.lower() in KNOWN[value]
    named = (organ_codes._ANATOMY, organ_codes._TISSUE, organ_codes._ABNORMAL, *organ_codes._SIDES.values())
    assert all(each.meaning.lower() in KNOWN[each.value] for each in named)


@pytest.mark.parametrize(
    "name", ["left kidney", "Kidney_L", "kidney_left", "LeftKidney", "LK", "lkidney", "Kidneys left"]
)
def test_one_organ_in_many_spellings(name):
    code = code_of(name)
    assert (code.type.value, code.side.value) == ("64033007", "7771000")


@pytest.mark.parametrize(
    ("name", "value", "side"),
    [
        ("inferior vena cava", "64131007", None),
        ("Postcava", "64131007", None),
        ("right adrenal gland", "23451007", "Right"),
        ("heart_atrium_left", "82471001", None),  # the code says the side
        ("lung_middle_lobe_right", "72481006", None),
        ("lung_upper_lobe_left", "45653009", "Left"),
        ("vertebrae_L5", "49668003", None),
        ("vertebrae_T12", "23215003", None),
        ("rib_right_12", "43993008", "Right"),
        ("left and right lung", "39607008", None),
        ("BrainStem", "119238007", None),
        ("small_bowel", "30315005", None),
    ],
)
def test_names_of_other_programs(name, value, side):
    code = code_of(name)
    assert (code.type.value, code.side and code.side.meaning) == (value, side)


def test_every_organ_of_flare22_has_a_public_code():
    assert not any(code.is_private for code in codes_of({}, flare22.LABELS.names).values())


def test_a_tumor_is_in_its_organ():
    code = code_of("left kidney tumor")
    assert [each.meaning for each in (code.type, code.category, code.region, code.side)] == [
        "Neoplasm",
        "Morphologically Abnormal Structure",
        "Kidney",
        "Left",
    ]
    assert code_of("whole tumor").region is None


@pytest.mark.parametrize("name", ["spiral organ of nowhere", "左肾", "river", "x" * 200, "a\\b"])
def test_what_no_table_knows_has_a_code_of_its_own(name):
    code = code_of(name).type
    assert code.scheme == "99FLARESEMI"
    assert len(code.value) <= 16
    assert code.value != code_of(name + "2").type.value


def test_the_user_s_own_code_counts(tmp_path):
    path = tmp_path / "dataset.json"
    own = {"value": "T-1", "scheme": "99US", "meaning": "Our liver"}
    path.write_text(json.dumps({"labels": {"liver": 1, "spleen": 2}, "codes": {"liver": own}}), encoding="utf-8")
    Description(path)
    codes = codes_of(load_codes(path, ("liver", "spleen")), ("liver", "spleen"))
    assert codes["liver"].type == Code(**own)
    assert codes["spleen"].type.value == "78961009"


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ([], "must be an object"),
        ({"lever": {}}, "did you mean 'liver'"),
        ({"liver": "10200004"}, "must be an object"),
        ({"liver": {"value": "1", "scheme": "SCT"}}, "value, scheme and meaning"),
        ({"liver": {"value": "1" * 17, "scheme": "SCT", "meaning": "Liver"}}, "1 to 16 characters"),
        ({"liver": {"value": "1", "scheme": "SCT", "meaning": "Liver", "colour": "red"}}, "value, scheme and meaning"),
    ],
)
def test_codes_that_make_no_sense_are_refused_when_the_dataset_is_read(tmp_path, codes, said):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": {"liver": 1}, "codes": codes}), encoding="utf-8")
    with pytest.raises(DatasetError, match="codes") as caught:
        Description(path)
    assert said in str(caught.value)
    with pytest.raises(ConfigError):
        load_codes(path, ("liver",))
    with pytest.raises(ValueError, match="codes"):
        read_codes(codes, ("liver",))
