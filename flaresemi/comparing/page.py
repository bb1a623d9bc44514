"""A comparison as a page and as a table for the terminal."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from flaresemi.files import write_text
from flaresemi.inference.choice import BestConfiguration, ComparedResult
from flaresemi.reporting.page import render

#: Address within the page, and title.
_CHAPTERS = (("configurations", "What was compared"), ("organs", "Organ by organ"), ("cases", "Case by case"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """A difference and half of its interval, as `reporting/parts.html` shows it."""

    mean: float
    error: float | None


def write_page(path: Path, choice: BestConfiguration) -> None:
    """Writes the page, atomically; it stands alone in one file."""
    models = {model.name: model for model in choice.models}
    organs = dict.fromkeys(organ for result in choice.results for organ in result.organs)
    text = render(
        "comparing/compared.html",
        title=f"Which models predict {choice.dataset}",
        chapters=_CHAPTERS,
        choice=choice,
        models=models,
        organs=tuple(organs),
        names=[name_of(result) for result in choice.results],
        cases=tuple(dict.fromkeys(case for result in choice.results for case in result.dice)),
        best=_best_alone(choice),
        name_of=name_of,
        change_of=_change,
        is_chosen=lambda result: result.members == choice.chosen,
    )
    write_text(path, text)


def table(choice: BestConfiguration) -> str:
    """For a terminal: a row per configuration, then the reasons."""
    rows = [("", "stages", "Dice", f"ahead of {_best_alone(choice)}", "s a case"), *_rows(choice)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rule = "-" * max(map(len, lines))
    held_out = f"{choice.cases} held-out case{'s' if choice.cases > 1 else ''} of fold {', '.join(choice.folds)}"
    told = f"{held_out}; ± is half of the 95 % interval, paired by case; seconds are of one fold"
    return "\n".join([lines[0], rule, *lines[1:], rule, told, "", *choice.why])


def name_of(result: ComparedResult) -> str:
    """A configuration's name."""
    return " + ".join(result.members)


def _rows(choice: BestConfiguration) -> Iterator[tuple[str, ...]]:
    stages = {model.name: model.stages for model in choice.models}
    for result in choice.results:
        within = "" if result.ahead_within is None else f" ± {result.ahead_within:.4f}"
        yield (
            ("* " if result.members == choice.chosen else "  ") + name_of(result),
            "+".join(str(stages[name]) for name in result.members),
            f"{result.mean_dice:.4f}",
            "" if name_of(result) == _best_alone(choice) else f"{result.ahead:+.4f}{within}",
            f"{result.seconds:.1f}",
        )


def _best_alone(choice: BestConfiguration) -> str:
    """The single model of the highest mean."""
    return next(name_of(result) for result in choice.results if len(result.members) == 1)


def _change(result: ComparedResult) -> Ahead:
    return Ahead(mean=result.ahead, error=result.ahead_within)
