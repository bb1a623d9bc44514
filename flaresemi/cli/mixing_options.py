"""The options that say how labeled and pseudo-labeled cases are mixed."""

import argparse
import dataclasses
from typing import Any

from flaresemi.cli.common import add_field_option
from flaresemi.training.mixing import Mixing


def add_mixing_options(group: argparse._ArgumentGroup) -> None:
    """A flag for each field of `Mixing`."""
    default = Mixing()
    add_field_option(group, "pseudo_share", default, "share of the patches from pseudo-labeled cases")
    add_field_option(group, "pseudo_augmentation", default, "--augmentation of the pseudo-labeled cases")
    add_field_option(group, "paste_share", default, "share of the patches with a box from the other kind of case")
    add_field_option(group, "fine_tune", default, "share of the iterations, at the end, on real labels alone")


def given_mixing(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Mixing` that were given."""
    return {field.name: vars(options)[field.name] for field in dataclasses.fields(Mixing) if field.name in options}
