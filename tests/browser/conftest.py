"""A JupyterLab of its own and a headless browser in front of it: what every test of a notebook in a browser needs.

Whatever is missing skips with a sentence. The server listens on the loopback alone, with a token, a home folder and
settings of its own, and ends by itself should a test run be killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest

from transvert.data.fetch import cache_folder

ROOT = Path(__file__).parents[2]
START_S, RUN_S = 60.0, 120.0
IDLE_S = 300
"""A server that nobody talks to for so long ends, and its kernels with it."""
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}
"""Nothing that pops up over a page or asks the network; and cells out of sight are on the page too."""
ERROR = ".jp-OutputArea-output:has(.ansi-red-fg)"
"""A traceback. JupyterLab says no more of it than of any other text on stderr but its colour."""
BADGES = ("https://colab.research.google.com/assets/", "https://mybinder.org/badge")
"""What a notebook shows where it can, and does without."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab.

    Attributes:
        folder: its root; notebooks lie here.
        address: such as http://127.0.0.1:8899.
        token: to be given with each request.
    """

    folder: Path
    address: str
    token: str

    def url(self, notebook: str) -> str:
        """Of a notebook, in a workspace that shows nothing else."""
        return f"{self.address}/lab/workspaces/{Path(notebook).stem}/tree/{notebook}?token={self.token}&reset"


@contextlib.contextmanager
def start_lab(folder: Path, home: Path) -> Iterator[Lab]:
    """JupyterLab on a free port of the loopback, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON", "MPL"))
    }
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "HOME"):
        environment[name] = str(home / name.lower())
        Path(environment[name]).mkdir(parents=True, exist_ok=True)
    environment["TRANSVERT_CACHE"] = str(cache_folder())  # Which would else be in the new home.
    environment["TRANSVERT_RUNS"] = str(home / "runs")
    for plugin, settings in SETTINGS.items():
        file = home / "settings" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    environment["JUPYTERLAB_SETTINGS_DIR"] = str(home / "settings")
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "IdentityProvider.token": token,
        "ServerApp.root_dir": folder,
        "ServerApp.allow_root": True,
        "ServerApp.open_browser": False,
        "ServerApp.shutdown_no_activity_timeout": IDLE_S,
        "MappingKernelManager.cull_idle_timeout": IDLE_S,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    log = home / "lab.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(address, token, server, log)
            yield Lab(folder, address, token)
        finally:
            server.terminate()  # It ends its kernels first.
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait_for(address: str, token: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=5)
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def write_notebook(folder: Path, name: str, cells: list[str]) -> str:
    """A notebook of code cells in a Lab's folder; its name."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / name)
    return name


def open_notebook(page: Any, lab: Lab, notebook: str) -> None:
    """Opens a notebook and waits for its kernel."""
    page.goto(lab.url(notebook))
    page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for(timeout=START_S * 1000)
    wait_idle(page)


def run_all(page: Any, within_s: float = RUN_S) -> None:
    """Runs all cells, through the menu as a person does, and waits until they are done."""
    assert page.locator(".jp-Dialog").count() == 0, page.locator(".jp-Dialog").first.inner_text()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    # The last code cell has got its number: all before it have been run.
    page.wait_for_function(
        """(error) => { const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
                        return document.querySelector(error) || prompts.every((p) => !p.textContent.includes('*'))
                               && prompts.length && /\\d/.test(prompts.at(-1).textContent); }""",
        arg=ERROR,
        timeout=within_s * 1000,
    )
    errors = page.locator(ERROR)
    assert errors.count() == 0, errors.first.inner_text()
    wait_idle(page)


def wait_idle(page: Any) -> None:
    """Waits until the notebook's kernel is there and has nothing to do."""
    page.locator("#jp-main-statusbar", has_text="| Idle").wait_for(timeout=RUN_S * 1000)


def end_kernels(lab: Lab) -> None:
    """Ends a Lab's kernels: each of them holds a gigabyte."""
    headers = {"Authorization": f"token {lab.token}"}
    with urllib.request.urlopen(urllib.request.Request(f"{lab.address}/api/kernels", headers=headers)) as answer:
        kernels = json.load(answer)
    for kernel in kernels:
        address = f"{lab.address}/api/kernels/{kernel['id']}"
        urllib.request.urlopen(urllib.request.Request(address, headers=headers, method="DELETE")).close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed, so no notebook is opened in a browser.")
    with start_lab(tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("home")) as started:
        yield started


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    reason = "Playwright is not installed, so no notebook is opened in a browser."
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("There is no Chromium on this computer, so no notebook is opened in a browser.")
    with playwright.sync_playwright() as started:
        # A container's root has no sandbox, and the pages are our own.
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, lab: Lab, tmp_path: Path) -> Iterator[Any]:
    """A page that can reach this computer's Lab and nothing else."""
    context = browser.new_context(viewport={"width": 1700, "height": 1200})
    strays: list[str] = []

    def only_here(route: Any) -> None:
        if route.request.url.startswith((lab.address, "data:", "blob:")):
            route.continue_()
        else:
            if not route.request.url.startswith(BADGES):
                strays.append(route.request.url)
            route.abort()

    context.route("**/*", only_here)
    made = context.new_page()
    yield made
    with contextlib.suppress(Exception):
        made.screenshot(path=tmp_path / "last.png")
    context.close()
    end_kernels(lab)
    assert not strays, f"the page asked for something from elsewhere: {strays[:5]}"
