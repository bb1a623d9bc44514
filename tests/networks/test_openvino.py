import errno
import os
import resource
import signal
import subprocess
import sys
import threading

import pytest
import torch

from flaresemi.networks.building import build_network
from flaresemi.networks.openvino import OpenVinoNetwork, openvino_is_installed, save_program
from flaresemi.plans import NetworkPlan

pytestmark = pytest.mark.skipif(not openvino_is_installed(), reason="OpenVINO is not installed")


def network(**changes):
    """A small anisotropic network whose norms do something."""
    plan = {
        "block": "plain",
        "input_channels": 2,
        "output_channels": 5,
        "features": (8, 16, 24),
        "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        "encoder_convs": (1, 2, 2),
        "decoder_convs": (2, 1),
    }
    torch.manual_seed(3)
    built = build_network(NetworkPlan(**plan | changes)).eval().requires_grad_(False)
    for parameter in built.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return built


@pytest.mark.parametrize("block", ["plain", "residual"])
@pytest.mark.parametrize("arguments", [{}, {"upsampling_bias": True}])
def test_it_is_the_same_function_for_windows_of_any_size(block, arguments):
    torch_network = network(block=block, arguments=arguments)
    compiled = OpenVinoNetwork(torch_network, precision="fp32", threads=1)
    for shape in ((8, 16, 24), (4, 32, 16), (8, 16, 24)):
        windows = torch.randn(2, 2, *shape)
        with torch.inference_mode():
            expected = torch_network(windows)
        torch.testing.assert_close(compiled(windows), expected, rtol=1e-4, atol=1e-4)


def test_logits_are_not_overwritten_by_the_next_call():
    compiled = OpenVinoNetwork(network(), precision="fp32", threads=1)
    first = compiled(torch.zeros(1, 2, 4, 8, 8))
    before = first.clone()
    compiled(torch.ones(1, 2, 4, 8, 8))
    torch.testing.assert_close(first, before, rtol=0, atol=0)


def test_a_window_may_be_a_view():
    compiled = OpenVinoNetwork(network(), precision="fp32", threads=1)
    volume = torch.randn(1, 2, 8, 16, 16)
    torch.testing.assert_close(compiled(volume[..., 8:]), compiled(volume[..., 8:].clone()), rtol=0, atol=0)


def use_and_drop_in_another_thread():
    holder = [OpenVinoNetwork(network(), precision="fp32", threads=1)]
    dropping = threading.Thread(target=holder.clear)
    dropping.start()
    dropping.join()
    handled = []
    signal.signal(signal.SIGUSR1, lambda *_: handled.append("handled"))
    signal.raise_signal(signal.SIGUSR1)
    print(*handled)


def test_signals_are_handled_after_the_last_network_is_gone(repository):
    """In a process of its own, which would die."""
    code = f"from {__name__} import use_and_drop_in_another_thread as use; use()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, encoding="utf-8", timeout=240
    )
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_a_disk_that_takes_no_more_says_so_itself(tmp_path):
    """OpenVINO tells of an iostream; the limit of file sizes stands for any trouble of a disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as trouble:
            save_program(network(), tmp_path / "network.xml")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert trouble.value.errno == errno.EFBIG


def test_nothing_is_reported_to_the_makers_of_openvino(tmp_path):
    code = (
        "import sys\n"
        "def watch(event, arguments):\n"
        "    if event.startswith('socket.') and event != 'socket.__new__':\n"
        "        print(event, arguments)\n"
        "sys.addaudithook(watch)\n"
        "from tests.networks.conftest import small_plan\n"
        "from flaresemi.networks.building import build_network\n"
        "from flaresemi.networks.openvino import OpenVinoNetwork, _converted\n"
        "network = build_network(small_plan()).eval()\n"
        "OpenVinoNetwork(network, precision='fp32', threads=1)\n"
        "_converted(network)\n"
        "print('telemetry' if 'openvino_telemetry' in sys.modules else 'none')\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD", "JENKINS_URL")}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment | {"HOME": str(home)}, check=True
    )
    assert ended.stdout == "none\n"
    assert not list(home.rglob("*"))
