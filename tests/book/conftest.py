"""The built book, served, and a browser. What needs them skips, saying why, where there is no book or no browser."""

import functools
import http.server
import shutil
import threading
from pathlib import Path

import pytest

from tests.book.pages import HTML


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Tests that look at the same page run in a row, view by view, in the order of their file."""
    here = Path(__file__).parent
    places = [i for i, item in enumerate(items) if item.path.parent == here and "view" in item.fixturenames]
    ordered = sorted((items[i] for i in places), key=lambda item: item.callspec.params["view"])
    for i, item in zip(places, ordered, strict=True):
        items[i] = item


@pytest.fixture(scope="session")
def built():
    """The folder of the built book."""
    if not (HTML / "index.html").is_file():
        pytest.skip("the book is not built: run `make book`")
    return HTML


@pytest.fixture(scope="session")
def site(built):
    """Address of the book, served on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=built))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium that starts nothing in the background."""
    # The same engine without the browser around it opens a page with half the work.
    program = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if program is None:
        pytest.skip("there is neither chromium-headless-shell nor chromium on the PATH")
    from playwright.sync_api import sync_playwright

    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu", *quiet])
        yield browser
        browser.close()
