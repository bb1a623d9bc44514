"""The application behind the page: reads and writes through `Material` and `decide`, and knows nothing of rounds."""

import functools
import importlib.resources
import logging
import math
import threading
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flaresemi.channels import is_ct
from flaresemi.dataset import Case
from flaresemi.errors import DatasetError, FlaresemiError, InUseError, SelectionError
from flaresemi.io.images import read_grid
from flaresemi.records import parse_json, to_plain
from flaresemi.review.decisions import OpenCasesOfTabs, ReviewDecision, decide, take_back
from flaresemi.review.exchange import named_values
from flaresemi.review.guard import Guard
from flaresemi.review.images import ShownImages
from flaresemi.review.material import WHICH, Material
from flaresemi.review.wire import box_bytes, packed, read_box, unpacked, world_ras_mm
from flaresemi.reviews import LONGEST_NAME
from flaresemi.system_errors import explained
from flaresemi.web.gate import App

logger = logging.getLogger(__name__)

#: What may be asked for by name, with its kind.
_STATIC = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    **{
        name: (name, "text/javascript; charset=utf-8")
        for name in ("viewer.js", "volume.js", "labels.js", "planes.js", "rendering.js")
    },
    "niivue.js": ("niivue-0.69.0.umd.js", "text/javascript; charset=utf-8"),
    "niivue.txt": ("niivue.txt", "text/plain; charset=utf-8"),
}

#: Words of a request besides a label map, bytes.
_MOST_WORDS = 1 << 16


def application(material: Material, token: str, by: str = "") -> App:
    """The application, behind its guard.

    Args:
        material: What is reviewed.
        token: The first part of every path.
        by: The name that the page begins with.
    """
    return Guard(_Handlers(material, by).application, token)


class _Handlers:
    """The answers, each to one kind of request."""

    def __init__(self, material: Material, by: str) -> None:
        self.material = material
        self.by = by
        self.tabs = OpenCasesOfTabs()
        self.images = ShownImages()
        self._deciding = threading.Lock()  # nobody decides between another's look at the revision and the new one
        reading = {
            "state": self.state,
            "queue": self.queue,
            "case": self.case,
            "voxels": self.voxels,
            "label": self.label,
        }
        writing = {"claim": self.claim, "release": self.release, "decision": self.decision, "take-back": self.take_back}
        self.application = Starlette(
            routes=[
                *(Route(f"/api/{name}", _read(answer), methods=["GET"]) for name, answer in reading.items()),
                *(Route(f"/api/{name}", answer, methods=["POST"]) for name, answer in writing.items()),
                *(Route(f"/{name}", functools.partial(_static, name), methods=["GET"]) for name in _STATIC),
            ]
        )

    # What only reads runs in threads, as plain functions of the words in the address.

    def state(self, _: dict[str, str]) -> Response:
        """The dataset: what does not change while the server runs."""
        material = self.material
        classes = [
            {"index": index, "value": value, "name": name, "color": color}
            for index, (value, name, color) in enumerate(named_values(material.labels), start=1)
        ]
        for each, found in zip(classes, material.labels.classes, strict=False):
            each["organs"] = [material.labels.names[organ - 1] for organ in found.organs]
        return JSONResponse(
            {
                "dataset": material.dataset.name,
                "fold": material.fold,
                "by": self.by,
                "organs": material.labels.names,
                "classes": classes,
                "ignored": None if material.labels.ignore is None else material.labels.ignored,
                "channels": material.plans.channels,
                "is_ct": is_ct(material.plans.channels[0]),
            }
        )

    def queue(self, _: dict[str, str]) -> Response:
        """The cases, most urgent first, with what was decided and who has them open."""
        material = self.material
        items, suggestions = material.queue()
        holders, reviews = self.tabs.holders(), {}
        for case_id in material.unlabeled:
            if (review := material.review(case_id)) is not None:
                reviews[case_id] = to_plain(review)
        return JSONResponse(
            {
                "round": material.newest,
                "items": [
                    {
                        "id": item.case_id,
                        "group": item.group,
                        "priority": item.priority,
                        "reasons": to_plain(item.reasons),
                        "review": reviews.get(item.case_id),
                        "open": holders.get(item.case_id),
                    }
                    for item in items
                ],
                "next": to_plain(suggestions),
            }
        )

    def case(self, words: dict[str, str]) -> Response:
        """All that is known of a case."""
        material, case = self.material, self._case(words)
        number = material.newest
        grid = read_grid(case.images[0]).canonical
        score, selection = material.scores(number).get(case.id), material.selection(number)
        chosen = next((each for each in selection.selected if each.case_id == case.id), None) if selection else None
        is_open = case.id in material.unlabeled
        review = material.review(case.id) if is_open else None
        return JSONResponse(
            {
                "id": case.id,
                "group": "unlabeled" if is_open else "held out",
                "round": number if is_open else next(iter(material.validated(case)), 0),
                "shape": grid.shape_zyx[::-1],
                "spacing": grid.spacing_zyx_mm[::-1],
                "world": world_ras_mm(grid),
                "label_hash": material.label_hash(case.id, number) if is_open else "",
                "image": material.image_version(case) if is_open else "",
                "organs": None if score is None else {name: to_plain(each) for name, each in score.organs.items()},
                "volumes": {
                    name: [each.least_ml, each.most_ml if math.isfinite(each.most_ml) else None]
                    for name, each in material.volumes.items()
                },
                "used": None if chosen is None else chosen.supervised,
                "unused": {} if chosen is None else chosen.rejected,
                "rejected": selection.rejected.get(case.id) if selection else None,
                "review": to_plain(review),
                "has_reviewed": review is not None and material.has_label_map(review),
            }
        )

    def voxels(self, words: dict[str, str]) -> Response:
        """A box of one channel: a slice, or as much as the page wants next."""
        case, channel = self._case(words), words.get("channel", "0")
        if not (channel.isascii() and channel.isdecimal() and len(channel) < 7):
            raise DatasetError("the image has no such channel")
        image = self.images.get(case, int(channel))
        box = read_box(words.get("box", ""), image.voxels_zyx.shape)
        headers = {"x-voxels": image.voxels_zyx.dtype.name, "x-window": "{:.6g},{:.6g}".format(*image.window)}
        return Response(box_bytes(image.voxels_zyx, box), media_type="application/octet-stream", headers=headers)

    def label(self, words: dict[str, str]) -> Response:
        """A label map, compressed; without content where there is none."""
        which = words.get("which", "newest")
        if which not in WHICH:
            raise DatasetError("there is no such label map")
        seen = self.material.label_map(self._case(words), which, self.material.newest)
        if seen is None:
            return Response(status_code=204)
        headers = {"content-encoding": "gzip", "x-label-hash": seen.label_hash}
        return Response(packed(seen.indices_zyx), media_type="application/octet-stream", headers=headers)

    def _case(self, words: dict[str, str]) -> Case:
        return self.material.case(words.get("id", ""))

    # What changes something.

    async def claim(self, request: Request) -> Response:
        """Opens a case for changing, or keeps it open; else says who has it."""

        def work(said: dict[str, Any]) -> Response:
            case = self.material.case(_text(said, "id"))
            other = self.tabs.claim(case.id, _text(said, "tab"), _name(said))
            return JSONResponse({"granted": other is None, "by": other})

        return await _changed(request, work)

    async def release(self, request: Request) -> Response:
        """A tab is closed."""

        def work(said: dict[str, Any]) -> Response:
            self.tabs.release(_text(said, "tab"))
            return JSONResponse({})

        return await _changed(request, work)

    async def decision(self, request: Request) -> Response:
        """A decision: one line of JSON, and after it, where something was drawn, the label map."""
        case_id = request.query_params.get("id", "")

        def limit() -> int:
            grid = read_grid(self.material.case(case_id).images[0])
            return math.prod(grid.canonical.shape_zyx) + _MOST_WORDS

        def work(said: dict[str, Any], label: bytes) -> Response:
            case = self.material.case(case_id)
            self.tabs.require(case.id, _text(said, "tab"), _name(said))
            indices = None
            if label:
                shape = read_grid(case.images[0]).canonical.shape_zyx
                labels = self.material.labels
                indices = unpacked(label, shape, labels.channels - (labels.ignore is None))
            fields = {name: _names(said, name) for name in ("accepted", "rejected", "corrected")}
            decision = ReviewDecision(
                revision=_number(said, "revision"),
                looked_at=_text(said, "looked_at"),
                image=_text(said, "image"),
                slices=_slices(said),
                note=_text(said, "note"),
                indices_zyx=indices,
                **fields,
            )
            with self._deciding:
                return JSONResponse(to_plain(decide(self.material, case.id, _name(said), decision)))

        return await _decided(request, limit, work)

    async def take_back(self, request: Request) -> Response:
        """A decision is taken back."""

        def work(said: dict[str, Any]) -> Response:
            case = self.material.case(_text(said, "id"))
            self.tabs.require(case.id, _text(said, "tab"), _name(said))
            with self._deciding:
                take_back(self.material, case.id, _number(said, "revision"))
            return JSONResponse({})

        return await _changed(request, work)


def _read(answer: Callable[[dict[str, str]], Response]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        return await _answered(lambda: answer(dict(request.query_params)))

    return endpoint


async def _answered(work: Callable[[], Response]) -> Response:
    """Runs work in a thread; what can be mended is told to the page."""
    try:
        response = await run_in_threadpool(work)
    except FlaresemiError as error:
        status = 409 if isinstance(error, InUseError) else 400
        return JSONResponse({"what": error.what, "fix": error.fix}, status_code=status)
    except (OSError, MemoryError) as error:
        trouble = explained(error)
        if trouble is None:
            raise
        logger.warning("%s", trouble)
        return JSONResponse({"what": trouble.what, "fix": trouble.fix}, status_code=507)
    return response


async def _changed(request: Request, work: Callable[[dict[str, Any]], Response]) -> Response:
    body = await _body(request, _MOST_WORDS)
    return _too_much() if body is None else await _answered(lambda: work(_said(body)))


async def _decided(
    request: Request, limit: Callable[[], int], work: Callable[[dict[str, Any], bytes], Response]
) -> Response:
    try:
        most = await run_in_threadpool(limit)
    except FlaresemiError as error:
        return JSONResponse({"what": error.what, "fix": error.fix}, status_code=400)
    body = await _body(request, most)
    if body is None:
        return _too_much()
    words, _, label = body.partition(b"\n")
    return await _answered(lambda: work(_said(words), label))


async def _body(request: Request, most: int) -> bytes | None:
    """What was sent; None where it is more than that, of which no more is read."""
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:
                return None
            parts.append(part)
    except ClientDisconnect:
        return None
    return b"".join(parts)


def _too_much() -> Response:
    return JSONResponse({"what": "more was sent than the image has voxels"}, status_code=413)


def _said(words: bytes) -> dict[str, Any]:
    try:
        said = parse_json(words.decode("utf-8"))
    except ValueError:
        raise SelectionError("what was sent cannot be read", fix="reload the page") from None
    if not isinstance(said, dict):
        raise SelectionError("what was sent cannot be read", fix="reload the page")
    return said


def _text(said: dict[str, Any], key: str) -> str:
    value = said.get(key, "")
    if not isinstance(value, str):
        raise SelectionError(f"'{key}' must be a text")
    return value


def _name(said: dict[str, Any]) -> str:
    name = _text(said, "who").strip()
    if not 0 < len(name) <= LONGEST_NAME:
        raise SelectionError("nobody is named", fix="write your name at the top of the page first")
    return name


def _number(said: dict[str, Any], key: str) -> int:
    value = said.get(key)
    if type(value) is not int:
        raise SelectionError(f"'{key}' must be a number")
    return value


def _names(said: dict[str, Any], key: str) -> tuple[str, ...]:
    value = said.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise SelectionError(f"'{key}' must be a list of names")
    return tuple(value)


def _slices(said: dict[str, Any]) -> tuple[tuple[int, int], ...]:
    value = said.get("slices", [])
    pairs = [each for each in value if isinstance(each, list) and [type(n) for n in each] == [int, int]]
    if not isinstance(value, list) or len(pairs) != len(value):
        raise SelectionError("'slices' must be pairs of numbers")
    return tuple((first, end) for first, end in pairs)


@functools.cache
def _file(name: str) -> bytes:
    return importlib.resources.files("flaresemi.review").joinpath("pages", name).read_bytes()


async def _static(name: str, _: Request) -> Response:
    file, kind = _STATIC[name]
    return Response(_file(file), headers={"content-type": kind})
