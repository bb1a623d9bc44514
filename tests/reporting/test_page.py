"""Templates of pages: what they escape, carry and never do."""

import dataclasses
import re
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flaresemi
from flaresemi.reporting.page import environment, render
from tests.browser import open_page

PACKAGE = Path(flaresemi.__file__).parent
TEMPLATES = sorted(PACKAGE.rglob("*.html"))
HOSTILE = "a<b>&\"'</script><script>x</script>"


@dataclasses.dataclass(frozen=True)
class Change:
    mean: float
    error: float | None


def part(call: str, /, **values: object) -> str:
    """What a macro of parts.html or charts.html makes of values."""
    imports = "".join(
        f"{{% import 'reporting/{name}.html' as {name} %}}" for name in ("parts", "charts") if f"{name}." in call
    )
    return environment().from_string(imports + call).render(values)


@given(st.text())
def test_no_text_becomes_markup(text: str) -> None:
    made = part("{{ parts.notice('good', text) }}", text=text)
    shown = made[made.index("<div>") + len("<div>") : made.rindex("</div></div>")]
    assert not set(shown) & set("<>\"'")
    title = re.search(r'aria-label="(.*?)"', render_table(text), re.DOTALL)
    assert title is not None
    assert not set(title[1]) & set("<>\"'")


def render_table(caption: str) -> str:
    body = "<tr><th scope='row'>liver</th><td>1</td><td>2</td><td>3</td></tr>"
    call = "{% call parts.table(caption, ['organ', 'a', 'b', 'c'], groups=[('', 1), ('Dice', 2), ('', 1)]) %}"
    return part(f"{call}{body}{{% endcall %}}", caption=caption)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_lets_no_value_through_as_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\bsafe\b|autoescape|Markup|xmlattr|tojson", text)
    assert not re.search(r"=\s*\{\{", text), "an attribute without quotes ends at the first space"
    assert not re.search(r"<[^>]*\b(on\w+|href|src)=\"\{", text), "a value may not be an address or a script"


def test_every_template_is_shipped() -> None:
    setup = (PACKAGE.parent / "setup.py").read_text(encoding="utf-8")
    patterns = re.findall(r'"([^"]+)"', setup[setup.index("package_data=") :].split("]")[0])
    shipped = {path for pattern in patterns[1:] for path in PACKAGE.glob(pattern)}
    assert {*TEMPLATES, *PACKAGE.rglob("*.css")} <= shipped


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render("reporting/page.html", title="a")


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
    made = part("{{ parts.change(change) }}", change=None if value is None else Change(value, error))
    assert re.sub(r"<[^>]*>", "", made).strip() == text
    assert tone in made


def test_groups_span_their_columns_and_words_are_marked() -> None:
    made = render_table("scores")
    assert '<th colspan="2" scope="colgroup">Dice</th>' in made
    assert '<th scope="col" class="text">organ</th><th scope="col">a</th>' in made
    assert '<p class="caption">scores</p>' in made


def test_a_step_leads_from_ring_to_disk() -> None:
    def places(chart: str) -> list[float]:
        return [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', chart)]

    rise, fall = (part("{{ charts.step(before, after) }}", before=0.5, after=after) for after in (0.9, 0.1))
    assert places(rise) == [75.0, 130.2]
    assert "rise" in rise
    assert places(fall) == [75.0, 19.8]
    assert "fall" in fall


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
    style = (PACKAGE / "reporting" / "page.css").read_text(encoding="utf-8")
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


def write(path: Path, body: str = "") -> Path:
    text = render("reporting/page.html", title=HOSTILE, chapters=[("one", HOSTILE)])
    path.write_text(text.replace("</section>", f"{body}</section>"), encoding="utf-8")
    return path


def test_a_page_is_whole_in_a_browser(tmp_path: Path) -> None:
    seen = open_page(write(tmp_path / "page.html"), tmp_path)
    assert seen.title == HOSTILE
    assert seen.headings == ("Contents", HOSTILE, HOSTILE)
    assert seen.console == ()
    assert seen.dead_links == ()
    assert seen.width <= seen.viewport == 1280


def test_the_browser_sees_what_is_wrong(tmp_path: Path) -> None:
    """What the tests of pages rest on: each fault is noticed."""
    body = (
        '<img src="data:image/jpeg;base64,bm8gcGljdHVyZQ==" alt=""><img src="https://example.org/x.png">'
        '<script>absent()</script><a href="#nowhere">x</a><div style="width: 3000px">wide</div>'
    )
    seen = open_page(write(tmp_path / "page.html", body), tmp_path)
    assert seen.images == (0, 0)
    assert seen.nameless == 1
    assert len(seen.dead_links) == 1
    assert seen.width > seen.viewport
    assert any("absent is not defined" in line for line in seen.console)
    assert any("Content Security Policy" in line for line in seen.console)
