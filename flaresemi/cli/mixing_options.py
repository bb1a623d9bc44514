"""The options that say how labeled and pseudo-labeled cases are mixed."""

import argparse
import dataclasses
from typing import Any

from flaresemi.training.mixing import Mixing

_TEXTS = {
    "pseudo_share": "share of the patches from pseudo-labeled cases",
    "pseudo_augmentation": "strength for pseudo-labeled cases",
    "paste_share": "share of the patches with a box from the other kind of case",
    "fine_tune": "share of the iterations, at the end, on real labels alone",
}
_CHOICES = {"pseudo_augmentation": ("none", "standard", "strong")}


def add_mixing_options(group: argparse._ArgumentGroup) -> None:
    """A flag for each field of `Mixing`; it stands in the options only if it was given."""
    default = Mixing()
    for name, text in _TEXTS.items():
        value = getattr(default, name)
        group.add_argument(
            flag_of(name), type=type(value), choices=_CHOICES.get(name), default=argparse.SUPPRESS,
            help=f"{text} [{value}]",
        )  # fmt: skip


def given_mixing(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Mixing` that were given."""
    return {field.name: vars(options)[field.name] for field in dataclasses.fields(Mixing) if field.name in options}


def flag_of(name: str) -> str:
    """A field's flag."""
    return f"--{name.replace('_', '-')}"
