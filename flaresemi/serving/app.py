"""The server's HTTP: what is asked for, and what is answered. Starlette is optional, and imported when it is used."""

import asyncio
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from flaresemi.errors import FlaresemiError
from flaresemi.image_paths import IMAGE_ENDINGS
from flaresemi.serving.jobs import FORMATS, Answer, BusyError, LateError, Predictions
from flaresemi.web.gate import App, TooLargeError

logger = logging.getLogger(__name__)

#: Why a request could not be answered, as HTTP says it.
_STATUS: tuple[tuple[type[FlaresemiError], int], ...] = ((BusyError, 503), (LateError, 504), (FlaresemiError, 422))

_MOST_JSON = 1 << 16


class UnreadRequestError(FlaresemiError):
    """A request that makes no sense."""


def make_app(predictions: Predictions, uploads: Path) -> App:
    """The application.

    Args:
        predictions: Makes them.
        uploads: Folder for images that are sent; it belongs to the server alone.
    """
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Route

    async def health(_: Request) -> Response:
        return JSONResponse(predictions.state)

    async def model(_: Request) -> Response:
        return JSONResponse(predictions.about)

    async def segment(request: Request) -> Response:
        try:
            answer = await _segmented(request, predictions, uploads)
        except UnreadRequestError as problem:
            return JSONResponse(_told(problem), 400)
        except TooLargeError:
            return JSONResponse({"error": "the image is larger than this server takes"}, 413)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody hears it
        except FlaresemiError as problem:
            status = next(status for kind, status in _STATUS if isinstance(problem, kind))
            return JSONResponse(_told(problem), status, {"Retry-After": "10"} if status == 503 else None)
        return JSONResponse(answer.told)

    async def result(request: Request) -> Response:
        answer = predictions.answer(request.path_params["name"])
        if answer is None or answer.file.name != request.path_params["file"]:
            return JSONResponse({"error": "there is no such result, or it is kept no longer"}, 404)
        return FileResponse(answer.file, media_type="application/octet-stream", filename=answer.file.name)

    async def forget(request: Request) -> Response:
        return JSONResponse({"removed": predictions.forget(request.path_params["name"])})

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/model", model),
            Route("/segment", segment, methods=["POST"]),
            Route("/results/{name:str}/{file:str}", result),
            Route("/results/{name:str}", forget, methods=["DELETE"]),
        ]
    )


async def _segmented(request: Any, predictions: Predictions, uploads: Path) -> Answer:
    """Makes the prediction that a request asks for; waits for it no longer than allowed."""
    form = request.query_params.get("format", "nii.gz")
    if form not in FORMATS:
        raise UnreadRequestError(f"unknown format, expected {', '.join(FORMATS)}")
    own: Path | None = None
    try:
        predictions.refuse_where_full()
    except BusyError:
        if request.headers.get("expect", "").lower() != "100-continue":  # who asks first is answered at once
            async for _ in request.stream():  # the others hear of it only when they have sent everything
                pass
        raise
    if request.headers.get("content-type", "").partition(";")[0].strip() == "application/json":
        images = predictions.named(await _paths(request))
    else:
        own, image = await _upload(request, uploads)
        images = [image]
    future = predictions.start(images, form, own)
    try:
        return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), predictions.limits.seconds)
    except TimeoutError:
        future.cancel()  # of one that waits; one that is made is made to its end
        raise LateError(
            f"no result within {predictions.limits.seconds:g} s",
            fix="ask again, or start the server with a longer --timeout",
        ) from None


async def _paths(request: Any) -> list[str]:
    """The images that a JSON body names: `{"path": ...}`, or `{"paths": [...]}` with one per channel."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_JSON:
            raise UnreadRequestError("such a long JSON text is not read")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    paths = content.get("paths", [content.get("path")]) if isinstance(content, dict) else None
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        raise UnreadRequestError('expected {"path": "/data/scan.nii.gz"}, or {"paths": [...]} with one per channel')
    return paths


async def _upload(request: Any, uploads: Path) -> tuple[Path, Path]:
    """Puts the body into a file; returns its folder, which is its own, and the file.

    Raises:
        UnreadRequestError: `name` does not end like an image, or the body is empty.
    """
    name = request.query_params.get("name", "").lower()
    endings = [ending for ending in IMAGE_ENDINGS if ending != ".mhd" and name.endswith(ending)]
    if not endings:
        raise UnreadRequestError(
            "send the image as the body, and a name that says its format: /segment?name=scan.nii.gz"
        )
    folder = Path(tempfile.mkdtemp(dir=uploads))
    image = folder / f"image{endings[0]}"
    try:
        with image.open("wb") as file:
            async for chunk in request.stream():
                await asyncio.to_thread(file.write, chunk)
        if not image.stat().st_size:
            raise UnreadRequestError("the body is empty", fix="curl --data-binary @scan.nii.gz sends a file")
    except BaseException:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        raise
    return folder, image


def _told(problem: FlaresemiError) -> dict[str, str]:
    """A problem in words, without the folders of the server."""
    return {"error": problem.what} | ({"fix": problem.fix} if problem.fix else {})
