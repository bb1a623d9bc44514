"""`flaresemi_serve`: a warm server that segments images for other programs."""

import argparse
import contextlib
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from flaresemi.cli.common import StrictParser, add_dataset_options, add_model_options, duration, model_folder_of, run
from flaresemi.cli.dicom_options import add_codes_option, organ_codes
from flaresemi.cli.numbers import count, number
from flaresemi.cli.prediction_options import add_computing_options, add_turns_option
from flaresemi.compute.device import limit_threads
from flaresemi.errors import ConfigError
from flaresemi.files import read_text
from flaresemi.inference.averaging import load_segmenter
from flaresemi.pseudolabels.reliability import Reliability
from flaresemi.ranges import Range
from flaresemi.serving.app import make_app
from flaresemi.serving.jobs import Limits, Predictions
from flaresemi.web.gate import LOOPBACK, Gate, new_token
from flaresemi.web.running import Running, listening, refuse_without_server

logger = logging.getLogger("flaresemi.cli.serve")  # also when run with python -m

#: No token of fewer characters is taken from a file. Chosen.
_SHORTEST_TOKEN = 16

_MAKES_TOKEN = "head -c 24 /dev/urandom | base64 > FILE makes one"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(_serve, _parser(), argv)


def _parser() -> argparse.ArgumentParser:
    parser = StrictParser(
        prog="flaresemi_serve",
        description="Loads models once and segments the images that other programs send or name, until it is stopped. "
        'Needs pip install "flaresemi[serve]".',
    )
    add_dataset_options(parser)
    add_model_options(parser)
    parser.add_argument("--host", default=LOOPBACK[0], help="where to listen (default: 127.0.0.1, this machine alone)")
    parser.add_argument(
        "--port", type=number(Annotated[int, Range(0, 65535)]), default=8390, help="0 takes a free one (default: 8390)"
    )
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="the token that requests have to bring (default: a new one)"
    )
    parser.add_argument(
        "--allow",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder from which requests may name images; repeat for each (default: none, images are sent)",
    )
    parser.add_argument(
        "--queue", type=number(Annotated[int, Range(0, 1000)]), default=8, help="predictions that may wait (default: 8)"
    )
    parser.add_argument("--timeout", type=duration, default=600.0, help="for a request to be answered (default: 10m)")
    parser.add_argument("--keep", type=duration, default=3600.0, help="results, the last 20 of them (default: 1h)")
    parser.add_argument(
        "--max-upload-mib", type=count, default=1024, metavar="N", help="largest image that is taken (default: 1024)"
    )
    add_codes_option(parser)
    parser.add_argument("--check", action="store_true", help="load the models, print what they segment, and end")
    parser.add_argument("--reliability", action="store_true", help="also judge every prediction, as flaresemi_predict")
    parser.add_argument("--tta", action=argparse.BooleanOptionalAction, help="average over mirrored images")
    add_turns_option(parser)
    add_computing_options(parser)
    return parser


def _serve(options: argparse.Namespace) -> None:
    refuse_without_server("serve")
    limit_threads(options.threads)
    for folder in options.allow:
        if not folder.is_dir():
            raise ConfigError("--allow names no folder", where=folder)
    token = new_token() if options.token_file is None else _token_of(options.token_file)
    if options.check:
        _check(options)
        return
    with listening(options.host, options.port) as listener, tempfile.TemporaryDirectory(prefix="flaresemi-") as scratch:
        predictions = _predictions(options, _made(Path(scratch) / "results"))
        is_loopback = options.host.lower() in LOOPBACK
        gate = Gate(
            make_app(predictions, _made(Path(scratch) / "uploads")),
            token=token,
            hosts=LOOPBACK if is_loopback else None,
            most_bytes=options.max_upload_mib << 20,
            open_paths=("/health",),
        )
        if not is_loopback:
            logger.warning(
                "other machines can reach this server, and requests are not encrypted: put a proxy before it"
            )
        port = listener.getsockname()[1]
        host = f"[{options.host}]" if ":" in options.host else options.host
        print(f"address: http://{host}:{port}")
        print(f"token: {token if options.token_file is None else f'as in {options.token_file}'}", flush=True)
        try:
            Running(gate, listener, grace_seconds=options.timeout).run()
        finally:
            predictions.close()
    logger.info("stopped")


def _predictions(options: argparse.Namespace, results: Path) -> Predictions:
    segmenter = load_segmenter(
        model_folder_of(options),
        folds=options.fold,
        checkpoint=options.checkpoint,
        coarse=options.coarse,
        device=options.device,
        tta=options.tta,
        turns=options.turns,
        precision=options.precision,
        engine=options.engine,
    )
    return Predictions(
        segmenter,
        reliability=Reliability.of(segmenter) if options.reliability else None,
        folder=results,
        roots=options.allow,
        limits=Limits(waiting=options.queue, seconds=options.timeout, kept_seconds=options.keep),
        codes=organ_codes(options, segmenter.labels.names),
    )


def _check(options: argparse.Namespace) -> None:
    """Prints what would be served."""
    with contextlib.closing(_predictions(options, Path())) as predictions:
        for name, told in predictions.about.items():
            print(f"{name}: {told}")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _token_of(path: Path) -> str:
    """The token in a file.

    Raises:
        ConfigError: there is none, or a short one.
    """
    try:
        token = read_text(path).strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"the token cannot be read: {problem}", where=path, fix=_MAKES_TOKEN) from None
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"a token has {_SHORTEST_TOKEN} letters and digits at least",
            where=path,
            fix=_MAKES_TOKEN,
        )
    return token


if __name__ == "__main__":
    sys.exit(main())
