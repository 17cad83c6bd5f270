"""Progress bars and notices for long work."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any


def is_interactive() -> bool:
    """Whether a person uses this kernel, so that widgets and 3D viewers are of use.

    TRANSVERT_VIEWER=k3d or none decides if it is set. Otherwise the front end does: JupyterLab lets a kernel ask its
    user for input; papermill, nbval and nbconvert do not. A terminal has no kernel and shows no 3D.
    """
    wish = os.environ.get("TRANSVERT_VIEWER", "")
    if wish:
        return wish != "none"
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return False
    # A private attribute, because ipykernel has no public one.
    return bool(getattr(getattr(get_ipython(), "kernel", None), "_allow_stdin", False))


def progress_bar(items: Iterable[Any], what: str, *, quiet: bool = False) -> Any:
    """A tqdm bar over `items`: a widget in an interactive notebook, text on stderr elsewhere."""
    if is_interactive():
        from tqdm.auto import tqdm
    else:
        from tqdm.std import tqdm
    # An executed notebook keeps every redraw of a text bar, so bars redraw once a second at most.
    return tqdm(items, desc=what, leave=False, disable=quiet, mininterval=1.0)


@contextlib.contextmanager
def notice(text: str, after_s: float) -> Iterator[None]:
    """Writes `text` if the block takes longer than `after_s` seconds: to stderr, in an interactive notebook to stdout."""
    from tqdm.std import tqdm

    # tqdm.write keeps a running bar intact below the text.
    timer = threading.Timer(after_s, lambda: tqdm.write(text, file=sys.stdout if is_interactive() else sys.stderr))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
