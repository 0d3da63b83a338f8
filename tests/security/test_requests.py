"""What somebody may send: where redirects lead, methods, sizes, paths, names."""

from __future__ import annotations

import asyncio
import importlib.metadata

import pytest

from ocpp_billing.accounts.models import Role
from ocpp_billing.portal.way_back import way_back
from ocpp_billing.request_size import limit_requests
from tests.portal import ledger
from tests.portal.conftest import PASSWORD, add_person

ELSEWHERE = [
    "https://evil.example/",
    "//evil.example",
    "///evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "/\t/evil.example",
    "\x00//evil.example",
    " //evil.example",
    "https:evil.example",
    "javascript:alert(1)",
    "data:text/html,x",
    "http:///evil.example",
    "evil.example",
    "portal:setup",
    "",
]


@pytest.mark.parametrize("given", ELSEWHERE)
def test_the_way_back_leads_to_no_other_site(given):
    assert way_back(given, "/default") == "/default"


@pytest.mark.parametrize("given", ["/", "/mappings?tag=//x", "/sync/7#log", "/a/https://b"])
def test_the_way_back_is_the_page_that_was_named(given):
    assert way_back(given, "/default") == given


@pytest.mark.django_db
@pytest.mark.parametrize(
    "given", ["https://evil.example/", "//evil.example", "/\\evil.example", "portal:setup"]
)
def test_no_view_that_redirects_leads_to_another_site(client, signed_in, now, given):
    """Theme, sign-in, sign-out, one session's act, many sessions' act, taking back."""
    add_person(Role.VIEWER)
    ledger.add_worker(now)
    held = ledger.add_session(now, reason="unmapped_tag")
    person = signed_in(Role.OPERATOR)
    many = {"act": "exclude", "session": held.pk, "note": "x", "next": given}
    answers = [
        client.post("/theme", {"theme": "dark", "next": given}),
        client.post("/accounts/login/", {"login": "viewer@example.org", "password": PASSWORD, "next": given}),
        client.post("/accounts/logout/", {"next": given}),
        person.post(f"/sessions/{held.pk}/exclude", {"note": "x", "next": given}),
        person.post("/attention/act", many),
        person.post("/attention/undo", many),
        person.post("/accounts/reauthenticate/", {"password": PASSWORD, "next": given}),
    ]
    for answer in answers:
        assert answer.status_code < 500, answer
        location = answer.headers.get("Location", "/")
        assert location.startswith("/"), (answer.request["PATH_INFO"], location)
        assert not location.startswith(("//", "/\\")), location
        assert "evil" not in location.partition("?")[0], location


@pytest.mark.django_db
def test_a_script_that_is_sent_to_sign_in_brings_back_a_path_of_ours_only(client):
    answer = client.get(
        "/", headers={"HX-Request": "true", "HX-Current-URL": "https://evil.example//evil.example"}
    )
    target = answer.headers["HX-Redirect"]
    nonsense = client.get("/", headers={"HX-Request": "true", "HX-Current-URL": "http://["})
    assert nonsense.headers["HX-Redirect"] == "/accounts/login/?next=%2F"
    add_person(Role.VIEWER)
    given = "//evil.example"
    assert target.startswith("/accounts/login/?next=")
    answer = client.post(target, {"login": "viewer@example.org", "password": PASSWORD, "next": given})
    assert answer.headers["Location"] == "/"


# -- methods -------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"])
def test_a_header_does_not_make_another_method_of_a_request(signed_in, name):
    client = signed_in()
    assert client.get("/sync/now", headers={name: "POST"}).status_code == 405
    assert client.post("/api/mappings/1", headers={name: "DELETE"}).status_code == 405
    assert client.post("/sync", {"_method": "DELETE"}).status_code == 405


@pytest.mark.django_db
@pytest.mark.parametrize("method", ["TRACE", "TRACK", "CONNECT", "PROPFIND", "DEBUG", "ÄH"])
def test_a_method_nobody_knows_reaches_nothing(signed_in, method):
    for path in ("/theme", "/sync/now", "/mappings/import", "/api/balance", "/healthz"):
        assert signed_in().generic(method, path).status_code in {403, 405}, path


# -- static files --------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize(
    "path",
    [
        "/static/../settings.py",
        "/static/portal/../../../settings.py",
        "/static/%2e%2e/settings.py",
        "/static/..%2fsettings.py",
        "/static/portal/..\\..\\..\\settings.py",
        "/static//etc/passwd",
        "/static/portal/%00.css",
        "/static/portal/",
        "/static/",
        "/static/vendor/VENDORED.json/..",
    ],
)
def test_only_static_files_are_static_files(client, path):
    answer = client.get(path)
    assert answer.status_code in {301, 400, 404}
    assert b"SECRET_KEY" not in answer.content
    assert b"root:" not in answer.content


# -- sizes ---------------------------------------------------------------------------------------------


def send(headers, chunks, largest=10):
    """What a client gets for a body in these pieces, and how much of it reached the application."""
    reached, said = [], []
    waiting = [{"type": "http.request", "body": part, "more_body": True} for part in chunks]
    waiting.append({"type": "http.request", "body": b"", "more_body": False})

    async def application(_scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            reached.append(message["body"])
            if not message["more_body"]:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"fine"})
                return

    async def receive():
        return waiting.pop(0)

    async def remember(message):
        said.append(message)

    asyncio.run(limit_requests(application, largest)({"type": "http", "headers": headers}, receive, remember))
    return said[0]["status"], b"".join(reached)


def test_a_body_within_the_limit_passes_as_it_is():
    assert send([(b"content-length", b"10")], [b"12345", b"67890"]) == (200, b"1234567890")


def test_an_announced_body_above_the_limit_is_refused_unread():
    assert send([(b"Content-Length", b"11")], [b"12345678901"]) == (413, b"")


def test_a_body_that_grows_above_the_limit_is_refused_when_it_does():
    assert send([], [b"12345", b"67890", b"1", b"more"]) == (413, b"1234567890")


def test_the_web_application_is_behind_that_limit():
    from ocpp_billing.asgi import application

    said = []

    async def remember(message):
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": "/theme", "headers": [(b"content-length", b"9" * 12)]}
    asyncio.run(application(scope, None, remember))
    assert said[0]["status"] == 413
    assert (b"connection", b"close") in said[0]["headers"]


def test_the_server_takes_no_endless_headers():
    """h11 limits a request line and its headers to 64 kB; another implementation would have to be looked at."""
    assert importlib.metadata.version("h11")
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("httptools")


# -- names of hosts ------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "localhost@evil.example", "localhost:80:80", "[::1", "*"],
)
def test_only_the_portal_s_own_names_are_answered(client, host, settings):
    settings.ALLOWED_HOSTS = [name for name in settings.ALLOWED_HOSTS if name != "testserver"]
    for path in ("/accounts/login/", "/", "/metrics", "/api/balance"):
        assert client.get(path, headers={"Host": host}).status_code == 400, path


@pytest.mark.django_db
def test_a_forwarded_host_is_not_believed(client):
    answer = client.get("/", headers={"X-Forwarded-Host": "evil.example"})
    assert answer.headers["Location"] == "/accounts/login/?next=/"


# -- files of mappings ---------------------------------------------------------------------------------

HEADER = "id_tag,customer_id,valid_from\n"


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("A" * 1_000_001, "larger than"),
        (HEADER + "TAG,alice,2026-01-01\n" * 5_001, "lines"),
        (HEADER + f'TAG,"{"x" * 200_000}",2026-01-01\n', "cannot be read"),
        ('id_tag,"' + "x" * 200_000, "cannot be read"),
        ("id_tag" + ",x" * 100_000, "must name the columns"),
        (HEADER + "TAG\x00,alice,2026-01-01\n", None),
        (HEADER + f"{'T' * 3_000},{'a' * 3_000},2026-01-01\n", None),
    ],
)
def test_a_file_that_is_a_bomb_is_refused_with_what_to_do(signed_in, text, says):
    from django.core.files.uploadedfile import SimpleUploadedFile

    file = SimpleUploadedFile("mappings.csv", text.encode(), content_type="text/csv")
    answer = signed_in(Role.OPERATOR).post("/mappings/import", {"file": file})

    assert answer.status_code == 200
    assert len(answer.content) < 3_000_000
    if says is not None:
        assert says in answer.content.decode()
