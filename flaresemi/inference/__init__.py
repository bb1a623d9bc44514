"""From checkpoints and an image to a label map.

`predict` is the whole of it for one image; `Segmenter` keeps the models for many.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flaresemi.inference.api import predict
    from flaresemi.inference.cascade import Segmenter

__all__ = ["Segmenter", "predict"]

_HOMES = {"predict": "flaresemi.inference.api", "Segmenter": "flaresemi.inference.cascade"}


def __getattr__(name: str) -> Any:
    # torch and SimpleITK take seconds to import: whoever only names the package does not wait for them.
    if name not in _HOMES:
        raise AttributeError(f"module 'flaresemi.inference' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
