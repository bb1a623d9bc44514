"""HTML that stands alone in one file: elements that escape what they are given, tables, pictures, a page.

A string is text and is escaped; only what `element` made, an `Html`, is markup. So no name from a file
can become a tag.
"""

import base64
import dataclasses
import html
import importlib.resources
from collections.abc import Iterable, Sequence
from typing import Literal

_VOID = frozenset(("img", "br", "meta", "link"))

#: Nothing is fetched from anywhere, whatever stands in the page.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

#: On paper nothing can be unfolded.
_UNFOLD_FOR_PRINT = (
    "addEventListener('beforeprint', () => document.querySelectorAll('details:not([open])').forEach("
    "each => { each.open = true; each.dataset.folded = ''; }));"
    "addEventListener('afterprint', () => document.querySelectorAll('details[data-folded]').forEach("
    "each => { each.open = false; delete each.dataset.folded; }));"
)

#: The fill of what was refused, in charts; once in a page.
_HATCHING = """<svg width="0" height="0" aria-hidden="true" class="hidden"><defs>
<pattern id="hatching" width="6" height="6" patternUnits="userSpaceOnUse">
<rect width="6" height="6" class="hatch-ground"/>
<path d="M-1,1 l2,-2 M0,6 l6,-6 M5,7 l2,-2" class="hatch-line"/>
</pattern></defs></svg>"""

Tone = Literal["good", "bad", "caution", "plain"]

#: What stands before a text besides its color, which not everyone sees.
_MARKS = {"good": "▲", "bad": "▼", "caution": "!", "plain": "●"}


class Html(str):
    """Markup. Every other string is text."""

    __slots__ = ()


def element(tag: str, /, *children: object, **attributes: object) -> Html:
    """One element.

    Args:
        tag: Its name.
        children: `Html` as it is; None not at all; everything else as escaped text.
        attributes: `class_` means class, `stroke_width` stroke-width, in any element; None leaves it out, True gives it
            no value.
    """
    words = [tag]
    for name, value in attributes.items():
        if value is not None and value is not False:
            key = name.rstrip("_").replace("_", "-")
            words.append(key if value is True else f'{key}="{html.escape(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Html(start if tag in _VOID else f"{start}{join(children)}</{tag}>")


def join(parts: Iterable[object], between: str = "") -> Html:
    """Parts one after the other, escaped where they are no markup; None is left out."""
    made = [part if isinstance(part, Html) else html.escape(str(part)) for part in parts if part is not None]
    return Html(html.escape(between).join(made))


def paragraph(*children: object, class_: str | None = None) -> Html:
    return element("p", *children, class_=class_)


def bullets(items: Iterable[object]) -> Html:
    return element("ul", *(element("li", item) for item in items))


def notice(tone: Tone, *children: object) -> Html:
    """A framed remark, marked by a sign and a color."""
    return element("div", element("span", _MARKS[tone], class_="mark", aria_hidden="true"), element("div", *children),
                   class_=f"notice {tone}")  # fmt: skip


def details(summary: object, *children: object) -> Html:
    """Something to unfold."""
    return element("details", element("summary", summary), *children)


def change(value: float | None, *, digits: int = 3, error: float | None = None) -> Html:
    """A difference with its sign: rises and falls by an arrow, in color where they exceed their standard error.

    Args:
        value: None: there is nothing to compare.
        digits: After the point.
        error: Standard error, shown behind the value; None: unknown, not shown, and nothing is colored.
    """
    if value is None:
        return element("span", "–", class_="muted")
    told = f"{abs(value):.{digits}f}"
    is_zero = float(told) == 0
    sign = "±" if is_zero else "+" if value > 0 else "−"
    arrow = "" if is_zero else "▲ " if value > 0 else "▼ "
    is_clear = error is not None and not is_zero and abs(value) > error
    tone = ("good" if value > 0 else "bad") if is_clear else "unclear"
    spread = None if error is None else element("span", f" ± {error:.{digits}f}", class_="error")
    return element("span", arrow, f"{sign}{told}", spread, class_=f"change {tone}")


def share_bar(share: float, text: str) -> Html:
    """A text over a bar of this share of its cell."""
    fill = element("span", class_="fill", style=f"width:{100 * min(max(share, 0.0), 1.0):.1f}%")
    return element("span", fill, element("span", text, class_="text"), class_="share")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its head.
        numeric: Aligned at the right.
        group: Title over this column and its neighbors of the same group; empty: none.
    """

    title: str
    numeric: bool = True
    group: str = ""


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[object]], *, caption: str, foot: Sequence[Sequence[object]] = ()
) -> Html:
    """A table; the first cell of a row is its head. Where it is too wide, it scrolls within itself.

    Args:
        columns: One per cell of a row.
        rows: The body.
        caption: What it shows, above it.
        foot: Rows that sum up.
    """
    head = [element("tr", *(element("th", each.title, scope="col", class_=_align(each)) for each in columns))]
    if any(each.group for each in columns):
        head.insert(0, element("tr", *_group_heads(columns)))
    body = element("tbody", *(_row(columns, row) for row in rows))
    below = element("tfoot", *(_row(columns, row) for row in foot)) if foot else None
    made = element("table", element("thead", *head), body, below, aria_label=caption)
    scrolled = element("div", made, class_="scroll", tabindex=0, role="region", aria_label=caption)
    return join([paragraph(caption, class_="caption"), scrolled])


def _row(columns: Sequence[Column], cells: Sequence[object]) -> Html:
    if len(cells) != len(columns):
        raise ValueError(f"a row of {len(cells)} cells in a table of {len(columns)} columns")
    first, *others = cells
    made = [element("td", cell, class_=_align(column)) for column, cell in zip(columns[1:], others, strict=True)]
    return element("tr", element("th", first, scope="row", class_=_align(columns[0])), *made)


def _align(column: Column) -> str | None:
    return "number" if column.numeric else None


def _group_heads(columns: Sequence[Column]) -> list[Html]:
    heads: list[Html] = []
    start = 0
    while start < len(columns):
        stop = start + 1
        while stop < len(columns) and columns[stop].group == columns[start].group:
            stop += 1
        title = columns[start].group
        kind = "th" if title else "td"
        heads.append(element(kind, title or None, colspan=stop - start, scope="colgroup" if title else None))
        start = stop
    return heads


def key_figures(rows: Iterable[tuple[object, object, object]]) -> Html:
    """Large numbers side by side: what each is, its value, and what to compare it with."""
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value, element("small", remark)))
            for name, value, remark in rows
        ),
        class_="figures",
    )


def figure(content: Html, caption: object, *, class_: str | None = None) -> Html:
    return element("figure", content, element("figcaption", caption), class_=class_)


def picture(jpeg: bytes, *, alt: str, size: tuple[int, int]) -> Html:
    """A JPEG inside the page.

    Args:
        jpeg: The file's bytes.
        alt: What it shows, for those who do not see it.
        size: Width and height, pixels, so that the page does not jump.
    """
    source = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"
    return element("img", src=source, alt=alt, width=size[0], height=size[1])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A chapter of a page.

    Attributes:
        name: Its address within the page.
        title: Its heading.
        body: What stands in it.
    """

    name: str
    title: str
    body: Html


def page(title: str, *, lead: Html, sections: Sequence[Section]) -> str:
    """A whole document with a table of contents.

    Args:
        title: Of the document and its first heading.
        lead: What stands below the heading.
        sections: The chapters.
    """
    style = importlib.resources.files("flaresemi.reporting").joinpath("page.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("link", rel="icon", href="data:,"),
        element("style", Html(style)),
    )
    links = (element("li", element("a", each.title, href=f"#{each.name}")) for each in sections)
    contents = element("nav", element("h2", "Contents"), element("ol", *links), aria_label="Contents")
    chapters = (
        element("section", element("h2", each.title, id=f"{each.name}-title"), each.body, id=each.name,
                aria_labelledby=f"{each.name}-title")
        for each in sections
    )  # fmt: skip
    header = element("header", element("h1", title), lead)
    script = element("script", Html(_UNFOLD_FOR_PRINT))
    body = element("body", Html(_HATCHING), contents, element("main", header, *chapters), script)
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"
