"""The review page with a CT of 512×512×300 in Chromium without a graphics card: opening, scrolling, a stroke, saving.

The server is `flaresemi_review` itself, the person a program that clicks and draws. Every time runs from the click, key
or move to the picture that shows it. `--code` measures another checkout beside this one (only what pages of old have,
too). Result: results/review_page.md.
"""

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import running

SHAPE_XYZ = (512, 512, 300)
SMALL_ZYX = (40, 48, 48)
CASE, OTHER = "phantom_0004", "phantom_0005"
ARGUMENTS = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox")
PATIENCE_SECONDS = 600

#: Keys, each followed by the picture that it leads to: milliseconds.
_SCROLL = """async keys => {
  const found = [], canvas = document.getElementById('canvas')
  for (const key of keys) {
    const start = performance.now()
    canvas.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }))
    await new Promise(done => requestAnimationFrame(() => setTimeout(done)))
    reviewing.viewer.nv?.gl.finish()
    found.push(performance.now() - start)
  }
  return found
}"""

#: From now on, milliseconds from each move of the mouse to the end of the frame that was drawn after it.
_WATCH = """() => {
  window.moves = []
  document.getElementById('canvas').addEventListener('pointermove', event => {
    requestAnimationFrame(() => setTimeout(() => moves.push(performance.now() - event.timeStamp)))
  })
}"""


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument("--code", type=Path, default=running.ROOT, help="the checkout whose page is measured")
    parser.add_argument("--repeats", type=int, default=3, help="cold openings")
    parser.add_argument("--name", default="now", help="what the result calls it")
    options = parser.parse_args()
    bench = running.Bench("review_page", options.work)
    _workspace(bench.work)
    rows = _measured(bench.work, options)
    load = f"{running.when_and_what()}, load average {os.getloadavg()[1]:.0f}"
    bench.record(options.name, rows=rows, made=load)
    names = list(bench.steps)
    lines = [
        "# The review page with a CT of 512×512×300, Chromium with SwiftShader",
        "",
        "`benchmarks/review_page.py`; " + "; ".join(f"{name}: {bench.steps[name]['made']}" for name in names),
        "",
        f"| what | {' | '.join(names)} |",
        f"|---|{'---:|' * len(names)}",
    ]
    told = dict.fromkeys(what for name in names for what in bench.steps[name]["rows"])
    lines += [f"| {what} | {' | '.join(bench.steps[name]['rows'].get(what, '–') for name in names)} |" for what in told]
    bench.publish(lines)


def _workspace(work: Path) -> None:
    """Phantoms with two rounds, one of them with as many voxels as a CT, and its noise."""
    import nibabel
    from scipy import ndimage

    from flaresemi.phantom import write_phantom_dataset
    from tests.review.made_review import make

    if (work / "workspace").exists():
        return
    for folder, labeled, unlabeled in (("data", 3, 2), ("truth", 5, 0)):
        write_phantom_dataset(work / folder, labeled=labeled, unlabeled=unlabeled, test=0, size=SMALL_ZYX, seed=7)
    for path in work.rglob(f"{CASE}*.nii.gz"):
        small = nibabel.load(path)
        voxels, is_label = np.asarray(small.dataobj), "mask" in path.parent.name
        factors = np.divide(SHAPE_XYZ, voxels.shape)
        large = ndimage.zoom(
            voxels.astype(np.float32), factors, order=0 if is_label else 1, grid_mode=True, mode="nearest"
        )
        if not is_label:
            large += np.random.default_rng(0).normal(0, 12, large.shape)
        affine = small.affine.copy()
        affine[:3, :3] /= factors
        nibabel.save(nibabel.Nifti1Image(large.astype(voxels.dtype), affine), path)
    make(work, unlabeled=2)


@contextlib.contextmanager
def _served(work: Path, code: Path) -> Iterator[str]:
    """The page's address."""
    words = ["-d", work / "data", "-w", work / "workspace", "--port", "0", "--by", "Ann"]
    line = [sys.executable, "-u", "-m", "flaresemi.cli.review", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(code)}
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment, cwd=code) as server:
        try:
            yield re.search(r"http://\S+", server.stdout.readline())[0]  # type: ignore[index,union-attr]
        finally:
            server.terminate()


def _measured(work: Path, options: argparse.Namespace) -> dict[str, str]:
    from playwright.sync_api import sync_playwright

    first, used, whole, rows = [], [], [], {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        for number in range(options.repeats):
            with _served(work, options.code) as address:
                page = _page(browser, address)
                for times, found in zip((first, used, whole), _opened(page, CASE), strict=True):
                    times.append(found)
                if number == options.repeats - 1:
                    again = _again(page)
                    rows = _handled(page)
                page.close()
        browser.close()
    return {
        "first picture, server just started": _seconds(first),
        "processor time of server and browser until then": _seconds(used),
        "the whole image in the page": _seconds(whole) if all(whole) else "–",
        "first picture, opened again": _seconds([again]),
        **rows,
    }


def _page(browser: Any, address: str) -> Any:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(1000 * PATIENCE_SECONDS)
    page.goto(address)
    page.wait_for_selector("body[data-ready=true]")
    page.click("[data-filter=all]")
    return page


def _until(page: Any, condition: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not page.evaluate(condition):
        if time.monotonic() > end:
            raise SystemExit(f"not within {PATIENCE_SECONDS} s: {condition}")
        time.sleep(0.02)


def _seen(page: Any) -> None:
    """Waits for a picture of the page as it is now."""
    page.screenshot(clip={"x": 300, "y": 120, "width": 200, "height": 200})


def _processor_seconds() -> float:
    """Of this process and all that it has started: server and browser."""
    used = 0.0
    for each in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            used += sum(each.cpu_times()[:2])
    return used


def _opened(page: Any, case_id: str) -> tuple[float, float, float]:
    """Seconds to the first picture, processor seconds until then, seconds until all is there; 0: it comes as one."""
    start, used = time.monotonic(), _processor_seconds()
    page.click(f"#queue button[data-id={case_id}]")
    _until(page, f"reviewing.state.open?.id === '{case_id}' && reviewing.state.busy === 0")
    _seen(page)
    seconds, used = time.monotonic() - start, _processor_seconds() - used
    if page.evaluate("reviewing.viewer.volume?.shape === undefined"):
        return seconds, used, 0.0
    _until(page, "reviewing.viewer.volume.isWhole")
    return seconds, used, time.monotonic() - start


def _again(page: Any) -> float:
    _opened(page, OTHER)
    return _opened(page, CASE)[0]


def _handled(page: Any) -> dict[str, str]:
    rows = {}
    for name, view in (("one plane", "axial"), ("three planes", "multi")):
        if view == "multi" and page.evaluate("reviewing.viewer.nv !== undefined"):
            continue  # with a rendering, a picture takes seconds
        page.click(f"[data-view={view}]")
        page.focus("#canvas")
        times = page.evaluate(_SCROLL, ["ArrowUp"] * 40 + ["ArrowDown"] * 40)
        rows[f"scrolling a slice, {name}: median, longest of 80"] = _milliseconds(times)
    page.click("[data-view=axial]")
    page.get_by_role("button", name="spleen", exact=True).click()
    page.click("[data-tool=brush]")
    box = page.locator("#canvas").bounding_box()
    place = lambda x, y: (box["x"] + x * box["width"], box["y"] + y * box["height"])  # noqa: E731
    page.evaluate(_WATCH)
    page.mouse.move(*place(0.42, 0.5))
    page.mouse.down()
    page.mouse.move(*place(0.58, 0.55), steps=60)
    start = time.monotonic()
    page.mouse.up()
    _until(page, "reviewing.viewer.done.length === 1")
    _seen(page)
    rows["after a stroke ends, until it is a step that can be undone"] = _seconds([time.monotonic() - start])
    times = page.evaluate("moves")
    rows["brush behind the mouse: median, longest of its moves"] = _milliseconds(times[1:])
    start = time.monotonic()
    page.click("#save")
    _until(page, "document.getElementById('toast').textContent.includes('Saved')")
    rows["saving the correction"] = _seconds([time.monotonic() - start])
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#take-back")
    _until(page, "document.getElementById('toast').textContent.includes('Taken back')")
    return rows


def _seconds(times: list[float]) -> str:
    return f"{statistics.median(times):.1f} s" + (f" ({min(times):.1f} to {max(times):.1f})" if len(times) > 1 else "")


def _milliseconds(times: list[float]) -> str:
    return f"{statistics.median(times):.0f}, {max(times):.0f} ms"


if __name__ == "__main__":
    main()
