"""The comparison, whole: predict what was held out, judge, write which models predict and why."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from flaresemi.comparing.candidates import Candidate
from flaresemi.comparing.judging import judge
from flaresemi.comparing.page import write_page
from flaresemi.comparing.predicting import HeldOutCases
from flaresemi.dataset import Dataset
from flaresemi.inference.cascade import SegmenterOptions
from flaresemi.inference.choice import CHOICE, BestConfiguration, ComparedModel, save_choice
from flaresemi.tables import write_table


def choice_path(output: Path) -> Path:
    """The record of a comparison."""
    return output / CHOICE


def page_path(output: Path) -> Path:
    """The page that shows it."""
    return output / "best.html"


def table_path(output: Path) -> Path:
    """The Dice of every configuration, case and organ."""
    return output / "best.csv"


def find_best(
    candidates: Sequence[Candidate], held_out: HeldOutCases, dataset: Dataset, **options: Unpack[SegmenterOptions]
) -> BestConfiguration:
    """Compares models and writes the choice into the folder of `held_out`: record, page and table.

    It goes on where it was stopped: whatever was predicted by the same models is kept.

    Args:
        candidates: From `find_candidates`.
        held_out: Their held-out cases.
        dataset: That they were trained on.
        options: As for `Segmenter`.

    Raises:
        FlaresemiError: models or a case cannot be read, or nothing could be scored.
    """
    results = held_out.predict(**options)
    judgment = judge(results, {each.name: each.stages for each in candidates})
    output = held_out.output
    choice = BestConfiguration(
        dataset=dataset.name,
        folds=tuple(candidates[0].runs),
        cases=len(judgment.results[0].dice),
        models=tuple(
            ComparedModel.at(
                each.folder,
                output,
                name=each.name,
                stages=each.stages,
                spacing_zyx_mm=each.plan.spacing_zyx_mm,
                networks=each.networks,
            )
            for each in candidates
        ),
        results=judgment.results,
        chosen=judgment.chosen,
        why=judgment.why,
    )
    save_choice(choice_path(output), choice)
    rows = [
        ("+".join(members), result.scores.case_id, organ, score.dice, score.nsd, score.hd95_mm)
        for members, found in results.items()
        for result in found
        for organ, score in result.scores.organs.items()
    ]
    write_table(table_path(output), [("configuration", "case", "organ", "dice", "nsd", "hd95_mm"), *rows])
    write_page(page_path(output), choice)
    return choice
