"""`flaresemi_predict`: images to label maps."""

import argparse
import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from flaresemi.cli.common import run
from flaresemi.cli.prediction_options import prediction_parser
from flaresemi.compute.background import BegunEarly
from flaresemi.image_paths import image_stem
from flaresemi.io.images import Image, read_image


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run(lambda options: _predict(options, words), prediction_parser(), words)


def _predict(options: argparse.Namespace, words: list[str]) -> None:
    """Reads the image, if there is only one, while torch is imported and the networks are loaded."""
    with BegunEarly[tuple[Path, ...], Image](read_image, _only_image(options)) as read:
        with _without_collections():
            from flaresemi.cli.predicting import predict
        predict(options, words, read)


def _only_image(options: argparse.Namespace) -> tuple[Path, ...] | None:
    """The file of the image, where a single one of one channel is named and will surely be read first."""
    source: Path = options.input
    one_after_the_other = options.single_process or options.measure
    if one_after_the_other or options.resume or options.gpus > 1 or options.shard is not None:
        return None
    stem = image_stem(source)
    if stem is None or not source.is_file():
        return None
    if stem.endswith("_0000") and source.with_name(f"{stem[:-1]}1{source.name[len(stem) :]}").exists():
        return None
    return (source,)


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Imports make hundreds of thousands of objects that stay: looking for garbage among them takes 0.2 s."""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


if __name__ == "__main__":
    sys.exit(main())
