"""A real JupyterLab, Notebook and Voila in a real browser; no request may leave this machine.

Playwright drives Debian's Chromium. If either is missing the tests are skipped, or fail if LAB_BROWSER=1. With
LAB_SCREENSHOTS=FOLDER, screenshots of every step are saved there, in both themes and widths.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from launches import end_all
from notebook import Notebook

ROOT = Path(__file__).parents[3]
REQUIRED = os.environ.get("LAB_BROWSER") == "1"
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"
JUPYTER = ["--no-browser", "--ip=127.0.0.1", "--port={PORT}", "--ServerApp.port_retries=0", "--allow-root"]
JUPYTER += ["--IdentityProvider.token={TOKEN}", "--ServerApp.root_dir={FOLDER}"]
OTHERS = (
    "Content Security Policy",
    "Failed to load resource",
    "violates the following",
    "net::ERR",
    "shared module",
    "schema",
)
"""Parts of the errors that pages of Jupyter report themselves."""
ARGUMENTS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
ARGUMENTS += " --disable-component-update --disable-sync"


def missing(what: str) -> None:
    if REQUIRED:
        pytest.fail(f"LAB_BROWSER=1, but {what}")
    pytest.skip(what)


class Server:
    """A process that serves pages on a free port of loopback."""

    def __init__(self, home: Path, command: list[str], ready: str) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.folder, self.token, self.url = home / "work", secrets.token_hex(16), f"http://127.0.0.1:{port}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = home / "server.log"
        places = ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
        places += ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
        paths = {name: str(home / name.lower()) for name in places}
        for name, value in SETTINGS.items():
            path = home / "jupyterlab_settings_dir/@jupyterlab" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value), encoding="utf-8")
        environment = os.environ | paths | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}
        fill = {"PORT": str(port), "TOKEN": self.token, "FOLDER": str(self.folder)}
        for name, value in fill.items():
            command = [part.replace(f"{{{name}}}", value) for part in command]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=self.folder,
                env=environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        end = time.monotonic() + 90
        while not self._answers(f"{self.url}{ready}?token={self.token}"):
            if self.process.poll() is not None or time.monotonic() > end:
                self.close()
                raise RuntimeError(self.log.read_text(encoding="utf-8", errors="replace")[-3000:])
            time.sleep(0.1)

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(15)

    @staticmethod
    def _answers(url: str) -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory: pytest.TempPathFactory, chromium: Any) -> Iterator[Server]:
    command = ["jupyterlab", *JUPYTER, "--LabApp.expose_app_in_browser=True"]
    server = Server(tmp_path_factory.mktemp("jupyter"), command, "/api/status")
    yield server
    server.close()


@pytest.fixture(scope="module")
def notebook_server(tmp_path_factory: pytest.TempPathFactory, chromium: Any) -> Iterator[Server]:
    command = ["notebook", *JUPYTER, "--JupyterNotebookApp.expose_app_in_browser=True"]
    server = Server(tmp_path_factory.mktemp("notebook"), command, "/api/status")
    yield server
    server.close()


@pytest.fixture(scope="module")
def voila_server(tmp_path_factory: pytest.TempPathFactory, chromium: Any) -> Iterator[Server]:
    command = ["voila", "--no-browser", "--port={PORT}", "--Voila.ip=127.0.0.1", "--token={TOKEN}"]
    # Its page requests icons from a CDN, which this policy forbids.
    command += [f"--Voila.tornado_settings={ {'headers': {'Content-Security-Policy': POLICY}} }", "{FOLDER}"]
    server = Server(tmp_path_factory.mktemp("voila"), command, "/")
    yield server
    server.close()


# Per module, not per session: while it is open an event loop runs, which panels of other tests would take for a kernel.
@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    if binary is None:
        missing("there is no Chromium; on Debian: apt-get install chromium fonts-dejavu-core")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("Playwright is not installed; it comes with the extra `dev`")
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("browser"),
            executable_path=binary,
            headless=True,
            args=ARGUMENTS.split(),
            viewport={"width": 1280, "height": 1400},
            permissions=["clipboard-read", "clipboard-write"],
        )
        context.set_default_timeout(60_000)
        yield context
        context.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page; at the end of its test, it must have sent no request to another machine, and reported no error."""
    asked: list[Any] = []
    errors: list[str] = []

    def record(request: Any) -> None:
        asked.append(request)

    chromium.on("request", record)
    page = chromium.new_page()
    page.errors = errors
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    yield page
    page.close()
    chromium.remove_listener("request", record)
    assert asked
    # data: and blob: have no host; requests that the page's policy forbids are not sent.
    outside = [r for r in asked if urlsplit(r.url).hostname not in ("127.0.0.1", None, "") and r.failure != "csp"]
    assert [r.url for r in outside] == []
    assert [text for text in errors if not any(part in text for part in OTHERS)] == []


@pytest.fixture
def voila(voila_server: Server, page: Any, request: pytest.FixtureRequest, tmp_path: Path) -> Notebook:
    """An empty notebook, to be opened in Voila."""
    return _notebook(voila_server, page, request, tmp_path)


@pytest.fixture
def classic(notebook_server: Server, page: Any, request: pytest.FixtureRequest, tmp_path: Path) -> Notebook:
    """An empty notebook in Notebook 7, which shows a single document."""
    return _notebook(notebook_server, page, request, tmp_path, "notebooks")


@pytest.fixture
def notebook(jupyter: Server, page: Any, request: pytest.FixtureRequest, tmp_path: Path) -> Notebook:
    """An empty notebook in a folder of its own."""
    return _notebook(jupyter, page, request, tmp_path)


def _notebook(
    server: Server, page: Any, request: pytest.FixtureRequest, tmp_path: Path, place: str = "lab/tree"
) -> Notebook:
    name = request.node.name
    (server.folder / name).mkdir()
    request.addfinalizer(lambda: end_all(server.folder / name / "runs"))
    pictures = Path(os.environ.get("LAB_SCREENSHOTS", tmp_path))
    pictures.mkdir(parents=True, exist_ok=True)
    return Notebook(page, server, name, pictures, place)
