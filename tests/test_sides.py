import pytest

from flaresemi import flare22
from flaresemi.sides import find_sides, mirroring_caution, mirroring_told


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("left kidney", "right kidney", "liver"), (("right kidney", "left kidney"),)),
        (("kidney_left", "kidney_right"), (("kidney_right", "kidney_left"),)),
        (("Left-Lung", "Right-Lung"), (("Right-Lung", "Left-Lung"),)),
        (("Parotid_L", "Parotid_R"), (("Parotid_R", "Parotid_L"),)),
        (("OPTIC NERVE LT", "OPTIC NERVE RT"), (("OPTIC NERVE RT", "OPTIC NERVE LT"),)),
        (("RightKidney", "LeftKidney"), (("RightKidney", "LeftKidney"),)),
        (("kidneyLeft", "kidneyRight"), (("kidneyRight", "kidneyLeft"),)),
        (("kidneyleft", "kidneyright"), (("kidneyright", "kidneyleft"),)),
        (("LKidney", "RKidney"), (("RKidney", "LKidney"),)),
        (("LK", "RK", "LAG", "RAG", "SPL"), (("RK", "LK"), ("RAG", "LAG"))),
        (("lkidney", "rkidney", "liver", "rectum"), (("rkidney", "lkidney"),)),
        (("kidneyl", "kidneyr"), (("kidneyr", "kidneyl"),)),
        (("Eye_AL", "Eye_AR", "Eye_PL", "Eye_PR"), (("Eye_AR", "Eye_AL"), ("Eye_PR", "Eye_PL"))),
        (("Kidney (L)", "Kidney (R)"), (("Kidney (R)", "Kidney (L)"),)),
        (("Lt. kidney", "Rt kidney"), (("Rt kidney", "Lt. kidney"),)),
        (("ren sin.", "ren dext."), (("ren dext.", "ren sin."),)),
        (("linke Niere", "rechte Niere"), (("rechte Niere", "linke Niere"),)),
        (("surrénale gauche", "surrénale droite"), (("surrénale droite", "surrénale gauche"),)),
        (("左肾", "右肾"), (("右肾", "左肾"),)),
        (("left kidney", "Kidney_R"), (("Kidney_R", "left kidney"),)),
        (
            ("rib_left_1", "rib_left_2", "rib_right_2", "rib_right_1"),
            (("rib_right_2", "rib_left_2"), ("rib_right_1", "rib_left_1")),
        ),
        (("left lung, right part", "right lung, left part"), (("right lung, left part", "left lung, right part"),)),
        (flare22.LABELS.names, flare22.LABELS.mirror_pairs),
    ],
)
def test_pairs_are_found_by_their_names(names, pairs):
    sides = find_sides(names)
    assert sides.pairs == pairs
    assert sides.unpaired == ()


@pytest.mark.parametrize(
    ("names", "unpaired"),
    [
        (("liver", "rectum", "lung", "rib", "lens", "cleft", "bright spot", "colon"), ()),
        (("vertebrae_L1", "vertebrae_L2", "L_spine", "LSpine"), ()),
        (("left and right lung", "l'aorte", "LV", "MYO"), ()),
        (("left kidney", "liver"), ("left kidney",)),
        (("kidneyRight",), ("kidneyRight",)),
        (("RK", "liver"), ("RK",)),
        (("rkidney", "liver"), ("rkidney",)),
        (("upper left lobe", "lower right lobe"), ("upper left lobe", "lower right lobe")),
        (("lung_upper_lobe_left", "lung_upper_lobe_right", "lung_middle_lobe_right"), ("lung_middle_lobe_right",)),
        (("LUL", "LLL", "RUL", "RML", "RLL"), ("RML",)),
        (("left kidney", "Kidney_left", "Kidney_L", "right kidney"), ("Kidney_left", "Kidney_L")),
    ],
)
def test_a_side_without_a_partner_is_told_from_a_word_that_only_looks_like_one(names, unpaired):
    assert find_sides(names).unpaired == unpaired


def test_a_third_name_that_could_be_meant_leaves_all_of_them_alone():
    sides = find_sides(("left kidney", "Left_Kidney", "right kidney"))
    assert sides.pairs == ()
    assert len(sides.unpaired) == 3


def test_what_mirroring_does_is_told():
    names = ("RK", "LK", "liver")
    assert mirroring_told(names, (("RK", "LK"),)) == "RK and LK change places where an image is mirrored left to right"
    assert "as they are" in mirroring_told(("liver",), ())
    assert "not mirrored left to right: RML without a partner" in mirroring_told(("RUL", "LUL", "RML"), None)
    assert "mirror_pairs in dataset.json says so" in mirroring_told(names, None)


def test_only_what_names_and_pairs_disagree_on_is_a_caution():
    names = ("hip right", "hip left", "RML_right")
    assert mirroring_caution(names[:2], (("hip right", "hip left"),)) is None
    assert mirroring_caution(("liver",), ()) is None
    assert mirroring_caution(names[:2], None) is None  # as the user says
    assert mirroring_caution(names, (("hip right", "hip left"),)) is None
    what, remedy = mirroring_caution(names, None)
    assert "RML_right without a partner" in what
    assert '"mirror_pairs": [["hip right", "hip left"]]' in remedy
    what, _ = mirroring_caution(names, ())
    assert "hip right and hip left, by name" in what
