"""Whether models can be trusted with an image: the checks that training data get, and a comparison with those."""

from collections.abc import Iterator, Sequence

from flaresemi.appearance import Look, far_from
from flaresemi.errors import ImageError
from flaresemi.networks.checkpoint import Checkpoint
from flaresemi.planning.findings import Finding
from flaresemi.planning.image_checks import check_image
from flaresemi.preprocessing.looks import look_at
from flaresemi.preprocessing.preprocessor import PreparedImage

#: A body of fewer voxels on its longest axis, at the network's spacing, shows nothing. Chosen: two halvings, as the
#: smallest network makes, leave one of four.
_LEAST_VOXELS = 4


class UnusualImageError(ImageError):
    """An image with warnings was refused, as `--strict` asks for.

    Attributes:
        findings: The warnings.
    """

    findings: tuple[Finding, ...] = ()


def check_prepared(model: Checkpoint, prepared: PreparedImage) -> tuple[Finding, ...]:
    """Every reason not to trust a model's prediction on an image.

    Args:
        model: Older ones carry less, and allow fewer checks.
        prepared: The image, in which the patient was found.

    Returns:
        Warnings; the caller fills in case and file.
    """
    look, image = look_at(prepared), prepared.image
    found = check_image(
        "",
        (),
        model.channels,
        look.channels,
        modalities=image.modalities,
        non_finite=image.non_finite,
        schemes=[plan.scheme for plan in model.plan.intensities],
    )
    return (*found, *_compare(model, look, prepared.grid(model.plan).shape_zyx))


def refusal(findings: Sequence[Finding]) -> UnusualImageError:
    """The error that takes the place of a prediction."""
    error = UnusualImageError(
        "; ".join(finding.message for finding in findings),
        fix="; ".join(dict.fromkeys(finding.remedy for finding in findings)) + "; without --strict it is predicted",
    )
    error.findings = tuple(findings)
    return error


def _compare(model: Checkpoint, look: Look, stage_shape_zyx: tuple[int, ...]) -> Iterator[Finding]:
    far = far_from(model.norms, look, model.channels)
    if far:
        yield _warning(
            "far from training",
            ", ".join(far),
            "another protocol, another part of the body, or a wrong header: look at the image and at its label map",
        )
    for name, facts, plan in zip(model.channels, look.channels, model.plan.intensities, strict=True):
        # Norms, if known, judge better: a model of bones uses little of most bodies' intensities.
        if not model.norms and plan.clip_high is not None and facts.middle_05 >= plan.clip_high:
            yield _warning(
                "clipped",
                f"nearly all of channel '{name}', from {facts.middle_05:g} to {facts.middle_95:g} in the "
                f"middle, lies above {plan.clip_high:g}, the highest that the model sees",
                "see whether the intensities are in the unit that the model was trained on",
            )
    if max(stage_shape_zyx) < _LEAST_VOXELS:
        yield _warning(
            "too small",
            f"the body is {'×'.join(map(str, stage_shape_zyx))} voxels (z, y, x) at the model's spacing",
            "see whether the spacing in its header is right",
        )


def _warning(problem: str, message: str, remedy: str) -> Finding:
    return Finding(case_id="", severity="warning", problem=problem, file="", message=message, remedy=remedy)
