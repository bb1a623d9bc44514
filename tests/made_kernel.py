"""Files of a made-up kernel."""

from pathlib import Path


class KernelFiles:
    """A made-up tree in the place of /proc and /sys: what is not named in it does not exist."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __setitem__(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
