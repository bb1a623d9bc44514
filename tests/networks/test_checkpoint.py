"""A checkpoint comes back as it went, or says what is wrong with it."""

import dataclasses
import errno
import io
import json
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
import torch

from flaresemi import flare22
from flaresemi.appearance import Norm
from flaresemi.errors import CheckpointError
from flaresemi.networks.building import build_network
from flaresemi.networks.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from flaresemi.plans import IntensityPlan, NetworkPlan, Stage, StagePlan


@pytest.fixture
def checkpoint(make_plan: Callable[..., NetworkPlan]) -> Checkpoint:
    network = make_plan(output_channels=14)
    plan = StagePlan(
        stage=Stage.FINE,
        spacing_zyx_mm=(2.5, 0.8, 0.8),
        patch_zyx=(8, 16, 16),
        batch_size=2,
        region="organs",
        margin_mm=20.0,
        resampling="linear",
        intensities=(IntensityPlan(scheme="ct", clip_low=-160.0, clip_high=260.0, mean=90.0, sd=70.0),),
        network=network,
        reasons={"batch_size": "a reason with ümläuts"},
    )
    return Checkpoint(
        plan=plan,
        body="ct",
        channels=("CT",),
        labels=flare22.LABELS,
        fold="0",
        iteration=90,
        total_iterations=250,
        weights=build_network(network).state_dict(),
        mirror_axes=(0, 1),
        keep_largest=("liver",),
        norms=(Norm(quantity="spacing along z", unit=" mm", median=2.5, lowest=1.25, highest=5.0),),
        training_state={"optimizer": {"step": 90, "moments": [torch.ones(3)]}, "rng": torch.arange(4)},
        version="0.1.0",
    )


def test_equal_checkpoints_are_equal_files(checkpoint: Checkpoint, tmp_path: Path) -> None:
    paths = [tmp_path / "one.pt", tmp_path / "folder" / "another.pt"]
    for path in paths:
        save_checkpoint(path, checkpoint)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_round_trip(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "models" / "checkpoint_latest.pt"
    save_checkpoint(path, checkpoint)
    loaded = load_checkpoint(path, with_training_state=True)
    for field in dataclasses.fields(Checkpoint):
        if field.name not in ("weights", "training_state"):
            assert getattr(loaded, field.name) == getattr(checkpoint, field.name)
    assert loaded.weights.keys() == checkpoint.weights.keys()
    assert all(torch.equal(loaded.weights[name], tensor) for name, tensor in checkpoint.weights.items())
    assert loaded.training_state is not None
    assert torch.equal(loaded.training_state["optimizer"]["moments"][0], torch.ones(3))
    assert load_checkpoint(path).training_state is None
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_weights_go_into_the_network_of_its_plan(checkpoint: Checkpoint) -> None:
    network = build_network(checkpoint.plan.network)
    load_weights(network, checkpoint)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in checkpoint.weights.items())


def test_weights_of_other_plans_are_refused_by_name_and_shape(
    checkpoint: Checkpoint, make_plan: Callable[..., NetworkPlan]
) -> None:
    network = build_network(make_plan(output_channels=8))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"'heads\.0\.weight' has shape \[14, 4, 1, 1, 1\], .*\[8, 4, 1, 1, 1\]"):
        load_weights(network, checkpoint)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())
    deeper = make_plan(output_channels=14, encoder_convs=(1, 2, 3))
    with pytest.raises(CheckpointError, match="is missing"):
        load_weights(build_network(deeper), checkpoint)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not found"):
        load_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.98])
def test_truncated_file(checkpoint: Checkpoint, tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.pt"
    save_checkpoint(path, checkpoint)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="truncated"):
        load_checkpoint(path)


def test_flipped_byte_is_noticed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "flipped.pt"
    save_checkpoint(path, checkpoint)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    text = tmp_path / "text.pt"
    text.write_text("hello")
    archive = tmp_path / "archive.pt"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a/b", "c")
    state_dict = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(2)}, state_dict)
    for path in (text, archive, state_dict):
        with pytest.raises(CheckpointError, match="checkpoint"):
            load_checkpoint(path)


class _Code:
    """Something that would run on unpickling."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt"
    torch.save({"format": "flaresemi checkpoint", "weights": _Code()}, path)
    with pytest.raises(CheckpointError, match=r"asks to run '\w+\.system', .* it was not run") as caught:
        load_checkpoint(path)
    assert str(caught.value).count("\n") <= 2
    assert "add_safe_globals" not in str(caught.value)  # torch's advice would run it
    (tmp_path / "old.pt").write_bytes(pickle.dumps(_Code()))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "old.pt")
    assert not Path("executed").exists()


def test_newer_schema_and_edited_header(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, checkpoint)
    content = torch.load(path, weights_only=True)
    torch.save(content | {"schema_version": 2}, path)
    with pytest.raises(CheckpointError, match="newer flaresemi"):
        load_checkpoint(path)
    torch.save(content | {"header": content["header"].replace('"patch_zyx"', '"patch_zxy"')}, path)
    with pytest.raises(CheckpointError, match="did you mean 'patch_zyx'"):
        load_checkpoint(path)
    torch.save({key: value for key, value in content.items() if key != "weights"}, path)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_failed_write_leaves_the_old_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, checkpoint)
    unsavable = dataclasses.replace(checkpoint, training_state={"bad": lambda: None})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(path, unsavable)
    assert load_checkpoint(path).iteration == 90
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_says_so_itself(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, checkpoint)
    save = torch.save

    class Full:
        """A file on a disk that has room for 1000 bytes more."""

        def __init__(self, file: IO[bytes]) -> None:
            self.file, self.left = file, 1000

        def write(self, data: bytes) -> int:
            self.left -= len(data)
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

        def flush(self) -> None:
            self.file.flush()

    monkeypatch.setattr(torch, "save", lambda content, file: save(content, Full(file)))
    with pytest.raises(OSError, match="No space left") as trouble:
        save_checkpoint(path, checkpoint)
    assert trouble.value.errno == errno.ENOSPC
    assert load_checkpoint(path).iteration == 90
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def _repack(path: Path, **settings: int) -> None:
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", **settings) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def test_a_packed_archive_is_no_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    save_checkpoint(path, checkpoint)
    _repack(path, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="packed as no checkpoint is"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": None},
        {"weights": [torch.ones(2)]},
        {"weights": {"a": 3}},
        {"weights": {1: torch.ones(2)}},
        {"weights": {"a": torch.ones(1).expand(1 << 40)}},
        {"weights": {"a": torch.ones(2).to_sparse()}},
        {"weights": {}},
        {"training_state": 3},
        {"format": torch.ones(2)},
        {"schema_version": torch.ones(2)},
        {"header": 3},
        {"header": "[" * 3000},
        {"header": "x" * 10_000},
    ],
)
def test_content_of_another_kind(checkpoint: Checkpoint, tmp_path: Path, change: dict) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, checkpoint)
    torch.save(torch.load(path, weights_only=True) | change, path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert len(str(caught.value)) < 1000


def test_a_network_larger_than_its_weights_is_not_made(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, checkpoint)
    content = torch.load(path, weights_only=True)
    for features, expected in (("4000", "its plan needs"), ("60000", "at most 4096")):
        header = content["header"].replace('"features": [4', f'"features": [{features}')
        torch.save(content | {"header": header}, path)
        with pytest.raises(CheckpointError, match=expected):
            load_checkpoint(path)


def test_views_of_one_tensor_are_not_counted_as_many_numbers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, checkpoint)
    content = torch.load(path, weights_only=True)
    one = torch.zeros(1 << 12)
    for views in ([one.view(-1)] * 2, [one[:-1], one[1:]], [one.expand(2, -1)]):
        torch.save(content | {"weights": {f"w{number}": view for number, view in enumerate(views)}}, path)
        with pytest.raises(CheckpointError, match="more numbers than there are"):
            load_checkpoint(path)
    halves = {"a": one[: 1 << 11], "b": one[1 << 11 :]}
    torch.save(content | {"weights": halves}, path)
    load_checkpoint(path)


def archive_of(entries: list[tuple[str, bytes]], method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize("way", ["by its place", "by a second end", "after its end"])
def test_an_archive_with_two_directories_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """One that Python finds, of harmless entries, and one that torch finds, of entries that grow a thousandfold."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, checkpoint)
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    bomb, harmless = archive_of(entries, zipfile.ZIP_DEFLATED), archive_of(entries, zipfile.ZIP_STORED)
    count, length, start = struct.unpack("<HLL", bomb[-12:-2])
    end = bomb[-22:]
    if way == "by its place":  # Python goes back from the end
        spoilt = bomb[:-22] + harmless[:-22] + end
    elif way == "by a second end":  # a large archive's end, and a word that leads elsewhere
        large = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start)
        word = struct.pack("<4sLQL", b"PK\6\7", 0, len(bomb) - 22, 1)
        spoilt = bomb[:-22] + large + harmless[:-22] + large + word + end
    else:
        spoilt = harmless + bytes(8)
    path.write_bytes(spoilt)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it must not be read"))
    with pytest.raises(CheckpointError, match="truncated, damaged or no checkpoint"):
        load_checkpoint(path)


def test_a_spoilt_directory_of_the_archive(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, checkpoint)
    whole, refused = path.read_bytes(), 0
    for at in range(1, 60):
        content = bytearray(whole)
        content[-at] ^= 0xFF
        path.write_bytes(content)
        try:
            load_checkpoint(path)
        except CheckpointError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_refused(checkpoint: Checkpoint, tmp_path: Path, value: float) -> None:
    name, tensor = next(iter(checkpoint.weights.items()))
    spoilt = tensor.clone()
    spoilt.view(-1)[-1] = value
    path = tmp_path / "spoilt.pt"
    save_checkpoint(path, dataclasses.replace(checkpoint, weights={**checkpoint.weights, name: spoilt}))
    with pytest.raises(CheckpointError, match=f"not finite: '{name}'"):
        load_checkpoint(path)


@pytest.mark.parametrize("fold", ["0/../../../x", "..", "", "/tmp/x"])
def test_a_fold_that_is_no_name_of_a_folder_is_refused(checkpoint: Checkpoint, tmp_path: Path, fold: str) -> None:
    save_checkpoint(tmp_path / "a.pt", checkpoint)
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    content["header"] = json.dumps(json.loads(content["header"]) | {"fold": fold})
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="'fold' must be a number or 'all'"):
        load_checkpoint(tmp_path / "a.pt")


def test_checkpoints_from_before_carry_no_norms(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    save_checkpoint(path, checkpoint)
    content = torch.load(path, weights_only=True)
    header = json.loads(content["header"])
    del header["norms"]
    with open(path, "wb") as file:
        torch.save({**content, "header": json.dumps(header)}, file)
    assert dataclasses.replace(load_checkpoint(path), weights={}) == dataclasses.replace(
        checkpoint, weights={}, norms=(), training_state=None
    )
