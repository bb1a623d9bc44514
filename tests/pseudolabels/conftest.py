import pytest

from tests.inference.conftest import ThresholdNetwork


@pytest.fixture
def threshold_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network built meanwhile is a ThresholdNetwork."""
    monkeypatch.setattr("flaresemi.networks.engine.build_network", ThresholdNetwork)
    monkeypatch.setattr("flaresemi.networks.engine.openvino_is_installed", lambda: False)
