"""Web pages that stand alone in one file, from templates that escape every value: no name from a file becomes a tag.

Templates and what they include lie beside the code that fills them, and are named by their path in the package.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2


def render(template: str, **values: object) -> str:
    """Fills a template.

    Args:
        template: Its path in the package.
        values: What it shows, by the names that it uses; a name without a value is an error.
    """
    return environment().get_template(template).render(values)


@functools.cache
def environment() -> jinja2.Environment:
    """The settings and filters of all templates."""
    import jinja2  # here: it is needed where a page is written, and nowhere else

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("flaresemi", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["number"] = number
    return made


def number(value: float | None, digits: int = 3) -> str:
    """A number with this many decimals; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"
