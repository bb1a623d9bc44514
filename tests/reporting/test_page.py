import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaresemi.reporting import page as page_module
from flaresemi.reporting.page import (
    Column,
    Html,
    Section,
    change,
    element,
    join,
    notice,
    page,
    picture,
    table,
)
from tests.browser import open_page

HOSTILE = "a<b>&\"'</script><script>x</script>"


@given(st.text())
def test_no_text_becomes_markup(text: str) -> None:
    made = element("p", text, title=text)
    assert not set(made.removeprefix('<p title="').removesuffix("</p>").replace('">', "", 1)) & set("<>\"'")


def test_markup_stays_markup_and_absent_things_are_left_out() -> None:
    assert element("b", None, element("i", "<"), 3, class_="x", hidden=True, title=None) == (
        '<b class="x" hidden><i>&lt;</i>3</b>'
    )
    assert join(["a<", Html("<br>")], between=" & ") == "a&lt; &amp; <br>"
    assert isinstance(join([]), Html)


@pytest.mark.parametrize(
    ("value", "error", "text", "tone"),
    [
        (0.0123, 0.004, "▲ +0.012 ± 0.004", "good"),
        (-0.0123, 0.004, "▼ −0.012 ± 0.004", "bad"),
        (-0.0123, 0.05, "▼ −0.012 ± 0.050", "unclear"),
        (-0.0123, None, "▼ −0.012", "unclear"),
        (-0.0001, 0.0, "±0.000 ± 0.000", "unclear"),
        (None, None, "–", "muted"),
    ],
)
def test_a_fall_is_told_by_sign_and_arrow_not_by_color_alone(
    value: float | None, error: float | None, text: str, tone: str
) -> None:
    made = change(value, error=error)
    assert re.sub(r"<[^>]*>", "", made) == text
    assert tone in made


def test_numbers_stand_at_the_right_and_groups_span_their_columns() -> None:
    columns = [
        Column(title="organ", numeric=False), Column(title="a", group="Dice"), Column(title="b", group="Dice"),
        Column(title="c"),
    ]  # fmt: skip
    made = table(columns, [["liver", 1, 2, 3]], caption="scores", foot=[["mean", 1, 2, 3]])
    assert '<th colspan="2" scope="colgroup">Dice</th>' in made
    assert '<th scope="row">liver</th><td class="number">1</td>' in made
    assert '<p class="caption">scores</p>' in made
    with pytest.raises(ValueError, match="2 cells in a table of 4 columns"):
        table(columns, [["liver", 1]], caption="")


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio of two colors."""

    def luminance(color: str) -> float:
        parts = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_that_wcag_aa_asks_for(scheme: str) -> None:
    style = (Path(page_module.__file__).parent / "page.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in style.split(":root {")[1:])
    assert light.keys() == dark.keys()
    colors = light if scheme == "light" else dark
    grounds = ["ground", "panel", "good-ground", "bad-ground", "caution-ground"]
    texts = {name: ["ground", "panel"] for name in ("accent", "good", "bad", "caution")} | {
        "ink": [*grounds, "bar"], "muted": grounds,
    }  # fmt: skip
    texts["good"] = [*texts["good"], "good-ground"]
    texts["bad"] = grounds
    texts["caution"] = [*texts["caution"], "caution-ground"]
    for text, behind in texts.items():
        for ground in behind:
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    for drawn in ("used", "look1", "look2", "look3", "look4", "look5"):
        assert contrast(colors[drawn], colors["ground"]) >= 3, drawn


def write(path: Path, body: Html) -> Path:
    text = page(HOSTILE, lead=join([]), sections=[Section(name="one", title=HOSTILE, body=body)])
    path.write_text(text, encoding="utf-8")
    return path


def test_a_page_is_whole_in_a_browser(tmp_path: Path) -> None:
    seen = open_page(write(tmp_path / "page.html", notice("caution", HOSTILE)), tmp_path)
    assert seen.title == HOSTILE
    assert seen.headings == ("Contents", HOSTILE, HOSTILE)
    assert seen.console == ()
    assert seen.dead_links == ()
    assert seen.width <= seen.viewport == 1280


def test_the_browser_sees_what_is_wrong(tmp_path: Path) -> None:
    """What the tests of pages rest on: each fault is noticed."""
    body = join([
        picture(b"no picture", alt="", size=(10, 10)),
        Html('<img src="https://example.org/x.png"><script>absent()</script><a href="#nowhere">x</a>'),
        Html('<div style="width: 3000px">wide</div>'),
    ])  # fmt: skip
    seen = open_page(write(tmp_path / "page.html", body), tmp_path)
    assert seen.images == (0, 0)
    assert seen.nameless == 1
    assert len(seen.dead_links) == 1
    assert seen.width > seen.viewport
    assert any("absent is not defined" in line for line in seen.console)
    assert any("Content Security Policy" in line for line in seen.console)
