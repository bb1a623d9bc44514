import numpy as np
import pytest
import torch

from flaresemi.compute import device
from flaresemi.compute.device import device_name, select_device, upload
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
    device.limit_threads(2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.mark.parametrize("part_bytes", [1, 1000, 1 << 20])
def test_what_is_uploaded_is_a_copy_however_it_lies_in_memory(part_bytes, monkeypatch):
    monkeypatch.setattr(device, "_PART_BYTES", part_bytes)
    array = np.random.default_rng(0).normal(size=(2, 9, 5, 7)).astype(np.float32)
    frozen = array.copy()
    frozen.flags.writeable = False
    for each in (array, array[:, ::-1, :, ::-1], array.transpose(0, 3, 1, 2), frozen, array[:, :0], array[:, :, 2:3]):
        found = upload(each, torch.device("cpu"))
        assert found.is_contiguous() and found.dtype == torch.float32
        np.testing.assert_array_equal(found.numpy(), each)
        found += 1
    np.testing.assert_array_equal(array, frozen)


def test_where_no_memory_can_be_pinned_an_upload_goes_on_without(monkeypatch):
    made, tried = torch.empty, []

    def empty(*arguments, pin_memory=False, **named):
        if pin_memory:
            tried.append(1)
            raise RuntimeError("CUDA error: out of memory")
        return made(*arguments, **{**named, "device": "cpu"})

    monkeypatch.setattr(device.torch, "empty", empty)
    array = np.arange(240.0, dtype=np.float32).reshape(2, 4, 5, 6)
    np.testing.assert_array_equal(upload(array, torch.device("cuda")).numpy(), array)
    assert len(tried) == 1
