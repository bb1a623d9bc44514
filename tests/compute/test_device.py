import pytest
import torch

from flaresemi.compute import device
from flaresemi.compute.device import device_name, select_device
from flaresemi.errors import ConfigError


def test_devices_that_exist():
    assert select_device("cpu") == torch.device("cpu")
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device_name(torch.device("cpu"))


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "", "cpu:x"])
def test_devices_that_do_not(name):
    with pytest.raises(ConfigError, match=r"device"):
        select_device(name)


def test_torch_computes_with_no_more_threads_than_a_quota_allows(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(device, "available_cores", lambda: before + 1)
    device.limit_threads()
    assert torch.get_num_threads() == before
    monkeypatch.setattr(device, "available_cores", lambda: 1)
    device.limit_threads()
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
