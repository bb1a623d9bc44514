"""A synthetic CT generator: abdominal scans with the 13 FLARE organs, for the demo, the tests and load."""

from flaresemi.phantom.dataset import write_phantom_dataset
from flaresemi.phantom.phantom import Phantom, make_phantom

__all__ = ["Phantom", "make_phantom", "write_phantom_dataset"]
