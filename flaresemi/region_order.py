"""nnU-Net's `regions_class_order`: which value is written for a combination of regions."""

import logging

from flaresemi.errors import shown
from flaresemi.labels import LabelSet

logger = logging.getLogger(__name__)


def written_values(labels: LabelSet, order: object, where: object) -> tuple[int, ...]:
    """Which of several values of one meaning is written.

    nnU-Net writes the regions one over the other, each with its value of the order. Where that value is one of the
    combination that results, it is written here, too; where it is not, nnU-Net's file would say something else, and the
    lowest value that means the combination is written, with a warning.

    Args:
        labels: With regions.
        order: One value per region, as it stands in the file.
        where: The file.

    Raises:
        ValueError: it is no such order.
    """
    values = checked_order(labels, order)
    written = []
    for each, name in zip(labels.classes, labels.class_names, strict=True):
        last = values[each.organs[-1] - 1]
        if last in each.values:
            written.append(last)
            continue
        meaning = f"is {shown(labels.meanings[last])}" if last in labels.known_values else "no label has"
        logger.warning(
            "%s: regions_class_order would write %s as %d, which %s; %d is written",
            where,
            shown(name),
            last,
            meaning,
            each.values[0],
        )
    return tuple(sorted(written))


def checked_order(labels: LabelSet, order: object) -> tuple[int, ...]:
    """One value per region.

    Raises:
        ValueError: it is no such order.
    """
    if (
        not isinstance(order, list)
        or len(order) != labels.count
        or any(isinstance(value, bool) or not isinstance(value, int) for value in order)
    ):
        raise ValueError(
            f"regions_class_order must be a list of {labels.count} integers, one for each label besides background "
            f"({', '.join(labels.names)}), found {order!r}"
        )
    return tuple(order)
