import collections
import json
import logging
import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from flaresemi import flare22
from flaresemi.cli import plan_and_preprocess
from flaresemi.cli.plan_and_preprocess import main
from flaresemi.dataset import LAYOUTS, load_dataset
from flaresemi.io import integrity
from flaresemi.io.case_store import CaseStore
from flaresemi.phantom.dataset import write_phantom_dataset
from flaresemi.planning.decisions import usable_cases
from flaresemi.planning.splits import load_splits
from flaresemi.plans import Stage, load_fingerprint, load_plans
from flaresemi.workspace import Workspace


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """One dataset of four labeled, one unlabeled and one test case, in the seed's layout; not to be written to."""
    root = tmp_path_factory.mktemp("phantoms")
    write_phantom_dataset(root, labeled=4, unlabeled=1, test=1, size="tiny", seed=3)
    return root


@pytest.fixture(scope="module")
def prepared(phantoms, tmp_path_factory):
    """A workspace in which everything was done once; not to be written to."""
    root = tmp_path_factory.mktemp("prepared")
    assert main(["-d", str(phantoms), "-w", str(root), "--workers", "1"]) == 0
    return root


@pytest.fixture
def data(phantoms, tmp_path):
    """A copy of the dataset to spoil."""
    return shutil.copytree(phantoms, tmp_path / "data")


@pytest.fixture
def workspace(prepared, tmp_path):
    """A copy of the finished workspace to go on with."""
    return Workspace(shutil.copytree(prepared, tmp_path / "workspace"))


@pytest.fixture
def command(capfd, caplog):
    """Runs the command; gives exit code, what was printed and what was logged or complained of."""

    def run(data, root, *options):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="flaresemi"):
            code = main(["-d", str(data), "-w", str(root), "--workers", "1", *options])
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return run


Outcome = collections.namedtuple("Outcome", "code out err")


def label_path(data, number):
    return data / "labeled_mask" / f"phantom_{number:04d}.nii.gz"


def image_path(data, group, number):
    return data / f"{group}_image" / f"phantom_{number:04d}_0000.nii.gz"


def rewrite(path, change):
    """Changes an image's voxels in place."""
    image = sitk.ReadImage(str(path))
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(path))


def edit_plans(workspace, change):
    content = json.loads(workspace.plans.read_text(encoding="utf-8"))
    change(content)
    workspace.plans.write_text(json.dumps(content))


def times(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_one_command_goes_from_scans_to_prepared_cases(phantoms, prepared):
    workspace = Workspace(prepared)
    plans = load_plans(workspace.plans)
    assert load_fingerprint(workspace.fingerprint).hash == plans.fingerprint_hash
    assert plans.preset == "small" or "CUDA GPU is visible" in plans.reasons["preset"]
    for stage in Stage:
        assert len(CaseStore(workspace.preprocessed(stage)).case_ids()) == 5
    assert len(load_splits(workspace.splits).folds) == 4
    assert (workspace.lists / "labeled.txt").read_text("utf-8").split() == [f"phantom_{n:04d}" for n in range(1, 5)]
    assert workspace.integrity_csv.read_text(encoding="utf-8").count("\n") >= 7
    assert "4 labeled, 1 unlabeled, 1 test" in workspace.integrity_summary.read_text(encoding="utf-8")


def test_a_file_is_decompressed_once_to_look_into_it_and_once_to_prepare_it(phantoms, tmp_path, command, monkeypatch):
    streams, inflate = collections.Counter(), integrity.inflate
    monkeypatch.setattr(
        integrity, "inflate", lambda file, **rest: streams.update([integrity.path_of(file)]) or inflate(file, **rest)
    )
    assert command(phantoms, tmp_path / "w").code == 0
    labeled = {
        path: 2
        for number in range(1, 5)
        for path in (image_path(phantoms, "labeled", number), label_path(phantoms, number))
    }
    assert streams == labeled | {image_path(phantoms, "unlabeled", 5): 2, image_path(phantoms, "test", 6): 1}


def test_the_story_fits_a_screen_and_ends_with_the_next_command(phantoms, tmp_path, command):
    outcome = command(phantoms, tmp_path / "w")
    lines = outcome.err.splitlines()
    assert outcome.code == 0
    assert len(lines) < 40
    estimate = "estimate for 4 labeled and 1 unlabeled"
    for part in ("cases: 4 labeled", "fingerprint: 4 labeled", "plans: preset", "COARSE", "FINE", estimate):
        assert part in outcome.err
    stage = "COARSE" if load_plans(tmp_path / "w" / "plans.json").two_stage else "FINE"
    assert outcome.out.strip() == f"next: flaresemi_train {stage} 0 -d {phantoms} -w {tmp_path / 'w'}"


def test_a_second_run_does_nothing_and_says_so(phantoms, workspace, command):
    before = times(workspace.root)
    written = {"integrity.csv", "integrity.txt"}
    outcome = command(phantoms, workspace.root)
    assert outcome.code == 0
    assert "all cases are prepared already" in outcome.err
    assert outcome.out.startswith("\nnext: flaresemi_train")
    after = times(workspace.root)
    assert {path.name for path in after if after[path] != before.get(path)} <= written


def test_the_same_data_give_the_same_plans(phantoms, workspace, tmp_path, command):
    assert command(phantoms, tmp_path / "again", "--plan-only").code == 0
    for name in ("plans.json", "fingerprint.json", "splits.json"):
        assert (tmp_path / "again" / name).read_bytes() == (workspace.root / name).read_bytes()
    assert not (tmp_path / "again" / "preprocessed").exists()
    assert "next: flaresemi_plan_and_preprocess" in command(phantoms, tmp_path / "again", "--plan-only").out


def test_a_killed_run_is_taken_up_again(phantoms, workspace, command):
    expected = {path: path.read_bytes() for path in (workspace.root / "preprocessed").rglob("*.npy")}
    shutil.rmtree(workspace.preprocessed(Stage.FINE) / "phantom_0002")
    workspace.plans.unlink()
    workspace.splits.unlink()
    (workspace.case_fingerprints / "phantom_0001.json").unlink()
    outcome = command(phantoms, workspace.root)
    assert outcome.code == 0
    assert "preparing 1 case(s)" in outcome.err
    assert {path: path.read_bytes() for path in (workspace.root / "preprocessed").rglob("*.npy")} == expected


def test_the_nnunet_layout_gives_the_same_result(phantoms, prepared, tmp_path, command):
    data = tmp_path / "nnunet"
    for ours, theirs in zip(LAYOUTS["flaresemi"], LAYOUTS["nnU-Net"], strict=True):
        shutil.copytree(phantoms / ours, data / theirs)
    assert command(data, tmp_path / "w", "--plan-only").code == 0
    ours, theirs = (load_fingerprint(root / "fingerprint.json") for root in (prepared, tmp_path / "w"))
    assert ours.cases == theirs.cases
    assert ours.intensities == theirs.intensities


class TestBadInput:
    def test_every_broken_file_stands_in_one_message(self, data, tmp_path, shared_data, command):
        broken = sorted((shared_data / "robustness" / "broken").iterdir())
        for number, path in enumerate(broken):
            shutil.copy(path, image_path(data, "unlabeled", 90 + number))
        rewrite(label_path(data, 2), lambda label: np.where(label == 1, 14, label).astype(np.uint8))
        outcome = command(data, tmp_path / "w")
        assert outcome.code == 2
        assert "error: the dataset cannot be used" in outcome.err or "case(s) cannot be used" in outcome.err
        for number in range(len(broken)):
            assert f"phantom_{90 + number:04d}" in outcome.err
        assert "integrity.txt" in outcome.err
        assert not (tmp_path / "w" / "plans.json").exists()
        assert (tmp_path / "w" / "integrity.csv").exists()
        assert "Traceback" not in outcome.err

    def test_undeclared_values_without_a_dataset_json_come_with_one_to_copy(self, data, tmp_path, command):
        rewrite(label_path(data, 1), lambda label: np.where(label == 1, 200, label).astype(np.uint8))
        outcome = command(data, tmp_path / "w")
        assert outcome.code == 2
        assert '"organ 200": 200' in outcome.err
        assert "200 in 1 case(s) such as 'phantom_0001'" in outcome.err

    def test_undeclared_values_with_one_name_the_case(self, data, tmp_path, command):
        (data / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1, "right kidney": 2}}')
        outcome = command(data, tmp_path / "w")
        assert outcome.code == 2
        assert "4 case(s) cannot be used" in outcome.err
        assert "the dataset declares 0-2" in outcome.err

    def test_bad_cases_can_be_left_out_for_good(self, data, tmp_path, command):
        image_path(data, "labeled", 2).write_bytes(b"")
        workspace = Workspace(tmp_path / "w")
        assert command(data, workspace.root, "--plan-only").code == 2
        outcome = command(data, workspace.root, "--plan-only", "--skip-bad-cases")
        assert outcome.code == 0
        assert "case 'phantom_0002' is left out: the file is empty" in outcome.err
        usable = usable_cases(load_dataset(data), workspace)
        assert [case.id for case in usable.labeled] == ["phantom_0001", "phantom_0003", "phantom_0004"]
        assert "phantom_0002" not in (workspace.lists / "labeled.txt").read_text(encoding="utf-8")
        assert command(data, workspace.root, "--plan-only").code == 0

    def test_a_label_map_whose_header_is_lost_can_be_put_on_its_image(self, data, tmp_path, command):
        path = label_path(data, 1)
        right = sitk.ReadImage(str(path))
        image = sitk.ReadImage(str(path))
        image.SetOrigin([value + 40 for value in image.GetOrigin()])
        sitk.WriteImage(image, str(path))
        workspace = Workspace(tmp_path / "w")
        outcome = command(data, workspace.root)
        assert outcome.code == 2
        assert "corners up to 69.3 mm apart (origin 69.3 mm away)" in outcome.err
        assert "--fix-geometry" in outcome.err
        assert command(data, workspace.root, "--fix-geometry").code == 0
        case = load_fingerprint(workspace.fingerprint).cases[0]
        assert sum(case.voxels_per_label) == int((sitk.GetArrayFromImage(right) > 0).sum())
        assert command(data, workspace.root).code == 0

    def test_no_images(self, tmp_path, command):
        (tmp_path / "labeled_image").mkdir()
        outcome = command(tmp_path, tmp_path / "w")
        assert outcome.code == 2
        assert "no labeled images" in outcome.err
        assert "not a dataset folder" in command(tmp_path / "labeled_image", tmp_path / "w").err

    def test_a_misspelt_key_in_plans_json_names_the_closest(self, phantoms, workspace, command):
        edit_plans(workspace, lambda content: content["fine"].update(pacth_zyx=content["fine"].pop("patch_zyx")))
        outcome = command(phantoms, workspace.root)
        assert outcome.code == 2
        assert "'fine.pacth_zyx' (did you mean 'patch_zyx'?)" in outcome.err
        assert str(workspace.plans) in outcome.err

    @pytest.mark.parametrize("key", ["labels", "channels"])
    def test_plans_with_other_organs_or_channels_than_the_dataset(self, phantoms, workspace, command, key):
        def exchange(content: dict) -> None:
            first, second = content["labels"]["labels"][:2]
            first["name"], second["name"] = second["name"], first["name"]

        edit_plans(workspace, exchange if key == "labels" else lambda content: content.update(channels=["MR"]))
        outcome = command(phantoms, workspace.root)
        assert outcome.code == 2
        assert f"plans.json has other {key} than dataset.json" in outcome.err

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["--preset", "tiny"], "--preset"),
            (["--gpu-memory-gib", "0"], "must be a number, above 0 and at most 100000: found '0'"),
            (["--gpu-memory-gib", "nan"], "must be a number, above 0"),
            (["--workers", "0"], "must be a whole number, at least 1 and at most 1000000: found '0'"),
            (["--replan", "--keep-plans"], "not allowed with"),
            (["--fix-geometri"], "did you mean '--fix-geometry'"),
            (["--folds", "1"], "at least 2 folds"),
        ],
    )
    def test_wrong_options(self, phantoms, tmp_path, command, words, expected):
        outcome = command(phantoms, tmp_path / "w", "--plan-only", *words)
        assert outcome.code == 2
        assert expected in outcome.err

    def test_a_disk_that_is_too_small_is_said_before_any_work(self, phantoms, workspace, command, monkeypatch):
        shutil.rmtree(workspace.root / "preprocessed")
        usage = collections.namedtuple("usage", "total used free")
        monkeypatch.setattr(plan_and_preprocess.shutil, "disk_usage", lambda _: usage(10, 10, 1000))
        outcome = command(phantoms, workspace.root)
        assert outcome.code == 2
        assert "not enough disk space" in outcome.err
        assert not workspace.preprocessed(Stage.FINE).exists()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
    def test_a_read_only_dataset_needs_a_workspace_elsewhere(self, data, command):
        data.chmod(0o500)
        outcome = command(data, data / "flaresemi")
        data.chmod(0o700)
        assert outcome.code == 2


class TestPlans:
    def test_edited_plans_are_obeyed(self, phantoms, workspace, command):
        before = load_plans(workspace.plans)
        spacing = [value * 1.5 for value in before.fine.spacing_zyx_mm]
        edit_plans(workspace, lambda content: content["fine"].update(spacing_zyx_mm=spacing))
        edited = workspace.plans.read_bytes()
        outcome = command(phantoms, workspace.root)
        assert outcome.code == 0
        assert "preparing 5 case(s)" in outcome.err
        assert workspace.plans.read_bytes() == edited
        grid = CaseStore(workspace.preprocessed(Stage.FINE)).open("phantom_0001").record.grid
        assert grid.spacing_zyx_mm == pytest.approx(spacing, rel=0.05)

    def test_options_that_come_too_late_are_pointed_out(self, phantoms, workspace, command):
        before = workspace.plans.read_bytes()
        outcome = command(phantoms, workspace.root, "--preset", "base", "--stages", "one", "--seed", "5")
        assert outcome.code == 0
        assert "--preset, --stages takes effect with --replan" in outcome.err
        assert "--folds and --seed only count when it is made" in outcome.err
        assert workspace.plans.read_bytes() == before

    def test_replan_makes_new_plans_and_keeps_the_old_ones(self, phantoms, workspace, command):
        before = workspace.plans.read_bytes()
        options = ("--preset", "base", "--gpu-memory-gib", "4", "--folds", "2")
        outcome = command(phantoms, workspace.root, "--replan", "--plan-only", *options)
        plans = load_plans(workspace.plans)
        assert outcome.code == 0
        assert (plans.preset, plans.memory_gib) == ("base", 4.0)
        assert workspace.replaced_plans.read_bytes() == before
        assert len(load_splits(workspace.splits).folds) == 2

    def test_folds_stay_once_there_is_a_model(self, phantoms, workspace, command):
        before = workspace.splits.read_bytes()
        workspace.models.mkdir()
        assert command(phantoms, workspace.root, "--replan", "--plan-only", "--folds", "2").code == 0
        assert workspace.splits.read_bytes() == before

    def test_folds_of_the_user(self, phantoms, workspace, command, tmp_path):
        def write(path, train, val):
            names = [[f"phantom_{number:04d}" for number in side] for side in (train, val)]
            path.write_text(json.dumps([{"train": names[0], "val": names[1]}]), encoding="utf-8")
            return names

        before, own = workspace.splits.read_bytes(), tmp_path / "own.json"
        train, val = write(own, (1, 4), (2, 3))
        options = ("--plan-only", "--splits", str(own))
        assert (
            "the folds of this workspace are not those of own.json" in command(phantoms, workspace.root, *options).err
        )
        assert "leave one of them out" in command(phantoms, workspace.root, *options, "--folds", "3").err
        write(tmp_path / "bad.json", (1, 7), (2,))
        bad = command(phantoms, workspace.root, "--replan", "--plan-only", "--splits", str(tmp_path / "bad.json"))
        assert bad.code == 2 and "not labeled cases of this dataset: phantom_0007" in bad.err
        assert workspace.splits.read_bytes() == before, "a bad file loses nothing"
        assert command(phantoms, workspace.root, "--replan", *options).code == 0
        (fold,) = load_splits(workspace.splits).folds
        assert (list(fold.train), list(fold.validation)) == (train, val)
        assert (workspace.lists / "fold_0_validation.txt").read_text("utf-8").split() == val
        assert not (workspace.lists / "fold_1_validation.txt").exists(), "lists of folds that are gone are gone"

    def test_nnunet_folds_in_the_dataset_folder(self, data, workspace, command, tmp_path):
        own = data / "splits_final.json"
        own.write_text("[]", encoding="utf-8")
        before = workspace.splits.read_bytes()
        outcome = command(data, workspace.root, "--plan-only")
        assert outcome.code == 0 and "splits_final.json is not used, the folds of the workspace stay" in outcome.err
        assert workspace.splits.read_bytes() == before
        assert command(data, tmp_path / "new", "--plan-only").code == 2
        assert command(data, tmp_path / "new", "--plan-only", "--folds", "2").code == 0
        assert len(load_splits(tmp_path / "new" / "splits.json").folds) == 2

    def test_plans_of_other_cases_are_refused_with_the_difference(self, data, workspace, command):
        rewrite(label_path(data, 1), lambda label: np.where(label == 3, 0, label).astype(np.uint8))
        for path in (image_path(data, "labeled", 4), label_path(data, 4)):
            path.unlink()
        before = times(workspace.root / "preprocessed")
        outcome = command(data, workspace.root)
        assert outcome.code == 2
        assert "1 gone (phantom_0004); 1 changed (phantom_0001)" in outcome.err
        assert "--replan" in outcome.err
        assert times(workspace.root / "preprocessed") == before

    def test_plans_can_be_kept_for_corrected_cases(self, data, workspace, command):
        plans = load_plans(workspace.plans)
        rewrite(label_path(data, 1), lambda label: np.where(label == 3, 0, label).astype(np.uint8))
        outcome = command(data, workspace.root, "--keep-plans")
        assert outcome.code == 0
        kept = load_plans(workspace.plans)
        assert (kept.fine, kept.coarse) == (plans.fine, plans.coarse)
        assert kept.fingerprint_hash == load_fingerprint(workspace.fingerprint).hash != plans.fingerprint_hash
        assert "preparing 1 case(s)" in outcome.err
        assert command(data, workspace.root).code == 0

    def test_plans_can_be_kept_for_other_pairs_of_organs(self, data, workspace, command):
        names = {label.name: label.value for label in flare22.LABELS.labels}
        tubes = [label.name for label in flare22.LABELS.labels if label.z_range]
        tolerances = {label.name: label.tolerance_mm for label in flare22.LABELS.labels}
        content = {"labels": names, "z_range": tubes, "tolerances_mm": tolerances, "mirror_pairs": None}
        (data / "dataset.json").write_text(json.dumps(content))
        outcome = command(data, workspace.root)
        assert outcome.code == 2
        assert "other pairs of left and right organs" in outcome.err
        assert "other labels" not in outcome.err
        outcome = command(data, workspace.root, "--keep-plans")
        assert outcome.code == 0
        assert "images are not mirrored left to right: mirror_pairs in dataset.json says so" in outcome.err
        kept = load_plans(workspace.plans)
        assert kept.labels.mirror_pairs is None
        assert "not mirrored" in kept.reasons["mirroring"]

    def test_plans_cannot_be_kept_for_other_organs(self, data, workspace, command):
        names = {"background": 0} | {f"organ {value}": value for value in range(1, 14)}
        (data / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": names}))
        outcome = command(data, workspace.root, "--keep-plans")
        assert outcome.code == 2
        assert "other labels in dataset.json" in outcome.err

    def test_the_folder_may_be_renamed(self, phantoms, workspace, tmp_path, command):
        moved = shutil.copytree(phantoms, tmp_path / "another name")
        for path in moved.rglob("*.nii.gz"):
            original = phantoms / path.relative_to(moved)
            os.utime(path, ns=(original.stat().st_atime_ns, original.stat().st_mtime_ns))
        outcome = command(moved, workspace.root)
        assert outcome.code == 0
        assert "all cases are prepared already" in outcome.err


def test_checking_only_stops_there(phantoms, tmp_path, command):
    outcome = command(phantoms, tmp_path / "w", "--check-only")
    assert outcome.code == 0
    assert not (tmp_path / "w" / "plans.json").exists()
    again = f"flaresemi_plan_and_preprocess -d {phantoms} -w {tmp_path / 'w'} --workers 1"
    assert outcome.out.strip() == f"next: {again}"


def test_test_cases_are_prepared_on_demand(phantoms, workspace, command):
    assert command(phantoms, workspace.root, "--with-test").code == 0
    assert "phantom_0006" in CaseStore(workspace.preprocessed(Stage.FINE)).case_ids()


def test_a_single_labeled_case_is_enough(data, tmp_path, command):
    for number in (2, 3, 4):
        image_path(data, "labeled", number).unlink()
        label_path(data, number).unlink()
    outcome = command(data, tmp_path / "w")
    assert outcome.code == 0
    assert " all -d " in outcome.out


def test_plans_from_before_other_body_rules_are_obeyed_as_they_are(phantoms, workspace, command):
    """Their fingerprint was measured with the crop of their time; nothing is prepared anew by an update."""
    edit_plans(workspace, lambda plans: plans.update(body="ct"))
    assert command(phantoms, workspace.root).code == 0
    before = times(workspace.root / "preprocessed")
    outcome = command(phantoms, workspace.root)
    assert "all cases are prepared already" in outcome.err
    assert load_plans(workspace.plans).body == "ct"
    assert times(workspace.root / "preprocessed") == before
