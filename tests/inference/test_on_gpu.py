"""The way of an image through a GPU. Where a CPU can take it, too, it does, so that the test itself is tested."""

import contextlib
import dataclasses
import itertools

import numpy as np
import pytest
import torch

from flaresemi.compute.card import no_waiting
from flaresemi.compute.precision import Precision, PrecisionName
from flaresemi.inference import Segmenter
from flaresemi.inference.predictor import StagePredictor
from flaresemi.io.images import Image
from flaresemi.networks.building import build_network
from flaresemi.networks.checkpoint import Checkpoint
from flaresemi.networks.engine import Engine, trained_network
from flaresemi.networks.gpu_ways import Forward, GpuWays, Graphed, Way
from flaresemi.plans import Stage
from flaresemi.preprocessing import winners
from flaresemi.preprocessing.preprocessor import prepare
from tests.inference.conftest import make_body, make_checkpoint, make_image, make_plan

CPU, GPU = torch.device("cpu"), torch.device("cuda")

ON_GPU = pytest.param(GPU, marks=pytest.mark.gpu)


#: Of scans and windows: air is in each of these, for without it an instance norm takes noise for organs.
SHAPE, PATCH = (24, 40, 40), (24, 32, 32)

#: Intensities of the organs with these indices.
ORGANS_HU = {1: 450.0, 3: 950.0}


def made_scan() -> tuple[np.ndarray, np.ndarray]:
    """Two balls in a body of 0 HU, and their label map."""
    generator, labels = np.random.default_rng(0), np.zeros(SHAPE, np.uint8)
    z, y, x = np.indices(SHAPE)
    labels[(z - 11) ** 2 + (y - 14) ** 2 + (x - 13) ** 2 < 64] = 1
    labels[(z - 12) ** 2 + (y - 25) ** 2 + (x - 26) ** 2 < 49] = 3
    array = make_body(SHAPE)
    for organ, intensity in ORGANS_HU.items():
        array[labels == organ] = intensity
    return array + generator.normal(0, 10, SHAPE).astype(np.float32), labels


@pytest.fixture(scope="module")
def sure() -> Checkpoint:
    """A U-Net that is sure of what it says, as if it had been trained: one feature, the intensity, decides.

    All other weights are random, and the levels below have a small say.
    """
    plan = make_plan(Stage.FINE, region="body", patch=PATCH)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)
        network = build_network(plan.network).eval()
        (head,), last = network.heads, network.decoder[0][0][0].weight
        for weight, source in ((network.encoder[0][0][0].weight, 0), (last, len(last))):  # the skip comes second
            weight[0] *= 0.01
            weight[0, source, 1, 1, 1] = 1.0
        head.weight.zero_()
        head.bias.zero_()
        head.weight[1, 0] = 1.0  # the feature itself, to see where the organs lie in it
        array, labels = made_scan()
        windows = [np.s_[:, y : y + 32, x : x + 32] for y in (0, 8) for x in (0, 8)]
        features = torch.cat(
            [
                network(torch.from_numpy(array[place])[None, None].clip(-1000, 1000) / 100)[0, 1].ravel()
                for place in windows
            ]
        )
        organs = np.concatenate([labels[place].ravel() for place in windows])
        means = [float(features[torch.from_numpy(organs == organ)].mean()) for organ in (0, *ORGANS_HU)]
        # Logits: 0, and two lines that cross it, and each other, half way between organs.
        low, high = (means[0] + means[1]) / 2, (means[1] + means[2]) / 2
        head.weight[1, 0], head.bias[1] = 20.0, -20.0 * low
        head.weight[3, 0], head.bias[3] = 60.0, 20.0 * (high - low) - 60.0 * high
        head.bias[2] = -100.0
    return dataclasses.replace(make_checkpoint(plan), weights=network.state_dict())


def scan() -> Image:
    return make_image(made_scan()[0])


def dice(one: np.ndarray, other: np.ndarray) -> list[float]:
    organs = [(one == organ, other == organ) for organ in ORGANS_HU]
    return [2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)) for a, b in organs]


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", "bf16"),
        pytest.param("cuda", "fp32", marks=pytest.mark.gpu),
        pytest.param("cuda", "bf16", marks=pytest.mark.gpu),
        pytest.param("cuda", "fp16", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("tta", [False, True])
def test_label_maps_of_a_sure_model_are_those_of_a_cpu(
    sure: Checkpoint, device: str, precision: PrecisionName, tta: bool
) -> None:
    model, truth = dataclasses.replace(sure, mirror_axes=(0, 1)), made_scan()[1]
    expected = Segmenter([model], device="cpu", precision="fp32", engine="torch", window="patch", tta=tta).segment(
        scan()
    )
    assert min(dice(expected.indices_zyx, truth)) > 0.99
    found = Segmenter([model], device=device, precision=precision, window="patch", tta=tta).segment(scan())
    assert min(dice(found.indices_zyx, expected.indices_zyx)) >= 0.999
    assert found.notes == expected.notes


@pytest.mark.parametrize("device", [CPU, ON_GPU])
@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (4.0, 2.0, 2.5)])
def test_an_image_is_prepared_on_the_device_as_on_a_cpu(device: torch.device, spacing: tuple) -> None:
    image, plan = scan(), make_plan(Stage.FINE, region="body", spacing=spacing)
    here, there = prepare(image, "ct"), prepare(image, "ct", device)
    assert there.body_box == here.body_box
    found = there.network_image(plan)
    assert isinstance(found, torch.Tensor) and found.device.type == device.type
    np.testing.assert_allclose(found.cpu(), here.stage_image(plan), rtol=1e-4, atol=1e-4)


@pytest.fixture
def network(sure: Checkpoint) -> torch.nn.Module:
    return trained_network(sure)


def windows(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_engine_finds_a_way_whose_logits_are_those_of_a_cpu(sure: Checkpoint, precision: PrecisionName) -> None:
    engine = Engine(GPU, precision)
    forward = engine.load(sure)
    assert engine.ways is not None and len(engine.ways.found) == 1
    expected = Engine(CPU, "fp32", "torch").load(sure)(windows(3))
    for _ in range(20):  # recorded, where that is its way
        logits = forward(windows(3).to(GPU))
        assert logits.device.type == "cuda" and logits.dtype == torch.float32
        assert (logits.cpu() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_recorded_pass_gives_what_the_pass_gives(
    network: torch.nn.Module, precision: PrecisionName, channels_last: bool
) -> None:
    ways = GpuWays(Engine(GPU).ways._card, Precision(GPU, precision), measured=False)  # type: ignore[union-attr]
    plain, recorded = (
        ways._forward(network.to(GPU), Way(windows=2, channels_last=channels_last, graph=graph), 0)
        for graph in (False, True)
    )
    assert isinstance(recorded, Graphed)
    for seed in range(5):
        given = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(seed)).to(GPU)
        expected, found = plain(given), recorded(given)
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
        found.zero_()
    assert recorded._recorded is not None  # it did not give up
    recorded.stop("")
    torch.testing.assert_close(recorded(given), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_what_cannot_be_recorded_runs_as_it_is(network: torch.nn.Module) -> None:
    def looks(given: torch.Tensor) -> torch.Tensor:
        return given * 2 if given.sum().item() > -1e9 else given

    card = Engine(GPU).ways._card  # type: ignore[union-attr]
    forward, given = Graphed(looks, card.recorded, often=0), windows(1).to(GPU)
    for _ in range(3):
        torch.testing.assert_close(forward(given), 2 * given)
    plain: Forward = GpuWays(card, Precision(GPU, "fp32"), measured=False).load(network.to(GPU), make_plan(Stage.FINE))
    assert torch.isfinite(plain(given)).all()  # the device goes on


@pytest.mark.parametrize("device", [CPU, ON_GPU])
@pytest.mark.parametrize("tta", [False, True])
def test_nothing_waits_for_the_device_between_windows(sure: Checkpoint, device: torch.device, tta: bool) -> None:
    model = dataclasses.replace(sure, mirror_axes=(2,))
    predictor = StagePredictor([model, model], engine=Engine(device, "fp32", "torch"), tta=tta, window="patch")
    image = torch.randn(1, 24, 44, 48, generator=torch.Generator().manual_seed(0)).to(device)
    forward, passes = predictor._forward, itertools.count()

    def watched(given: torch.Tensor) -> torch.Tensor:
        if next(passes) == 0:  # the first one loads libraries
            return forward(given)
        with no_waiting() if device.type == "cuda" else contextlib.nullcontext():
            return forward(given)

    predictor._forward = watched  # type: ignore[method-assign]
    predictor.logits(image)
    assert next(passes) >= 4


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_image_goes_up_once_and_labels_come_down_once(
    sure: Checkpoint, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, downloads = [], []
    segmenter = Segmenter([sure], device=device, precision="fp32", engine="torch")
    monkeypatch.setattr(segmenter, "_preparing", torch.device(device))
    monkeypatch.setattr(winners, "SLAB_BYTES", 1)  # plane by plane
    monkeypatch.setattr(winners, "_stays", lambda _: True)

    def upload(array: np.ndarray, where: torch.device) -> torch.Tensor:
        uploads.append(where)
        return torch.tensor(array, device=where)

    def bring_down(self: winners.GrowingLabels) -> None:
        downloads.append(self._on_device is not None)
        original(self)

    original = winners.GrowingLabels._bring_down
    monkeypatch.setattr("flaresemi.preprocessing.preprocessor.upload", upload)
    monkeypatch.setattr(winners.GrowingLabels, "_bring_down", bring_down)
    segmenter.segment(scan())
    assert uploads == [torch.device(device)] and downloads == [True]


@pytest.mark.gpu
def test_memory_comes_back_after_a_case(sure: Checkpoint) -> None:
    segmenter = Segmenter([sure], device="cuda")
    segmenter.segment(scan())
    held = torch.cuda.memory_allocated()
    for _ in range(3):
        segmenter.segment(scan())
    assert torch.cuda.memory_allocated() <= held + (1 << 20)
