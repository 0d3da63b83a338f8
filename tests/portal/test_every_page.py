"""What holds for every page: sign-in, headers, no foreign address, few queries."""

import re
from datetime import timedelta
from html.parser import HTMLParser

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import URLResolver, get_resolver

from ocpp_billing.accounts.models import Role
from ocpp_billing.charging.models import IdTagParent
from tests.portal import ledger

pytestmark = pytest.mark.django_db

OPEN = {
    "/healthz",
    # These two answer for themselves: a bearer token, or this machine (tests/api/test_monitoring.py).
    "/metrics",
    "/readyz",
    "/theme",
    "/accounts/login/",
    "/accounts/logout/",
    "/accounts/inactive/",
    "/accounts/signup/",
    "/accounts/password/reset/",
    "/accounts/password/reset/done/",
    # Leads to sign-in by itself, whoever did not give a password just now.
    "/accounts/2fa/authenticate/",
}
PAGES = [
    "/",
    "/account",
    "/accounts/logout/",
    "/accounts/password/change/",
    "/accounts/reauthenticate/",
    "/attention",
    "/attention/held/unmapped_tag",
    "/billing-events",
    "/billing-events?state=held&tag=TAG-7",
    "/mappings",
    "/mappings/import",
    "/mappings/new",
    "/mappings/new?tag=TAG-7",
    "/search",
    "/search?q=tag",
    "/settings/audit",
    "/settings/tokens",
    "/settings/tokens/new",
    "/settings/users",
    "/settings/users/invite",
    "/setup",
    "/sync",
]
OPEN_PAGES = [
    "/accounts/login/",
    "/accounts/signup/",
    "/accounts/inactive/",
    "/accounts/password/reset/",
    "/accounts/password/reset/done/",
    "/accounts/password/reset/key/1-none/",
    "/invitation/none",
]


def every_path():
    """All addresses without parameters, but those of the API, which answers for itself."""

    def walk(patterns, prefix):
        for pattern in patterns:
            path = prefix + str(pattern.pattern)
            if isinstance(pattern, URLResolver):
                yield from walk(pattern.url_patterns, path)
            elif "<" not in path and "(" not in path:
                yield path

    return sorted(path for path in walk(get_resolver().url_patterns, "/") if not path.startswith("/api/"))


def test_every_address_but_the_open_ones_demands_sign_in(client):
    closed = [path for path in every_path() if path not in OPEN]
    assert "/" in closed
    for path in closed:
        for answer in (client.get(path), client.post(path)):
            assert answer.status_code == 302, path
            assert answer.headers["Location"].startswith("/accounts/login/?next="), path


def test_a_script_whose_session_ended_is_sent_to_sign_in_as_a_whole_page(client):
    answer = client.get(
        "/", headers={"HX-Request": "true", "HX-Current-URL": "http://testserver/?from=2026-11-01"}
    )
    assert answer.status_code == 401
    assert answer.headers["HX-Redirect"] == "/accounts/login/?next=%2F%3Ffrom%3D2026-11-01"


def test_an_event_stream_whose_session_ended_is_refused(client):
    assert client.get("/live", headers={"Accept": "text/event-stream"}).status_code == 401


def test_a_deactivated_person_is_out_at_once(signed_in):
    from ocpp_billing.accounts.models import User

    client = signed_in(Role.OPERATOR)
    assert client.get("/").status_code == 200
    User.objects.update(is_active=False)
    assert client.get("/").status_code == 302


@pytest.mark.parametrize("path", PAGES + OPEN_PAGES)
def test_security_headers_are_on_every_page(signed_in, path):
    client = signed_in() if path in PAGES else Client()
    headers = client.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["style-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "same-origin"


class Page(HTMLParser):
    """Collects what the policy would block and what would leave this site."""

    def __init__(self, text):
        super().__init__()
        self.foreign, self.inline = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        for name, value in values.items():
            if name in {"href", "src", "action", "srcset", "poster", "hx-get", "hx-post"} and re.match(
                r"(?i)\s*([a-z]+:)?//|javascript:", value or ""
            ):
                self.foreign.append((tag, name, value))
            if name == "style" or name.startswith("on"):
                self.inline.append((tag, name))
        if tag == "style" or (tag == "script" and "src" not in values):
            self.inline.append((tag, "element"))


def session_of_a_big_family(now):
    """Confirmed, corrected and moved; its tag is mapped by the parent of its parent's parent."""
    session = ledger.add_session(now, state="confirmed", tag="CARD-1")
    for _ in range(3):
        ledger.add_event(session, now, energy_wh=100, state="confirmed")
    for child, parent in (("CARD-1", "CAR-1"), ("CAR-1", "DEPOT-1"), ("DEPOT-1", "FLEET-1")):
        IdTagParent.objects.create(
            id_tag=ledger.add_tag(child), parent=ledger.add_tag(parent), seen_from=now - timedelta(days=9)
        )
    ledger.add_mapping(now, tag="FLEET-1")
    for n, event in enumerate(session.events.all()):
        event.external_subscription_id = event.lago_subscription_id = f"sub-{n % 2}"
        event.period_from, event.period_to = now - timedelta(days=5), now + timedelta(days=25)
        event.save()
    ledger.add_decision(session, now, "bill", customer="customer")
    return session


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR])
def test_a_session_with_a_mapping_inherited_through_several_parents_takes_no_more(signed_in, now, role):
    session = session_of_a_big_family(now)
    client = signed_in(role)
    client.get("/")  # where one is signed in is noted once
    with CaptureQueriesContext(connection) as queries:
        page = client.get(f"/sessions/{session.pk}").content.decode()
    assert page.count("its parent") == 3
    assert "It counts 10.100 kWh of ours" in page
    assert len(queries) <= 30
    assert (Page(page).foreign, Page(page).inline) == ([], [])


def test_the_dashboards_queries_do_not_grow_with_the_ledger(signed_in, now):
    client = signed_in()
    client.get("/")
    with CaptureQueriesContext(connection) as few:
        client.get("/")
    ledger.fill(now)
    with CaptureQueriesContext(connection) as many:
        client.get("/")
    assert len(many) <= len(few)


def test_the_process_says_that_it_lives_without_asking_the_database(client, django_assert_num_queries):
    with django_assert_num_queries(0):
        assert client.get("/healthz").content == b"ok\n"


# -- errors -------------------------------------------------------------------------------------------


def test_a_missing_page_says_so_in_our_look(client):
    answer = client.get("/there-is-no-such-page")
    assert answer.status_code == 404
    assert "There is no such page" in answer.content.decode()
    assert "portal.css" in answer.content.decode()
    assert "The address may be mistyped" in answer.content.decode()


def test_a_fault_leaks_nothing_and_needs_no_database(signed_in, monkeypatch):
    def fail(*_arguments):
        raise RuntimeError("password=secret")

    client = signed_in()
    client.raise_request_exception = False
    monkeypatch.setattr("ocpp_billing.portal.dashboard.counted_balance", fail)
    monkeypatch.setattr("ocpp_billing.portal.context.read_status", fail)
    answer = client.get("/")
    assert answer.status_code == 500
    assert "Something went wrong here" in answer.content.decode()
    assert "secret" not in answer.content.decode()
    assert "RuntimeError" not in answer.content.decode()


def test_a_form_without_its_token_is_refused_with_what_to_do(db):
    client = Client(enforce_csrf_checks=True)
    answer = client.post("/accounts/login/", {"login": "a@example.org", "password": "x"})
    assert answer.status_code == 403
    assert "Open the page again and repeat" in answer.content.decode()


def test_a_foreign_host_name_is_refused_in_our_look(client):
    answer = client.get("/", headers={"host": "evil.example"})
    assert answer.status_code == 400
    assert "The request was not understood" in answer.content.decode()
    assert "sets AUTH_URL" in answer.content.decode()


ASKED = (
    "q",
    "tag",
    "customer",
    "subscription",
    "state",
    "reason",
    "charge_box",
    "from",
    "to",
    "show",
    "cursor",
)
ASKED_TOO = ("person", "action", "target", "next", "act", "id", "live_from", "check")


@pytest.mark.parametrize("path", [path for path in PAGES if "?" not in path])
def test_no_page_fails_for_what_an_address_asks_for(signed_in, path):
    client = signed_in()
    for value in ("\0", "a\0b", "\xed\xa0\x80", "9" * 40, "-1", "%", "'"):
        answer = client.get(path, dict.fromkeys(ASKED + ASKED_TOO, value))
        assert answer.status_code < 500
        assert ("\0" not in value) or answer.status_code == 400


# -- theme --------------------------------------------------------------------------------------------


def test_the_theme_is_kept_and_drawn_by_the_server(client):
    answer = client.post("/theme", {"theme": "dark", "next": "/accounts/login/"})
    assert answer.headers["Location"] == "/accounts/login/"
    assert '<html lang="en" data-bs-theme="dark">' in client.get("/accounts/login/").content.decode()


def test_an_automatic_theme_is_left_to_the_browser(client):
    client.post("/theme", {"theme": "auto"})
    assert '<html lang="en">' in client.get("/accounts/login/").content.decode()


def test_an_unknown_theme_is_refused(client):
    assert client.post("/theme", {"theme": "pink"}).status_code == 400
    client.cookies["theme"] = '"><script>'
    assert '<html lang="en">' in client.get("/accounts/login/").content.decode()


@pytest.mark.parametrize("back", ["https://evil.example/", "//evil.example", "javascript:alert(1)"])
def test_choosing_a_theme_leads_to_no_other_site(client, back):
    assert client.post("/theme", {"theme": "dark", "next": back}).headers["Location"] == "/"
