"""Sphinx settings of the book: notebooks, documents, API and figures as one site without a network.

Sphinx with myst-nb and furo comes by pip alone and its search works from a folder; Jupyter Book 2
is as well kept but needs Node.  The source folder is the repository, so links between
notebooks, documents and files are the same here as anywhere else.  ``make book`` builds it.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

project = "AEFT, reproducible"
author = "the AEFT companion authors"
copyright = "MIT"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "book"]
root_doc = "docs/start_here"
include_patterns = [
    "docs/*.md",
    "notebooks/[0-9][0-9]_*.ipynb",
    "figures/report.md",
    "data/README.md",
    "data/collages/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
]
exclude_patterns = [".*", "runs", "build", "**/.ipynb_checkpoints"]

nb_execution_mode = "off"  # the committed outputs are shown
nb_merge_streams = True
nb_render_markdown_format = "myst"  # tables in outputs, as in the text
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True, "exclude-members": "forward"}

html_theme = "furo"
html_title = project
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # it would be fetched, which browsers refuse to pages of a folder
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["book.css"]
html_js_files = ["frames.js"]
html_additional_pages = {"index": "to_start.html"}
templates_path = ["templates"]
