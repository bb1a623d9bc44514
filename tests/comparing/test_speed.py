"""What --fast and --balanced mean is measured on the held-out cases, stands in the record, and is obeyed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from flaresemi.cli import export, predict
from flaresemi.comparing.judging import Scored
from flaresemi.comparing.speed import SETTINGS, levels_of
from flaresemi.errors import CheckpointError
from flaresemi.inference.levels import SPEED_LEVELS, SpeedLevels
from flaresemi.networks.checkpoint import load_checkpoint, save_checkpoint
from flaresemi.plans import Stage
from flaresemi.records import load_record, save_record
from flaresemi.workspace import Workspace

CANDIDATE = SimpleNamespace(runs={"0": ()}, networks=("FINE 0 abc",))


def measured(dice: Sequence[float], seconds: Sequence[float]) -> SpeedLevels:
    found = [
        Scored(members=("m",), dice={"a": {"liver": each}, "b": {"liver": each + 0.1}}, seconds=taken)
        for each, taken in zip(dice, seconds, strict=True)
    ]
    return levels_of(CANDIDATE, "d", "a processor", found)  # type: ignore[arg-type]


def test_a_level_is_the_fastest_setting_within_its_loss() -> None:
    #                (0.5 auto) (0.625 auto) (patch) (0.75 auto) (patch) (1.0 auto) (patch)
    levels = measured([0.800, 0.799, 0.798, 0.792, 0.7975, 0.70, 0.75], [10.0, 8.0, 7.0, 4.0, 5.0, 2.0, 3.0])
    assert SETTINGS[0] == (0.5, "auto") and len(SETTINGS) == len(set(SETTINGS)) == 7
    assert levels.levels == {"exact": 0, "balanced": 4, "fast": 3}
    assert (levels.setting("fast").step, levels.setting("fast").window) == (0.75, "auto")
    assert levels.setting("fast").ahead == pytest.approx(-0.008)
    assert levels.told("fast").startswith(
        "fast: step 0.75, window auto: Dice -0.0080 ± 0.0000 on 2 held-out cases, 0.40 of"
    )
    assert "the default: mean Dice 0.8500 on 2 held-out cases" in levels.told("exact")


def test_what_gains_next_to_nothing_is_the_default() -> None:
    assert measured([0.8] * 7, [10.0] + [9.5] * 6).levels == {"exact": 0, "balanced": 0, "fast": 0}
    assert measured([0.8] + [0.7] * 6, [10.0] + [1.0] * 6).levels == {"exact": 0, "balanced": 0, "fast": 0}


def test_a_record_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    save_record(tmp_path / "levels.json", measured([0.8] * 7, [1.0] * 7))
    text = (tmp_path / "levels.json").read_text(encoding="utf-8")
    for wrong in (text.replace('"fast": 0', '"fast": 7'), text.replace('"fast": 0', '"quick": 0')):
        assert wrong != text
        (tmp_path / "levels.json").write_text(wrong, encoding="utf-8")
        with pytest.raises(CheckpointError, match="levels"):
            load_record(tmp_path / "levels.json", SpeedLevels, error=CheckpointError)


def label_map(folder: str) -> bytes:
    (path,) = Path(folder).glob("*.nii.gz")
    return path.read_bytes()


def test_from_the_held_out_cases_to_a_prediction(pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-d", "data", "-w", "two", "-o", "exported", "--no-programs", "--device", "cpu", "--engine", "torch"]
    assert export.main([*words, "--speed-levels"]) == 0
    assert "exact: step 0.5, window auto, the default: mean Dice" in capsys.readouterr().out
    levels = load_record(pair / "exported" / SPEED_LEVELS, SpeedLevels)
    assert [(each.step, each.window) for each in levels.curve] == list(SETTINGS)
    assert levels.cases == 3 - 1 and levels.folds == ("0", "1")
    assert not [path for path in pair.iterdir() if path.name.startswith(".partial")]
    # Whatever they came to, the level that is obeyed is the one of the record.
    chosen = levels.levels | {"fast": SETTINGS.index((1.0, "patch"))}
    save_record(pair / "exported" / SPEED_LEVELS, SpeedLevels(**fields(levels) | {"levels": chosen}))
    (image,) = (pair / "data" / "test_image").iterdir()
    words = ["-m", "exported", "-i", str(image), "--device", "cpu", "--engine", "torch", "--precision", "fp32"]
    runs = {
        "default": (), "exact": ("--exact",), "fast": ("--fast",), "same": ("--step", "1", "--window", "patch"),
    }  # fmt: skip
    for name, more in runs.items():
        assert predict.main([*words, "-o", name + "_out/", *more]) == 0
    assert "fast: step 1, window patch: Dice" in capsys.readouterr().err
    assert label_map("exact_out") == label_map("default_out")
    assert label_map("fast_out") == label_map("same_out")
    for more, complaint in (
        (("--fast", "--step", "0.75"), "--fast sets step and window itself"),
        (("--fast", "--balanced"), "not allowed with"),
    ):
        assert predict.main([*words, "-o", "refused", *more]) == 2
        assert complaint in capsys.readouterr().err
    assert predict.main(["-m", "two", *words[2:], "-o", "refused", "--balanced"]) == 2
    assert "nothing says what --fast and --balanced would cost" in capsys.readouterr().err
    save_record(pair / "exported" / SPEED_LEVELS, SpeedLevels(**fields(levels) | {"networks": ("FINE 0 other",)}))
    assert predict.main([*words, "-o", "refused", "--fast"]) == 2
    assert "measured with other weights" in capsys.readouterr().err
    assert not (pair / "refused").exists()


def test_levels_are_measured_of_what_is_exported_or_not_at_all(
    pair: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "measure_levels", lambda *_, **__: pytest.fail("it was measured"))
    source = Workspace(pair / "one").model("0", Stage.FINE).final
    checkpoint = dataclasses.replace(load_checkpoint(source), fold="all")
    save_checkpoint(Workspace(pair / "one").model("all", Stage.FINE).final, checkpoint)
    assert export.main(["-d", "data", "-w", "one", "-o", "exported", "--no-programs", "--speed-levels"]) == 2
    printed = capsys.readouterr().err
    assert "fold all is exported, and the levels are measured with fold 0, 1" in printed
    assert "--fold 0 1" in printed
    assert not (pair / "exported").exists()


def test_nothing_is_measured_for_an_export_that_cannot_be_written(
    pair: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "measure_levels", lambda *_, **__: pytest.fail("it was measured"))
    words = ["-d", "data", "-w", "two", "-o", "exported", "--no-programs", "--speed-levels"]
    (pair / "exported").mkdir()
    assert export.main(words) == 2
    assert "something at this place already" in capsys.readouterr().err
    (pair / "exported").rmdir()
    file = Workspace(pair / "two").model("1", Stage.FINE).final
    save_checkpoint(file, dataclasses.replace(load_checkpoint(file), fold="0"))
    assert export.main(words) == 2
    assert "two of these checkpoints say that they are fold_0/FINE" in capsys.readouterr().err


def fields(levels: SpeedLevels) -> dict:
    return {name: getattr(levels, name) for name in SpeedLevels.__dataclass_fields__}
