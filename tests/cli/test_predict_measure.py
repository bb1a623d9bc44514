from pathlib import Path

import pytest

from flaresemi.cli import predict
from flaresemi.cli.prediction_files import Efficiency
from flaresemi.dataset import load_dataset
from flaresemi.records import load_record
from flaresemi.workspace import Workspace
from tests.rounds.conftest import trained  # noqa: F401


def test_every_case_tells_what_it_cost(trained: Path, phantom_dataset: Path, tmp_path: Path) -> None:  # noqa: F811
    words = ["-i", str(phantom_dataset / "unlabeled_image"), "-m", str(Workspace(trained).models), "--device", "cpu"]
    assert predict.main([*words, "-o", str(tmp_path / "out"), "--measure"]) == 0
    assert predict.main([*words, "-o", str(tmp_path / "plain")]) == 0
    assert not (tmp_path / "plain" / "efficiency").exists()
    for case in load_dataset(phantom_dataset).unlabeled:
        found = load_record(tmp_path / "out" / "efficiency" / f"{case.id}.json", Efficiency)
        assert found.cost.seconds >= sum(found.steps.values()) > 0
        assert set(found.steps) >= {"read", "body", "fine", "restore", "write"}
        assert found.cost.samples[-1].seconds == found.cost.seconds
        assert found.cost.peak_rss_mib > 50
        assert found.cost.gpu_area is None
        label = f"{case.id}.nii.gz"  # measuring changes nothing
        assert (tmp_path / "out" / label).read_bytes() == (tmp_path / "plain" / label).read_bytes()


def test_an_image_that_cannot_be_read_has_no_cost(
    trained: Path,  # noqa: F811
    phantom_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "in").mkdir()
    good = next((phantom_dataset / "unlabeled_image").iterdir())
    (tmp_path / "in" / "a_0000.nii.gz").write_bytes(good.read_bytes()[:2000])
    (tmp_path / "in" / "b_0000.nii.gz").write_bytes(good.read_bytes())
    words = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-m", str(Workspace(trained).models)]
    assert predict.main([*words, "--device", "cpu", "--measure"]) == 2
    assert "1 of 2 case(s) could not be predicted" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out" / "efficiency").iterdir()] == ["b.json"]
