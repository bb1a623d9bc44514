import dataclasses
import json
from pathlib import Path

import pytest

from flaresemi.errors import PlanError
from flaresemi.geometry import BoundingBox
from flaresemi.labels import Label, LabelSet
from flaresemi.plans import (
    CaseFingerprint,
    DatasetFingerprint,
    IntensityPlan,
    IntensityStatistics,
    NetworkPlan,
    Plans,
    Stage,
    StagePlan,
    load_fingerprint,
    load_plans,
)
from flaresemi.records import save_record
from flaresemi.workspace import Workspace

LABELS = LabelSet(labels=(Label(name="liver", value=1), Label(name="spleen", value=2)))
CT = IntensityPlan(scheme="ct", clip_low=-100.0, clip_high=300.0, mean=50.0, sd=30.0)
NETWORK = NetworkPlan(
    block="plain",
    input_channels=1,
    output_channels=3,
    features=(8, 16, 32),
    kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    encoder_convs=(2, 2, 2),
    decoder_convs=(2, 2),
)
FINE = StagePlan(
    stage=Stage.FINE,
    spacing_zyx_mm=(3.0, 1.0, 1.0),
    patch_zyx=(16, 32, 32),
    batch_size=2,
    region="organs",
    margin_mm=20.0,
    resampling="linear",
    intensities=(CT,),
    network=NETWORK,
    reasons={"spacing_zyx_mm": "the median"},
)
COARSE = dataclasses.replace(FINE, stage=Stage.COARSE, region="body", spacing_zyx_mm=(4.0, 4.0, 4.0))
PLANS = Plans(
    dataset_name="d",
    channels=("CT",),
    labels=LABELS,
    fingerprint_hash="0" * 16,
    preset="small",
    memory_gib=8.0,
    body="ct",
    fine=FINE,
    coarse=COARSE,
    reasons={},
)
STATISTICS = IntensityStatistics(
    percentile_00_5=-100.0,
    percentile_05=-50.0,
    percentile_50=50.0,
    percentile_95=150.0,
    percentile_99_5=300.0,
    mean=50.0,
    sd=30.0,
)
CASE = CaseFingerprint(
    case_id="a",
    shape_zyx=(10, 20, 20),
    spacing_zyx_mm=(3.0, 1.0, 1.0),
    body_box=BoundingBox.whole((10, 20, 20)),
    foreground_box=None,
    voxels_per_label=(0, 0),
    annotated=(True, True),
)
FINGERPRINT = DatasetFingerprint(
    dataset_name="d", channels=("CT",), labels=LABELS, cases=(CASE,), intensities=(STATISTICS,)
)


def edited(tmp_path, change):
    """Path of a plans.json that a user has edited by hand."""
    save_record(tmp_path / "plans.json", PLANS)
    content = json.loads((tmp_path / "plans.json").read_text(encoding="utf-8"))
    change(content)
    (tmp_path / "plans.json").write_text(json.dumps(content))
    return tmp_path / "plans.json"


def test_plans_and_fingerprints_come_back_as_they_were(tmp_path):
    save_record(tmp_path / "plans.json", PLANS)
    save_record(tmp_path / "fingerprint.json", FINGERPRINT)
    assert load_plans(tmp_path / "plans.json") == PLANS
    assert load_fingerprint(tmp_path / "fingerprint.json") == FINGERPRINT
    assert load_fingerprint(tmp_path / "fingerprint.json").hash == FINGERPRINT.hash


def test_an_absent_file_names_the_command_that_makes_it(tmp_path):
    for load in (load_plans, load_fingerprint):
        with pytest.raises(PlanError, match="flaresemi_plan_and_preprocess"):
            load(tmp_path / "plans.json")


def change_fine(**values):
    return lambda content: content["fine"].update(values)


def change_network(**values):
    return lambda content: content["fine"]["network"].update(values)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (change_fine(pacth_zyx=[16, 32, 32]), "'fine.pacth_zyx' (did you mean 'patch_zyx'?)"),
        (change_fine(patch_zyx=[16, 32, 33]), "patch_zyx [16, 32, 33] must be divisible by [2, 4, 4]"),
        (change_fine(patch_zyx=[0, 32, 32]), "'fine.patch_zyx[0]' must be at least 1 and at most 4096, found 0"),
        (change_fine(patch_zyx=[2, 4, 4]), "is a single voxel on the network's last level"),
        (lambda content: content["coarse"]["intensities"][0].update(sd=1e-4), "within 65504 sd of mean"),
        (change_fine(spacing_zyx_mm=[1.0, -1.0, 1.0]), "'fine.spacing_zyx_mm[1]' must be at least 0.0001"),
        (change_fine(batch_size=0), "'fine.batch_size' must be at least 1"),
        (change_fine(batch_size=2.0), "'fine.batch_size' must be of type int"),
        (change_fine(margin_mm=-1.0), "'fine.margin_mm' must be at least 0 and at most 500, found -1.0"),
        (change_fine(region="organ"), "'fine.region' must be one of 'body', 'organs'"),
        (change_fine(stage="COARSE", region="body"), "'fine' must have stage FINE"),
        (change_fine(intensities=[]), "one entry per input channel"),
        (change_network(strides=[[2, 2, 2], [1, 2, 2], [2, 2, 2]]), "first stride"),
        (change_network(strides=[[1, 1, 1], [1, 2, 3], [2, 2, 2]]), "strides[1][2]' must be at least 1 and at most 2"),
        (change_network(kernels=[[2, 3, 3], [3, 3, 3], [3, 3, 3]]), "kernel sizes must be odd"),
        (change_network(features=[8, 16]), "one entry per level"),
        (change_network(features=[8, 0, 16]), "network.features[1]' must be at least 1"),
        (change_network(output_channels=4), "has 4 output channels, 2 labels and background need 3"),
        (change_network(block="resnet"), "'fine.network.block' must be one of"),
        (lambda content: content["coarse"].update(region="organs"), "COARSE works on the body"),
        (lambda content: content.update(schema_version=2), "schema_version 2 is not known"),
        (lambda content: content.update(channels=["CT", "PET"]), "input channels"),
        (lambda content: content.pop("coarse"), "missing key 'coarse'"),
        (
            lambda content: content["coarse"]["intensities"][0].update(clip_low=400.0),
            "'coarse.intensities[0]': scheme 'ct' needs clip_low < clip_high",
        ),
        (lambda content: content["coarse"]["intensities"][0].update(mean=None), "needs clip_low, clip_high, mean"),
    ],
)
def test_a_mistake_in_an_edited_file_is_named_with_its_place(tmp_path, change, expected):
    path = edited(tmp_path, change)
    with pytest.raises(PlanError) as caught:
        load_plans(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_sound_edit_is_obeyed(tmp_path):
    plans = load_plans(edited(tmp_path, change_fine(patch_zyx=[32, 32, 32], batch_size=4)))
    assert (plans.fine.patch_zyx, plans.fine.batch_size) == ((32, 32, 32), 4)
    assert plans.fine.hash != FINE.hash


def test_a_reason_changes_no_hash_and_a_number_does():
    assert dataclasses.replace(FINE, reasons={"patch_zyx": "other"}).hash == FINE.hash
    assert dataclasses.replace(FINE, batch_size=3).hash != FINE.hash
    assert COARSE.hash != FINE.hash


def test_the_divisor_is_the_product_of_the_strides():
    assert NETWORK.divisor_zyx == (2, 4, 4)


def test_the_region_of_fine_decides_how_many_stages_there_are():
    assert PLANS.two_stage
    assert not dataclasses.replace(PLANS, fine=dataclasses.replace(FINE, region="body")).two_stage
    assert PLANS.stage(Stage.COARSE) is PLANS.coarse
    assert PLANS.stage(Stage.FINE) is PLANS.fine


@pytest.mark.parametrize(
    "broken",
    [
        {"intensities": (STATISTICS, STATISTICS)},
        {"cases": (dataclasses.replace(CASE, voxels_per_label=(1,)),)},
        {"cases": (dataclasses.replace(CASE, annotated=(True,)),)},
    ],
)
def test_fingerprints_that_contradict_themselves_are_refused(broken):
    with pytest.raises(ValueError, match="needs one"):
        dataclasses.replace(FINGERPRINT, **broken)


def test_all_paths_lie_in_the_workspace(tmp_path):
    workspace = Workspace(tmp_path)
    properties = [name for name, item in vars(Workspace).items() if isinstance(item, property)]
    values = [getattr(workspace, name) for name in properties]
    paths = [value if isinstance(value, Path) else value.root for value in values]
    paths += [workspace.preprocessed(stage) for stage in Stage]
    folder = workspace.model("all", Stage.FINE)
    paths += [folder.snapshot(36), folder.final, folder.latest, folder.best, folder.history]
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to(tmp_path) for path in paths)
    assert folder.root == tmp_path / "models" / "fold_all" / "FINE"
