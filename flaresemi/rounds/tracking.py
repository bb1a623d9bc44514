"""The figures of rounds, kept by the tracker of their trainings: one run per chain, whose steps are the rounds."""

import statistics

from flaresemi.evaluation.summary import load_summary
from flaresemi.plans import Stage
from flaresemi.records import load_record
from flaresemi.rounds.round import Round
from flaresemi.selection import Selection, load_scores
from flaresemi.training.tracking import open_tracker


def track_round(round: Round, judged: float | None) -> None:
    """Has the figures of a complete round kept, if its students' trainings are tracked, too.

    Args:
        round: The round.
        judged: Mean Dice of the held-out cases of all chains; None where nothing is held out.
    """
    folder = round.workspace.chain(round.fold) / "logs"
    facts = {"dataset": round.plans.dataset_name, "fold": round.fold, "unlabeled": len(round.pool)}
    tracker = open_tracker(round.training_config(Stage.FINE).track, folder, f"rounds of fold {round.fold}", facts)
    if tracker is not None:
        tracker.log(round_figures(round) | ({} if judged is None else {"judged/mean_dice": judged}), round.number)
        tracker.close()


def round_figures(round: Round) -> dict[str, float]:
    """What a complete round selected, what was expected of it, and how its students did, by name."""
    selection, scores = load_record(round.folder.selection, Selection), load_scores(round.folder.scores)
    figures = {"selected/cases": float(len(selection.selected)), "selected/of": float(len(scores))}
    score_of = {score.case_id: score for score in scores}
    for organ in round.plans.labels.names:
        chosen = [score_of.get(case.case_id) for case in selection.selected if organ in case.supervised]
        expected = [score.organs[organ].predicted_dice for score in chosen if score is not None]
        known = [dice for dice in expected if dice is not None]
        figures[f"selected/{organ}"] = float(len(chosen))
        if known:
            figures[f"expected_dice/{organ}"] = statistics.mean(known)
    path = round.folder.model(Stage.FINE).validation / "summary.json"
    if round.split.validation and path.is_file():
        summary = load_summary(path)
        if summary.mean_dice is not None:
            figures["held_out_dice/mean"] = summary.mean_dice
        figures |= {f"held_out_dice/{each.name}": each.dice.mean for each in summary.organs if each.dice is not None}
    return figures
