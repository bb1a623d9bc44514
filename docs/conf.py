"""The documentation site, as `make docs` builds it: its root is the repository's, so that links hold in both."""

import re
from pathlib import Path

from sphinx.application import Sphinx

REPOSITORY = Path(__file__).resolve().parents[1]

project = "flaresemi"
release = re.search(r'__version__ = "(.+)"', (REPOSITORY / "flaresemi" / "__init__.py").read_text(encoding="utf-8"))[1]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = ["*.md", "docs/**.md", "benchmarks/**.md"]
exclude_patterns = ["build", "**/.*", "benchmarks/work"]
root_doc = "README"
html_theme = "furo"
html_title = f"flaresemi {release}"
html_copy_source = False
default_role = "code"
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
nitpicky = False

#: The table of contents, which only the site has: page, caption, what stands below it.
CONTENTS = (
    (
        "README",
        "Use",
        "dataset training prediction dicom serving self_training review machines speed few_labels from_nnunet flare22 "
        "slurm/README",
    ),
    ("README", "Build on it", "extending api compatibility"),
    ("README", "Look inside", "trust architecture /benchmarks/README /CONTRIBUTING /CHANGELOG"),
    ("benchmarks/README", "Results", "results/*"),
)
TREE = "\n```{toctree}\n:hidden:\n:glob:\n:caption: %s\n\n%s\n```\n"


def setup(app: Sphinx) -> None:
    """Appends the table of contents to the pages that anybody reads without it in the repository."""

    def with_contents(_: Sphinx, page: str, source: list[str]) -> None:
        for _, caption, entries in (each for each in CONTENTS if each[0] == page):
            below = "docs/" if page == "README" else ""
            source[0] += TREE % (caption, "\n".join(e if e[0] == "/" else below + e for e in entries.split()))

    app.connect("source-read", with_contents)
