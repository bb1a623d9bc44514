import dataclasses
import logging
from pathlib import Path

import pytest
import torch

from flaresemi.errors import ConfigError
from flaresemi.networks import engine as engines
from flaresemi.networks.building import build_network
from flaresemi.networks.checkpoint import Checkpoint
from flaresemi.networks.engine import Engine
from flaresemi.networks.kept import Kept
from flaresemi.networks.openvino import OpenVinoNetwork, openvino_is_installed
from flaresemi.plans import Stage
from tests.inference.conftest import make_checkpoint, make_plan

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint() -> Checkpoint:
    plan = make_plan(Stage.FINE, region="body")
    torch.manual_seed(0)
    return dataclasses.replace(make_checkpoint(plan), weights=build_network(plan.network).state_dict())


def window(checkpoint: Checkpoint) -> torch.Tensor:
    return torch.randn(1, checkpoint.plan.network.input_channels, 16, 16, 16)


def test_both_engines_compute_the_same(checkpoint: Checkpoint) -> None:
    if not openvino_is_installed():
        pytest.skip("OpenVINO is not installed")
    windows = window(checkpoint)
    by_torch, by_openvino = (Engine(CPU, "fp32", name).load(checkpoint)(windows) for name in ("torch", "openvino"))
    assert by_torch.dtype == by_openvino.dtype == torch.float32
    torch.testing.assert_close(by_torch, by_openvino, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"openvino bf16": 1.0, "torch bf16": 2.0, "openvino fp32": 3.0, "torch fp32": 4.0}, "openvino bf16"),
        ({"openvino bf16": 2.0, "torch bf16": 1.0, "openvino fp32": 3.0, "torch fp32": 4.0}, "torch bf16"),
        ({"openvino bf16": 1.1, "torch bf16": 1.0, "openvino fp32": 3.0, "torch fp32": 4.0}, "openvino bf16"),
        ({"openvino bf16": 9.0, "torch bf16": 9.0, "openvino fp32": 9.0, "torch fp32": 4.0}, "torch fp32"),
    ],
)
def test_the_fastest_is_taken_and_kept(
    checkpoint: Checkpoint,
    seconds: dict[str, float],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = []

    def forward(_network: object, name: str, precision: object) -> str:
        made.append(f"{name} {precision.name}")  # type: ignore[attr-defined]
        return made[-1]

    monkeypatch.setattr(engines, "openvino_is_installed", lambda: True)
    monkeypatch.setattr(engines, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(engines, "_forward", forward)
    monkeypatch.setattr(engines, "_seconds", lambda made, _window: seconds[made])
    engine = Engine(CPU)
    with caplog.at_level(logging.INFO):
        assert engine.load(checkpoint) == expected
    assert f"computing with {expected}" in caplog.text
    assert made == list(seconds)
    assert engine.load(checkpoint) == expected
    assert len(made) == 5


def test_without_bf16_hardware_nothing_is_tried_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "cpu_has_bf16", lambda: False)
    assert Engine(CPU).needs_fp32


def test_what_is_asked_for_is_not_measured(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_seconds", None)
    assert Engine(CPU, "auto", "torch").load(checkpoint)(window(checkpoint)).dtype == torch.float32


def test_openvino_that_is_not_there_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "openvino_is_installed", lambda: False)
    with pytest.raises(ConfigError, match="OpenVINO is not installed"):
        Engine(CPU, "fp32", "openvino")
    with pytest.raises(ConfigError, match="runs on the CPU"):
        Engine(torch.device("cuda"), "fp32", "openvino")


@pytest.fixture
def _needs_openvino() -> None:
    if not openvino_is_installed():
        pytest.skip("OpenVINO is not installed")


@pytest.mark.usefixtures("_needs_openvino")
def test_what_was_found_out_and_compiled_is_kept_for_the_next_process(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    windows, kept = window(checkpoint), Kept(tmp_path / "kept")
    monkeypatch.setattr(engines, "_seconds", lambda forward, _: 1.0 if isinstance(forward, OpenVinoNetwork) else 2.0)
    first = Engine(CPU, kept=kept).load(checkpoint)(windows)
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(engines, "_seconds", None)  # no check
        patch.setattr(engines, "trained_network", None)  # no network of torch, and nothing to compile
        again = Engine(CPU, kept=kept).load(checkpoint)(windows)
        assert "by an earlier check" in caplog.text
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    other = {name: tensor + 0.01 for name, tensor in checkpoint.weights.items()}
    changed = dataclasses.replace(checkpoint, weights=other)
    alone = Engine(CPU, first_precision(kept, checkpoint), "openvino").load(changed)(windows)
    torch.testing.assert_close(Engine(CPU, kept=kept).load(changed)(windows), alone, rtol=0, atol=0)


def first_precision(kept: Kept, checkpoint: Checkpoint) -> str:
    engine = Engine(CPU, kept=kept)
    engine.load(checkpoint)
    return engine._choices[0][1].name


@pytest.mark.usefixtures("_needs_openvino")
def test_a_program_that_openvino_does_not_take_is_compiled_once_more(checkpoint: Checkpoint, tmp_path: Path) -> None:
    windows, kept = window(checkpoint), Kept(tmp_path / "kept")
    engine = Engine(CPU, "fp32", "openvino", kept)
    expected = engine.load(checkpoint)(windows)
    name, about = engine._about(checkpoint)
    whole = kept.program(name, about)
    assert whole is not None
    kept.keep_program(name, about, b"of another version")
    torch.testing.assert_close(engine.load(checkpoint)(windows), expected, rtol=0, atol=0)
    assert kept.program(name, about) != b"of another version"
