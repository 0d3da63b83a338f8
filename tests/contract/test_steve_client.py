"""The client against what real servers of StEvE 3.7.1, 3.9.0 and 3.14.1 answered."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import socket
import threading
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from ocpp_billing import effects
from ocpp_billing.simulators.server import Fault, Request, Response, SimulatedServer
from ocpp_billing.steve import capabilities
from ocpp_billing.steve.client import SteveClient, SteveSettings, id_batches
from ocpp_billing.steve.errors import (
    ApiDisabled,
    BadRequest,
    FeatureMissing,
    InvalidSettings,
    NotFound,
    NotJson,
    ServerFault,
    SteveError,
    Unauthorised,
    Unreachable,
    WrongAddress,
    WrongCredentialKind,
)

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "recordings"
RELEASES = ("3.7.1", "3.9.0", "3.14.1")
SECRET = "s3cr3t-of-the-bridge"


class RecordedSteve(SimulatedServer):
    """Answers with what was recorded of a release, below a context path.

    Of ids it filters the recorded lists, the way the recorded answers for single ids and lists show.
    """

    def __init__(self, release: str, context: str = "/steve") -> None:
        super().__init__()
        self.context = context
        self.by_name: dict[str, dict[str, Any]] = {}
        self.by_target: dict[Any, dict[str, Any]] = {}
        self.queries: dict[str, dict[str, str]] = {}
        for file in sorted((RECORDINGS / f"steve-{release}").glob("[0-9]*.json")):
            exchange = json.loads(file.read_text())
            self.by_name[file.stem[4:]] = exchange["response"]
            if exchange["request"]["auth"] in {"none", "as given"} or file.stem.endswith(
                ("empty", "repeated")
            ):
                continue
            path, _, query = exchange["request"]["path"].partition("?")
            pairs = dict(pair.split("=", 1) for pair in query.split("&")) if query else {}
            self.queries[file.stem[4:]] = pairs
            self.by_target.setdefault(
                (exchange["request"]["method"], path, frozenset(pairs.items())), exchange["response"]
            )
        # Recorded with a zone where the release takes one; it takes the time without one as well.
        one_in_1990 = {"transactionPk": "1"} | capabilities.NOWHEN
        self.by_target["GET", "/api/v1/transactions", frozenset(one_in_1990.items())] = self.by_name[
            "from-to-1990-with-pk"
        ]
        self.basic = "auth-api-key-header-on-basic-release" in self.by_name
        self.lists_ids = self.by_name["by-pk-comma-list"]["status"] == 200

    def handle_control(self, request: Request, command: str) -> Response | None:
        return None

    def handle(self, request: Request) -> Response:
        if not request.path.startswith(self.context + "/api/v1/"):
            return Response(404, {"content-type": "text/html"}, b"<h1>Not Found</h1>")
        refused = self.refused(request)
        if refused is not None:
            return self.answer(refused)
        query = dict(request.query)
        path = request.path.removeprefix(self.context)
        found = self.by_target.get((request.method, path, frozenset(query.items())))
        return self.answer(found or self.derived(path, query))

    def refused(self, request: Request) -> dict[str, Any] | None:
        if not self.basic:
            right = request.headers.get("steve-api-key") == SECRET
            return None if right else self.by_name["auth-wrong-password"]
        sent = request.headers.get("authorization", "")
        if not sent:
            return self.by_name["auth-none"]
        name, _, password = base64.b64decode(sent.removeprefix("Basic ")).decode().partition(":")
        if name != "admin":
            return self.by_name["auth-unknown-user"]
        return None if password == SECRET else self.by_name["auth-wrong-password"]

    def derived(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        if path.endswith("/reports/csv"):
            return self.by_name["csv-report"]
        if path != "/api/v1/transactions":
            has_details = self.by_name["details"]["status"] == 200
            name = "details-not-a-number" if has_details and query else "details-unknown"
            return self.by_name[name]
        assert query.keys() <= {"transactionPk", "type"}, query
        recorded = self.by_name["transactions-stopped" if query.get("type") else "transactions-all"]
        if recorded["status"] != 200 or ("," in query["transactionPk"] and not self.lists_ids):
            return self.by_name["by-pk-not-a-number"]
        ids = {int(text) for text in query["transactionPk"].split(",")}
        return {**recorded, "body": [row for row in recorded["body"] if row["id"] in ids]}

    def answer(self, recorded: dict[str, Any]) -> Response:
        body = recorded["body"]
        if recorded["headers"].get("content-type", "").startswith("text/csv"):
            return Response(200, dict(recorded["headers"]), body.encode("latin-1"))
        content = b"" if body is None else json.dumps(body).encode()
        return Response(recorded["status"], dict(recorded["headers"]), content)


def settings(server: SimulatedServer, path: str = "", **changes: Any) -> SteveSettings:
    return SteveSettings(url=server.url + path, **{"key": SECRET, "username": "admin"} | changes)


@pytest.fixture(params=RELEASES)
def steve(request):
    with RecordedSteve(request.param) as server:
        yield server


@pytest.fixture
def newest():
    with RecordedSteve("3.14.1") as server:
        yield server


@pytest.fixture
def client(newest):
    with SteveClient(settings(newest)) as client:
        yield client


class Scripted(SimulatedServer):
    """Gives one answer to everything."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response
        self.seen: list[Request] = []

    def handle(self, request: Request) -> Response:
        self.seen.append(request)
        return self.response

    def handle_control(self, request: Request, command: str) -> Response | None:
        return None


def error_of(response: Response, **changes: Any) -> SteveError:
    """What reading transactions says when everything is answered like this."""
    with Scripted(response) as server, SteveClient(settings(server, **changes)) as client:
        with pytest.raises(SteveError) as caught:
            client.transactions(ids=[1])
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        return caught.value


# -- reading -------------------------------------------------------------------------------------


def test_all_transactions_of_each_release_are_read_with_the_same_settings(steve):
    with SteveClient(settings(steve)) as client:
        answer = client.transactions()
    assert [row.steve_id for row in answer.rows] == list(range(18, 0, -1))
    assert answer.malformed == []


def test_running_transactions_are_read(steve):
    with SteveClient(settings(steve)) as client:
        active = client.transactions(type="ACTIVE").rows
    expected = [row["id"] for row in steve.by_name["transactions-active"]["body"]]
    assert [row.steve_id for row in active] == expected
    assert all(row.stopped_at is None for row in active)


def test_transactions_by_id_are_read_one_by_one_or_in_lists_by_release(steve):
    lists = steve.lists_ids
    with SteveClient(settings(steve)) as client:
        client.locate()
        before = client.calls
        answer = client.transactions_by_id([1, 2, 3, 999_999], id_lists=lists)
    assert sorted(row.steve_id for row in answer.rows) == [1, 2, 3]
    assert client.calls - before == (1 if lists else 4)


def test_a_window_is_sent_in_utc_without_a_zone_which_every_release_reads(steve):
    recorded = steve.by_name["from-to-without-zone"]
    window = steve.queries["from-to-without-zone"]
    begin, end = (datetime.fromisoformat(window[name] + "+00:00") for name in ("from", "to"))
    berlin = timezone(timedelta(hours=1))
    with SteveClient(settings(steve)) as client:
        answer = client.transactions(
            from_=begin.astimezone(berlin) + timedelta(milliseconds=400),
            to=end.astimezone(berlin) - timedelta(milliseconds=400),
        )
    assert [row.steve_id for row in answer.rows] == [row["id"] for row in recorded["body"]]


def test_a_window_before_1970_begins_where_the_database_does():
    with Scripted(Response.of_json([])) as server, SteveClient(settings(server)) as client:
        client.transactions(
            type="STOPPED", from_=datetime(1969, 12, 31, tzinfo=UTC), to=datetime(1971, 1, 2, tzinfo=UTC)
        )
        assert dict(server.seen[-1].query) == {
            "type": "STOPPED",
            "periodType": "FROM_TO",
            "from": "1970-01-01T00:00:01",
            "to": "1971-01-02T00:00:00",
        }


NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "conditions",
    [
        {"from_": NOON},
        {"to": NOON},
        {"from_": NOON, "to": NOON},
        {"from_": NOON, "to": NOON - timedelta(hours=1)},
        {"from_": NOON.replace(tzinfo=None), "to": NOON},
        {"ids": list(range(1, 302))},
        {"ids": [10**25] * 300},
    ],
)
def test_a_condition_that_steve_would_ignore_refuse_or_split_is_never_sent(client, newest, conditions):
    client.locate()
    sent = newest.request_count
    with pytest.raises(ValueError, match=r"window|ids|charge box|too long"):
        client.transactions(**conditions)
    assert newest.request_count == sent


def test_an_empty_list_of_ids_asks_nothing_instead_of_everything(client, newest):
    assert client.transactions(ids=[]).rows == []
    assert newest.request_count == 0


def test_three_hundred_of_the_longest_ids_fit_into_one_call(client, newest):
    client.transactions(ids=range(2**63 - 300, 2**63))
    assert len(newest.requests[-1]["path"]) < 7_500  # StEvE takes 8,192 bytes of headers and address


@pytest.mark.parametrize(
    ("count", "id_lists", "sizes"),
    [(0, True, []), (1, True, [1]), (300, True, [300]), (601, True, [300, 300, 1]), (3, False, [1, 1, 1])],
)
def test_ids_are_split_into_what_a_release_can_take(count: int, id_lists: bool, sizes: list[int]):
    batches = list(id_batches(range(count), id_lists=id_lists))
    assert [len(batch) for batch in batches] == sizes
    assert [number for batch in batches for number in batch] == list(range(count))


def test_details_are_read_on_3_14_and_missing_before_3_12(steve):
    with SteveClient(settings(steve)) as client:
        if steve.by_name["details"]["status"] == 200:
            assert len(client.transaction_details(13).values) == 5
        else:
            with pytest.raises(FeatureMissing, match=r"3\.12"):
                client.transaction_details(13)


def test_details_of_an_unknown_transaction_are_not_found_and_the_feature_is_there(client):
    with pytest.raises(NotFound, match="no transaction with id '999999'"):
        client.transaction_details(999_999)


def test_a_transaction_is_closed_in_the_books_where_the_release_can(steve):
    with SteveClient(settings(steve)) as client:
        if steve.by_name["manual-stop-running"]["status"] == 200:
            client.stop_transaction(14)
            with pytest.raises(NotFound):
                client.stop_transaction(999_999)
        else:
            with pytest.raises(FeatureMissing, match="closing a transaction"):
                client.stop_transaction(14)
    assert steve.requests[-1]["method"] == "PATCH"


def test_the_report_is_read_where_the_release_has_it(steve):
    with SteveClient(settings(steve)) as client:
        if steve.by_name["csv-report"]["status"] == 200:
            rows = client.report_csv(NOON - timedelta(days=40), NOON + timedelta(days=2)).rows
            assert len(rows) == steve.by_name["csv-report"]["body"].count("\n") - 1
        else:
            with pytest.raises(FeatureMissing, match="report"):
                client.report_csv(NOON - timedelta(days=40), NOON + timedelta(days=2))
    assert "from=2026-10-13T12:00:00Z&to=2026-11-24T12:00:00Z" in steve.requests[-1]["path"]


def test_tags_are_read_all_at_once(steve):
    with SteveClient(settings(steve)) as client:
        tags = client.tags().rows
        assert len(tags) == 57
        assert "TAG-DAVE" in {tag.id_tag for tag in tags}


# -- where it is and who we are ------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/", "/steve", "/steve/", "/steve/api/v1", "/steve/api/v1/"])
def test_the_address_may_be_given_with_or_without_the_context_path(newest, path: str):
    with SteveClient(settings(newest, path)) as client:
        assert client.locate() == newest.url + "/steve/api/v1"
        assert client.locate() == client.api_url


def test_an_empty_context_path_is_found():
    with RecordedSteve("3.9.0", context="") as server, SteveClient(settings(server)) as client:
        assert client.locate() == server.url + "/api/v1"


def test_what_was_found_is_remembered_and_may_be_given_back(newest):
    with SteveClient(settings(newest)) as client:
        client.transactions(ids=[1])
        client.transactions(ids=[1])
        assert client.calls == 4  # two addresses tried, twice read
        found = client.api_url
    with SteveClient(settings(newest), api_url=found) as again:
        again.transactions(ids=[1])
        assert again.calls == 1


def test_a_steve_that_moved_to_another_context_path_is_found_again(newest):
    with SteveClient(settings(newest)) as client:
        client.transactions(ids=[1])
        newest.context = ""
        with pytest.raises(WrongAddress):
            client.transactions(ids=[1])
        assert len(client.transactions(ids=[1]).rows) == 1


def test_a_server_that_is_not_steve_is_named_with_both_addresses_tried(newest):
    newest.context = "/elsewhere"
    with SteveClient(settings(newest)) as client, pytest.raises(WrongAddress) as caught:
        client.transactions()
    assert "/api/v1 nor at" in str(caught.value)
    assert "/steve/api/v1" in str(caught.value)
    assert "STEVE_API_URL" in str(caught.value)


def test_a_404_of_another_spring_application_is_a_wrong_address_too():
    body = {"timestamp": "x", "status": 404, "error": "Not Found", "message": "No message available"}
    assert isinstance(error_of(Response.of_json(body, 404)), WrongAddress)


def test_a_wrong_key_is_told_apart_from_a_wrong_address(steve):
    with (
        SteveClient(
            settings(steve, key="another-secret", username=None if not steve.basic else "admin")
        ) as c,
        pytest.raises(Unauthorised, match="STEVE_API_KEY") as caught,
    ):
        c.transactions()
    assert caught.value.status == 401
    assert "another-secret" not in str(caught.value)


def test_an_unknown_user_is_named_in_steves_words(newest):
    with (
        SteveClient(settings(newest, username="nobody")) as client,
        pytest.raises(Unauthorised, match=r"API access disabled.*STEVE_API_USERNAME"),
    ):
        client.transactions()


@pytest.mark.parametrize("release", ["3.9.0", "3.14.1"])
def test_a_missing_user_name_is_said_to_be_missing(release: str):
    with (
        RecordedSteve(release) as steve,
        SteveClient(settings(steve, username=None)) as client,
        pytest.raises(WrongCredentialKind, match="Set STEVE_API_USERNAME"),
    ):
        client.transactions()


def test_a_user_name_and_a_wrong_key_on_3_7_are_said_to_be_the_wrong_kind():
    with (
        RecordedSteve("3.7.1") as steve,
        SteveClient(settings(steve, key="another-secret")) as client,
        pytest.raises(WrongCredentialKind, match="STEVE_API_KEY_HEADER"),
    ):
        client.transactions()


def test_a_proxy_that_removes_the_credentials_is_suspected():
    answer = Response(302, {"location": "/steve/manager/signin"})
    error = error_of(answer)
    assert isinstance(error, WrongCredentialKind)
    assert "proxy" in str(error)


def test_a_root_that_redirects_to_steves_sign_in_does_not_hide_the_api_below(newest):
    newest.add_fault(Fault("status", path="^/api", status=302, headers={"location": "/steve/manager/signin"}))
    with SteveClient(settings(newest)) as client:
        assert client.locate().endswith("/steve/api/v1")


def test_credentials_of_both_kinds_go_along_at_once_and_only_the_header_without_a_user_name():
    with Scripted(Response.of_json([])) as server:
        with SteveClient(settings(server, username="ädmin", key_header="X-Key")) as client:
            client.transactions(ids=[1])
        with SteveClient(settings(server, username=None)) as client:
            client.transactions(ids=[1])
    both, alone = server.seen[0].headers, server.seen[-1].headers
    assert both["x-key"] == SECRET
    assert both["authorization"] == "Basic " + base64.b64encode(f"ädmin:{SECRET}".encode()).decode()
    assert alone["steve-api-key"] == SECRET
    assert "authorization" not in alone
    assert (alone["accept"], alone["accept-encoding"]) == ("application/json", "gzip")


def test_a_redirect_is_not_followed_and_a_cookie_not_kept():
    away = Response(302, {"location": "https://steve.example.org/", "set-cookie": "JSESSIONID=1; Path=/"})
    with Scripted(away) as server, SteveClient(settings(server)) as client:
        for _ in range(2):
            with pytest.raises(WrongAddress, match=r"redirects to https://steve\.example\.org/"):
                client.transactions()
    assert len(server.seen) == 4
    assert not any("cookie" in request.headers for request in server.seen)


# -- what can go wrong ---------------------------------------------------------------------------

DISABLED = b"<html><body>org.springframework...DisabledException: Web APIs are not exposed</body></html>"


@pytest.mark.parametrize(
    ("response", "kind", "words"),
    [
        (Response(500, {"content-type": "text/html"}, DISABLED), ApiDisabled, "webapi.value"),
        (Response(500, {"content-type": "text/html"}, b"<h1>Oops</h1>"), ServerFault, "log"),
        (
            Response.of_json({"timestamp": "t", "status": 500, "message": "HikariPool: no connection"}, 500),
            ServerFault,
            "HikariPool",
        ),
        (Response(502, {"content-type": "text/html"}, b"<h1>Bad gateway</h1>"), ServerFault, "502"),
        (Response(503), ServerFault, "next cycle"),
        (Response(429), ServerFault, "Too many requests"),
        (Response(200, {"content-type": "text/html"}, b"<html>Welcome</html>"), NotJson, "a web page"),
        (Response(200, {"content-type": "application/json"}, b""), NotJson, "nothing"),
        (Response.of_json({"data": []}), NotJson, "not what its API says"),
        (Response(200, {"content-encoding": "gzip"}, b"this is not gzip"), NotJson, "compressed"),
        (Response(401, {"content-type": "text/html"}, b"<h1>401</h1>"), Unauthorised, "in front of StEvE"),
        (Response(403), WrongAddress, "STEVE_API_URL"),
        (Response(400, {"content-type": "text/html"}, b"<h1>Bad</h1>"), BadRequest, "400"),
        (
            Response.of_json({"timestamp": "t", "status": 401, "message": f"{SECRET} is wrong"}, 401),
            Unauthorised,
            r"\*\*\* is wrong",
        ),
    ],
)
def test_each_refusal_says_what_happened_and_what_to_do(response: Response, kind: type, words: str):
    error = error_of(response)
    assert type(error) is kind
    with pytest.raises(kind, match=words):
        raise error


def test_a_hostile_answer_that_never_ends_is_given_up():
    bomb = gzip.compress(b"[" + b" " * 20_000_000)
    response = Response(200, {"content-encoding": "gzip", "content-type": "application/json"}, bomb)
    error = error_of(response, largest_answer_bytes=2**20)
    assert type(error) is NotJson
    assert "longer than 1 MiB" in str(error)


def test_a_deeply_nested_answer_is_not_a_traceback():
    deep = Response(200, {"content-type": "application/json"}, b"[" * 200_000)
    assert type(error_of(deep)) is NotJson


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "truncate"])
def test_an_answer_that_ends_early_is_no_answer(client, newest, kind):
    client.locate()
    newest.add_fault(Fault(kind))
    with pytest.raises(Unreachable, match="broke off"):
        client.transactions()
    assert len(client.transactions().rows) == 18


def test_garbage_is_not_json(client, newest):
    client.locate()
    newest.add_fault(Fault("garbage"))
    with pytest.raises(NotJson):
        client.transactions()


def test_a_server_that_does_not_answer_is_given_up_after_the_time_set(newest):
    newest.add_fault(Fault("hang", seconds=5))
    with (
        SteveClient(settings(newest, read_timeout_s=0.1)) as client,
        pytest.raises(Unreachable, match=r"within 0\.1 s.*STEVE_READ_TIMEOUT_SECONDS"),
    ):
        client.transactions()


def test_an_answer_that_drips_is_given_up_after_the_time_for_a_whole_answer():
    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
            with suppress(OSError):
                while not stop.wait(0.02):
                    connection.sendall(b" ")

    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip)
        thread.start()
        given = SteveSettings(
            url=f"http://127.0.0.1:{listener.getsockname()[1]}", key=SECRET, answer_timeout_s=0.1
        )
        with SteveClient(given) as client, pytest.raises(Unreachable, match="not complete after"):
            client.transactions()
        stop.set()
        thread.join()


def test_a_dead_address_says_so():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        SteveClient(SteveSettings(url=f"http://127.0.0.1:{port}", key=SECRET)) as client,
        pytest.raises(Unreachable, match="STEVE_API_URL"),
    ):
        client.transactions()


def test_a_server_without_tls_at_an_https_address_says_so(newest):
    given = SteveSettings(url=newest.url.replace("http:", "https:"), key=SECRET)
    with SteveClient(given) as client, pytest.raises(Unreachable, match="TLS"):
        client.transactions()


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"url": "steve.example.org"}, "STEVE_API_URL"),
        ({"url": "ftp://steve.example.org"}, "STEVE_API_URL"),
        ({"url": "http://"}, "STEVE_API_URL"),
        ({"url": "http://[::1"}, "STEVE_API_URL"),
        ({"url": "http://steve:99999"}, "STEVE_API_URL"),
        ({"url": "http://admin:s3cr3t@steve.example.org"}, "STEVE_API_USERNAME"),
        ({"url": "http://steve.example.org/?a=1"}, "STEVE_API_URL"),
        ({"url": "http://steve.example.org/a b"}, "STEVE_API_URL"),
        ({"key": ""}, "STEVE_API_KEY"),
        ({"key": "s3cr3t\r\nX: y"}, "STEVE_API_KEY"),
        ({"key": "s3cr3t "}, "STEVE_API_KEY"),
        ({"username": ""}, "STEVE_API_USERNAME"),
        ({"username": "a:b"}, "STEVE_API_USERNAME"),
        ({"key_header": "X Key"}, "STEVE_API_KEY_HEADER"),
    ],
)
def test_settings_that_cannot_be_sent_are_refused_at_once_without_showing_them(changes, setting: str):
    with pytest.raises(InvalidSettings, match=setting) as caught:
        SteveSettings(**{"url": "http://steve.example.org", "key": SECRET} | changes)
    assert "s3cr3t" not in str(caught.value)


def test_the_secret_is_never_shown(newest, caplog):
    caplog.set_level(logging.DEBUG)
    with SteveClient(settings(newest)) as client:
        client.transactions()
        newest.add_fault(Fault("drop_before"))
        with pytest.raises(Unreachable) as caught:
            client.transactions()
        shown = [repr(client), repr(client.settings), str(client.settings), caplog.text]
    encoded = base64.b64encode(f"admin:{SECRET}".encode()).decode()
    error: BaseException | None = caught.value
    assert error is not None
    assert error.__cause__ is None
    assert error.__suppress_context__
    shown += traceback.format_exception(error)
    assert not any(secret in text for secret in (SECRET, encoded) for text in shown)


# -- effects, pace and threads -------------------------------------------------------------------


@pytest.fixture
def seen_effects():
    seen: list[tuple[str, str]] = []
    effects.install_hook(lambda name, phase: seen.append((name, phase)))
    yield seen
    effects.install_hook(None)


def test_every_call_is_an_effect_named_without_ids(client, seen_effects):
    client.locate()
    seen_effects.clear()
    client.transactions(ids=[1])
    client.transaction_details(13)
    client.tags()
    client.stop_transaction(14)
    client.report_csv(NOON, NOON + timedelta(days=1))
    assert [name for name, phase in seen_effects if phase == "after"] == [
        "http steve GET /transactions",
        "http steve GET /transactions/{id}",
        "http steve GET /ocppTags",
        "http steve PATCH /transactions/{id}/stop",
        "http steve GET /transactions/reports/csv",
    ]


def test_a_crash_at_an_effect_is_not_taken_for_a_fault_of_steve(client, newest):
    class Crash(BaseException):
        pass

    def crash(name: str, phase: str) -> None:
        raise Crash

    effects.install_hook(crash)
    try:
        with pytest.raises(Crash):
            client.transactions()
    finally:
        effects.install_hook(None)
    assert newest.request_count == 0


def test_calls_and_how_long_they_take_are_counted(newest):
    ticks = iter(range(1_000))
    with SteveClient(settings(newest), clock=lambda: float(next(ticks))) as client:
        client.locate()
        client.transactions(type="ACTIVE")
        client.transactions(ids=[1])
        client.tags()
        assert client.calls == newest.request_count == 5
        assert client.busy_s >= client.calls


def test_a_failed_call_counts_as_time_of_steve_too(client, newest):
    client.locate()
    calls, busy_s = client.calls, client.busy_s
    newest.add_fault(Fault("slow", seconds=0.05))
    newest.add_fault(Fault("status", status=503))
    client.transactions(ids=[1])
    with pytest.raises(ServerFault):
        client.transactions(ids=[1])
    assert client.calls == calls + 2
    assert client.busy_s - busy_s > 0.05


def test_threads_share_one_client(client, newest):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: client.transactions(ids=[number]), list(range(1, 19)) * 3))
    assert Counter(row.steve_id for answer in answers for row in answer.rows) == dict.fromkeys(
        range(1, 19), 3
    )
    assert client.calls == newest.request_count


# -- what a release can do -----------------------------------------------------------------------


@pytest.mark.parametrize("known_id", [1, None])
@pytest.mark.parametrize("release", RELEASES)
def test_the_release_is_recognised_in_at_most_four_harmless_calls(release: str, known_id: int | None):
    with RecordedSteve(release) as steve, SteveClient(settings(steve)) as client:
        client.locate()
        steve.requests.clear()
        assert capabilities.probe(client, known_id) == capabilities.override(release)
        asked = [request["path"] for request in steve.requests]
    assert len(asked) <= 4
    assert all("transactionPk=" in path or "/transactions/" in path for path in asked)
    assert len(set(asked)) == len(asked)
