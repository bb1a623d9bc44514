"""Plans of networks so small that nothing takes time."""

from flaresemi.plans import IntensityPlan, NetworkPlan, Stage, StagePlan


def two_levels(outputs: int, inputs: int = 1) -> NetworkPlan:
    return NetworkPlan(
        block="plain",
        input_channels=inputs,
        output_channels=outputs,
        features=(4, 8),
        kernels=((3, 3, 3),) * 2,
        strides=((1, 1, 1), (2, 2, 2)),
        encoder_convs=(1, 1),
        decoder_convs=(1,),
    )


def ct_intensities(mean: float = 0.0, sd: float = 1.0, low: float = -1000.0, high: float = 1000.0) -> IntensityPlan:
    return IntensityPlan(scheme="ct", clip_low=low, clip_high=high, mean=mean, sd=sd)


def stage_plan(network: NetworkPlan, **changes: object) -> StagePlan:
    """FINE of a CT for the whole body at 3 mm, but for the changes."""
    settings: dict = {
        "stage": Stage.FINE,
        "spacing_zyx_mm": (3.0, 3.0, 3.0),
        "patch_zyx": (16, 16, 16),
        "batch_size": 2,
        "region": "body",
        "margin_mm": 20.0,
        "resampling": "linear",
        "intensities": (ct_intensities(),) * network.input_channels,
        "reasons": {},
    }
    return StagePlan(network=network, **(settings | changes))
