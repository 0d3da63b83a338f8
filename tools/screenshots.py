"""Makes the pictures of the documents from the demo: ``python -m tools.screenshots``.

Starts ``ocpp-billing demo`` with data of its own, signs in with a real browser and writes
``docs/images/*.png``. Needs Chromium (``tests/chromium.py`` finds one).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import sync_playwright
from tests.chromium import MISSING, find_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
# Of a picture; a README that loads slowly is not read.
MOST_BYTES = 150_000
START_TIMEOUT_S = 300
VIEWPORT = {"width": 1120, "height": 720}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start_demo(data_dir: Path, log: Path, port: int) -> subprocess.Popen[bytes]:
    """The demo, in a process group of its own."""
    program = Path(sys.executable).with_name("ocpp-billing")
    with log.open("wb") as out:
        return subprocess.Popen(  # noqa: S603 - our own program
            [program, "demo", "--port", str(port)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OCPP_BILLING_DATA_DIR": str(data_dir)},
            start_new_session=True,
        )


def _wait_for_password(demo: subprocess.Popen[bytes], log: Path) -> str:
    """The admin's password, once the demo has printed that it serves."""
    over_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < over_s and demo.poll() is None:
        text = log.read_text(encoding="utf-8", errors="replace")
        if "Ctrl-C ends it all." in text and (found := re.search(r"(?m)^Password +(\S+)$", text)):
            return found[1]
        time.sleep(0.5)
    raise TimeoutError("the demo did not start:\n" + log.read_text(encoding="utf-8", errors="replace"))


def _sign_in(page: Page, password: str) -> None:
    page.goto("/")
    page.get_by_label("E-mail").fill("admin@example.org")
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Balance").wait_for()


def _take(page: Page, name: str) -> None:
    """One picture of what is on the screen.

    Raises:
        ValueError: when it is too large for a document.
    """
    page.wait_for_load_state("load")
    page.evaluate("document.fonts.ready")
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path)
    size = path.stat().st_size
    sys.stdout.write(f"{path.relative_to(ROOT)} {size // 1000} kB\n")
    if size > MOST_BYTES:
        raise ValueError(f"{path} has {size} bytes, more than {MOST_BYTES}: show less")


def _take_all(page: Page) -> None:
    page.goto("/")
    page.get_by_role("heading", name="Balance").wait_for()
    _take(page, "dashboard")
    page.goto("/attention")
    page.get_by_role("heading", name="Needs attention").wait_for()
    _take(page, "needs-attention")
    # The session that charged most of those that were billed.
    page.goto("/billing-events?state=confirmed")
    page.locator("main tbody a[href*='/sessions/']").first.click()
    page.wait_for_url(re.compile("/sessions/"))
    _take(page, "session")


def main() -> int:
    """Make them all."""
    chromium = find_chromium()
    if chromium is None:
        sys.stderr.write(f"screenshots: {MISSING}\n")
        return 1
    IMAGES.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="ocpp-billing-screenshots-"))
    # The server of the embedded database has a user of its own when root starts it.
    folder.chmod(0o711)
    port = _free_port()
    demo = _start_demo(folder / "demo", folder / "log", port)
    try:
        password = _wait_for_password(demo, folder / "log")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
            )
            context = browser.new_context(
                base_url=f"http://localhost:{port}",
                viewport=VIEWPORT,  # type: ignore[arg-type]
                color_scheme="light",
                reduced_motion="reduce",
            )
            page = context.new_page()
            _sign_in(page, password)
            _take_all(page)
            browser.close()
    finally:
        if demo.poll() is None:
            os.killpg(demo.pid, signal.SIGINT)
            demo.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
