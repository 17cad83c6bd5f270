"""A button that ends a long loop early and keeps what it has done."""

from __future__ import annotations

import signal
from functools import partial
from typing import Any, Self

from transvert.progress import is_interactive


class StopButton:
    """Asks a long loop to stop: a button, and the kernel's own interrupt. The loop calls it to hear whether to.

        with StopButton() as stop:
            training.train(..., stop=stop)

    A kernel that runs a cell hears no click before the cell has ended; at each call it is made to listen. Should it be of
    a make that can't, the interrupt does: the first one stops the loop where it may stop, a second one breaks it off. In
    a batch nothing is shown and nothing changes.
    """

    def __init__(self) -> None:
        self.pressed = False
        self._button: Any = None

    def __enter__(self) -> Self:
        if is_interactive():
            import ipywidgets
            from IPython.display import display

            self._button = ipywidgets.Button(description="Stop and keep", icon="stop")
            self._button.on_click(self._click)
            display(self._button)
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        if self._button is not None:
            signal.signal(signal.SIGINT, self._before)
            self._button.disabled = True

    def __call__(self) -> bool:
        if self._button is not None:
            _listen()
        return self.pressed

    def _click(self, button: Any) -> None:
        self.pressed = True
        button.description = "Stopping ..."

    def _interrupt(self, *_: Any) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True


def _listen() -> None:
    """Handles the widgets' messages that wait for the running cell's end; cells that wait go on waiting, in their order."""
    from IPython.core.getipython import get_ipython

    kernel: Any = getattr(get_ipython(), "kernel", None)
    try:
        if getattr(kernel, "shell_channel_thread", None) is None:  # ipykernel before 7
            socket = kernel.shell_stream.socket
            put_back = partial(kernel.schedule_dispatch, kernel.dispatch_shell)
        else:
            socket = kernel.shell_channel_thread.manager.get_shell_channel_to_subshell_pair(None).to_socket
            put_back = partial(kernel.io_loop.add_callback, kernel.shell_main, None)
    except AttributeError:
        return  # No kernel, or one of another make.
    while socket.poll(0):
        parts = socket.recv_multipart(copy=False)
        kind = ""
        if len(parts) > 1:  # ipykernel sends itself some of one part.
            idents, frames = kernel.session.feed_identities(parts, copy=False)
            kind = kernel.session.unpack(frames[1].bytes)["msg_type"]
        if kind.startswith("comm_"):
            kernel.shell_handlers[kind](None, idents, kernel.session.deserialize(frames, copy=False))
        else:
            put_back(parts)
