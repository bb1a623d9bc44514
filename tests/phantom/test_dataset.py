import json

import numpy as np
import pytest

from flaresemi import flare22
from flaresemi.dataset import load_dataset
from flaresemi.errors import ConfigError
from flaresemi.io.images import read_image, read_label_map
from flaresemi.phantom import write_phantom_dataset
from flaresemi.unfinished import PARTIAL

_SIZE = (10, 12, 12)


@pytest.mark.parametrize(("layout", "test_labels"), [("flaresemi", "test_mask"), ("nnU-Net", "labelsTs")])
def test_both_layouts_load(tmp_path, layout, test_labels):
    write_phantom_dataset(tmp_path, layout=layout, labeled=2, unlabeled=2, test=1, size=_SIZE, seed=4)
    dataset = load_dataset(tmp_path)
    assert [len(group) for group in (dataset.labeled, dataset.unlabeled, dataset.test)] == [2, 2, 1]
    assert dataset.channels == ("CT",)
    assert dataset.labels.names == flare22.LABELS.names
    assert dataset.labels.mirror_pairs == flare22.LABELS.mirror_pairs
    assert dataset.labels_assumed == (layout == "flaresemi")
    assert (tmp_path / "dataset.json").exists() == (layout == "nnU-Net")
    assert [case.id for case in dataset.labeled] == ["phantom_0001", "phantom_0002"]
    for case in dataset.labeled:
        image, label = read_image(case.images), read_label_map(case.label)
        assert image.geometry == label.geometry
        assert image.array_czyx[0].shape == label.array_zyx.shape == _SIZE
    assert [path.name for path in (tmp_path / test_labels).iterdir()] == [f"{dataset.test[0].id}.nii.gz"]


def test_the_description_has_the_organs_of_flare22(tmp_path):
    write_phantom_dataset(tmp_path, layout="nnU-Net", labeled=1, unlabeled=0, test=0, size=_SIZE)
    labels = json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))["labels"]
    assert labels["background"] == 0
    assert labels["left kidney"] == 13


def test_a_second_call_keeps_what_is_there_and_adds_what_is_not(tmp_path):
    options = {"labeled": 2, "unlabeled": 1, "test": 0, "size": _SIZE, "seed": 7}
    write_phantom_dataset(tmp_path, **options)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}
    lost = tmp_path / "labeled_mask" / "phantom_0002.nii.gz"
    lost.unlink()
    leftover = tmp_path / "labeled_image" / f"{PARTIAL}half1234.phantom_0001_0000.nii.gz"
    leftover.write_bytes(b"half")
    kept = tmp_path / "labeled_image" / "phantom_0001_0000.nii.gz"
    kept.write_bytes(b"kept as it is")
    write_phantom_dataset(tmp_path, **options)
    assert kept.read_bytes() == b"kept as it is"
    assert lost.read_bytes() == files[lost]
    assert not leftover.exists()
    assert set(tmp_path.rglob("*.nii.gz")) == set(files)


def test_cases_depend_on_seed_and_number_only(tmp_path):
    write_phantom_dataset(tmp_path / "a", labeled=2, unlabeled=0, test=0, size=_SIZE, seed=1)
    write_phantom_dataset(tmp_path / "b", labeled=1, unlabeled=1, test=0, size=_SIZE, seed=1)
    write_phantom_dataset(tmp_path / "c", labeled=1, unlabeled=0, test=0, size=_SIZE, seed=2)
    first, second = (read_image(case.images).array_czyx for case in load_dataset(tmp_path / "a").labeled)
    assert np.array_equal(first, read_image(load_dataset(tmp_path / "b").labeled[0].images).array_czyx)
    assert np.array_equal(second, read_image(load_dataset(tmp_path / "b").unlabeled[0].images).array_czyx)
    assert not np.array_equal(first, read_image(load_dataset(tmp_path / "c").labeled[0].images).array_czyx)


def test_sizes_around_a_large_shape_vary(tmp_path):
    write_phantom_dataset(tmp_path, labeled=3, unlabeled=0, test=0, size=(6, 64, 64))
    shapes = {read_image(case.images).array_czyx.shape[1:] for case in load_dataset(tmp_path).labeled}
    assert len(shapes) > 1
    assert all(depth == 6 and 56 <= height == width <= 72 for depth, height, width in shapes)


@pytest.mark.parametrize(
    ("option", "hint"), [({"layout": "nnunet"}, "nnU-Net"), ({"size": "demos"}, "demo"), ({"size": (4, 1, 4)}, "two")]
)
def test_unknown_layouts_and_sizes_are_refused_before_anything_is_written(tmp_path, option, hint):
    with pytest.raises(ConfigError, match=hint):
        write_phantom_dataset(tmp_path, **option)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["imagesTr/scan_0000.nii.gz", "labelsTr/scan.nii.gz", "dataset.json"])
def test_phantoms_are_not_mixed_with_others(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"name": "real"}')
    with pytest.raises(ConfigError, match=path.name):
        write_phantom_dataset(tmp_path, layout="nnU-Net", labeled=1, unlabeled=0, test=0, size=(8, 8, 8))
    assert path.read_text() == '{"name": "real"}'
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]
