"""The portal in a real browser, served by a real process: what people see, hear and click.

For every test in this folder: ``visit`` opens a page, :func:`check_accessibility` judges it.

Skipped, with the reason, where there is no Chromium; OCPP_BILLING_REQUIRE_BROWSER=1 fails instead.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.db import connection
from django.test import Client
from playwright.sync_api import expect, sync_playwright

from ocpp_billing import clock
from ocpp_billing.accounts.models import User
from tests.caches import clear_caches
from tests.chromium import MISSING, REQUIRED, find_chromium
from tests.portal.conftest import BACKEND, add_person, confirm
from tests.smtp import mail_server

# Generous: other tests' browsers and workers share the cores. What is right is seen at once all the same.
expect.set_options(timeout=20_000)

CHROMIUM = find_chromium()
AXE = next((Path(__file__).parent.parent / "vendor").glob("axe-*/axe.min.js")).read_text(encoding="utf-8")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SIZES = {"desktop": {"width": 1440, "height": 900}, "phone": {"width": 390, "height": 844}}

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """Every test here needs the browser, and a database that the web process sees, too."""
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.skipif(CHROMIUM is None and not REQUIRED, reason=MISSING))
            item.add_marker(pytest.mark.django_db(transaction=True))


@pytest.fixture(scope="package", autouse=True)
def orm_beside_playwright():
    """Playwright keeps an event loop in this thread; the ORM calls of these tests are in nobody's way.

    For the whole folder: the database is emptied after a test's own fixtures have gone.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        yield


@pytest.fixture(scope="package")
def mail():
    """The mail server that the web process uses."""
    with mail_server() as server:
        yield server


@pytest.fixture(scope="package")
def site(django_db_setup, django_db_blocker, tmp_path_factory, mail):
    """The address of a web process over the test database."""
    with django_db_blocker.unblock():
        name = connection.settings_dict["NAME"]
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://localhost:{listener.getsockname()[1]}"
    log = (tmp_path_factory.mktemp("web") / "log").open("w+")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "uvicorn", "ocpp_billing.asgi:application", "--log-level", "warning"),
            *("--fd", str(listener.fileno()), "--timeout-graceful-shutdown", "1"),
        ],
        pass_fds=[listener.fileno()],
        stdout=log,
        stderr=log,
        env=os.environ
        | {
            "DATABASE_URL": urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{name}").geturl(),
            "AUTH_URL": address,
            "STEVE_API_URL": "http://localhost:9",
            "STEVE_API_KEY": "key",
            "STEVE_API_USERNAME": "api",
            "LAGO_API_URL": "http://localhost:9",
            "LAGO_API_KEY": "key",
            "BILLING_START": "2026-01-01",
            "EMAIL_HOST": "127.0.0.1",
            "EMAIL_PORT": str(mail.server_address[1]),
            "EMAIL_SECURITY": "none",
            "EMAIL_FROM": "billing@example.org",
        },
    )
    listener.close()
    try:
        with urllib.request.urlopen(f"{address}/healthz", timeout=30):
            pass
        yield address
    finally:
        process.terminate()
        process.wait(10)
        log.seek(0)
        said = log.read()
        log.close()
    # Not "Traceback": Django itself logs one for whoever was refused (403).
    assert "Internal Server Error" not in said, said
    assert "Exception in ASGI" not in said, said


@pytest.fixture(scope="package")
def browser():
    assert CHROMIUM is not None, MISSING
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def now():
    """The real time: the web process is a process of its own."""
    return clock.now()


@pytest.fixture
def visit(site, browser):
    """A function: open a page as a browser of some size, theme and person. Watches what must not happen."""
    clear_caches()  # failed sign-ins of the test before count for this machine's address
    contexts, faults, requested = [], [], []

    def open_page(path="/", *, size="desktop", theme="light", role=None, javascript=True, confirmed=True):
        context = browser.new_context(
            viewport=SIZES[size], color_scheme=theme, java_script_enabled=javascript, base_url=site
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requested.append(request.url))
        if role is not None:
            person = User.objects.filter(role=role).first() or add_person(role)
            client = Client()
            client.force_login(person, BACKEND)
            if confirmed:
                confirm(client, person)
            context.add_cookies(
                [{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": site}]
            )
        page.goto(path)
        return page

    open_page.faults = faults
    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in requested if not url.startswith((site, "data:"))] == []
    assert faults == []


_RUN_AXE = """
options => axe.run(document, options).then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 200))]))
"""
_CONTRAST = "color-contrast"
_ONLY_CONTRAST = {"runOnly": {"type": "rule", "values": [_CONTRAST]}}
_ALL_BUT_CONTRAST = {"rules": {_CONTRAST: {"enabled": False}}}


def check_accessibility(page, options=None):
    """No violation of axe-core's rules (all, without options), and nothing to scroll to at the side."""
    if not page.evaluate("Boolean(window.axe)"):
        page.evaluate(AXE + "; undefined")
    assert page.evaluate(_RUN_AXE, options or {}) == []
    assert not page.evaluate("document.documentElement.scrollWidth > window.innerWidth")


def check_every_look(page):
    """The same page at a desk in light and in dark, and on a phone: no violation in any of them.

    From light to dark only the colours change, from the desk to the phone only the places. What is drawn on a
    phone alone, the menu, is looked at in both themes by a test of its own.
    """
    for size, theme, options in (
        ("desktop", "light", None),
        ("desktop", "dark", _ONLY_CONTRAST),
        ("phone", "dark", _ALL_BUT_CONTRAST),
    ):
        page.set_viewport_size(SIZES[size])
        # Without motion: a colour on its way from one theme to the other is neither.
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        page.wait_for_function("theme => document.documentElement.dataset.bsTheme === theme", arg=theme)
        check_accessibility(page, options)
