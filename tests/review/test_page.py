"""The page in a real browser: a person opens a case, draws, decides, and the next round reads it."""

import hashlib
import importlib.resources
import os
import re
import shutil
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from flaresemi.plans import Stage
from flaresemi.reviews import reviewed_label
from tests.browser import REQUIRED
from tests.review.made_review import MadeReview

CASE = "phantom_0004"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGUMENTS = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox")

#: Milliseconds: without a GPU every picture is computed, and the machine may be busy.
_PATIENCE = 120_000


def test_the_viewer_is_the_file_that_its_license_names() -> None:
    pages = importlib.resources.files("flaresemi.review").joinpath("pages")
    told = pages.joinpath("niivue.txt").read_text(encoding="utf-8")
    found = hashlib.sha256(pages.joinpath("niivue-0.69.0.umd.js").read_bytes()).hexdigest()
    assert re.findall(r"SHA-256: (\w+)", told) == [found]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    missing = None
    program = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if program is None:
        missing = "no Chromium on this machine (Debian: apt-get install chromium)"
    try:
        import uvicorn  # noqa: F401
        from playwright.sync_api import sync_playwright
    except ImportError as problem:
        missing = f"{problem.name} is not installed, which the tests of the page need"
    if missing:
        if os.environ.get(REQUIRED):
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_ARGUMENTS)
        yield browser
        browser.close()


class Person:
    """Someone in front of the page."""

    def __init__(self, browser: Any, address: str, name: str = "Ann") -> None:
        self.problems: list[str] = []
        self.page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        self.page.set_default_timeout(_PATIENCE)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._heard)
        self.page.on("dialog", lambda dialog: dialog.accept())
        self.page.goto(address)
        self.page.wait_for_selector("body[data-ready=true]")
        self.page.fill("#who", name)
        self.page.keyboard.press("Tab")
        self.page.click("[data-filter=all]")

    def _heard(self, message: Any) -> None:
        if (
            message.type in ("error", "warning")
            and "GPU stall" not in message.text
            and "status of 409" not in message.text
        ):
            self.problems.append(message.text)

    def open(self, case_id: str) -> None:
        self.page.click(f"#queue button[data-id={case_id}]")
        self.wait_for(f"reviewing.state.open?.id === '{case_id}' && reviewing.state.busy === 0")
        self.page.click("[data-view=axial]")

    def drag(self, *points: tuple[float, float]) -> None:
        """Draws a line through points of the viewer, in parts of its width and height."""
        box = self.page.locator("#canvas").bounding_box()
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=4)
        self.page.mouse.up()

    def voxels(self, value: int) -> int:
        return self.page.evaluate(f"reviewing.viewer.counts()[{value}]")

    def slice(self) -> int:
        return int(re.search(r"slice (\d+)", self.page.inner_text("#location"))[1])

    def wait_for(self, condition: str) -> None:
        """Until it holds in the page, whose rules forbid the browser's driver to wait by itself."""
        end = time.monotonic() + _PATIENCE / 1000
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, condition
            self.page.wait_for_timeout(100)


@pytest.mark.timeout(900)
def test_a_person_reviews_and_the_next_round_follows(chromium: Any, made: MadeReview) -> None:
    from tests.review.made_client import TOKEN, serving

    material = made.material()
    names = material.labels.names
    with serving(made) as client:
        ann = Person(chromium, f"{client.origin}/{TOKEN}/")
        page = ann.page
        ann.open(CASE)
        assert "not found, though every labeled case has it: spleen" in page.inner_text("#reasons")
        seen = material.label_map(material.unlabeled[CASE], "newest", 2).indices_zyx
        assert [ann.voxels(value) for value in (1, 3)] == [np.count_nonzero(seen == value) for value in (1, 3)]
        # Scroll, hide an organ.
        page.focus("#canvas")
        before = ann.slice()
        page.keyboard.press("ArrowUp")
        ann.wait_for(f"document.getElementById('location').textContent.includes('slice {before + 1}/')")
        assert page.evaluate("reviewing.viewer.colors[1] >>> 24") == round(0.55 * 255)
        page.get_by_label("show liver").uncheck()
        assert page.evaluate("reviewing.viewer.colors[1]") == 0
        page.get_by_label("show liver").check()
        assert page.evaluate("reviewing.viewer.colors[1] >>> 24") == round(0.55 * 255)
        # Draw the spleen, undo, redo.
        page.get_by_role("button", name="spleen", exact=True).click()
        page.click("[data-tool=brush]")
        ann.drag((0.45, 0.5), (0.55, 0.5))
        ann.wait_for("reviewing.viewer.done.length === 1")
        drawn = ann.voxels(3)
        assert drawn > 0
        assert page.get_by_label("vouch for as corrected: spleen").get_attribute("aria-pressed") == "true"
        page.keyboard.press("Control+z")
        assert ann.voxels(3) == 0
        page.keyboard.press("Control+Shift+Z")
        assert ann.voxels(3) == drawn
        # Others are not overwritten, and what lies between two slices is filled.
        liver = ann.voxels(1)
        page.focus("#canvas")
        for _ in range(4):
            page.keyboard.press("ArrowUp")
        ann.drag((0.45, 0.5), (0.55, 0.5))
        ann.wait_for("reviewing.viewer.done.length === 2")
        page.click("#interpolate")
        ann.wait_for("reviewing.viewer.done.length === 3")
        between = ann.voxels(3)
        assert between > 2 * drawn
        assert ann.voxels(1) == liver
        page.click("[data-tool=none]")
        # Accept the rest, save.
        page.click("#accept")
        told = f"{len(names) - 1} accepted (as absent: right adrenal gland), 1 corrected: counts as a labeled case"
        assert told in page.inner_text("#decision-text")
        page.click("#save")
        ann.wait_for("document.getElementById('toast').textContent.includes('Saved')")
        review = material.review(CASE)
        assert (review.by, review.corrected, len(review.accepted)) == ("Ann", ("spleen",), len(names) - 1)
        stored = material.label_map(material.unlabeled[CASE], "reviewed", 2).indices_zyx
        assert np.count_nonzero(stored == 3) == between
        assert np.array_equal(stored[stored != 3], seen[stored != 3])
        # Reload: it is what was saved.
        page.reload()
        page.wait_for_selector("body[data-ready=true]")
        page.click("[data-filter=decided]")
        ann.open(CASE)
        assert ann.voxels(3) == between
        assert "Decided by Ann" in page.inner_text("#former-decision")
        # Reject another one.
        page.click("[data-filter=all]")
        ann.open("phantom_0005")
        page.click("#reject")
        page.keyboard.press("s")
        ann.wait_for("reviewing.state.items.find(each => each.id === 'phantom_0005').review !== null")
        assert material.review("phantom_0005").rejected == names
        # A second tab can only look.
        bob = Person(chromium, f"{client.origin}/{TOKEN}/", "Bob")
        bob.open("phantom_0005")
        assert "Ann has this case open" in bob.page.inner_text("#banner")
        assert bob.page.is_disabled("#accept") and bob.page.is_disabled("#save") and bob.page.is_hidden("#draw")
        assert [*ann.problems, *bob.problems] == []
    # What the next round makes of it.
    chosen, reviews = made.taken()
    by_name = {case.case_id: case for case in chosen.selected}
    assert (by_name[CASE].source, by_name[CASE].supervised) == ("corrected", names)
    assert chosen.rejected["phantom_0005"].startswith("rejected by Ann")
    label = np.asarray(reviews.stores[Stage.FINE].open(CASE).label_zyx)
    assert np.count_nonzero(label == 3) > 0


@pytest.mark.timeout(600)
def test_what_is_drawn_or_chosen_and_then_accepted_is_what_is_trained_on(chromium: Any, made: MadeReview) -> None:
    from tests.review.made_client import TOKEN, serving

    fine = f"reviewing.state.items.find(each => each.id === '{CASE}').review?.revision"
    with serving(made) as client:
        ann = Person(chromium, f"{client.origin}/{TOKEN}/")
        page = ann.page
        ann.open(CASE)
        page.get_by_role("button", name="spleen", exact=True).click()
        page.click("[data-tool=brush]")
        ann.drag((0.45, 0.5), (0.55, 0.5))
        ann.wait_for("reviewing.viewer.done.length === 1")
        page.get_by_label("accept spleen").click()  # no more than that
        page.click("#save")
        ann.wait_for(f"{fine} === 1 && reviewing.state.busy === 0")
        selection, reviews = made.taken()
        (case,) = [each for each in selection.selected if each.case_id == CASE]
        assert (case.source, "spleen" in case.supervised) == ("accepted", True)
        assert np.count_nonzero(np.asarray(reviews.stores[Stage.FINE].open(CASE).label_zyx) == 3) > 0
        page.select_option("#which", "former")
        ann.wait_for("reviewing.state.busy === 0 && reviewing.state.which === 'former'")
        spleen = ann.voxels(3)
        page.get_by_label("accept spleen").click()
        page.click("#save")
        ann.wait_for(f"{fine} === 2 && reviewing.state.busy === 0")
        selection, reviews = made.taken()
        (case,) = [each for each in selection.selected if each.case_id == CASE]
        assert (case.source, "spleen" in case.supervised) == ("accepted", True)
        label = np.asarray(reviews.stores[Stage.FINE].open(CASE).label_zyx)
        assert (spleen > 0) == (np.count_nonzero(label == 3) > 0)
        # Without a stroke, what was reviewed is shown and sent again.
        assert page.input_value("#which") == "reviewed"
        page.get_by_label("accept liver").click()
        page.click("#save")
        ann.wait_for(f"{fine} === 3 && reviewing.state.busy === 0")
        (case,) = [each for each in made.taken()[0].selected if each.case_id == CASE]
        assert case.source == "accepted"
        assert ann.problems == []
        page.close()


@pytest.mark.timeout(600)
def test_a_killed_server_loses_nothing_that_is_drawn(chromium: Any, made: MadeReview) -> None:
    from tests.review.made_client import TOKEN, serving

    with serving(made) as client:
        ann = Person(chromium, f"{client.origin}/{TOKEN}/")
        ann.open(CASE)
        ann.page.get_by_role("button", name="spleen", exact=True).click()
        ann.page.click("[data-tool=brush]")
        ann.drag((0.45, 0.5), (0.55, 0.5))
        ann.wait_for("reviewing.viewer.done.length === 1")
    ann.page.click("#save")
    ann.wait_for("document.getElementById('toast').textContent.includes('the server does not answer')")
    drawn = ann.voxels(3)
    with serving(made, client.port):  # started again
        image = ann.page.evaluate("reviewing.state.open.image")
        ann.page.evaluate("reviewing.state.open.image = 'another one'")
        ann.page.click("#save")
        ann.wait_for("document.getElementById('toast').textContent.includes('exchanged meanwhile')")
        ann.page.evaluate(f"reviewing.state.open.image = '{image}'")
        ann.page.click("#save")
        ann.wait_for("reviewing.state.open.review !== null")
        review = made.material().review(CASE)
        assert review.corrected == ("spleen",)
        stored = made.material().label_map(made.material().unlabeled[CASE], "reviewed", 2).indices_zyx
        assert np.count_nonzero(stored == 3) == drawn
        ann.page.close()


@pytest.mark.timeout(600)
def test_what_was_decided_about_one_label_map_is_not_said_of_another(chromium: Any, made: MadeReview) -> None:
    from tests.review.made_client import TOKEN, serving

    pressed = "document.querySelectorAll('#organs [data-mark=accepted][aria-pressed=true]').length"
    names = made.material().labels.names
    with serving(made) as client:
        ann = Person(chromium, f"{client.origin}/{TOKEN}/")
        page = ann.page
        ann.open(CASE)
        page.click("#accept")
        page.click("#draw summary")
        page.fill("#first", "3")
        page.fill("#last", "9")
        page.click("#save")  # what is accepted has no slices of its own
        ann.wait_for("document.getElementById('toast').textContent.includes('only corrected organs')")
        assert made.material().review(CASE) is None
        page.get_by_label("vouch for as corrected: liver").click()
        assert "counts as a labeled case, in slices 3 to 9 (not saved)" in page.inner_text("#decision-text")
        page.get_by_label("accept liver").click()
        page.fill("#first", "")
        page.fill("#last", "")
        page.click("#save")
        ann.wait_for("document.getElementById('toast').textContent.includes('Saved')")
        ann.wait_for("reviewing.state.busy === 0")
        assert page.is_disabled("#save")  # nothing has changed since
        page.select_option("#which", "former")
        ann.wait_for("reviewing.state.busy === 0 && reviewing.state.which === 'former'")
        assert page.evaluate(pressed) == 0
        # Who does not want to lose what is not saved goes on with the label map that is shown.
        page.click("#reject")
        page.evaluate("window.confirm = () => false")
        page.select_option("#which", "newest")
        assert page.input_value("#which") == "former"
        page.evaluate("window.confirm = () => true")
        page.select_option("#which", "reviewed")
        ann.wait_for("reviewing.state.busy === 0 && reviewing.state.which === 'reviewed'")
        assert page.evaluate(pressed) == len(names)
        reviewed_label(made.workspace.reviews, CASE, 1).unlink()
        page.reload()
        page.wait_for_selector("body[data-ready=true]")
        assert CASE in page.inner_text("#queue")  # it is to be looked at again
        ann.open(CASE)
        assert "missing or has changed: decide again" in page.inner_text("#former-decision")
        assert (page.input_value("#which"), page.evaluate(pressed)) == ("newest", 0)
        assert ann.voxels(1) > 0
        assert ann.problems == []
        page.close()


@pytest.mark.timeout(600)
def test_what_is_changed_while_a_decision_is_saved_is_not_saved_with_it(chromium: Any, made: MadeReview) -> None:
    from tests.review.made_client import TOKEN, serving

    material, held = made.material(), list[Any]()
    stays = "window.asked = 0; window.confirm = () => { window.asked++; return false }; undefined"
    with serving(made) as client:
        ann = Person(chromium, f"{client.origin}/{TOKEN}/")
        page = ann.page
        page.evaluate(stays)
        page.route("**/api/decision?*", lambda route: held.append(route))  # a slow network
        ann.open(CASE)
        page.get_by_label("reject liver").click()
        page.keyboard.press("n")
        ann.wait_for("reviewing.state.busy === 1")
        page.fill("#note", "blurred")
        page.get_by_label("reject spleen").click()
        page.keyboard.press("s")  # one after the other
        page.wait_for_timeout(300)
        assert len(held) == 1
        held.pop().continue_()
        ann.wait_for("reviewing.state.open.review !== null && reviewing.state.busy === 0")
        assert (material.review(CASE).rejected, material.review(CASE).note) == (("liver",), "")
        assert page.evaluate("reviewing.state.dirty") and "(not saved)" in page.inner_text("#decision-text")
        # The next case is opened only where nothing would be lost.
        assert page.evaluate("window.asked") == 1
        assert page.evaluate("reviewing.state.open.id") == CASE
        # Nothing of the answer is said of another case that was opened meanwhile.
        page.evaluate("window.confirm = () => true; undefined")
        page.focus("#canvas")
        page.keyboard.press("s")
        page.wait_for_timeout(300)
        page.click("#queue button[data-id=phantom_0005]")
        ann.wait_for("reviewing.state.open.id === 'phantom_0005' && reviewing.state.busy === 1")
        page.get_by_label("reject liver").click()
        held.pop().continue_()
        ann.wait_for(f"reviewing.state.items.find(each => each.id === '{CASE}').review.revision === 2")
        ann.wait_for("reviewing.state.busy === 0")
        assert (material.review(CASE).rejected, material.review(CASE).note) == (("liver", "spleen"), "blurred")
        assert page.evaluate("[reviewing.state.open.id, reviewing.state.dirty]") == ["phantom_0005", True]
        assert page.inner_text("#case-name") == "phantom_0005"
        assert ann.problems == []
        page.close()


@pytest.mark.timeout(600)
def test_who_takes_a_decision_back_is_asked_about_what_is_not_saved(chromium: Any, made: MadeReview) -> None:
    from tests.review.made_client import TOKEN, serving

    with serving(made) as client:
        ann = Person(chromium, f"{client.origin}/{TOKEN}/")
        page = ann.page
        ann.open(CASE)
        page.get_by_label("reject liver").click()
        page.click("#save")
        ann.wait_for("reviewing.state.open.review !== null && reviewing.state.busy === 0")
        page.get_by_role("button", name="spleen", exact=True).click()
        page.click("[data-tool=brush]")
        ann.drag((0.45, 0.5), (0.55, 0.5))
        ann.wait_for("reviewing.viewer.done.length === 1")
        drawn = ann.voxels(3)
        page.evaluate("window.confirm = text => !text?.includes('is not saved')")
        page.click("#take-back")
        page.wait_for_timeout(500)
        assert made.material().review(CASE) is not None
        assert page.evaluate("reviewing.state.dirty") and ann.voxels(3) == drawn
        page.evaluate("window.confirm = () => true")
        page.click("#take-back")
        ann.wait_for("reviewing.state.open.review === null && reviewing.state.busy === 0")
        assert made.material().review(CASE) is None
        assert not page.evaluate("reviewing.state.dirty") and ann.voxels(3) == 0
        assert ann.problems == []
        page.close()


#: What a label map of the page does, by its own code: strokes in every plane, with and without protection.
_STROKES = """async url => {
  const { LabelMap } = await import(new URL('labels.js', url).href)
  const { PLANES } = await import(new URL('planes.js', url).href)
  const shape = [7, 8, 9], bytes = new Uint8Array(7 * 8 * 9)
  bytes.fill(2, 7 * 8 * 4 + 7 * 4, 7 * 8 * 4 + 7 * 6) // another class, two rows of slice 4
  const map = new LabelMap(shape, [1, 1, 2], bytes), seen = []
  const draw = (pen, work) => {
    map.begin({ value: 1, erase: false, protect: true, ...pen })
    work()
    map.end()
    const counts = new LabelMap(shape, [1, 1, 2], map.voxels.slice()).counts()
    const same = counts.every((n, value) => n === map.counts()[value])
    seen.push({ voxels: [...map.voxels], same, changed: [...map.changed()] })
  }
  draw({}, () => map.line(PLANES.axial, 4, [3.5, 1.5], [3.5, 6.5], 1))
  draw({ protect: false }, () => map.line(PLANES.axial, 4, [3.5, 4.5], [3.5, 4.5], 0.1))
  draw({}, () => map.line(PLANES.coronal, 2, [3.5, 4.5], [3.5, 4.5], 2))
  draw({}, () => map.fill(PLANES.sagittal, 1, [[1.2, 1.2], [6.2, 1.2], [6.2, 4.2], [1.2, 4.2]]))
  draw({ erase: true }, () => map.line(PLANES.axial, 4, [0.5, 5.5], [6.5, 5.5], 3))
  const middle = map.middle(1)
  while (map.undo()) ;
  seen.push({ voxels: [...map.voxels], same: map.counts()[2] === 14, changed: [...map.changed()] })
  while (map.redo()) ;
  seen.push({ voxels: [...map.voxels], same: true, changed: [...map.changed()] })
  return { seen, middle }
}"""


@pytest.mark.timeout(300)
def test_strokes_in_every_plane_and_back(chromium: Any, kept: MadeReview) -> None:
    from tests.review.made_client import TOKEN, serving

    with serving(kept) as client:
        page = chromium.new_page()
        page.goto(f"{client.origin}/{TOKEN}/page.css")  # any page of the server may import its scripts
        found = page.evaluate(_STROKES, f"{client.origin}/{TOKEN}/")
        page.close()
    seen = [np.reshape(each["voxels"], (9, 8, 7)) for each in found["seen"]]
    assert all(each["same"] for each in found["seen"])
    x, y, z = np.meshgrid(np.arange(7), np.arange(8), np.arange(9), indexing="ij")
    x, y, z = (each.transpose(2, 1, 0) for each in (x, y, z))
    expected = np.where((z == 4) & (y >= 4) & (y < 6), 2, 0)
    before = expected.copy()
    capsule = (x - 3) ** 2 + np.where(y < 1, 1 - y, np.where(y > 6, y - 6, 0)) ** 2 <= 1
    expected[(z == 4) & capsule & (expected == 0)] = 1  # the other class stays
    assert np.array_equal(seen[0], expected)
    expected[4, 4, 3] = 1  # without protection, it does not
    assert np.array_equal(seen[1], expected)
    assert found["seen"][1]["changed"] == [1, 2]
    expected[(y == 2) & ((x - 3) ** 2 + (2 * (z - 4)) ** 2 <= 4) & (expected == 0)] = 1  # a disc in mm
    assert np.array_equal(seen[2], expected)
    expected[(x == 1) & (y >= 1) & (y <= 5) & (z >= 1) & (z <= 3)] = 1  # centers within the outline
    assert np.array_equal(seen[3], expected)
    expected[(z == 4) & (abs(y - 5) <= 3) & (expected == 1)] = 0
    assert np.array_equal(seen[4], expected)
    slices = [np.count_nonzero(each == 1) for each in expected]
    assert found["middle"][2] == int(np.argmax(slices))
    assert np.array_equal(seen[5], before)
    assert found["seen"][5]["changed"] == []
    assert np.array_equal(seen[6], expected)


#: Voxels of class 1 in a slice, before and after `Interpolate`: it was corrected, or strokes beside it were undone.
_BETWEEN = """async url => {
  const { LabelMap } = await import(new URL('labels.js', url).href)
  const size = 64, square = { value: 1, erase: false, protect: true }, seen = []
  const make = (bytes = null) => new LabelMap([8, 8, 12], [1, 1, 1], bytes)
  const draw = (map, z, pen = {}, width = 6) => {
    map.begin({ ...square, ...pen })
    for (let y = 1; y < 7; y++) for (let x = 1; x < 1 + width; x++) map.mark(x + 8 * y + size * z)
    map.end()
  }
  const count = (map, z) => map.table[z * 256 + 1]
  const interpolate = (map, z) => {
    const before = count(map, z)
    map.interpolate(square)
    seen.push([before, count(map, z)])
  }
  for (const pen of [{ erase: true }, { erase: true, value: 3, protect: false }, { value: 2, protect: false }]) {
    const map = make()
    draw(map, 2); draw(map, 6)
    interpolate(map, 4)
    draw(map, 4, pen, 3)
    draw(map, 9)
    interpolate(map, 4)
    map.undo(); map.undo(); map.undo() // the second interpolation, slice 9, and what was corrected in 4
    draw(map, 6, { erase: true }, 3)
    interpolate(map, 4)
  }
  const bytes = new Uint8Array(size * 12) // a pseudo-label, narrow in 4 to 6
  for (let z = 1; z < 11; z++) for (let y = 1; y < 7; y++) {
    const row = size * z + 8 * y
    bytes.fill(1, row + 1, row + (z > 3 && z < 7 ? 3 : 7))
  }
  const map = make(bytes)
  draw(map, 1, { erase: true }, 1)
  map.undo()
  draw(map, 8, { erase: true }, 1); draw(map, 10, { erase: true }, 1)
  interpolate(map, 5)
  while (map.undo()) ;
  while (map.redo()) ;
  draw(map, 1, { erase: true }, 1)
  interpolate(map, 5)
  return seen
}"""


@pytest.mark.timeout(300)
def test_what_a_person_drew_is_never_interpolated_and_what_was_undone_counts_no_more(
    chromium: Any, kept: MadeReview
) -> None:
    from tests.review.made_client import TOKEN, serving

    with serving(kept) as client:
        page = chromium.new_page()
        page.goto(f"{client.origin}/{TOKEN}/page.css")
        *corrected, undone, drawn = page.evaluate(_BETWEEN, f"{client.origin}/{TOKEN}/")
        page.close()
    for first, second, third in zip(*[iter(corrected)] * 3, strict=True):
        assert (first, second) == ([0, 36], [18, 18])  # erased, by another organ's pen, or taken by another organ
        assert third[0] == 36 and 18 < third[1] < 36  # of a stroke that was undone nothing is kept
    assert undone == [12, 12]
    assert drawn[0] == 12 and drawn[1] > 24


@pytest.mark.timeout(600)
def test_everything_can_be_done_with_keys(chromium: Any, made: MadeReview) -> None:
    from tests.review.made_client import TOKEN, serving

    material = made.material()
    with serving(made) as client:
        ann = Person(chromium, f"{client.origin}/{TOKEN}/")
        page, cross = ann.page, "reviewing.viewer.sight.cross"
        ann.open(CASE)
        page.focus("#canvas")
        x, y, z = page.evaluate(cross)
        for key in ("ArrowUp", "ArrowUp", "ArrowLeft", "Shift+ArrowDown"):
            page.keyboard.press(key)
        assert page.evaluate(cross) == [x + 1, y - 1, z + 2]  # the patient's right is at the left
        page.keyboard.press("p")
        page.keyboard.press("ArrowUp")
        assert page.evaluate(cross) == [x + 1, y, z + 2]
        page.keyboard.press("3")
        page.keyboard.press("+")
        assert page.evaluate("reviewing.viewer.sight.zoom") > 1
        page.keyboard.press("0")
        assert page.evaluate("reviewing.viewer.sight.zoom") == 1
        # A distance along an axis, then a dab of the brush, both at the cross.
        page.keyboard.press("2")
        assert page.get_attribute("button[data-view=axial]", "aria-pressed") == "true"
        assert page.evaluate("document.querySelectorAll('[aria-pressed]:not(button)').length") == 0
        page.keyboard.press("m")
        for key in ("Enter", *["ArrowRight"] * 4, "Enter"):
            page.keyboard.press(key)
        (line,) = page.evaluate("reviewing.viewer.sight.lines")
        assert (line["from"][0] - line["to"][0], line["from"][1] - line["to"][1]) == (4, 0)
        page.keyboard.press("m")
        for _ in range(2):  # the spleen is the third organ
            page.keyboard.press(".")
        page.keyboard.press("b")
        page.focus("#protect")
        page.keyboard.press("Space")
        page.focus("#canvas")
        page.keyboard.press("Enter")
        ann.wait_for("reviewing.viewer.done.length === 1")
        assert 0 < ann.voxels(3) <= 9
        marks = "Object.fromEntries(reviewing.state.marks)"
        (taken,) = {*page.evaluate("[...reviewing.viewer.labels.changed()]")} - {3}  # a dab into another organ
        other = material.labels.names[taken - 1]
        assert page.evaluate(marks) == {"spleen": "corrected", other: "corrected"}
        # What is undone is marked as before, whatever that was; what a person marks stays.
        page.keyboard.press("Control+z")
        assert ann.voxels(3) == 0
        assert page.evaluate(marks) == {}
        page.get_by_label(f"accept {other}").click()
        page.focus("#canvas")
        page.keyboard.press("Control+Shift+Z")
        assert page.evaluate(marks) == {"spleen": "corrected", other: "corrected"}
        page.keyboard.press("Control+z")
        assert page.evaluate(marks) == {other: "accepted"}
        page.keyboard.press("Control+Shift+Z")
        for _ in range(2):  # off, and on by hand
            page.get_by_label("vouch for as corrected: spleen").click()
        page.focus("#canvas")
        page.keyboard.press("Control+z")
        assert page.evaluate(marks) == {other: "accepted", "spleen": "corrected"}
        # A stroke leaves alone what was said of an organ that it does not touch, whatever was drawn there before.
        page.keyboard.press("Control+Shift+Z")
        page.get_by_label("reject spleen").click()
        page.focus("#canvas")
        for key in (",", ",", *["PageUp"] * 4):  # the liver, far from the first dab
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        ann.wait_for("reviewing.viewer.done.length === 2")
        told = page.evaluate(marks)
        assert (told["liver"], told["spleen"]) == ("corrected", "rejected")
        page.keyboard.press("Control+z")
        assert page.evaluate(marks)["spleen"] == "rejected"
        assert ann.problems == []
        page.close()
