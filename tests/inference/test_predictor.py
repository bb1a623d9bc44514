import dataclasses
import itertools

import numpy as np
import pytest
import torch

from flaresemi.errors import CheckpointError, PredictionError
from flaresemi.inference.predictor import StagePredictor, larger_window
from flaresemi.inference.sliding_window import window_starts
from flaresemi.networks import building
from flaresemi.networks.cost import inference_memory_gib
from flaresemi.networks.engine import Engine
from flaresemi.plans import Stage

CPU = torch.device("cpu")


@pytest.fixture
def real(fakes, monkeypatch):
    """A checkpoint of a real, untrained network, and the network itself."""
    monkeypatch.setattr("flaresemi.networks.engine.build_network", building.build_network)
    plan = fakes.plan(Stage.FINE, region="body")
    torch.manual_seed(5)
    network = building.build_network(plan.network).eval()
    checkpoint = fakes.checkpoint(plan)
    return dataclasses.replace(checkpoint, weights=network.state_dict(), mirror_axes=(0, 1, 2)), network


def predictor(*checkpoints, precision="fp32", **options):
    return StagePredictor(checkpoints, engine=Engine(CPU, precision, "torch"), **options)


def volume(shape, seed=0):
    return np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)


def test_one_window_is_one_forward_pass(real):
    checkpoint, network = real
    image = volume((16, 16, 16))
    logits, notes = predictor(checkpoint).logits(image)
    with torch.no_grad():
        torch.testing.assert_close(logits, network(torch.from_numpy(image)[None])[0], rtol=1e-4, atol=1e-5)
    assert notes == ()


def test_bf16_is_close_and_comes_back_as_float32(real):
    checkpoint, _ = real
    image = volume((20, 20, 30))
    exact, _ = predictor(checkpoint).logits(image)
    rounded, _ = predictor(checkpoint, precision="bf16").logits(image)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_mirroring_is_the_mean_over_all_subsets_of_axes(real, fakes):
    checkpoint, network = real
    image = volume((16, 16, 16))
    window = torch.from_numpy(image)[None]
    permutation = list(fakes.labels.mirror_permutation)
    expected = []
    with torch.no_grad():
        for count in range(4):
            for axes in itertools.combinations((2, 3, 4), count):
                logits = network(window.flip(axes)).flip(axes)
                expected.append(logits[:, permutation] if 4 in axes else logits)
    assert len(expected) == 8
    logits, _ = predictor(checkpoint, tta=True).logits(image)
    torch.testing.assert_close(logits, torch.stack(expected).mean(dim=0)[0], rtol=1e-4, atol=1e-5)
    mirrored, _ = predictor(checkpoint, tta=True).logits(image[..., ::-1].copy())
    torch.testing.assert_close(mirrored, logits[permutation].flip(3), rtol=1e-4, atol=1e-5)


def test_where_sides_are_unknown_no_image_is_mirrored_left_to_right(real, caplog):
    checkpoint, _ = real
    unknown = dataclasses.replace(checkpoint, labels=dataclasses.replace(checkpoint.labels, mirror_pairs=None))
    image = volume((16, 16, 16))
    for axes, kept in (((2,), ()), ((0, 1, 2), (0, 1))):
        mirrored = predictor(dataclasses.replace(unknown, mirror_axes=axes), tta=True)
        expected = predictor(dataclasses.replace(checkpoint, mirror_axes=kept), tta=True)
        torch.testing.assert_close(mirrored.logits(image)[0], expected.logits(image)[0], rtol=0, atol=0)
    assert "trained without mirroring" in caplog.text


def test_an_ensemble_is_the_mean_of_logits(real):
    checkpoint, _ = real
    weights = {name: value * 1.5 for name, value in checkpoint.weights.items()}
    other = dataclasses.replace(checkpoint, weights=weights, mirror_axes=())
    image = volume((16, 24, 16))
    one, _ = predictor(checkpoint).logits(image)
    two, _ = predictor(other).logits(image)
    both, _ = predictor(checkpoint, other).logits(image)
    torch.testing.assert_close(both, (one + two) / 2, rtol=1e-4, atol=1e-5)


def test_windows_grow_where_fewer_then_cover_the_region():
    patch, divisor = (16, 16, 16), (2, 2, 2)
    assert larger_window((20, 22, 23), patch, divisor, 0.5) == (20, 22, 16)
    assert larger_window((33, 40, 44), patch, divisor, 0.5) == (22, 20, 22)
    assert larger_window((33, 40, 44), patch, divisor, 1.0) == (18, 20, 22)
    assert larger_window((10, 16, 17), patch, (4, 8, 16), 0.5) == (16, 16, 16)


@pytest.mark.parametrize("step", [0.3, 0.5, 1.0])
def test_larger_windows_are_no_more_voxels_than_patches(step):
    def windows(region, window):
        return len(window_starts(max(region, window), window, step))

    for region in range(1, 200):
        (window, *_) = larger_window((region,) * 3, (48,) * 3, (8,) * 3, step)
        assert window in {48, 56, 64}
        assert windows(region, window) * window == min(windows(region, size) * size for size in (48, 56, 64))


def test_a_window_that_does_not_fit_into_memory_stays_a_patch(real, monkeypatch):
    checkpoint, _ = real
    assert predictor(checkpoint).window_zyx((18, 20, 40)) == (18, 20, 20)
    assert predictor(checkpoint, window="patch").window_zyx((18, 20, 40)) == (16, 16, 16)
    needed = 2 * inference_memory_gib(checkpoint.plan.network, (18, 20, 20), on_gpu=False)  # fp32 takes twice as much
    for free, window in ((needed + 0.01, (18, 20, 20)), (needed - 0.01, (16, 16, 16))):
        monkeypatch.setattr("flaresemi.inference.predictor.free_memory_gib", lambda free=free: free)
        assert predictor(checkpoint).window_zyx((18, 20, 40)) == window


def test_on_a_gpu_a_window_leaves_memory_for_the_image_and_its_scores(real, monkeypatch):
    checkpoint, _ = real
    made = predictor(checkpoint)
    made.device = torch.device("cuda")
    needed = 2 * inference_memory_gib(checkpoint.plan.network, (18, 20, 20))
    for free, window in ((2 * needed + 0.01, (18, 20, 20)), (2 * needed - 0.01, (16, 16, 16))):
        monkeypatch.setattr("flaresemi.inference.predictor._free_gib", lambda _, free=free: free)
        assert made.window_zyx((18, 20, 40)) == window


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ],
)
def test_out_of_memory_is_tried_smaller_and_said(fakes, monkeypatch, error):
    checkpoint = fakes.checkpoint(fakes.plan(Stage.FINE, region="body"), (1.0, 2.0, 3.0))
    image = volume((16, 20, 40))
    expected, _ = predictor(checkpoint, window="patch").logits(image)
    hungry = predictor(checkpoint)
    forward = hungry._forward
    calls = []

    def full(windows):
        calls.append(windows.shape)
        if len(calls) <= failures:
            raise error
        return forward(windows)

    monkeypatch.setattr(hungry, "_forward", full)
    for failures, last in ((1, "one window at a time"), (2, "one window at a time, summed up in main memory")):
        calls.clear()
        logits, notes = hungry.logits(image)
        torch.testing.assert_close(logits, expected)
        assert len(notes) == failures
        assert notes[-1] == f"FINE: GPU memory ran out, tried again with {last}"
        assert calls[0][2:] == (16, 20, 20)
        assert calls[-1] == (1, 1, 16, 16, 16)
    monkeypatch.setattr(hungry, "window", "patch")  # the second try would be the first one again
    failures = 1
    calls.clear()
    _, notes = hungry.logits(image)
    assert notes == ("FINE: GPU memory ran out, tried again with one window at a time, summed up in main memory",)
    failures = 3
    calls.clear()
    with pytest.raises(type(error), match=str(error)):  # that of a card that cannot compute this stays what it says
        hungry.logits(image)


def test_other_errors_are_not_hidden(fakes, monkeypatch):
    checkpoint = fakes.checkpoint(fakes.plan(Stage.FINE, region="body"))
    broken = predictor(checkpoint)

    def fail(windows):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(broken, "_forward", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        broken.logits(volume((16, 16, 16)))


def test_weights_of_another_network_are_refused(real):
    checkpoint, _ = real
    weights = dict(checkpoint.weights)
    del weights[next(iter(weights))]
    with pytest.raises(CheckpointError, match="do not fit the network") as caught:
        predictor(dataclasses.replace(checkpoint, weights=weights))
    assert "FINE of fold 0" in str(caught.value)


def test_an_output_that_is_not_finite_is_refused(fakes):
    image = volume((20, 20, 30))
    beyond = fakes.checkpoint(fakes.plan(Stage.FINE, region="body"), (3e37, 3e37, 3e37))  # times 100: infinite
    with pytest.raises(PredictionError, match="output of FINE is not finite"):
        predictor(beyond).logits(image)


def test_slab_by_slab_the_scores_are_those_of_all_at_once(real, monkeypatch):
    checkpoint, _ = real
    other = dataclasses.replace(checkpoint, weights={name: value * 1.5 for name, value in checkpoint.weights.items()})
    ensemble = predictor(dataclasses.replace(checkpoint, mirror_axes=(2,)), other, tta=True, window="patch")
    image = volume((44, 16, 18))
    logits, _ = ensemble.logits(image)
    monkeypatch.setattr("flaresemi.inference.predictor.LARGE_SUMS_BYTES", 0)
    slabs, notes = ensemble.over_slabs(image, lambda slabs: [slab.clone() for slab in slabs])
    assert len(slabs) > 3 and notes == ()
    assert torch.equal(torch.cat(slabs, dim=1), logits)
    np.testing.assert_array_equal(ensemble.indices(image)[0], logits.argmax(dim=0).numpy())
    assert torch.equal(ensemble.logits(image)[0], logits)  # whole ones when asked for


def test_a_retreat_begins_with_the_first_slab_again(fakes, monkeypatch):
    monkeypatch.setattr("flaresemi.inference.predictor.LARGE_SUMS_BYTES", 0)
    checkpoint = fakes.checkpoint(fakes.plan(Stage.FINE, region="body"), (1.0, 2.0, 3.0))
    image = volume((60, 16, 16))
    whole = predictor(checkpoint)
    expected, _ = whole.indices(image)
    forward, calls = whole._forward, []

    def full(windows):
        calls.append(windows)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(windows)

    monkeypatch.setattr(whole, "_forward", full)
    found, notes = whole.indices(image)
    np.testing.assert_array_equal(found, expected)
    assert len(notes) == 1


def test_large_scores_are_no_infinite_ones(fakes):
    large = fakes.checkpoint(fakes.plan(Stage.FINE, region="body"), (1e35, 1e35, 1e35))
    logits, _ = predictor(large).logits(volume((20, 20, 30)))
    assert torch.isfinite(logits).all()
    assert not torch.isfinite(logits.sum())


def test_a_tensor_is_taken_as_it_is(real):
    checkpoint, _ = real
    image = volume((20, 22, 30))
    expected, _ = predictor(checkpoint).logits(image)
    assert torch.equal(predictor(checkpoint).logits(torch.from_numpy(image))[0], expected)
    indices, _ = predictor(checkpoint).indices(torch.from_numpy(image))
    np.testing.assert_array_equal(indices, expected.argmax(dim=0).numpy())
