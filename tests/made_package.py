"""Packages with entry points, as pip would have installed them."""

from pathlib import Path


def install(folder: Path, name: str, code: str, entry_points: str, version: str = "1.2") -> Path:
    """Lays out an installed package; its folder must then be put on the path.

    Args:
        name: Of the package and of its only module.
        code: Of the module.
        entry_points: As in entry_points.txt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(entry_points, encoding="utf-8")
    (about / "top_level.txt").write_text(f"{name}\n", encoding="utf-8")
    return folder
