"""What browsers are told, and what they keep. (The content policy itself: tests/portal/test_every_page.py.)"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from csp.middleware import CSPMiddleware
from django.http import HttpResponse
from django.test import Client

from ocpp_billing.accounts.models import Role
from tests.portal.conftest import PASSWORD, add_person

ANSWERS = [
    "/",
    "/accounts/login/",
    "/there-is-no-such-page",
    "/healthz",
    "/api/balance",
    "/static/portal/portal.css",
]


@pytest.mark.django_db
@pytest.mark.parametrize("path", ANSWERS)
def test_every_answer_tells_the_browser_what_it_may_not_do(signed_in, path):
    headers = signed_in().get(path).headers

    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    if not path.startswith("/static/"):
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        policy = headers["Permissions-Policy"].split(", ")
        assert {"camera=()", "geolocation=()", "payment=()", "usb=()"} <= set(policy)
        assert "clipboard-write" not in headers["Permissions-Policy"]  # the copy buttons
        assert headers["X-Frame-Options"] == "DENY"


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/", "/mappings", "/setup", "/api/balance", "/accounts/password/change/"])
def test_what_is_for_one_person_is_kept_by_no_cache(signed_in, path):
    assert "no-store" in signed_in().get(path).headers["Cache-Control"]


def test_only_this_answer_s_own_scripts_are_let_in(rf):
    """A nonce that two answers share would be as good as none."""
    given = []
    for _ in range(2):
        request = rf.get("/")
        answer = CSPMiddleware(lambda request: HttpResponse(str(request.csp_nonce)))(request)
        nonce = answer.content.decode()
        assert len(nonce) >= 16
        assert f"script-src 'self' 'nonce-{nonce}'" in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        given.append(nonce)
    assert given[0] != given[1]


BEHIND_HTTPS = """
import json, django
django.setup()
from django.conf import settings
from django.test import Client
names = ["COOKIE_NAME", "COOKIE_SECURE", "COOKIE_HTTPONLY", "COOKIE_SAMESITE", "COOKIE_PATH", "COOKIE_DOMAIN"]
answers = {}
for name, host, secure in [
    ("https", "billing.example.org", True),
    ("http", "billing.example.org", False),
    ("foreign", "evil.example", True),
]:
    # Without a session the sign-in page asks for no database.
    answer = Client().get("/accounts/login/", headers={"Host": host}, secure=secure)
    cookies = {name: dict(morsel.items()) for name, morsel in answer.cookies.items()}
    answers[name] = {"status": answer.status_code, "headers": dict(answer.headers), "cookies": cookies}
print(json.dumps({"session": [getattr(settings, f"SESSION_{name}") for name in names], **answers}))
"""


def test_behind_https_cookies_are_for_this_host_only_and_the_browser_stays_with_https():
    """A process reads its settings once, so this takes one of its own."""
    done = subprocess.run(
        [sys.executable, "-c", BEHIND_HTTPS],
        env={**os.environ, "AUTH_URL": "https://billing.example.org"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)

    # A path of "/" and no domain is what browsers demand of that prefix.
    assert answers["session"] == ["__Host-sessionid", True, True, "Lax", "/", None]
    assert answers["https"]["status"] == 200
    (name, cookie) = answers["https"]["cookies"].popitem()
    assert name == "__Host-csrftoken"
    assert (cookie["secure"], cookie["httponly"], cookie["samesite"]) == (True, True, "Lax")
    assert (cookie["path"], cookie["domain"]) == ("/", "")
    assert answers["https"]["headers"]["Strict-Transport-Security"] == "max-age=31536000"
    assert "Strict-Transport-Security" not in answers["http"]["headers"]  # it would mean nothing there
    assert answers["foreign"]["status"] == 400


@pytest.mark.django_db
def test_the_session_has_another_key_after_sign_in(client):
    """Session fixation: whoever put a session into somebody's browser does not share what it becomes."""
    add_person(Role.VIEWER)
    client.get("/accounts/login/")
    planted = client.session  # as an attacker would have had it made
    planted["planted"] = True
    planted.save()
    client.cookies["sessionid"] = planted.session_key

    client.post("/accounts/login/", {"login": "viewer@example.org", "password": PASSWORD})

    assert client.cookies["sessionid"].value != planted.session_key
    assert client.get("/").status_code == 200
    with_the_old_key = Client()
    with_the_old_key.cookies["sessionid"] = planted.session_key
    assert with_the_old_key.get("/").status_code == 302


@pytest.mark.django_db
def test_the_csrf_secret_changes_at_sign_in_too(client):
    add_person(Role.VIEWER)
    client.get("/accounts/login/")
    before = client.cookies["csrftoken"].value
    client.post("/accounts/login/", {"login": "viewer@example.org", "password": PASSWORD})
    assert client.cookies["csrftoken"].value != before


@pytest.mark.django_db
def test_a_session_that_was_signed_out_is_gone_on_the_server(signed_in):
    client = signed_in()
    key = client.cookies["sessionid"].value
    client.post("/accounts/logout/")
    again = Client()
    again.cookies["sessionid"] = key
    assert again.get("/").status_code == 302
