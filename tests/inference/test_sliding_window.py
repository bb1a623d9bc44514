import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flaresemi.inference.sliding_window import gaussian_importance, slide_in_slabs, window_starts


def slide_whole(*arguments, **options):
    (whole,) = slide_in_slabs(*arguments, **options, whole=True)
    return whole


@given(window=st.integers(1, 40), more=st.integers(0, 120), step=st.floats(0.05, 1.0))
def test_windows_cover_the_axis_evenly_without_gaps(window, more, step):
    size = window + more
    starts = window_starts(size, window, step)
    assert starts[0] == 0
    assert starts[-1] == size - window
    distances = [b - a for a, b in itertools.pairwise(starts)]
    assert all(0 < distance <= max(window * step, 1) + 1 for distance in distances)  # + 1: rounding to whole voxels
    assert not distances or max(distances) - min(distances) <= 1
    covered = {index for start in starts for index in range(start, start + window)}
    assert covered == set(range(size))


@pytest.mark.parametrize(("size", "window", "step"), [(5, 6, 0.5), (5, 0, 0.5), (5, 5, 0.0), (5, 5, 1.5)])
def test_impossible_windows_are_refused(size, window, step):
    with pytest.raises(ValueError, match=r"window|step"):
        window_starts(size, window, step)


def test_importance_is_a_symmetric_gaussian_of_an_eighth():
    importance = gaussian_importance(16)
    assert torch.equal(importance, importance.flip(0))
    assert importance.argmax() in (7, 8)
    # one sigma, 2 voxels, from the centre at 7.5 lies between voxels 9 and 10
    assert importance[9] > torch.exp(torch.tensor(-0.5)) > importance[10]


@settings(deadline=None, max_examples=15)
@given(
    shape=st.tuples(*[st.integers(1, 21)] * 3),
    window=st.tuples(*[st.integers(2, 12)] * 3),
    step=st.sampled_from((0.4, 0.5, 0.75, 1.0)),
    batch=st.integers(1, 4),
)
def test_identity_network_returns_the_image(shape, window, step, batch):
    image = torch.randn((2, *shape), generator=torch.Generator().manual_seed(sum(shape))) * 100
    result = slide_whole(image, lambda windows: windows, window, step=step, batch=batch)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, image, rtol=1e-5, atol=1e-4)


def test_every_forward_pass_gets_whole_windows_and_at_most_the_batch():
    seen = []

    def forward(windows):
        seen.append(tuple(windows.shape))
        return windows[:, :1]

    result = slide_whole(torch.zeros(3, 10, 12, 9), forward, (4, 6, 16), batch=4)
    assert result.shape == (1, 10, 12, 9)
    assert {shape[1:] for shape in seen} == {(3, 4, 6, 16)}
    assert max(shape[0] for shape in seen) == 4
    assert sum(shape[0] for shape in seen) == len(window_starts(10, 4, 0.5)) * len(window_starts(12, 6, 0.5))


def test_padding_is_the_minimum_of_each_channel_on_both_sides():
    image = torch.stack([torch.full((2, 2, 2), 5.0), torch.full((2, 2, 2), -3.0)])
    image[0, 0, 0, 0] = -1.0
    seen = []
    slide_whole(image, lambda windows: seen.append(windows) or windows, (4, 2, 2))
    (windows,) = seen
    assert windows[0, 0, 0].unique().tolist() == [-1.0]
    assert windows[0, 1, 0].unique().tolist() == [-3.0]
    assert torch.equal(windows[0, :, 1:3], image)
    slide_whole(image, lambda windows: seen.append(windows) or windows, (4, 2, 2), fill_c=torch.tensor([-9.0, 7.0]))
    assert seen[1][0, :, 0, 0, 0].tolist() == [-9.0, 7.0]


def test_windows_are_trusted_most_in_their_middle():
    # A network that only says how far a voxel is from the low end of its window: 0 in the first half, 1 in the second.
    def forward(windows):
        answer = torch.zeros_like(windows)
        answer[:, :, 4:] = 1
        return answer

    result = slide_whole(torch.zeros(1, 12, 1, 1), forward, (8, 1, 1), step=0.5)[0, :, 0, 0]
    assert result[:4].tolist() == [0, 0, 0, 0]  # one window only, its first half
    assert result[8:].tolist() == [1, 1, 1, 1]
    assert result[4] > 0.9  # the first window has it near its middle and says 1, the second at its edge says 0
    assert result[7] < 0.1


def test_half_precision_outputs_are_summed_up_in_float32():
    image = torch.full((1, 40, 4, 4), 1000.0)
    result = slide_whole(image, lambda windows: windows.to(torch.bfloat16), (4, 4, 4), step=0.25)
    torch.testing.assert_close(result, image.to(torch.bfloat16).float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize(
    ("shape", "window", "step", "batch"),
    [((40, 9, 12), (8, 6, 12), 0.5, 1), ((23, 11, 5), (6, 4, 5), 0.3, 3), ((17, 9, 3), (5, 7, 4), 1.0, 2),
     ((5, 6, 20), (8, 8, 8), 0.5, 1)],
)  # fmt: skip
def test_slabs_are_the_same_numbers_in_the_memory_of_a_window(shape, window, step, batch, centered):
    image = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0))
    scale = torch.linspace(-1, 2, 5).reshape(-1, 1, 1, 1)

    def forward(windows):
        return torch.cumsum(windows[:, :1], dim=2) * scale + windows[:, 1:]

    how = {"step": step, "batch": batch, "centered": centered}
    whole = slide_whole(image, forward, window, **how)
    plane = max(shape[1], window[1]) * max(shape[2], window[2])
    slabs = []
    for slab in slide_in_slabs(image, forward, window, **how):
        assert slab.untyped_storage().nbytes() <= 4 * 5 * window[0] * plane
        slabs.append(slab.clone())
    assert len(slabs) == len(window_starts(max(shape[0], window[0]), window[0], step))
    assert torch.equal(torch.cat(slabs, dim=1), whole)
