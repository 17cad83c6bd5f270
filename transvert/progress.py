"""Bars and notices for long work, and the question whether a person watches."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any


def is_interactive() -> bool:
    """Whether a person sits in front of this kernel: TRANSVERT_VIEWER=k3d or none decides, else the front end does.

    A kernel may ask its user for input in JupyterLab, and may not under papermill, nbval or nbconvert. A plain terminal
    has no kernel, and shows no 3D.
    """
    wish = os.environ.get("TRANSVERT_VIEWER", "")
    if wish:
        return wish != "none"
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return False
    # Private, but the only sign there is; absent means nobody.
    return bool(getattr(getattr(get_ipython(), "kernel", None), "_allow_stdin", False))


def progress_bar(items: Iterable[Any], what: str, *, quiet: bool = False) -> Any:
    """A tqdm bar over `items`: a widget where a person watches a notebook, else text on stderr, which batches pass on."""
    if is_interactive():
        from tqdm.auto import tqdm
    else:
        from tqdm.std import tqdm
    # In a batch each redraw is kept in the executed notebook, so it redraws seldom.
    return tqdm(items, desc=what, leave=False, disable=quiet, mininterval=1.0)


@contextlib.contextmanager
def notice(text: str, after_s: float) -> Iterator[None]:
    """Says on stderr why nothing seems to happen, should the block under this take longer than `after_s` seconds."""
    from tqdm.std import tqdm

    # As tqdm writes it: above any bar, which then goes on below.
    timer = threading.Timer(after_s, lambda: tqdm.write(text, file=sys.stderr))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
