"""No number among the options makes a command end with a traceback."""

import argparse
from collections.abc import Callable

import pytest

from flaresemi.cli import demo, evaluate, export, plan_and_preprocess, round_options, serve
from flaresemi.cli.numbers import field_type, number
from flaresemi.cli.prediction_options import prediction_parser
from flaresemi.cli.training_options import training_parser
from flaresemi.ranges import AtLeastOne, Share
from flaresemi.training.config import TrainingConfig

PARSERS: dict[str, tuple[Callable[[], argparse.ArgumentParser], list[str]]] = {
    "demo": (demo._parser, []),
    "evaluate": (evaluate._parser, ["-p", "a", "-r", "b", "-o", "c.json"]),
    "export": (export._parser, ["-o", "a"]),
    "plan": (plan_and_preprocess._parser, []),
    "predict": (prediction_parser, ["-i", "a", "-o", "b"]),
    "serve": (serve._parser, []),
    "round": (round_options.round_parser, []),
    "train": (training_parser, ["FINE", "0"]),
}

#: What no option means by a number; of a text that is no number at all it is the same.
WILD = ("nan", "inf", "-inf", "-1", "1e300", "9" * 30, "9" * 5000, "1e-400x", "", "0x10")


def numeric(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options with a type that reads numbers or times."""
    return [
        action
        for action in parser._actions
        if getattr(action.type, "__module__", "").startswith("flaresemi.cli")
        and action.option_strings
        and action.choices is None
        and action.dest not in ("mirror_axes", "size", "content_label", "model_name")
    ]


@pytest.mark.parametrize("name", PARSERS)
def test_wild_numbers_are_refused_by_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, required = PARSERS[name]
    parser = make()
    unbounded = [action for action in parser._actions if action.type in (int, float) and action.choices is None]
    assert not unbounded, "an option without a range"
    found = numeric(parser)
    assert found or name == "export"
    for action in found:
        for text in WILD:
            with pytest.raises(SystemExit) as end:
                parser.parse_args([*required, f"{action.option_strings[0]}={text}"])
            assert end.value.code == 2
            said = capsys.readouterr().err
            assert said.count("error:") == 1
            assert len(said) < 600, said


def test_what_a_number_is() -> None:
    assert number(Share)("0.25") == 0.25
    assert number(AtLeastOne | None)("3") == 3
    with pytest.raises(argparse.ArgumentTypeError, match=r"at least 1 and at most 1000000: found '2\.5'"):
        number(AtLeastOne)("2.5")
    assert field_type(TrainingConfig, "optimizer") is str
    assert field_type(TrainingConfig, "seed")("7") == 7
