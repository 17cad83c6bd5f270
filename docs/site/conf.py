"""Sphinx's settings for the site: notebooks as they were saved, never run; nothing fetched, nothing loaded from the web."""

from __future__ import annotations

import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))
import stage

project = "transvert"
author = "The transvert authors"
copyright = "The transvert authors, Apache-2.0"

extensions = ["myst_nb"]
html_theme = "furo"
html_title = "transvert"
html_static_path = [str(Path(__file__).parent / "static")]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
# The state of widgets is in no saved notebook, so their scripts have nothing to draw.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "fieldlist"]
myst_heading_anchors = 3
highlight_language = "none"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"


def describe_figures(app: Sphinx, doctree: nodes.document) -> None:
    """Gives a notebook's figures the alternative texts that it keeps for them."""
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    drawn = [image for image in doctree.findall(nodes.image) if "jupyter_execute" in image["uri"]]
    for image, (_, text) in zip(drawn, stage.figure_texts(stage.read_notebook(path)), strict=True):
        image["alt"] = text


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", describe_figures)
