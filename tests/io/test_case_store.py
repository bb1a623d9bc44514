"""The case store: whole or absent, any box at any time, the same draw on every run."""

import errno
import os
import pickle
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from flaresemi import unfinished
from flaresemi.errors import DatasetError
from flaresemi.geometry import BoundingBox, StageGrid
from flaresemi.io import case_store
from flaresemi.io.case_store import MAX_CLASS_VOXELS, CaseRecord, CaseStore, LabelStore, OpenCases

SHAPE = (20, 30, 40)


def make_case(case_id: str = "case_1", seed: int = 0, made_with: str = "abc", shape=SHAPE):
    generator = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    label[2:18, 3:28, 4:38] = 1  # more voxels than are kept
    label[5:8, 6:9, 7:9] = 3
    grid = StageGrid(
        canonical_shape_zyx=shape, canonical_spacing_zyx_mm=(1.0, 1.0, 1.0),
        body_box=BoundingBox.whole(shape), shape_zyx=shape,
    )  # fmt: skip
    record = CaseRecord.labeled(
        case_id=case_id, preprocessing_hash=made_with, grid=grid, label_zyx=label, organs=3, supervised=(1, 3)
    )
    return record, generator.normal(size=(2, *shape)).astype(np.float32), label


def test_what_is_written_is_read(tmp_path):
    store = CaseStore(tmp_path / "FINE")
    record, image, label = make_case()
    assert record.organs_box == BoundingBox(start=(2, 3, 4), stop=(18, 28, 38))
    assert record.voxels_per_label == (16 * 25 * 34 - 18, 0, 18)
    store.write(record, image, label)
    case = store.open("case_1")
    np.testing.assert_array_equal(case.image_czyx, image.astype(np.float16))
    np.testing.assert_array_equal(case.label_zyx, label)
    assert isinstance(case.image_czyx, np.memmap) and case.image_czyx.dtype == np.float16
    assert case.record.channel_minima == tuple(image.astype(np.float16).min(axis=(1, 2, 3)))
    assert case.record.supervised == (1, 3)
    assert store.case_ids() == ("case_1",)
    with pytest.raises(ValueError, match="read-only"):
        case.image_czyx[0, 0, 0, 0] = 1


def test_has_depends_on_how_it_was_made(tmp_path):
    store = CaseStore(tmp_path)
    assert not store.has("case_1", "abc")
    store.write(*make_case())
    assert store.has("case_1", "abc")
    assert not store.has("case_1", "other")


def test_unlabeled_cases(tmp_path):
    record, image, _ = make_case()
    record = CaseRecord.unlabeled(case_id="u", preprocessing_hash="abc", grid=record.grid)
    CaseStore(tmp_path).write(record, image, None)
    case = CaseStore(tmp_path).open("u")
    assert case.label_zyx is None and case.record.voxels_per_label == ()
    assert case.class_voxels(1).shape == (0, 3)
    patch, label = case.read_patch((0, 0, 0), (4, 4, 4))
    assert label is None
    np.testing.assert_array_equal(patch, image[:, :4, :4, :4].astype(np.float16).astype(np.float32))


def test_patches_equal_the_padded_volume(tmp_path):
    record, image, label = make_case()
    store = CaseStore(tmp_path)
    store.write(record, image, label)
    case = store.open("case_1")
    margin = 50
    stored = image.astype(np.float16).astype(np.float32)
    big = np.stack([np.pad(channel, margin, constant_values=channel.min()) for channel in stored])
    big_label = np.pad(label, margin)
    generator = np.random.default_rng(1)
    for _ in range(200):
        shape = generator.integers(1, 45, 3)
        start = generator.integers(-margin, np.array(SHAPE) + margin - shape)
        patch, patch_label = case.read_patch(tuple(start.tolist()), tuple(shape.tolist()))
        box = tuple(slice(a + margin, a + margin + n) for a, n in zip(start, shape, strict=True))
        np.testing.assert_array_equal(patch, big[(slice(None), *box)])
        np.testing.assert_array_equal(patch_label, big_label[box])
        assert patch.dtype == np.float32 and patch.flags.writeable and patch_label.flags.writeable


def test_class_voxels_lie_in_their_organ_and_do_not_change(tmp_path):
    draws = []
    for folder in ("a", "b"):
        store = CaseStore(tmp_path / folder)
        store.write(*make_case())
        case = store.open("case_1")
        _, _, label = make_case()
        for index, expected in ((1, MAX_CLASS_VOXELS), (2, 0), (3, 18)):
            voxels = case.class_voxels(index)
            assert voxels.shape == (expected, 3)
            assert len(np.unique(voxels, axis=0)) == expected
            assert (label[tuple(voxels.T)] == index).all()
        draws.append(case.class_voxels(1))
    np.testing.assert_array_equal(draws[0], draws[1])
    other = CaseStore(tmp_path / "c")
    other.write(*make_case("case_2"))
    assert not np.array_equal(other.open("case_2").class_voxels(1), draws[0])


def test_a_pickled_case_carries_no_voxels(tmp_path):
    store = CaseStore(tmp_path)
    store.write(*make_case())
    case = store.open("case_1")
    text = pickle.dumps(case)
    assert len(text) < 2000
    np.testing.assert_array_equal(pickle.loads(text).image_czyx, case.image_czyx)


def test_writing_again_replaces(tmp_path):
    store = CaseStore(tmp_path)
    store.write(*make_case())
    store.write(*make_case(seed=5, made_with="new"))
    assert store.has("case_1", "new")
    np.testing.assert_array_equal(store.open("case_1").image_czyx, make_case(seed=5)[1].astype(np.float16))
    assert [path.name for path in tmp_path.iterdir()] == ["case_1"]


@pytest.mark.parametrize("dies_at", ["image.npy", "label.npy", "class_voxels.npy", "case.json", "publish"])
def test_a_killed_writer_leaves_nothing_that_counts(tmp_path, monkeypatch, dies_at):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    store = CaseStore(tmp_path)
    save, sample = case_store._save, case_store._sample_voxels
    if dies_at == "case.json":
        monkeypatch.setattr(case_store, "save_record", die)
    elif dies_at == "publish":
        monkeypatch.setattr(store, "_publish", die)
    else:
        monkeypatch.setattr(
            case_store, "_save", lambda path, array: die() if path.name == dies_at else save(path, array)
        )
    monkeypatch.setattr(case_store.shutil, "rmtree", lambda *_, **__: None)  # as if killed by SIGKILL
    with pytest.raises(Killed):
        store.write(*make_case())
    monkeypatch.undo()
    assert sample is case_store._sample_voxels
    assert store.case_ids() == () and not store.has("case_1", "abc")
    assert list(tmp_path.iterdir())
    monkeypatch.setattr(unfinished, "_lives", lambda *_: False)
    store.remove_leftovers()
    assert list(tmp_path.iterdir()) == []
    store.write(*make_case())
    assert store.has("case_1", "abc")


@pytest.mark.parametrize("name", ["image.npy", "label.npy", "class_voxels.npy", "case.json"])
@pytest.mark.parametrize("damage", ["missing", "short", "garbage"])
def test_damaged_cases_are_named_and_made_again(tmp_path, name, damage):
    store = CaseStore(tmp_path)
    store.write(*make_case())
    path = tmp_path / "case_1" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "short" else b"garbage")
    with pytest.raises(DatasetError) as caught:
        store.open("case_1")
    assert "case_1" in str(caught.value)
    assert not store.has("case_1", "abc")
    store.write(*make_case())
    assert store.has("case_1", "abc")


def test_a_missing_case_says_what_to_run(tmp_path):
    with pytest.raises(DatasetError, match="flaresemi_plan_and_preprocess"):
        CaseStore(tmp_path).open("nobody")


def test_odd_names(tmp_path):
    store = CaseStore(tmp_path)
    names = ["病例 01", "a b", "Ünï-cödé", "x" * 200, "a.b.c", "emoji 🫀", "50%", "$HOME", "*"]
    for name in names:
        store.write(*make_case(name))
        assert store.has(name, "abc")
    assert sorted(store.case_ids()) == sorted(names)
    for name in ("", ".", "..", ".hidden", "a/b", "../a", "a\0b"):
        with pytest.raises(DatasetError, match="cannot be the name of a case"):
            store.open(name)


def test_a_renamed_folder_is_not_another_case(tmp_path):
    store = CaseStore(tmp_path)
    store.write(*make_case())
    (tmp_path / "case_1").rename(tmp_path / "case_9")
    with pytest.raises(DatasetError, match="case_1"):
        store.open("case_9")
    record = tmp_path / "case_9" / "case.json"
    record.write_text(record.read_text().replace('"case_1"', f'"{"x" * 5000}"'))
    with pytest.raises(DatasetError, match="it says it is case 'xxx") as told:
        store.open("case_9")
    assert len(str(told.value)) < 1000


def test_a_full_disk_leaves_the_old_case(tmp_path):
    store = CaseStore(tmp_path)
    store.write(*make_case())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with pytest.raises(OSError):
            store.write(*make_case(seed=2, made_with="new"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert store.has("case_1", "abc")
    assert [path.name for path in tmp_path.iterdir()] == ["case_1"]


def test_values_beyond_float16_stay_finite(tmp_path):
    record, image, label = make_case()
    image[0, 0, 0, 0], image[1, 0, 0, 0] = 1e9, -1e9
    CaseStore(tmp_path).write(record, image, label)
    assert np.isfinite(CaseStore(tmp_path).open("case_1").image_czyx).all()


def test_wrong_use_of_write(tmp_path):
    store = CaseStore(tmp_path)
    record, image, label = make_case()
    with pytest.raises(ValueError, match="shape"):
        store.write(record, image[:, 1:], label)
    with pytest.raises(ValueError, match="has_label"):
        store.write(record, image, None)
    with pytest.raises(ValueError, match="voxels_per_label"):
        store.write(record, image, np.zeros_like(label))
    label[0, 0, 0] = 5  # 4 is what nobody annotated
    with pytest.raises(ValueError, match="index 5"):
        store.write(record, image, label)
    assert store.case_ids() == ()


def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        CaseStore(tmp_path / "s").write(*make_case())
    finally:
        os.umask(old)
    assert (Path(tmp_path) / "s" / "case_1").stat().st_mode & 0o777 == 0o750


@pytest.fixture
def pseudo(tmp_path: Path) -> LabelStore:
    """The label map of one scan, whose image lies in another store."""
    images = CaseStore(tmp_path / "images")
    images.write(*unlabeled_scan())
    labels = LabelStore(tmp_path / "labels", images)
    labels.write_labels("scan", scan_label(), organs=3, supervised=(2, 3))
    return labels


def unlabeled_scan(source_hash: str = "source") -> tuple[CaseRecord, np.ndarray, None]:
    shape = (6, 7, 8)
    grid = StageGrid(
        canonical_shape_zyx=shape, canonical_spacing_zyx_mm=(1.0, 1.0, 1.0),
        body_box=BoundingBox.whole(shape), shape_zyx=shape,
    )  # fmt: skip
    record = CaseRecord.unlabeled(case_id="scan", preprocessing_hash="hash", grid=grid, source_hash=source_hash)
    return record, np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32), None


def scan_label() -> np.ndarray:
    label = np.zeros((6, 7, 8), np.uint8)
    label[2:4, 3:5, 1:6] = 2
    return label


def test_a_label_store_puts_labels_on_images_that_lie_elsewhere(pseudo: LabelStore) -> None:
    assert not (pseudo.folder / "scan" / "image.npy").exists()
    stored = pickle.loads(pickle.dumps(pseudo.open("scan")))
    image = pseudo.images.open("scan")
    np.testing.assert_array_equal(stored.label_zyx, scan_label())
    np.testing.assert_array_equal(stored.image_czyx, image.image_czyx)
    assert stored.record.supervised == (2, 3)
    assert len(stored.class_voxels(2)) == 20
    assert stored.record.channel_minima == image.record.channel_minima
    pseudo.write_labels("scan", np.roll(scan_label(), 1, axis=0), organs=3, supervised=(2,))
    assert pseudo.open("scan").record.supervised == (2,)
    with pytest.raises(DatasetError, match="not preprocessed"):
        pseudo.write_labels("other", scan_label(), organs=3, supervised=(2,))


def test_a_label_map_drawn_on_another_image_is_not_current(pseudo: LabelStore) -> None:
    assert pseudo.is_current("scan")
    pseudo.images.write(*unlabeled_scan(source_hash="a corrected file"))
    assert not pseudo.is_current("scan")
    pseudo.write_labels("scan", scan_label(), organs=3, supervised=(2, 3))
    assert pseudo.is_current("scan")


def test_an_edited_label_map_is_refused(pseudo: LabelStore) -> None:
    pseudo.refuse_edited("scan")
    file = pseudo.folder / "scan" / "label.npy"
    content = bytearray(file.read_bytes())
    content[-1] = 3
    file.write_bytes(content)
    pseudo.open("scan")  # nothing that costs less would see it
    with pytest.raises(DatasetError, match="not the one that was written"):
        pseudo.refuse_edited("scan")
    file.unlink()
    with pytest.raises(DatasetError, match="is missing"):
        pseudo.refuse_edited("scan")


@pytest.mark.parametrize(
    "header", [b"{'descr': '<f2', (((", b"{'descr': '<f2'", b"   x\n  y\n", b"{'shape': (-5,)}", b"PK"]
)
def test_an_array_with_a_spoilt_header(tmp_path, header):
    store = CaseStore(tmp_path)
    store.write(*make_case())
    for name in ("image.npy", "label.npy", "class_voxels.npy"):
        path = tmp_path / "case_1" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:10] + header.ljust(60)[:60] + whole[70:])
        with pytest.raises(DatasetError, match="damaged"):
            store.open("case_1")
        path.write_bytes(whole)
    (tmp_path / "case_1" / "image.npy").write_bytes(b"PK\x03\x04" + bytes(100))
    assert not store.has("case_1", "abc")


def test_a_case_takes_the_place_of_a_prepared_link(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    store = CaseStore(tmp_path / "store")
    for target in (outside, tmp_path / "nowhere"):
        store.folder.mkdir(exist_ok=True)
        (store.folder / "case_1").symlink_to(target)
        store.write(*make_case())
        assert not (store.folder / "case_1").is_symlink()
        assert store.has("case_1", "abc")
        assert not list(outside.iterdir())
        shutil.rmtree(store.folder)


@pytest.fixture
def few_files(monkeypatch):
    """Lets this process open a few files besides those that it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))

    def allow(more):
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1 + more, hard))

    yield allow
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_any_number_of_cases_needs_few_open_files(tmp_path, few_files):
    store = CaseStore(tmp_path)
    names = [f"case_{number}" for number in range(40)]
    for number, name in enumerate(names):
        store.write(*make_case(name, number, shape=(18, 28, 38)))
    few_files(90)  # 120 maps
    cases = OpenCases(store)
    for name in names * 2:
        assert cases[name].record.case_id == name


def test_cases_stay_open_as_long_as_they_are_used(tmp_path, monkeypatch):
    store = CaseStore(tmp_path)
    for name in "abc":
        store.write(*make_case(name))
    opened = []
    monkeypatch.setattr(store, "open", lambda name: opened.append(name) or CaseStore.open(store, name))
    cases = OpenCases(store, limit=2)
    for name in "abacab":
        assert cases[name].record.case_id == name
    assert "".join(opened) == "abcb"
    CaseStore(tmp_path).write(*make_case("c", made_with="other"))
    with pytest.raises(DatasetError, match="made anew while it was in use"):
        cases["c"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.EACCES])
def test_an_error_of_the_system_does_not_make_a_case_damaged(tmp_path, monkeypatch, number):
    store = CaseStore(tmp_path)
    store.write(*make_case())

    def fail(path):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr("flaresemi.io.stored_case.map_array", fail)
    for look in (lambda: store.open("case_1"), lambda: store.has("case_1", "abc")):
        with pytest.raises(OSError, match=os.strerror(number)):
            look()


def test_a_case_that_was_opened_is_not_exchanged_for_another(tmp_path):
    """What is prepared anew under a training, which plans what it was prepared by at its start, never reaches it."""
    CaseStore(tmp_path).write(*make_case())
    store, fresh = CaseStore(tmp_path), CaseStore(tmp_path)
    store.open("case_1")
    sent = pickle.loads(pickle.dumps(store))  # as to a process that prepares patches
    CaseStore(tmp_path).write(*make_case(made_with="other plans"))
    for opened in (store, sent):
        with pytest.raises(DatasetError, match="'case_1' was made anew while it was in use here"):
            opened.open("case_1")
    assert not store.has("case_1", "other plans")
    assert fresh.open("case_1").record.preprocessing_hash == "other plans"
    store.write(*make_case())  # by itself, it may
    assert store.open("case_1").record.preprocessing_hash == "abc"


@pytest.mark.parametrize("name", ["image.npy", "label.npy"])
def test_an_array_that_was_edited_is_noticed(tmp_path, name):
    store = CaseStore(tmp_path)
    store.write(*make_case())
    path = tmp_path / "case_1" / name
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as long and as old as before
    with pytest.raises(DatasetError, match=f"{name} is not what was written here"):
        store.open("case_1")
    assert not store.has("case_1", "abc")


def test_a_copied_store_is_read_once(tmp_path, monkeypatch):
    CaseStore(tmp_path / "a").write(*make_case())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "case_1" / "image.npy").touch()
    record = tmp_path / "b" / "case_1" / "case.json"
    before = record.stat().st_mtime_ns
    CaseStore(tmp_path / "b").open("case_1")
    assert record.stat().st_mtime_ns == before
    monkeypatch.setattr(case_store, "content_hash", lambda _: pytest.fail("read again"))
    CaseStore(tmp_path / "b").open("case_1")
