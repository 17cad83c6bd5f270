"""Sphinx's settings for the site. Notebooks are shown as saved and never run; nothing is loaded from the web."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))
import stage

project = "transvert"
author = "The transvert authors"
copyright = "The transvert authors, Apache-2.0"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "transvert"
html_static_path = [str(Path(__file__).parent / "static")]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
# Saved notebooks hold no widget state, so that widgets' scripts have nothing to draw.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
highlight_language = "none"
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "fully-qualified"
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"


def describe_figures(app: Sphinx, doctree: nodes.document) -> None:
    """Gives a notebook's figures the alternative texts that the notebook keeps for them."""
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    drawn = [image for image in doctree.findall(nodes.image) if "jupyter_execute" in image["uri"]]
    for image, (_, text) in zip(drawn, stage.figure_texts(stage.read_notebook(path)), strict=True):
        image["alt"] = text


def show_as_written(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turns commands (indented by four) and Markdown tables in docstrings into literal blocks."""
    text = re.sub(r"(?<=\n\n)((?:    .*\n?|\n(?=    ))+)", r"::\n\n\1", "\n".join(lines))
    text = re.sub(r"(?m)(^\|.*\n?)+", lambda table: "::\n\n" + re.sub(r"(?m)^", "    ", table[0]).rstrip() + "\n", text)
    lines[:] = text.split("\n")


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", describe_figures)
    app.connect("autodoc-process-docstring", show_as_written, priority=400)
