"""What a round changed on scans that nobody trained on: in plain words, and side by side in pictures."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from flaresemi.case_names import case_file
from flaresemi.evaluation.folders import GRID_TOLERANCE, CasePair, match_cases, read_pair
from flaresemi.evaluation.summary import Summary
from flaresemi.io.images import read_image
from flaresemi.labels import LabelSet
from flaresemi.reporting.overlay import save_comparison

#: Organs that are named among those that changed most, and the change of Dice that is worth a word.
_NAMED, _WORTH_A_WORD = 3, 0.01


def told(before: Summary, after: Summary) -> str:
    """The change of mean Dice, the cases and the organs behind it."""
    was, now = before.mean_dice or 0.0, after.mean_dice or 0.0
    cases = [after_mean - before_mean for before_mean, after_mean in _pairs(case_means(before), case_means(after))]
    rose = sum(change > 0 for change in cases)
    verb = "raised" if now > was else "lowered" if now < was else "did not change"
    lines = [
        f"The round of self-training {verb} the mean Dice of the {len(cases)} test scans from {was:.3f} to {now:.3f}"
        f" ({now - was:+.3f}; it rose in {rose} of {len(cases)})."
    ]
    changes = _changes(before, after)
    for what, sign in (("gained", 1), ("lost", -1)):
        most = sorted(changes, key=lambda name: sign * (changes[name][0] - changes[name][1]))
        named = [
            f"{name} {changes[name][0]:.2f} -> {changes[name][1]:.2f}"
            for name in most[:_NAMED]
            if sign * (changes[name][1] - changes[name][0]) >= _WORTH_A_WORD
        ]
        lines.append(
            f"Most was {what} in {', '.join(named)}." if named else f"No organ {what} {_WORTH_A_WORD} or more."
        )
    return "\n".join(lines)


def case_means(summary: Summary) -> dict[str, float]:
    """Mean Dice of every scored case."""
    scored = {
        case.case_id: [organ.dice for organ in case.organs.values() if organ.dice is not None] for case in summary.cases
    }
    return {case_id: float(np.mean(values)) for case_id, values in scored.items() if values}


def _changes(before: Summary, after: Summary) -> dict[str, tuple[float, float]]:
    """Mean Dice of every organ before and after."""
    means = [
        {organ.name: organ.dice.mean for organ in summary.organs if organ.dice is not None}
        for summary in (before, after)
    ]
    return {name: (means[0][name], means[1][name]) for name in means[0] if name in means[1]}


def _pairs(before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[tuple[float, float]]:
    return ((before[case_id], after[case_id]) for case_id in before if case_id in after)


def draw(
    predictions: tuple[Path, Path],
    references: Path,
    images: Mapping[str, tuple[Path, ...]],
    means: tuple[Mapping[str, float], Mapping[str, float]],
    labels: LabelSet,
    folder: Path,
) -> list[Path]:
    """Draws every case before and after, side by side.

    Args:
        predictions: Folders of label maps, before and after.
        references: Folder of the real ones.
        images: Files of every case.
        means: Mean Dice of every case, before and after, for the titles.
        labels: The organs.
        folder: Where the pictures go, CASE.png.

    Returns:
        The pictures, the case that gained most first.
    """
    shown = {case_id: files[0] for case_id, files in images.items()}
    before, after = (
        {pair.case_id: pair for pair in match_cases(each, references, {}, shown).pairs} for each in predictions
    )
    gains = {case_id: means[1][case_id] - means[0][case_id] for case_id in means[0] if case_id in means[1]}
    drawn = []
    for case_id in sorted(gains, key=lambda each: -gains[each]):
        path = case_file(folder, case_id, ".png")
        titles = tuple(
            f"{when}: mean Dice {of[case_id]:.3f}" for when, of in zip(("before", "after"), means, strict=True)
        )
        _draw_case(path, (before[case_id], after[case_id]), shown[case_id], labels, (titles[0], titles[1]))
        drawn.append(path)
    return drawn


def _draw_case(
    path: Path,
    pairs: tuple[CasePair, CasePair],
    image_file: Path,
    labels: LabelSet,
    titles: tuple[str, str],
) -> None:
    image = read_image([image_file])
    found = [[each.on(image.source, GRID_TOLERANCE) for each in read_pair(pair, labels)] for pair in pairs]
    before, after = (labels.to_indices(prediction.array_zyx) for prediction, _ in found)
    reference = labels.to_indices(found[0][1].array_zyx)
    spacing = image.geometry.spacing_zyx_mm
    save_comparison(path, image.array_czyx[0], (before, after), reference, labels, spacing, titles=titles)
