"""A real browser that opens a page without a network and tells what became of it."""

import dataclasses
import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

#: Set where a test without a browser is worth nothing: then its absence is a failure.
REQUIRED = "FLARESEMI_REQUIRE_BROWSER"

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

_LOOK = """<script>
addEventListener('load', () => {
  document.querySelectorAll('details').forEach(each => { each.open = true; });
  const all = selector => [...document.querySelectorAll(selector)];
  const seen = {
    title: document.title,
    viewport: innerWidth,
    width: document.documentElement.scrollWidth,
    images: all('img').map(each => each.complete ? each.naturalWidth : 0),
    nameless: all('img:not([alt]), svg[role=img]:not(:has(> title))').length,
    deadLinks: all('a').filter(each => !document.getElementById(each.hash.slice(1))).map(each => each.outerHTML),
    headings: all('h1, h2').map(each => each.textContent),
    requests: performance.getEntriesByType('resource').map(each => each.name).filter(name => !name.startsWith('data:')),
  };
  const note = document.createElement('pre');
  note.id = 'seen';
  note.textContent = JSON.stringify(seen);
  document.body.append(note);
});
</script>"""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a browser made of a page, with everything unfolded.

    Attributes:
        console: What it wrote to its console: errors, refused requests, warnings.
        viewport: Width of the window, pixels.
        width: Width of what it shows; more than the window has to be scrolled.
        images: Natural width of every picture; 0 where it did not load.
        nameless: Pictures and charts without a text that says what they show.
        dead_links: Links within the page that lead nowhere.
        requests: What was fetched, or tried to be.
    """

    console: tuple[str, ...]
    title: str
    viewport: int
    width: int
    images: tuple[int, ...]
    nameless: int
    dead_links: tuple[str, ...]
    headings: tuple[str, ...]
    requests: tuple[str, ...]


def open_page(path: Path, folder: Path, *, width: int = 1280) -> Seen:
    """Opens a copy of an HTML file, to which a look at itself was added, in headless Chromium.

    Args:
        path: The page.
        folder: For the copy and the browser's profile.
        width: Of the window, pixels.
    """
    program = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if program is None:
        if os.environ.get(REQUIRED):
            pytest.fail("no Chromium on this machine, and " + REQUIRED + " asks for one")
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / "looked_at.html"
    before, end, after = path.read_text(encoding="utf-8").rpartition("</body>")
    copy.write_text(before + _LOOK + end + after, encoding="utf-8")
    done = subprocess.run(
        [
            program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-extensions",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width},900",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            "--log-level=0",
            "--virtual-time-budget=20000",
            "--dump-dom",
            copy.as_uri(),
        ],
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )
    note = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert note is not None, f"the browser did not get to the end of the page:\n{done.stderr[-2000:]}"
    seen = json.loads(html.unescape(note[1]))
    return Seen(
        console=tuple(line for line in done.stderr.splitlines() if ":CONSOLE" in line),
        dead_links=tuple(seen.pop("deadLinks")),
        **{name: tuple(value) if isinstance(value, list) else value for name, value in seen.items()},
    )
