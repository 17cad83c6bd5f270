"""The stop button: a click, an interrupt, a batch; and a kernel that hears the click while its cell runs."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from transvert.stopping import StopButton

LOOP = """
import time
from transvert.stopping import StopButton
with StopButton() as stop:
    print(stop._button.comm.comm_id, flush=True)
    end = time.monotonic() + 60
    while not stop() and time.monotonic() < end:
        time.sleep(0.02)
print("stopped" if stop.pressed else "ran out")
"""


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr("IPython.display.display", found.append)
    return found


@pytest.fixture
def _watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSVERT_VIEWER", "k3d")


def test_in_a_batch_there_is_no_button_and_an_interrupt_interrupts(shown: list[Any]) -> None:
    with pytest.raises(KeyboardInterrupt), StopButton() as stop:
        assert not stop() and shown == []
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("_watched")
def test_a_click_stops(shown: list[Any]) -> None:
    with StopButton() as stop:
        assert not stop()
        shown[0].click()
        assert stop() and stop()
    assert shown[0].disabled


@pytest.mark.usefixtures("_watched")
def test_an_interrupt_stops_and_a_second_one_breaks_off(shown: list[Any]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopButton() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before and shown[0].disabled


@pytest.fixture
def client() -> Any:
    from jupyter_client.manager import start_new_kernel

    manager, found = start_new_kernel(kernel_name="python3", extra_arguments=["--IPKernelApp.log_level=ERROR"])
    yield found
    found.stop_channels()
    manager.shutdown_kernel(now=True)


def _printed(client: Any, until: str) -> str:
    """What a kernel prints, up to a text."""
    text, end = "", time.monotonic() + 60
    while until not in text and time.monotonic() < end:
        message = client.get_iopub_msg(timeout=60)
        if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
            text += message["content"]["text"]
        assert message["msg_type"] != "error", message["content"]
    return text


def test_a_kernel_hears_the_click_while_the_cell_runs_and_runs_the_next_cell_afterwards(client: Any) -> None:
    client.execute(LOOP, allow_stdin=True)
    button = _printed(client, "\n").strip()
    client.execute("print('next cell')", allow_stdin=True)  # Waits its turn, and must not be lost.
    data = {"method": "custom", "content": {"event": "click"}}
    message = client.session.msg("comm_msg", {"comm_id": button, "data": data})
    client.shell_channel.send(message)
    assert _printed(client, "next cell").split("\n")[:2] == ["stopped", "next cell"]
