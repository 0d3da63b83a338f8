"""A person at a real web process: addresses are asked over HTTP, cookies are kept, forms carry their token."""

from __future__ import annotations

import json
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from http.cookiejar import CookieJar
from typing import TYPE_CHECKING, Any

from tests.engine.processes import Running, eventually, running

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_arguments: Any, **_more: Any) -> None:
        return None


class Visitor:
    """Keeps cookies over all web processes, which have one host name as behind one proxy."""

    def __init__(self) -> None:
        self.cookies = CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(self.cookies), _Stay()
        )
        self.token = ""

    def ask(
        self, address: str, form: Mapping[str, str] | None = None, **headers: str
    ) -> tuple[int, str, dict[str, str]]:
        """Status, text and headers of an answer; with a form it is a POST."""
        data = None
        if form is not None:
            data = urllib.parse.urlencode({"csrfmiddlewaretoken": self.token, **form}).encode()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(address, data, sent)
        try:
            answer = self._opener.open(request, timeout=60)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            text = answer.read().decode()
        if found := re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', text):
            self.token = found[1]
        return answer.status, text, dict(answer.headers)

    def sign_in(self, site: str, email: str, password: str) -> int:
        """302 when it worked, 200 when the form came back."""
        self.ask(f"{site}/accounts/login/")
        return self.ask(f"{site}/accounts/login/", {"login": email, "password": password})[0]

    def stream(self, address: str) -> Any:
        """An open event stream, to read lines from."""
        request = urllib.request.Request(address, headers={"Accept": "text/event-stream"})
        return self._opener.open(request, timeout=60)


def post_json(address: str, body: Any, **headers: str) -> tuple[int, str]:
    """Status and text of an answer of the API."""
    request = urllib.request.Request(
        address,
        json.dumps(body).encode(),
        {
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        },
    )
    try:
        answer = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.read().decode()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def web_process(settings: Mapping[str, str], log: Path, *options: str) -> Iterator[tuple[str, Running]]:
    """``ocpp-billing web`` that answers: its address and the process."""
    port = free_port()
    site = f"http://localhost:{port}"
    with running("web", "--port", str(port), *options, settings=settings, log=log) as web:
        eventually(lambda: _lives(site) or web.process.poll() is not None, web.said)
        assert web.process.poll() is None, web.said()
        yield site, web


def _lives(site: str) -> bool:
    try:
        return Visitor().ask(f"{site}/healthz")[0] == 200
    except OSError:
        return False
