"""The page about a round, from chains that were made up: what it must say, bear and never do."""

import base64
import dataclasses
import html
import io
import re
import shutil
from pathlib import Path

import matplotlib.image
import pytest
from markupsafe import escape

from flaresemi.errors import SelectionError
from flaresemi.plans import Stage
from flaresemi.pseudolabels.selecting import SelectionRule
from flaresemi.records import load_record
from flaresemi.reporting.page import render
from flaresemi.rounds.report.cases import choose
from flaresemi.rounds.report.cautions import about_cases, about_the_round
from flaresemi.rounds.report.facts import RoundFacts, gather
from flaresemi.rounds.report.selected import count_reasons, selected
from flaresemi.rounds.report.writing import write_report
from flaresemi.rounds.state import RoundConfig, RoundState, save_state
from flaresemi.rounds.stopping import StopRule, Verdict, judge
from flaresemi.training.config import TrainingConfig
from flaresemi.training.mixing import Mixing
from flaresemi.workspace import Workspace
from tests.browser import open_page
from tests.rounds.made_chain import HOSTILE_CASE, HOSTILE_ORGAN, MadeChain

GOOD = MadeChain(dice=(0.78, 0.82, 0.85), falling="pancreas")
FEW = ("one", "two")


def look(workspace: Workspace, number: int, *, fold: str = "0", folds: tuple[str, ...] = ("0",)) -> RoundFacts:
    return gather(workspace, fold, number, rule=StopRule(), verdict=None, folds=folds)


def verdict_on(workspace: Workspace, number: int, folds: tuple[str, ...] = ("0",)) -> Verdict:
    return judge([each.values("dice") for each in look(workspace, number, folds=folds).held_out], StopRule())


def read(workspace: Workspace, number: int, **options) -> tuple[Path, str]:
    """The page and its text as a person reads it: without markup, spaces made one."""
    if "verdict" not in options:
        options["verdict"] = verdict_on(workspace, number)
    path = write_report(workspace, options.pop("fold", "0"), number, rule=StopRule(), **options)
    text = re.sub(r"<(style|script)>.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return path, " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return GOOD.write(tmp_path_factory.mktemp("good") / "workspace")


@pytest.fixture(scope="module")
def unspoiled(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return MadeChain(unlabeled=FEW).write(tmp_path_factory.mktemp("small") / "workspace")


@pytest.fixture
def small(unspoiled: Workspace, tmp_path: Path) -> Workspace:
    """A chain to be spoiled: one round, two cases."""
    return Workspace(shutil.copytree(unspoiled.root, tmp_path / "workspace"))


@pytest.fixture(scope="module")
def good_page(good: Workspace) -> tuple[Path, str]:
    return read(good, 2)


def test_the_verdict_comes_first_with_its_gain_and_its_doubts(good: Workspace, good_page: tuple[Path, str]) -> None:
    text = good_page[1]
    gain = look(good, 2).change(1)
    assert gain is not None
    assert f"Round 2 helped: mean Dice rose by {gain.mean:.4f} ± {gain.error:.4f}, since round 1." in text
    assert "1 organ fell by more than the standard error since round 1: pancreas ▼ −0.0" in text
    assert "The chain goes on; the models to use are those of round 2 ." in text
    assert verdict_on(good, 2).why in text
    assert "The best of several rounds is an optimistic figure" in text
    order = [text.index(word) for word in ("helped", "optimistic", "Dice of the held-out", "Rule: organ")]
    assert order == sorted(order)


def test_every_organ_has_its_scores_of_every_round(good: Workspace, good_page: tuple[Path, str]) -> None:
    text, facts = good_page[1], look(good, 2)
    for metric in ("dice", "nsd"):
        for organ in GOOD.organs:
            means = [
                sum(found.values()) / len(found) for each in facts.held_out if (found := each.by_case(metric, organ))
            ]
            assert f"{organ} {' '.join(f'{mean:.3f}' for mean in means)}" in text
    falls = re.findall(r"pancreas [\d. ]+▼ (−[\d.]+) ± [\d.]+ ▼ (−[\d.]+)", text)
    assert len(falls) == 2  # Dice and NSD
    assert all(float(first.replace("−", "-")) < float(second.replace("−", "-")) < 0 for first, second in falls)


def test_selection_time_and_every_parameter_are_told(good: Workspace, good_page: tuple[Path, str]) -> None:
    path, text = good_page
    facts = look(good, 2)
    assert facts.selection is not None
    used, pool = len(facts.selection.selected), len(facts.scores)
    assert f"{used} used, {pool - used} rejected" in text
    assert "organ threshold 0.8" in text
    assert "1 h 21 min" in text
    page = path.read_text(encoding="utf-8")
    for record in (RoundConfig, Mixing, SelectionRule, StopRule, TrainingConfig):
        for field in dataclasses.fields(record):
            assert re.search(rf"<code>([\w.]+\.)?{field.name}(\.\w+)?</code>", page), field.name
    assert all(hash_ in text for hash_ in facts.scores[0].made_with)


def test_a_teacher_from_outside_is_named(good: Workspace, good_page: tuple[Path, str]) -> None:
    told = "The pool was labeled by a model from outside of this workspace: nnUNet_results/Dataset027"
    assert told not in good_page[1]
    facts = look(good, 1)
    config = dataclasses.replace(facts.state.config, teacher="nnUNet_results/Dataset027")
    first = dataclasses.replace(facts, states=(dataclasses.replace(facts.state, config=config),))
    page = render("rounds/report/selection.html", selected=selected(first))
    assert told in re.sub(r"<[^>]*>", "", page)
    assert selected(dataclasses.replace(first, number=2))["outside"] is None


def test_no_name_from_a_file_becomes_markup(good_page: tuple[Path, str]) -> None:
    path, text = good_page
    page = path.read_text(encoding="utf-8")
    assert HOSTILE_CASE in text
    assert HOSTILE_ORGAN in text
    assert HOSTILE_CASE not in page
    assert HOSTILE_ORGAN not in page
    assert "<organ>" not in page
    assert escape(HOSTILE_CASE) in page


def test_the_page_needs_nothing_but_itself(good_page: tuple[Path, str]) -> None:
    page = good_page[0].read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|<link(?! rel=\"icon\" href=\"data:,\")|<script src", page)
    assert set(re.findall(r"url\(([^)]*)\)", page)) == {"#hatching"}
    assert len(page) < 4_000_000


def test_every_row_of_a_table_has_its_columns(good: Workspace, good_page: tuple[Path, str]) -> None:
    paths = [good_page[0], read(good, 1)[0]]
    tables = [table for path in paths for table in re.findall(r"<table.*?</table>", path.read_text("utf-8"), re.DOTALL)]
    assert len(tables) > 20
    for table in tables:
        rows = [
            sum(int((re.search(r'colspan="(\d+)"', cell) or "11")[1]) for cell in re.findall(r"<t[hd]\b[^>]*>", row))
            for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
        ]
        assert len(rows) > 1, table
        assert set(rows) == {rows[0]}, table


def test_pictures_show_best_worst_and_cut_once_each(good: Workspace, good_page: tuple[Path, str]) -> None:
    facts = look(good, 2)
    chosen = choose(facts)
    shown = [each.score.case_id for group in chosen.values() for each in group]
    assert len(shown) == len(set(shown)) == 10
    ranked = [case.case_id for case in facts.scores]
    assert [each.score.case_id for each in chosen["Most reliable"]] == ranked[:3]
    assert [each.score.case_id for each in chosen["Least reliable"]] == ranked[::-1][:3]
    assert {each.why.split(" ", 1)[0] for each in chosen["Around the cut"]} <= {name.split()[0] for name in GOOD.organs}
    pictures = re.findall(
        r'<img src="data:image/jpeg;base64,([^"]*)" alt="[^"]+" width="(\d+)"', good_page[0].read_text(encoding="utf-8")
    )
    assert len(pictures) == 10
    for data, width in pictures:
        picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(data)), format="jpeg")
        assert picture.shape[1] == int(width)
        assert picture.std() > 10  # not one even color


def test_the_cut_of_whole_cases_lies_between_neighbors(tmp_path: Path) -> None:
    facts = look(dataclasses.replace(GOOD, rule=SelectionRule(rule="case")).write(tmp_path), 1)
    chosen = choose(facts)["Around the cut"]
    assert facts.selection is not None
    names = [case.case_id for case in facts.selection.selected]
    assert [each.score.case_id in names for each in chosen] == [True, True, False, False]
    scores = [each.score.score for each in chosen]
    assert scores == sorted(scores, reverse=True)
    left = sorted((case.score for case in facts.scores[3:-3]), reverse=True)
    assert left.index(scores[0]) + 3 == left.index(scores[3])


def test_rejected_organs_are_named_with_their_reason(good: Workspace, good_page: tuple[Path, str]) -> None:
    facts = look(good, 2)
    assert facts.selection is not None
    shown = {each.score.case_id for group in choose(facts).values() for each in group}
    seen = 0
    for case in facts.selection.selected:
        for organ, reason in case.rejected.items() if case.case_id in shown else ():
            if not next(each for each in facts.scores if each.case_id == case.case_id).organs[organ].is_absent:
                assert f"{organ} ({reason})" in good_page[1]
                seen += 1
    assert seen


def test_like_reasons_are_counted_together() -> None:
    reasons = ["agreement 0.512 below 0.8", "agreement 0.7 below 0.8", "reaches out of the region"]
    assert count_reasons(reasons) == {"agreement … below 0.8": 2, "reaches out of the region": 1}
    assert count_reasons(["3 ml, labeled cases have 5 to 9"]) == {"3 ml, labeled cases have 5 to 9": 1}


def test_unusual_unlabeled_cases_are_warned_of_and_no_others(good: Workspace) -> None:
    found = about_cases(look(good, 2))
    assert "spacing along z is 10 mm (labeled cases: 3 mm)" in found[HOSTILE_CASE]
    assert "COARSE found no organ: FINE searched the whole body" in found["case_01"]
    assert "real_0" not in found
    facts = look(good, 2)
    narrow = RoundConfig(selection=SelectionRule(volume_factor=1.0))
    strict = dataclasses.replace(facts, states=(*facts.states[:-1], dataclasses.replace(facts.state, config=narrow)))
    assert sum("implausible volumes" in " ".join(told) for told in about_cases(strict).values()) > sum(
        "implausible volumes" in " ".join(told) for told in found.values()
    )


def test_a_round_without_a_gain_says_so(tmp_path: Path) -> None:
    workspace = MadeChain(dice=(0.8, 0.8005), unlabeled=FEW).write(tmp_path)
    assert "Round 1 brought no clear gain: mean Dice changed by" in read(workspace, 1)[1]


def test_a_round_that_did_harm_says_so(tmp_path: Path) -> None:
    text = read(MadeChain(dice=(0.8, 0.76), unlabeled=FEW).write(tmp_path), 1)[1]
    assert "Round 1 did harm: mean Dice fell by" in text
    assert "the models to use are those of start" in text


def test_a_collapsed_organ_is_the_headline(tmp_path: Path) -> None:
    chain = MadeChain(dice=(0.8, 0.9), unlabeled=FEW, falling=HOSTILE_ORGAN)
    workspace = chain.write(tmp_path)
    rule = StopRule(collapse=0.02)
    facts = gather(workspace, "0", 1, rule=rule, verdict=None, folds=("0",))
    verdict = judge([each.values("dice") for each in facts.held_out], rule)
    path = write_report(workspace, "0", 1, rule=rule, verdict=verdict)
    told = escape(f"Round 1 lost what was known: {HOSTILE_ORGAN} collapsed since start.")
    assert told in path.read_text(encoding="utf-8")


def test_one_held_out_case_has_no_standard_error(tmp_path: Path) -> None:
    text = read(MadeChain(held_out=1, unlabeled=FEW).write(tmp_path), 1)[1]
    assert "from a single case, so without a standard error" in text
    assert "Only 1 case is held out" in text
    assert "too few held-out organs" in text


def test_without_held_out_cases_nothing_is_claimed(tmp_path: Path) -> None:
    workspace = MadeChain(held_out=0, fold="all", unlabeled=FEW).write(tmp_path)
    text = read(workspace, 1, fold="all", verdict=None)[1]
    assert "Round 1 cannot be judged: no labeled case was held out." in text
    assert "Mean Dice, held-out" not in text
    assert "optimistic figure" not in text
    assert "Most reliable" in text


def test_an_organ_that_vanishes_is_told_without_held_out_cases(tmp_path: Path) -> None:
    workspace = MadeChain(held_out=0, fold="all", unlabeled=FEW, vanishing=HOSTILE_ORGAN).write(tmp_path)
    text = read(workspace, 1, fold="all", verdict=None)[1]
    assert f"Round 1 is losing {HOSTILE_ORGAN}; no labeled case was held out to judge it." in text
    assert f"{HOSTILE_ORGAN} is vanishing: 77% of it is missing. The next round teaches no pseudo-label of it." in text
    assert f"{HOSTILE_ORGAN} vanishing 100% 100% 90.0 20.0 88.0 6% 77% 10% 0.900 0.870" in text
    assert "liver 100% 100% 90.0 90.0 88.0 6% 5% 10% 0.900 –" in text
    assert ("bad", f"{HOSTILE_ORGAN} is vanishing: 77% of it is missing.") in about_the_round(
        look(workspace, 1, fold="all", folds=("all",))
    )
    workspace.round("all", 1).vitals.unlink()
    assert "run by a version that did not look" in read(workspace, 1, fold="all", verdict=None)[1]


def test_several_folds_are_judged_together(tmp_path: Path) -> None:
    workspace = MadeChain(unlabeled=FEW).write(tmp_path / "workspace")
    other = dataclasses.replace(MadeChain(unlabeled=FEW), fold="1").write(tmp_path / "other")
    for part in ("models", "rounds"):
        shutil.copytree(other.root / part / "fold_1", workspace.root / part / "fold_1")
    for path in workspace.root.rglob("fold_1/**/summary.json"):  # its held-out cases are others
        path.write_text(path.read_text(encoding="utf-8").replace("real_", "other_"), encoding="utf-8")
    facts = look(workspace, 1, folds=("0", "1"))
    assert len(facts.held_out[-1].cases) == 2 * MadeChain().held_out
    text = read(workspace, 1, verdict=verdict_on(workspace, 1, ("0", "1")), folds=("0", "1"))[1]
    assert "of folds 0, 1" in text
    (workspace.round("1", 1).model(Stage.FINE).validation / "summary.json").unlink()
    facts = look(workspace, 1, folds=("0", "1"))
    assert len(facts.held_out[-1].cases) == MadeChain().held_out
    assert any("the held-out cases of fold 1 count nowhere" in told for _, told in about_the_round(facts))


def test_a_chain_that_a_model_from_outside_began_is_doubted(small: Workspace) -> None:
    doubt = "A model from outside labeled round 1"
    assert not any(doubt in told for _, told in about_the_round(look(small, 1)))
    path = small.round("0", 1).state
    save_state(path, dataclasses.replace(load_record(path, RoundState), made_with=("outside", "abc")))
    assert any(doubt in told for _, told in about_the_round(look(small, 1)))


def test_a_page_of_an_earlier_round_can_be_made_again(good: Workspace) -> None:
    path, text = read(good, 1)
    assert path == good.round("0", 1).report
    assert "Self-training, round 1 of fold 0" in text
    assert "round 2" not in text


def test_the_same_round_gives_the_same_page(small: Workspace) -> None:
    pages = [read(small, 1)[0].read_text(encoding="utf-8") for _ in range(2)]
    assert re.sub(r"written [-\d :+]+", "", pages[0]) == re.sub(r"written [-\d :+]+", "", pages[1])


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("models/fold_0/FINE/calibration.json", "too few held-out organs"),
        ("rounds/fold_0/round_1/observations.json", "Scores"),
        ("rounds/fold_0/round_1/selection.json", "what was selected is not known"),
        ("rounds/fold_0/round_1/scores.csv", "the scores are not known"),
        ("rounds/fold_0/round_1/labels/FINE/one", "not drawn: case 'one' is not preprocessed"),
        ("preprocessed/FINE/two", "not drawn: case 'two' is not preprocessed"),
        ("rounds/fold_0/round_1/models/fold_0/FINE/history.jsonl", "Training curves"),
        ("rounds/fold_0/round_1/models/fold_0/FINE/run.json", "No record of this training was found"),
        ("rounds/fold_0/round_1/models/fold_0/FINE/snapshot_100.pt", "Checkpoints"),
        ("rounds/fold_0/round_1/models/fold_0/COARSE/validation", "Did it help?"),
        ("integrity.csv", "Warnings"),
    ],
)
def test_what_is_missing_is_said_and_does_not_stop_the_page(small: Workspace, missing: str, told: str) -> None:
    path = small.root / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert told in read(small, 1)[1]


def test_what_is_damaged_is_named_and_the_old_page_stays(small: Workspace) -> None:
    path, _ = read(small, 1)
    before = path.read_bytes()
    small.round("0", 1).scores.write_text("no,score,file\n1,2,3\n", encoding="utf-8")
    with pytest.raises(SelectionError, match="score file is damaged"):
        read(small, 1)
    assert path.read_bytes() == before
    with pytest.raises(SelectionError, match="no round 2"):
        write_report(small, "0", 2, rule=StopRule(), verdict=None)


@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_without_a_network_shows_all_of_it(good_page: tuple[Path, str], tmp_path: Path, width: int) -> None:
    seen = open_page(good_page[0], tmp_path, width=width)
    assert seen.console == ()
    assert seen.requests == ()
    assert len(seen.images) == 10
    assert min(seen.images) > 500
    assert seen.nameless == 0
    assert seen.dead_links == ()
    assert seen.viewport == width
    assert seen.width <= width
    assert "Did it help?" in seen.headings
