import argparse
import shlex
from pathlib import Path

import pytest

from flaresemi.cli import plan_and_preprocess
from flaresemi.cli.common import StrictParser
from flaresemi.cli.prediction_options import prediction_parser
from flaresemi.cli.repeating import for_prediction, repeated
from flaresemi.cli.round_options import round_parser
from flaresemi.cli.training_options import training_parser


@pytest.mark.parametrize(
    ("parser", "words"),
    [
        (
            round_parser(),
            "-d data --fold 0 1 --gpus 8 --time-limit 1h0.5s --tta --trainer-setting a=true",
        ),
        (
            round_parser(),
            "-w work --trainer package:Class --trainer-setting a=1.5 --trainer-setting b=text",
        ),
        (training_parser(), "-d data --gpus 2 --epochs 3 --no-compile --mirror-axes zx --optimizer sgd --seed 4"),
        (training_parser(), "--time-budget 2h --max-restarts 3 --deep-supervision --pseudo-labels folder"),
        (plan_and_preprocess._parser(), "--preset large --stages two --with-test --workers 2 --seed 0"),
        (prediction_parser(), "-i images -o out -w work --fold 0 2 --no-tta --gpus 2 --precision fp32"),
    ],
)
def test_options_given_again_mean_the_same(parser: argparse.ArgumentParser, words: str) -> None:
    positional = ["FINE", "0"] if parser.prog == "flaresemi_train" else []
    options = parser.parse_args([*positional, *shlex.split(words), "--quiet"])
    again = repeated(parser, options, without=())
    assert vars(parser.parse_args([*positional, *again])) == vars(options) | {"quiet": False}


def test_what_is_left_out_is_not_said() -> None:
    parser = StrictParser("flaresemi_any", "Any.")
    parser.add_argument("-d", "--dataset", type=Path, default=Path("."))
    parser.add_argument("--once", action="store_true")
    parser.add_argument("name")
    options = parser.parse_args(["--once", "-d", "my data", "positional"])
    assert repeated(parser, options, without=("once",)) == ["-d", "my data"]
    assert repeated(parser, parser.parse_args(["positional"]), without=()) == []


def test_prediction_goes_to_the_same_devices() -> None:
    assert for_prediction(argparse.Namespace(device="auto", gpus=1)) == []
    assert for_prediction(argparse.Namespace(device="cpu", gpus=2)) == ["--device", "cpu", "--gpus", "2"]
