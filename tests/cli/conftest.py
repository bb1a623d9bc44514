import pytest

from tests.made_model import BrightIsLiver


@pytest.fixture
def bright_is_liver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network built meanwhile is that of `write_bright_model`."""
    monkeypatch.setattr("flaresemi.networks.engine.build_network", BrightIsLiver)
    monkeypatch.setattr("flaresemi.networks.engine.openvino_is_installed", lambda: False)
