"""What should make a reader hesitate: about the round, and about single unlabeled cases."""

import collections

from flaresemi.planning.findings import load_warnings
from flaresemi.reporting.page import Column, Html, Tone, details, element, join, notice, paragraph, table
from flaresemi.rounds.report.facts import RoundFacts, dice, used_organs
from flaresemi.rounds.report.results import name_of
from flaresemi.rounds.report.selected import labeled_volumes_ml
from flaresemi.rounds.stopping import collapsed_organs

#: Fewer held-out cases than this make even the standard error a guess (chosen).
_FEW_HELD_OUT = 5

#: COARSE regions that lose more than this of an organ are worth a word (chosen).
_RECALL = 0.95

#: Cases listed at once; the others are folded away.
_MOST_ROWS = 20

Caution = tuple[Tone, str]


def cautions(facts: RoundFacts) -> Html:
    """The chapter with the warnings."""
    general, cases = about_the_round(facts), about_cases(facts)
    parts: list[Html | None] = [notice(tone, told) for tone, told in general]
    if not general and not cases:
        parts.append(notice("good", "Nothing unusual was found."))
    if cases:
        parts += [element("h3", "Unlabeled cases to look at"), *_case_tables(facts, cases)]
    elif facts.scores:
        parts.append(paragraph("No unlabeled case stands out in spacing, size, intensities, volumes or flags."))
    return join(parts)


def about_the_round(facts: RoundFacts) -> list[Caution]:
    """Warnings about the result, the selection, and what this page could not find."""
    return [*_about_the_result(facts), *_about_the_selection(facts), *(("caution", each) for each in facts.not_found)]


def _about_the_result(facts: RoundFacts) -> list[Caution]:
    if not facts.held_out:
        return [("caution", "No held-out case judges this round.")]
    found: list[Caution] = []
    since = facts.best_before
    collapsed = collapsed_organs(dice(facts.held_out[since]), dice(facts.held_out[-1]), facts.rule.collapse)
    for organ, fall in collapsed.items():
        found.append(("bad", f"{organ} collapsed: its mean Dice fell by {-fall:.3f} since {name_of(since)}."))
    held_out = len(facts.held_out[-1].cases)
    if held_out < _FEW_HELD_OUT:
        cases = "case is" if held_out == 1 else "cases are"
        found.append(("caution", f"Only {held_out} {cases} held out: gain and standard error are both uncertain."))
    cut_off = [each for each in facts.recall if each.share < _RECALL]
    if cut_off:
        worst = min(cut_off, key=lambda each: each.share)
        found.append((
            "caution",
            f"COARSE cuts off more than {1 - _RECALL:.0%} of {len(cut_off)} organ(s) of held-out cases; the worst is "
            f"{worst.organ} in {worst.case_id}, of which {worst.share:.1%} are kept.",
        ))  # fmt: skip
    return found


def _about_the_selection(facts: RoundFacts) -> list[Caution]:
    selection = facts.selection
    if selection is None or not facts.scores:
        return []
    found: list[Caution] = [("caution", note) for note in selection.notes]
    if facts.calibration is None:
        found.append((
            "caution",
            "The scores are agreement alone, which flatters: too few held-out organs to learn the Dice to expect.",
        ))  # fmt: skip
    used = used_organs(facts)
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
    known = {organ: (min(volumes), max(volumes)) for organ, volumes in labeled_volumes_ml(facts).items() if volumes}
    for case in facts.scores:
        strange = [
            f"{organ} {volume:.4g} ml (labeled {known[organ][0]:.4g} to {known[organ][1]:.4g})"
            for organ, score in case.organs.items()
            if organ in known and (volume := score.volume_ml) > 0
            and not known[organ][0] / factor <= volume <= known[organ][1] * factor
        ]  # fmt: skip
        if strange:
            found[case.case_id].append(f"implausible volumes: {', '.join(strange)}")
        found[case.case_id] += case.flags
    return {case_id: tuple(remarks) for case_id, remarks in found.items() if remarks}


def _case_tables(facts: RoundFacts, cases: dict[str, tuple[str, ...]]) -> list[Html]:
    used = used_organs(facts)
    scores = {case.case_id: case.score for case in facts.scores}
    columns = [
        Column(title="Case", numeric=False),
        Column(title="score"),
        Column(title="organs used"),
        Column(title="what is unusual", numeric=False),
    ]
    # What training has seen comes first, then what has most remarks.
    order = sorted(cases, key=lambda case_id: (-len(used[case_id]), -len(cases[case_id]), case_id))
    rows = [
        [case_id, f"{scores[case_id]:.3f}", f"{len(used[case_id])} of {len(facts.organs)}",
         join([element("div", remark) for remark in cases[case_id]])]
        for case_id in order
    ]  # fmt: skip
    told = f"{len(cases)} of {len(facts.scores)} unlabeled cases; those that training has seen come first"
    parts = [table(columns, rows[:_MOST_ROWS], caption=told)]
    if len(rows) > _MOST_ROWS:
        rest = table(columns, rows[_MOST_ROWS:], caption="The other cases")
        parts.append(details(f"{len(rows) - _MOST_ROWS} more", rest))
    return parts
