"""Measurement of a scan's look, alike for the labeled cases and for images that are predicted later."""

import numpy as np

from flaresemi.appearance import Look
from flaresemi.plans import ChannelFacts
from flaresemi.preprocessing.cropping import BODY_HU
from flaresemi.preprocessing.normalization import stray_range
from flaresemi.preprocessing.preprocessor import PreparedImage

#: Percentiles are taken of about so many voxels.
_SAMPLE = 200_000


def look_at(prepared: PreparedImage) -> Look:
    """Measures a scan in which the patient was found."""
    image = prepared.image
    return Look(
        geometry=image.geometry,
        channels=tuple(map(measure_channel, image.array_czyx)),
        body_box=prepared.body_box,
        body_share=prepared.body_share,
    )


def measure_channel(channel_zyx: np.ndarray) -> ChannelFacts:
    """The intensities of a channel."""
    middle = channel_zyx[tuple(slice(size // 4, size - size // 4) for size in channel_zyx.shape)]
    step = max(1, round((middle.size / _SAMPLE) ** (1 / 3)))
    some = middle[::step, ::step, ::step]
    low, high = np.percentile(some, (5, 95))
    tissue = some[some > BODY_HU]
    minimum, maximum = float(channel_zyx.min()), float(channel_zyx.max())
    kept = stray_range(channel_zyx, (minimum, maximum))
    stray = 0 if kept is None else np.count_nonzero(channel_zyx < kept[0]) + np.count_nonzero(channel_zyx > kept[1])
    return ChannelFacts(
        minimum=minimum,
        maximum=maximum,
        middle_05=float(low),
        middle_95=float(high),
        tissue_50=float(np.median(tissue if tissue.size > 0.01 * some.size else some)),
        stray=int(stray),
    )
