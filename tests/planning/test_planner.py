"""Plans for recorded fingerprints, and what holds for the plans of any."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaresemi.errors import PlanError
from flaresemi.geometry import BoundingBox, FloatTriple, IntTriple
from flaresemi.labels import Label, LabelSet
from flaresemi.networks.cost import forward_gflop, training_memory_gib
from flaresemi.planning.planner import StagesName, make_plans
from flaresemi.planning.presets import PRESETS, PresetName
from flaresemi.planning.sizing import FOUND_VOXELS
from flaresemi.plans import CaseFingerprint, DatasetFingerprint, Plans, StagePlan, load_plans
from flaresemi.records import dumps, save_record

PRESET_NAMES = get_args(PresetName)


def golden(plans: Plans) -> dict[str, tuple]:
    """The numbers of both stages that a change of rules would move."""
    return {
        stage.stage.value: (
            stage.spacing_zyx_mm,
            stage.patch_zyx,
            stage.batch_size,
            stage.network.divisor_zyx,
            stage.region,
        )
        for stage in (plans.fine, plans.coarse)
    }


def test_flare22_on_a_cpu(flare_fingerprint: DatasetFingerprint) -> None:
    plans = make_plans(flare_fingerprint)
    assert golden(plans) == {
        "FINE": ((2.1119, 2.1119, 2.1119), (64, 48, 80), 2, (16, 8, 16), "organs"),
        "COARSE": ((6.3889, 6.3889, 6.3889), (56, 48, 80), 2, (8, 8, 16), "body"),
    }
    assert plans.fine.network.features == (16, 32, 64, 128, 160)


def test_flare22_on_a_gpu(flare_fingerprint: DatasetFingerprint) -> None:
    assert golden(make_plans(flare_fingerprint, preset="base")) == {
        "FINE": ((2.0, 0.82, 0.82), (64, 160, 192), 2, (16, 32, 32), "organs"),
        "COARSE": ((4.0, 4.0, 4.0), (96, 80, 112), 2, (16, 16, 16), "body"),
    }
    large = make_plans(flare_fingerprint, preset="large")
    assert large.fine.network.block == "residual"
    assert large.fine.network.encoder_convs == (1, 3, 4, 6, 6, 6)
    assert large.coarse.network.block == "plain"


def test_openkbp_with_two_stages_and_with_one(openkbp_fingerprint: DatasetFingerprint) -> None:
    assert golden(make_plans(openkbp_fingerprint)) == {
        "FINE": ((2.5, 4.688, 4.688), (128, 48, 40), 2, (16, 8, 8), "organs"),
        "COARSE": ((6.7196, 9.376, 9.376), (48, 32, 64), 2, (8, 8, 16), "body"),
    }
    single = make_plans(openkbp_fingerprint, stages="one")
    assert golden(single)["FINE"] == ((2.5, 4.688, 4.688), (80, 40, 80), 2, (16, 8, 16), "body")


def test_hippocampus_is_one_patch_and_one_stage(hippocampus_fingerprint: DatasetFingerprint) -> None:
    plans = make_plans(hippocampus_fingerprint)
    assert golden(plans)["FINE"] == ((1.0, 1.0, 1.0), (40, 56, 40), 5, (8, 8, 8), "body")
    assert plans.body == "foreground"
    assert plans.fine.intensities[0].scheme == "zscore"
    assert "one stage" in plans.reasons["stages"]


@pytest.mark.parametrize(("organs", "two"), [((10, 72, 77), True), ((10, 150, 150), False)])
def test_small_organs_in_a_patch_sized_body_take_two_stages(
    make_fingerprint: Callable[..., DatasetFingerprint], organs: IntTriple, two: bool
) -> None:
    """Hearts in short-axis slices: one patch of `base` holds the image, and the heart fills a sixth of it."""
    case = ((10, 256, 248), (8.0, 1.5, 1.5), None, organs)
    plans = make_plans(make_fingerprint([case] * 6, channels=("MR",)), preset="base")
    assert plans.two_stage == two
    assert "holds 1.0 patches" in plans.reasons["stages"]
    assert ("less than 25" in plans.reasons["stages"]) == two


@pytest.mark.parametrize(("organs", "two"), [((140, 180, 140), False), ((120, 150, 120), True)])
def test_organs_that_fill_a_large_body_take_one_stage(
    make_fingerprint: Callable[..., DatasetFingerprint], organs: IntTriple, two: bool
) -> None:
    """A parcellation of the brain: with its margin it is the head, though that holds many patches."""
    case = ((180, 220, 180), (1.0, 1.0, 1.0), None, organs)
    plans = make_plans(make_fingerprint([case] * 6, channels=("MR",)))
    assert plans.two_stage == two
    assert ("fill 100 % of it" not in plans.reasons["stages"]) == two


def test_single_case(make_fingerprint: Callable[..., DatasetFingerprint]) -> None:
    plans = make_plans(make_fingerprint([((112, 101, 122), (3.0, 3.0, 3.0), None, (55, 66, 95))]))
    assert golden(plans) == {
        "FINE": ((3.0, 3.0, 3.0), (48, 64, 80), 2, (8, 16, 16), "organs"),
        "COARSE": ((6.0, 6.0, 6.0), (56, 56, 64), 2, (8, 8, 16), "body"),
    }


def test_empty_label_maps_still_give_plans(empty_fingerprint: DatasetFingerprint) -> None:
    plans = make_plans(empty_fingerprint)
    assert not plans.two_stage
    assert plans.fine.intensities[0].scheme == "zscore"
    assert "no case has a labeled voxel" in plans.reasons["stages"]
    assert make_plans(empty_fingerprint, stages="two").two_stage


def test_one_empty_case_among_others_does_not_move_the_region(flare_fingerprint: DatasetFingerprint) -> None:
    empty = dataclasses.replace(flare_fingerprint.cases[0], foreground_box=None)
    plans = make_plans(dataclasses.replace(flare_fingerprint, cases=(empty, *flare_fingerprint.cases[1:])))
    assert plans.fine.region == "organs"


def test_cases_of_some_organs_alone_do_not_move_the_region(flare_fingerprint: DatasetFingerprint) -> None:
    """Of ten cases, six annotate kidneys: FINE is planned for the box of all organs, which four tell."""

    def of_kidneys(case: CaseFingerprint) -> CaseFingerprint:
        z, y, x = case.body_box.start
        return dataclasses.replace(
            case,
            foreground_box=BoundingBox(start=(z, y, x), stop=(z + 45, y + 80, x + 200)),
            voxels_per_label=(0, *(60_000,) * 2, *(0,) * (len(case.annotated) - 3)),
            annotated=(False, *(True,) * 2, *(False,) * (len(case.annotated) - 3)),
        )

    cases = flare_fingerprint.cases[:4] * 2 + flare_fingerprint.cases[:2]  # of which any part has the same bodies
    complete = dataclasses.replace(flare_fingerprint, cases=cases)
    mixed = dataclasses.replace(complete, cases=cases[:4] + tuple(map(of_kidneys, cases[4:])))
    expected, found = make_plans(complete), make_plans(mixed)
    assert golden(found) == golden(expected)
    assert found.reasons["annotated"].startswith("6 of 10 labeled cases annotate some organs alone")
    assert "annotated" not in expected.reasons


def test_where_no_case_annotates_every_organ_the_largest_boxes_count(flare_fingerprint: DatasetFingerprint) -> None:
    def partial(case: CaseFingerprint, share: int) -> CaseFingerprint:
        z, y, x = case.body_box.start
        box = BoundingBox(start=(z, y, x), stop=(z + 80 // share, y + 240 // share, x + 320 // share))
        return dataclasses.replace(case, foreground_box=box, annotated=(False, *case.annotated[1:]))

    def of(*shares: int) -> Plans:
        cases = tuple(partial(flare_fingerprint.cases[0], share) for share in shares)
        return make_plans(dataclasses.replace(flare_fingerprint, cases=cases))

    assert golden(of(4, 4, 4, 4, 4, 4, 4, 1, 1, 1))["FINE"] == golden(of(*[1] * 10))["FINE"]
    assert "90th percentile" in of(4, 4).reasons["annotated"]


@pytest.mark.parametrize("preset", PRESET_NAMES)
@pytest.mark.parametrize("stages", get_args(StagesName))
@pytest.mark.parametrize("name", ["flare", "openkbp", "hippocampus", "empty"])
def test_laws(request: pytest.FixtureRequest, name: str, preset: PresetName, stages: StagesName) -> None:
    fingerprint = request.getfixturevalue(f"{name}_fingerprint")
    plans = make_plans(fingerprint, preset=preset, stages=stages)
    assert plans == make_plans(fingerprint, preset=preset, stages=stages)
    check_laws(plans, fingerprint)
    if stages != "auto":
        assert plans.two_stage == (stages == "two")


def check_laws(plans: Plans, fingerprint: DatasetFingerprint) -> None:
    """What every plan keeps."""
    budget = PRESETS[plans.preset].voxels_per_step
    for plan in (plans.fine, plans.coarse):
        assert training_memory_gib(plan.network, plan.patch_zyx, plan.batch_size) <= plans.memory_gib
        assert 2 <= plan.batch_size <= 8
        if budget is not None:
            assert plan.batch_size * math.prod(plan.patch_zyx) <= budget * max(1, plans.memory_gib)
        of_nnunet_alone = {"label_inputs"}
        numbers = {field.name for field in dataclasses.fields(StagePlan)} - {"stage", "reasons"} - of_nnunet_alone
        assert set(plan.reasons) == numbers
        assert all(len(reason) > 10 for reason in plan.reasons.values())
    assert set(plans.reasons) >= {"preset", "memory_gib", "body", "stages", "mirroring"}
    assert plans.fingerprint_hash == fingerprint.hash
    for axis, (size, divisor) in enumerate(zip(plans.fine.patch_zyx, plans.fine.network.divisor_zyx, strict=True)):
        largest = max(math.ceil(body_mm(case)[axis] / plans.fine.spacing_zyx_mm[axis]) for case in fingerprint.cases)
        assert size <= math.ceil(max(largest, 8) / divisor) * divisor
    for fine, coarse in zip(plans.fine.spacing_zyx_mm, plans.coarse.spacing_zyx_mm, strict=True):
        assert coarse >= 2 * fine
    covered = 0
    for case in fingerprint.cases:
        needed = [size / step for size, step in zip(body_mm(case), plans.coarse.spacing_zyx_mm, strict=True)]
        covered += all(voxels <= size for voxels, size in zip(needed, plans.coarse.patch_zyx, strict=True))
    assert covered >= 0.85 * len(fingerprint.cases) - 1  # the 95th percentile, on each of three axes


def body_mm(case: CaseFingerprint) -> list[float]:
    return [size * spacing for size, spacing in zip(case.body_box.shape_zyx, case.spacing_zyx_mm, strict=True)]


def test_coarse_costs_at_most_an_eighth_of_fine(flare_fingerprint: DatasetFingerprint) -> None:
    for preset in PRESET_NAMES:
        plans = make_plans(flare_fingerprint, preset=preset)
        region = (125 * 2.0, 186 * 1.2405, 250 * 1.2405)  # mm: what the organs' box with its margin measures
        patches = math.prod(region) / math.prod(plans.fine.spacing_zyx_mm) / math.prod(plans.fine.patch_zyx)
        fine = patches * forward_gflop(plans.fine.network, plans.fine.patch_zyx)
        assert forward_gflop(plans.coarse.network, plans.coarse.patch_zyx) <= 1.02 * fine / 8


ONE = LabelSet(labels=(Label(name="organ", value=1),))
SMALL_ORGANS_IN_LARGE_BODIES = {
    "pituitary, head MR": (((180, 230, 190), (1.0, 1.0, 1.0), None, (10, 12, 14)), ("MR",), 600.0),
    "adrenal, torso CT": (((260, 512, 512), (2.5, 0.8, 0.8), (260, 330, 460), (18, 60, 140)), ("CT",), 5500.0),
    "thyroid, CT": (((200, 512, 512), (5.0, 1.0, 1.0), (200, 300, 450), (10, 25, 55)), ("CT",), 18000.0),
    "thyroid, coarse CT": (((340, 256, 256), (3.0, 2.0, 2.0), (340, 150, 225), (16, 13, 28)), ("CT",), 18000.0),
}


@pytest.mark.parametrize("name", SMALL_ORGANS_IN_LARGE_BODIES)
def test_coarse_keeps_enough_of_a_small_organ_to_find_it(
    make_fingerprint: Callable[..., DatasetFingerprint], name: str
) -> None:
    """FINE's region is small, and an eighth of its cost would buy voxels that the organ vanishes in."""
    case, channels, organ_mm3 = SMALL_ORGANS_IN_LARGE_BODIES[name]
    fingerprint = make_fingerprint([case] * 10, channels=channels, labels=ONE, organ_mm3=organ_mm3)
    plans = make_plans(fingerprint, preset="base")
    assert plans.two_stage
    check_laws(plans, fingerprint)
    assert organ_mm3 / math.prod(plans.coarse.spacing_zyx_mm) >= FOUND_VOXELS
    assert (
        "unless the largest organ of a case would have fewer than 48 voxels" in plans.coarse.reasons["spacing_zyx_mm"]
    )


def test_an_organ_that_coarse_may_lose_is_told(make_fingerprint: Callable[..., DatasetFingerprint]) -> None:
    """Two thousand cubic millimeters in a torso: no spacing that COARSE may have keeps enough voxels of it."""
    case, channels, _ = SMALL_ORGANS_IN_LARGE_BODIES["adrenal, torso CT"]
    fingerprint = make_fingerprint([case] * 10, channels=channels, labels=ONE, organ_mm3=2000.0)
    coarse = make_plans(fingerprint, preset="base").coarse
    assert coarse.spacing_zyx_mm == (5.0, 4.0, 4.0)
    assert "has 25 voxels, fewer than the 48 with which it is surely found" in coarse.reasons["spacing_zyx_mm"]


def test_organs_that_fine_loses_are_told(
    flare_fingerprint: DatasetFingerprint, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a milliliter among organs of the abdomen: 9.4 cubic millimeters are a voxel of `small`."""
    names = flare_fingerprint.labels.names
    small = tuple(
        dataclasses.replace(case, voxels_per_label=(*case.voxels_per_label[:-1], 20))
        for case in flare_fingerprint.cases
    )
    assert "small_organs" not in make_plans(flare_fingerprint).reasons
    assert not caplog.records
    told = make_plans(dataclasses.replace(flare_fingerprint, cases=small)).reasons["small_organs"]
    assert f"are hardly learned: {names[-1]} 3" in told
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert told in caplog.text


def test_fine_is_coarsened_finest_axes_first_and_no_more_than_needed(flare_fingerprint: DatasetFingerprint) -> None:
    z, y, x = make_plans(flare_fingerprint, memory_gib=1.5).fine.spacing_zyx_mm
    assert z == 2.0 and y == x and 0.82 < y < 2.0
    assert make_plans(flare_fingerprint, preset="base").fine.spacing_zyx_mm == (2.0, 0.82, 0.82)


def test_anisotropic_data_get_the_10th_percentile_on_the_coarse_axis(
    make_fingerprint: Callable[..., DatasetFingerprint],
) -> None:
    cases = [((30, 300, 300), (thickness, 0.8, 0.8), None, (20, 150, 150)) for thickness in (3.0, 5.0, 5.0, 5.0, 6.0)]
    fine = make_plans(make_fingerprint(cases), preset="base").fine
    assert fine.spacing_zyx_mm == (pytest.approx(3.8), 0.8, 0.8)
    assert "10th percentile" in fine.reasons["spacing_zyx_mm"]
    many_slices = [((150, 300, 300), case[1], None, (20, 150, 150)) for case in cases]
    assert make_plans(make_fingerprint(many_slices), preset="base").fine.spacing_zyx_mm[0] == 5.0


def test_intensities_come_from_the_fingerprint(flare_fingerprint: DatasetFingerprint) -> None:
    plan = make_plans(flare_fingerprint).fine.intensities[0]
    assert (plan.scheme, plan.clip_low, plan.clip_high, plan.mean, plan.sd) == ("ct", -160.0, 260.0, 90.0, 70.0)


def test_channels_may_mix_ct_and_others(make_fingerprint: Callable[..., DatasetFingerprint]) -> None:
    case = ((64, 64, 64), (2.0, 2.0, 2.0), None, (30, 30, 30))
    plans = make_plans(make_fingerprint([case], channels=("ct", "PET")))
    assert [plan.scheme for plan in plans.fine.intensities] == ["ct", "zscore"]
    assert plans.fine.network.input_channels == 2
    assert plans.body == "ct_parts"
    assert plans.reasons["body"].startswith("the first channel is CT")


def test_names_of_channels_ask_for_normalizations(make_fingerprint: Callable[..., DatasetFingerprint]) -> None:
    case = ((64, 64, 64), (2.0, 2.0, 2.0), None, (30, 30, 30))
    names = ("noNorm", "rescale_to_0_1", "zscore", "rgb_to_0_1", "noNorm")
    plans = make_plans(make_fingerprint([case], channels=names))
    for stage in (plans.fine, plans.coarse):
        assert [plan.scheme for plan in stage.intensities] == ["none", "rescale_to_0_1", "zscore", "rgb_to_0_1", "none"]
        assert "noNorm: intensities as they are, as the name asks for" in stage.reasons["intensities"]
    assert plans.body == "foreground"


def test_memory_is_a_budget(flare_fingerprint: DatasetFingerprint) -> None:
    voxels = []
    for memory in (2.0, 4.0, 8.0, 16.0):
        plans = make_plans(flare_fingerprint, preset="base", memory_gib=memory)
        assert plans.memory_gib == memory
        voxels.append(math.prod(plans.fine.patch_zyx) * plans.fine.batch_size)
    assert voxels == sorted(voxels) and voxels[0] < voxels[-1] / 4


@pytest.mark.parametrize("memory", [0.05, 0.0, -1.0, float("nan"), float("inf")])
def test_impossible_memory_is_refused(flare_fingerprint: DatasetFingerprint, memory: float) -> None:
    with pytest.raises(PlanError, match="GPU memory"):
        make_plans(flare_fingerprint, memory_gib=memory)


def test_no_cases_is_refused(flare_fingerprint: DatasetFingerprint) -> None:
    with pytest.raises(PlanError, match="no labeled case"):
        make_plans(dataclasses.replace(flare_fingerprint, cases=()))


def test_order_of_cases_does_not_matter(flare_fingerprint: DatasetFingerprint) -> None:
    turned = make_plans(dataclasses.replace(flare_fingerprint, cases=flare_fingerprint.cases[::-1]))
    assert turned.fine == make_plans(flare_fingerprint).fine


def test_scaling_the_patient_scales_spacing_and_keeps_the_network(hippocampus_fingerprint: DatasetFingerprint) -> None:
    cases = tuple(
        dataclasses.replace(case, spacing_zyx_mm=tuple(4 * step for step in case.spacing_zyx_mm))
        for case in hippocampus_fingerprint.cases
    )
    plan = make_plans(hippocampus_fingerprint, stages="one").fine
    scaled = make_plans(dataclasses.replace(hippocampus_fingerprint, cases=cases), stages="one").fine
    assert scaled.spacing_zyx_mm == (4.0, 4.0, 4.0)
    assert (scaled.network, scaled.patch_zyx, scaled.batch_size) == (plan.network, plan.patch_zyx, plan.batch_size)


def test_plans_survive_the_file(flare_fingerprint: DatasetFingerprint, tmp_path: Path) -> None:
    plans = make_plans(flare_fingerprint)
    save_record(tmp_path / "plans.json", plans)
    assert load_plans(tmp_path / "plans.json") == plans
    assert max(len(line) for line in dumps(plans).splitlines()) < 600


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 600), st.integers(1, 600), st.integers(1, 600)),
    spacing=st.tuples(st.floats(0.05, 10), st.floats(0.05, 10), st.floats(0.05, 10)),
    share=st.floats(0.01, 1.0),
    preset=st.sampled_from(PRESET_NAMES),
)
def test_any_shape_gets_a_lawful_plan(
    make_fingerprint: Callable[..., DatasetFingerprint],
    shape: IntTriple,
    spacing: FloatTriple,
    share: float,
    preset: PresetName,
) -> None:
    z, y, x = (max(1, round(size * share)) for size in shape)
    fingerprint = make_fingerprint([(shape, spacing, None, (z, y, x))])
    check_laws(make_plans(fingerprint, preset=preset), fingerprint)
