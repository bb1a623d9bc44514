"""Warnings about the round and about single unlabeled cases."""

import collections

from flaresemi.planning.findings import load_warnings
from flaresemi.rounds.origin import taught_outside
from flaresemi.rounds.report.facts import RoundFacts, name_of

#: Fewer held-out cases than this make even the standard error a guess (chosen).
_FEW_HELD_OUT = 5

#: COARSE regions that lose more than this of an organ are worth a word (chosen).
_RECALL = 0.95

#: Tone and text.
Caution = tuple[str, str]


def cautions(facts: RoundFacts) -> dict[str, object]:
    """The chapter with the warnings; cases that training has seen come first, then those with most remarks."""
    used, found = facts.used, about_cases(facts)
    scores = {case.case_id: case.score for case in facts.scores}
    order = sorted(found, key=lambda case_id: (-len(used[case_id]), -len(found[case_id]), case_id))
    cases = [
        {"case_id": case_id, "score": scores[case_id], "used": len(used[case_id]), "remarks": found[case_id]}
        for case_id in order
    ]
    return {"general": about_the_round(facts), "cases": cases, "pool": len(scores)}


def about_the_round(facts: RoundFacts) -> list[Caution]:
    """Warnings about the result, the selection, and what this page could not find."""
    vanishing = [("bad", f"{organ} is vanishing: {why}.") for organ, why in facts.vanishing[-1].items()]
    not_found = [("caution", each) for each in facts.not_found]
    return [*vanishing, *_about_the_result(facts), *_about_the_selection(facts), *not_found]


def _about_the_result(facts: RoundFacts) -> list[Caution]:
    if not facts.held_out:
        return [("caution", "No held-out case judges this round.")]
    found: list[Caution] = []
    for organ, fall in facts.collapsed.items():
        since = name_of(facts.best_before)
        found.append(("bad", f"{organ} collapsed: its mean Dice fell by {-fall:.3f} since {since}."))
    if taught_outside(facts.workspace, facts.folds):
        found.append(
            (
                "caution",
                "A model from outside labeled round 1, and nothing says what it was trained on: if held-out cases were "
                "part of it, the rounds look better than they are.",
            )
        )
    held_out = len(facts.held_out[-1].cases)
    if held_out < _FEW_HELD_OUT:
        cases = "case is" if held_out == 1 else "cases are"
        found.append(("caution", f"Only {held_out} {cases} held out: gain and standard error are both uncertain."))
    cut_off = [each for each in facts.recall if each.share < _RECALL]
    if cut_off:
        worst = min(cut_off, key=lambda each: each.share)
        found.append(
            (
                "caution",
                f"COARSE cuts off more than {1 - _RECALL:.0%} of {len(cut_off)} organ(s) of held-out cases; the worst "
                f"is {worst.organ} in {worst.case_id}, of which {worst.share:.1%} are kept.",
            )
        )
    return found


def _about_the_selection(facts: RoundFacts) -> list[Caution]:
    selection = facts.selection
    if selection is None or not facts.scores:
        return []
    found: list[Caution] = [("caution", note) for note in selection.notes]
    if facts.calibration is None:
        found.append(
            (
                "caution",
                "The scores are agreement alone, which flatters: too few held-out organs to learn the Dice to expect.",
            )
        )
    used = facts.used
    present = dict.fromkeys(facts.organs, 0)
    for case in facts.scores:
        for organ in used[case.case_id]:
            present[organ] += not case.organs[organ].is_absent
    never = [organ for organ, count in present.items() if count == 0]
    if never:
        found.append(("caution", f"No pseudo-label of {', '.join(never)} was used: the labeled cases alone teach it."))
    return found


def about_cases(facts: RoundFacts) -> dict[str, tuple[str, ...]]:
    """Warnings about unlabeled cases, by case: unlike the labeled ones, implausible volumes, flags of the labeling."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    pool = {case.case_id for case in facts.scores}
    if facts.workspace.integrity_csv.is_file():
        for warning in load_warnings(facts.workspace.integrity_csv):
            if warning.case_id in pool:
                found[warning.case_id].append(warning.message)
    factor = facts.state.config.selection.volume_factor
    known = facts.labeled_volumes
    for case in facts.scores:
        strange = [
            f"{organ} {volume:.4g} ml (labeled {known[organ].least_ml:.4g} to {known[organ].most_ml:.4g})"
            for organ, score in case.organs.items()
            if organ in known
            and (volume := score.volume_ml) > 0
            and not known[organ].least_ml / factor <= volume <= known[organ].most_ml * factor
        ]
        if strange:
            found[case.case_id].append(f"implausible volumes: {', '.join(strange)}")
        found[case.case_id] += case.flags
    return {case_id: tuple(remarks) for case_id, remarks in found.items() if remarks}
