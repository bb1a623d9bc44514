"""Imports of libraries that reach further than they need to: for a report of use, a download, a look at the network."""

import importlib
import sys
from typing import Any


def import_without(name: str, hidden: str) -> Any:
    """Imports a module as if another one, which it takes where it is installed, were missing.

    Args:
        name: The module.
        hidden: The one that it does not find; whoever asks for that later gets it.

    Raises:
        ImportError: the module is not installed.
    """
    if name in sys.modules:
        return sys.modules[name]
    absent = object()
    before = sys.modules.get(hidden, absent)
    sys.modules[hidden] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(name)
    finally:
        if before is absent:
            del sys.modules[hidden]
        else:
            sys.modules[hidden] = before  # type: ignore[assignment]
