"""The simulated Lago does what Lago does: one test per fact, all four stores, real HTTP on loopback."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote, urlencode
from zoneinfo import ZoneInfo

import jsonschema_rs
import pytest
import yaml

from ocpp_billing.simulators.lago import LagoSimulator
from ocpp_billing.simulators.lago_formats import LagoError, iso_milliseconds, units_text
from ocpp_billing.simulators.lago_periods import billing_instant, period_containing
from ocpp_billing.simulators.server import Fault

CONTRACT = Path(__file__).parents[2].parent / "shared" / "contracts" / "lago-openapi-1.51.yaml"
NOON = datetime(2026, 11, 17, 12, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")
STORES = ["postgres", "postgres-1.32", "postgres-1.30", "clickhouse"]
POSTGRES = STORES[:3]
DUPLICATE = {"transaction_id": ["value_already_exist"]}


class Client:
    """One keep-alive connection that speaks JSON and returns (status, body)."""

    def __init__(self, simulator):
        self.simulator = simulator
        self.connection = http.client.HTTPConnection("127.0.0.1", simulator.port, timeout=10)
        self.headers = {"authorization": f"Bearer {simulator.api_key}", "content-type": "application/json"}

    def request(self, method, path, body=None, *, raw=None, headers=None):
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        self.connection.request(method, path, data, {**self.headers, **(headers or {})})
        response = self.connection.getresponse()
        self.last_headers = {name.lower(): value for name, value in response.getheaders()}
        content = response.read()
        return response.status, json.loads(content) if content else None

    def get(self, path, **query):
        pairs = [
            (key, item)
            for key, value in query.items()
            for item in (value if isinstance(value, list) else [value])
        ]
        return self.request("GET", f"/api/v1{path}" + (f"?{urlencode(pairs)}" if pairs else ""))

    def post(self, path, body):
        return self.request("POST", f"/api/v1{path}", body)

    def send(self, *events):
        return self.post("/events/batch", {"events": list(events)})

    def usage(self, subscription="sub", customer="driver"):
        status, body = self.get(f"/customers/{customer}/current_usage", external_subscription_id=subscription)
        assert status == 200, body
        charges = body["customer_usage"]["charges_usage"]
        return [(charge["units"], charge["events_count"]) for charge in charges]

    def past(self, subscription="sub", customer="driver"):
        status, body = self.get(f"/customers/{customer}/past_usage", external_subscription_id=subscription)
        assert status == 200, body
        return [
            (
                period["from_datetime"],
                period["to_datetime"],
                [charge["units"] for charge in period["charges_usage"]],
            )
            for period in body["usage_periods"]
        ]

    def details(self, answer):
        status, body = answer
        assert status == 422, answer
        assert (body["status"], body["error"], body["code"]) == (
            422,
            "Unprocessable Entity",
            "validation_errors",
        )
        return body["error_details"]


def event(transaction_id, kwh="10", at=NOON, subscription="sub", **more):
    seconds = at if isinstance(at, str | int | float) else f"{at.timestamp():.3f}"
    given = {
        "transaction_id": transaction_id,
        "external_subscription_id": subscription,
        "code": "ev_charging_kwh",
        "timestamp": seconds,
        "properties": {"kwh": kwh},
    }
    return {**given, **more}


@pytest.fixture
def start():
    """Make simulators with one customer, plan and subscription from 1 November; frozen at NOON."""
    running = []

    def make(
        store="postgres",
        *,
        now=NOON,
        subscribed=True,
        customer=None,
        plan=None,
        billing_time="calendar",
        **given,
    ):
        simulator = LagoSimulator(store, **given)
        simulator.set_clock(now, frozen=True)
        simulator.start()
        client = Client(simulator)
        running.append((simulator, client))
        simulator.create_metric()
        simulator.create_plan(**(plan or {}))
        simulator.create_customer("driver", **(customer or {}))
        if subscribed:
            begins = now.replace(day=1, hour=0)
            simulator.subscribe("driver", "ev_payg", "sub", subscription_at=begins, billing_time=billing_time)
        return simulator, client

    yield make
    for simulator, client in running:
        client.connection.close()
        simulator.stop()


@pytest.fixture
def lago(start):
    return start()


def fates(simulator):
    return {entry["transaction_id"]: entry.get("reason", entry["state"]) for entry in simulator.ledger()}


# -- 1.1 one event -----------------------------------------------------------------------------


def test_an_accepted_event_is_echoed_without_customer_and_subscription(lago):
    _, client = lago
    status, body = client.post("/events", {"event": event("tx-1", "12.345", at="1794916800.123")})
    shown = body["event"]
    assert status == 200
    assert shown["transaction_id"] == "tx-1"
    assert shown["properties"] == {"kwh": "12.345"}
    assert (shown["lago_customer_id"], shown["lago_subscription_id"]) == (None, None)
    assert shown["timestamp"].endswith(".123Z")
    assert shown["lago_id"]


def test_almost_anything_is_answered_200_and_never_billed(lago):
    simulator, client = lago
    odd = [
        event("unknown-subscription", subscription="nobody"),
        {
            key: value
            for key, value in event("absent-subscription").items()
            if key != "external_subscription_id"
        },
        event("unknown-metric", code="no_such_metric"),
        event("no-field", properties={"wh": "10"}),
        event("no-properties", properties=None),
        event("before", at=datetime(2020, 1, 1, tzinfo=UTC)),
        event("milliseconds", at=int(NOON.timestamp() * 1000)),
    ]
    for item in odd:
        assert client.post("/events", {"event": item})[0] == 200, item
    assert client.usage() == [("0.0", 0)]
    assert fates(simulator) == {
        "unknown-subscription": "unknown_subscription",
        "absent-subscription": "no_subscription_given",
        "unknown-metric": "unknown_metric",
        "no-field": "not_numeric",
        "no-properties": "not_numeric",
        "before": "before_start",
        "milliseconds": "beyond_all_periods",
    }
    assert simulator.summary()["energy_wh"] == 0


def test_milliseconds_become_a_year_far_ahead():
    assert iso_milliseconds(1_700_000_000_000 * 1_000_000) == "55840-11-08T22:13:20.000Z"  # as date(1) says


def test_blank_transaction_id_and_code_are_mandatory(lago):
    _, client = lago
    for blank in (None, "", "  ", [], {}, ["a"], False):
        answer = client.post("/events", {"event": event(blank, code=blank)})
        assert client.details(answer) == {
            "transaction_id": ["value_is_mandatory"],
            "code": ["value_is_mandatory"],
        }


def test_a_number_is_cast_to_a_string_id(lago):
    _, client = lago
    _, body = client.post("/events", {"event": event(4711)})
    assert body["event"]["transaction_id"] == "4711"


@pytest.mark.parametrize("given", ["2026-11-17T12:00:00Z", "", "soon", "NaN", "1794916800,5", True])
def test_a_timestamp_that_is_no_number_of_seconds_is_refused(lago, given):
    _, client = lago
    assert client.details(client.send(event("tx", at=given) | {"timestamp": given})) == {
        "0": {"timestamp": ["invalid_format"]}
    }


@pytest.mark.parametrize("given", [1794916800, 1794916800.5, "1794916800", "1794916800.123456"])
def test_seconds_are_taken_as_integer_float_or_decimal_string(lago, given):
    _, client = lago
    assert client.send(event("tx") | {"timestamp": given})[0] == 200


def test_an_absent_timestamp_is_the_servers_time(lago):
    _, client = lago
    _, body = client.send(event("tx") | {"timestamp": None})
    assert body["events"][0]["timestamp"] == "2026-11-17T12:00:00.000Z"


def test_before_v1_48_seconds_went_through_a_binary_float(start):
    _, old = start(version="1.47.0")
    _, new = start(version="1.48.0")
    for client, expected in ((old, "122"), (new, "123")):
        _, body = client.send(event("tx", at="1700000000.123"))
        assert body["events"][0]["timestamp"] == f"2023-11-14T22:13:20.{expected}Z"


def test_unlisted_keys_of_an_event_are_dropped_and_of_its_properties_kept(lago):
    _, client = lago
    client.send(event("tx", external_customer_id="driver", properties={"kwh": "1", "note": {"a": [1]}}))
    _, body = client.get("/events/tx")
    assert "external_customer_id" not in body["event"]
    assert body["event"]["properties"] == {"kwh": "1", "note": {"a": [1]}}


def test_jsonb_gives_properties_back_in_its_own_order(lago):
    _, client = lago
    client.send(event("tx", properties={"stopped_at": "b", "kwh": "1", "a": "x"}))
    _, body = client.get("/events/tx")
    assert list(body["event"]["properties"]) == ["a", "kwh", "stopped_at"]


def test_properties_that_are_no_object_are_dropped(lago):
    _, client = lago
    _, body = client.send(event("tx", properties=["kwh"]))
    assert body["events"][0]["properties"] == {}


def test_a_nul_byte_is_reported_as_a_bad_timestamp_and_poisons_a_batch(lago):
    simulator, client = lago
    poison = event("tx", properties={"kwh": "1", "charge_box_id": "a\x00b"})
    assert client.details(client.post("/events", {"event": poison})) == {"timestamp": ["invalid_format"]}
    assert client.send(event("good"), poison)[0] == 500
    assert simulator.ledger() == []


# -- error shapes ------------------------------------------------------------------------------


def test_wrong_key_401_unknown_route_404_missing_root_400_broken_json_400(lago):
    _, client = lago
    assert client.request("GET", "/api/v1/events", headers={"authorization": "Bearer wrong"}) == (
        401,
        {"status": 401, "error": "Unauthorized"},
    )
    assert client.request("POST", "/api/v1/events/batch", {}, headers={"authorization": ""})[0] == 401
    assert client.get("/nothing") == (
        404,
        {"status": 404, "error": "Not Found", "code": "resource_not_found"},
    )
    assert client.request("GET", "/elsewhere")[0] == 404
    missing = "BadRequest: param is missing or the value is empty or invalid: event"
    for body in ({}, {"event": {}}, {"events": [event("tx")]}):
        assert client.post("/events", body) == (400, {"status": 400, "error": missing})
    assert client.request("POST", "/api/v1/events/batch", raw=b'{"events": [')[0] == 400


def test_a_compressed_or_untyped_body_is_not_read(lago):
    _, client = lago
    body = json.dumps({"event": event("tx")}).encode()
    assert (
        client.request("POST", "/api/v1/events", raw=body, headers={"content-type": "text/plain"})[0] == 400
    )
    assert client.request("POST", "/api/v1/events", raw=b"\x1f\x8b" + body)[0] == 400


def test_a_key_without_permission_gets_403_with_the_action(lago):
    simulator, client = lago
    simulator.deny("write", "event")
    status, body = client.send(event("tx"))
    assert (status, body["code"]) == (403, "write_action_not_allowed_for_event")
    assert client.get("/events")[0] == 200


def test_a_revoked_key_still_sends_events_for_up_to_an_hour(lago):
    simulator, client = lago
    simulator.revoke_api_key()
    assert client.get("/customers")[0] == 401
    assert client.send(event("tx"))[0] == 200
    simulator.set_clock(NOON + timedelta(hours=1), frozen=True)
    assert client.send(event("tx-2"))[0] == 401


def test_a_limit_answers_429_with_the_seconds_until_reset(lago):
    simulator, client = lago
    simulator.limit_rate(1, reset_s=7)
    assert client.send(event("tx"))[0] == 429
    assert client.last_headers["x-ratelimit-reset"] == "7"
    assert client.last_headers["x-ratelimit-remaining"] == "0"
    assert client.send(event("tx"))[0] == 200


# -- 1.2 batches, four stores side by side --------------------------------------------------------


def test_an_empty_batch_and_one_too_long_are_refused_whole(lago):
    simulator, client = lago
    for nothing in ({}, {"events": []}, {"events": None}, {"events": ["text"]}):
        assert client.details(client.post("/events/batch", nothing)) == {"events": ["no_events"]}
    assert client.send(*(event(f"tx-{n}") for n in range(100)))[0] == 200
    too_many = client.send(*(event(f"more-{n}") for n in range(101)))
    assert client.details(too_many) == {"events": ["too_many_events"]}
    simulator.set_batch_max(2)
    assert client.details(client.send(event("a"), event("b"), event("c"))) == {"events": ["too_many_events"]}


def test_answers_come_in_the_order_of_the_batch(lago):
    _, client = lago
    names = [f"tx-{n}" for n in (5, 3, 9, 1)]
    _, body = client.send(*(event(name) for name in names))
    assert [shown["transaction_id"] for shown in body["events"]] == names


@pytest.mark.parametrize(
    ("store", "status", "stored"),
    [
        ("postgres", 422, {"known"}),
        ("postgres-1.32", 422, {"known", "new-1", "new-2"}),
        ("postgres-1.30", 422, {"known"}),
        ("clickhouse", 200, {"known", "new-1", "new-2"}),
    ],
)
def test_one_duplicate_in_a_batch(start, store, status, stored):
    simulator, client = start(store)
    client.send(event("known"))
    answer = client.send(event("new-1"), event("known"), event("new-2"))
    assert answer[0] == status
    if status == 422:
        assert client.details(answer) == {"1": DUPLICATE}
    assert {entry["transaction_id"] for entry in simulator.ledger()} == stored


@pytest.mark.parametrize(
    ("store", "status", "stored"),
    [
        ("postgres", 422, []),
        ("postgres-1.32", 422, ["first", "twice"]),
        ("postgres-1.30", 500, ["first", "twice"]),
        ("clickhouse", 200, ["first", "twice", "twice", "last"]),
    ],
)
def test_the_same_event_twice_inside_one_batch(start, store, status, stored):
    simulator, client = start(store)
    answer = client.send(event("first"), event("twice"), event("twice"), event("last"))
    assert answer[0] == status
    if status == 422:
        assert client.details(answer) == {"2": DUPLICATE}
    kept = stored if store != "postgres-1.32" else [*stored, "last"]
    assert [entry["transaction_id"] for entry in simulator.ledger()] == kept


def test_up_to_v1_32_3_what_a_failed_batch_left_behind_is_not_processed(start):
    simulator, client = start("postgres-1.30")
    client.usage()
    assert client.send(event("left"), event("left"))[0] == 500
    assert [entry["processed"] for entry in simulator.ledger()] == [False]
    assert client.usage() == [("0.0", 0)]


@pytest.mark.parametrize("store", ["postgres", "postgres-1.32"])
def test_one_id_under_two_subscriptions_in_one_batch_can_never_succeed(start, store):
    simulator, client = start(store)
    simulator.subscribe("driver", "ev_payg", "other")
    both = (event("tx"), event("tx", subscription="other"))
    for _ in range(2):
        assert "1" in client.details(client.send(*both))
    if store == "postgres":
        assert simulator.ledger() == []
        assert [client.send(item)[0] for item in both] == [200, 200]


@pytest.mark.parametrize("store", ["postgres", "postgres-1.32"])
def test_validation_errors_hide_duplicates_until_the_resend(start, store):
    _, client = start(store)
    client.send(event("known"))
    bad = event("bad") | {"timestamp": "yesterday"}
    assert client.details(client.send(event("known"), bad)) == {"1": {"timestamp": ["invalid_format"]}}
    assert client.details(client.send(event("known"))) == {"0": DUPLICATE}


def test_up_to_v1_32_3_duplicates_are_validated_with_the_rest(start):
    _, client = start("postgres-1.30")
    client.send(event("known"))
    bad = event("bad") | {"timestamp": "yesterday"}
    assert client.details(client.send(event("known"), bad)) == {
        "0": DUPLICATE,
        "1": {"timestamp": ["invalid_format"]},
    }


@pytest.mark.parametrize("store", POSTGRES)
def test_a_resend_after_a_lost_answer_says_already_exists(start, store):
    simulator, client = start(store)
    simulator.add_fault(Fault("drop_after", path="/events/batch"))
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        client.send(event("tx"))
    assert client.details(client.send(event("tx"))) == {"0": DUPLICATE}
    assert client.usage() == [("10.0", 1)]


def test_newer_documentation_refuses_unknown_subscriptions_by_index(lago):
    simulator, client = lago
    simulator.refuse_unknown_subscriptions()
    details = client.details(client.send(event("good"), event("tx", subscription="nobody")))
    assert list(details) == ["1"]


def test_a_time_beyond_postgresql_is_a_500_of_the_whole_batch(lago):
    _, client = lago
    for beyond in (10**15, "1e999999", "-1e13"):
        assert client.send(event("good"), event("tx", at=beyond))[0] == 500
    assert client.get("/events/good")[0] == 404


def test_events_half_stored_by_v1_32_are_not_processed_but_billed(start):
    simulator, client = start("postgres-1.32")
    client.send(event("known"))
    assert client.usage() == [("10.0", 1)]
    client.send(event("new"), event("known"))
    assert client.usage() == [("10.0", 1)], "the cache of current usage was not expired"
    simulator.close_period("sub")
    assert client.past()[0][2] == ["20.0"]


# -- 1.3 idempotency --------------------------------------------------------------------------------


@pytest.mark.parametrize("store", POSTGRES)
def test_the_key_of_an_event_holds_its_subscription(start, store):
    simulator, client = start(store)
    simulator.subscribe("driver", "ev_payg", "other")
    assert client.send(event("tx"))[0] == 200
    assert client.send(event("tx", subscription="other"))[0] == 200
    assert client.details(client.post("/events", {"event": event("tx", "99")})) == DUPLICATE
    assert (client.usage(), client.usage("other")) == ([("10.0", 1)], [("10.0", 1)])


@pytest.mark.parametrize("store", POSTGRES)
def test_events_without_a_subscription_are_never_duplicates(start, store):
    simulator, client = start(store)
    for _ in range(2):
        assert client.send(event("tx", subscription=None))[0] == 200
    assert len(simulator.ledger()) == 2


def test_clickhouse_overwrites_the_same_key_silently(start):
    simulator, client = start("clickhouse")
    client.send(event("tx", "10"))
    assert client.send(event("tx", "7"))[0] == 200
    assert client.usage() == [("7.0", 1)]
    assert [entry.get("reason", entry["state"]) for entry in simulator.ledger()] == ["overwritten", "open"]


def test_clickhouse_bills_a_retry_with_another_timestamp_twice(start):
    _, client = start("clickhouse")
    client.send(event("tx", at="1794916800.123"))
    client.send(event("tx", at="1794916800.1239"))
    assert client.usage() == [("10.0", 1)], "its column holds milliseconds"
    client.send(event("tx", at="1794916800.124"))
    assert client.usage() == [("20.0", 2)]


def test_clickhouse_has_no_id_when_created_and_a_composite_one_when_read(start):
    simulator, client = start("clickhouse")
    _, body = client.send(event("tx"))
    assert body["events"][0]["lago_id"] is None
    assert client.get("/events/tx")[1]["event"]["lago_id"] == f"sub-tx-{int(NOON.timestamp())}"
    assert simulator.ledger()[0]["lago_id"]


def test_clickhouse_is_eventual(start):
    simulator, client = start("clickhouse")
    simulator.delay_visibility(30)
    client.send(event("tx"))
    assert client.get("/events/tx")[0] == 404
    assert client.get("/events")[1]["meta"]["total_count"] == 0
    assert client.usage() == [("0.0", 0)]
    simulator.set_clock(NOON + timedelta(seconds=30), frozen=True)
    assert client.get("/events/tx")[0] == 200
    assert client.usage() == [("10.0", 1)]


def test_clickhouse_shows_an_overwritten_row_until_it_is_merged(start):
    simulator, client = start("clickhouse")
    client.send(event("tx", "10"))
    client.send(event("tx", "7"))
    assert client.get("/events")[1]["meta"]["total_count"] == 2
    simulator.set_clock(NOON + timedelta(minutes=2), frozen=True)
    assert [shown["properties"] for shown in client.get("/events")[1]["events"]] == [{"kwh": "7"}]


def test_an_asynchronous_store_can_lose_what_it_answered_200_to(start):
    simulator, client = start("clickhouse")
    simulator.lose_events(1)
    assert client.send(event("lost"), event("kept"))[0] == 200
    assert list(fates(simulator)) == ["kept"]
    assert client.get("/events/lost")[0] == 404


# -- 0.6 numbers ------------------------------------------------------------------------------------

ODD_NUMBERS = [
    "1E+2",
    "1e-05",
    "+5",
    ".5",
    "5.",
    " 5",
    "5 ",
    "5,0",
    "",
    "NaN",
    "Infinity",
    "٣",
    True,
    None,
    ["5"],
]


@pytest.mark.parametrize("store", POSTGRES)
@pytest.mark.parametrize("kwh", ODD_NUMBERS)
def test_postgres_accepts_and_never_counts_what_is_no_plain_number(start, store, kwh):
    _, client = start(store)
    assert client.send(event("odd", kwh), event("plain", "1"))[0] == 200
    assert client.usage() == [("1.0", 1)]


@pytest.mark.parametrize(
    ("kwh", "units"),
    [("12.345", "12.345"), ("-0", "0.0"), ("007", "7.0"), (12.5, "12.5"), (3, "3.0"), (1e-05, "0.00001")],
)
def test_postgres_counts_plain_numbers_and_json_numbers(start, kwh, units):
    _, client = start()
    client.send(event("tx", kwh))
    assert client.usage() == [(units, 1)]


@pytest.mark.parametrize(
    ("kwh", "units"), [("1E+2", "100.0"), ("+5", "5.0"), (".5", "0.5"), ("5,0", "0.0"), ("", "0.0")]
)
def test_clickhouse_reads_more_and_counts_the_rest_as_zero(start, kwh, units):
    _, client = start("clickhouse")
    client.send(event("tx", kwh))
    assert client.usage() == [(units, 1)]


def test_quantities_are_summed_without_loss(lago):
    simulator, client = lago
    client.send(event("big", "16777216.001"), event("small", "0.000000000000000000001"))
    assert client.usage() == [("16777216.001000000000000000001", 2)]
    assert simulator.summary()["energy_wh"] == 16777216001


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("12.500", "12.5"),
        ("0", "0.0"),
        ("-0.00", "0.0"),
        ("1E+3", "1000.0"),
        ("12", "12.0"),
        ("-1.10", "-1.1"),
    ],
)
def test_quantities_print_as_ruby_prints_them(value, text):
    assert units_text(Decimal(value)) == text


def test_rounding_applies_to_the_sum_not_to_the_event(start):
    simulator, client = start(subscribed=False)
    simulator.create_metric("rounded", rounding_function="round", rounding_precision=2)
    simulator.create_plan("rounding", metric_code="rounded")
    simulator.subscribe("driver", "rounding", "sub")
    client.send(*(event(f"tx-{n}", "0.004", code="rounded") for n in range(3)))
    assert client.usage() == [("0.01", 3)]


def test_an_expression_rounds_each_event_and_refuses_a_missing_property(start):
    simulator, client = start(subscribed=False)
    simulator.create_metric("by_wh", expression="round(event.properties.wh / 1000, 1)")
    simulator.create_plan("by_wh", metric_code="by_wh")
    simulator.subscribe("driver", "by_wh", "sub")
    missing = event("tx", code="by_wh")
    words = "expression_evaluation_failed: Variable: wh not found"
    assert client.details(client.post("/events", {"event": missing})) == words
    assert client.details(client.send(event("fine"), missing)) == {"1": words}
    client.send(*(event(f"tx-{n}", code="by_wh", properties={"wh": "1160"}) for n in range(2)))
    assert client.usage() == [("2.4", 2)]


# -- 2 reading back -----------------------------------------------------------------------------------


def test_an_event_is_found_by_id_alone_and_the_first_of_several(lago):
    simulator, client = lago
    simulator.subscribe("driver", "ev_payg", "other")
    client.send(event("steve:main:1-ab.cd:1"), event("plain"))
    client.send(event("plain", "5", subscription="other"))
    assert client.get(f"/events/{quote('steve:main:1-ab.cd:1', safe='')}")[0] == 200
    assert client.get("/events/plain")[1]["event"]["external_subscription_id"] == "sub"
    assert client.get("/events/none") == (
        404,
        {"status": 404, "error": "Not Found", "code": "event_not_found"},
    )
    assert client.get("/events/a%2Fb")[1]["code"] == "resource_not_found"


def test_events_are_listed_newest_first_then_by_id_with_inclusive_windows(lago):
    _, client = lago
    hours = [NOON + timedelta(hours=n) for n in range(3)]
    client.send(
        event("b", at=hours[1]), event("c", at=hours[2]), event("a", at=hours[1]), event("z", at=hours[0])
    )
    client.send(event("elsewhere", subscription="other"), event("other-code", code="minutes"))

    def listed(**query):
        return [shown["transaction_id"] for shown in client.get("/events", **query)[1]["events"]]

    mine = {"external_subscription_id": "sub", "code": "ev_charging_kwh"}
    assert listed(**mine) == ["c", "a", "b", "z"]
    window = {"timestamp_from": "2026-11-17T13:00:00Z", "timestamp_to": "2026-11-17T13:00:00Z"}
    assert listed(**mine, **window) == ["a", "b"]
    assert listed(**mine, timestamp_from_started_at="true") == ["c", "a", "b", "z"]
    assert listed(code="minutes") == ["other-code"]
    assert len(listed()) == 6


@pytest.mark.parametrize("given", ["1794916800", "yesterday", "2026-11-17T12:00:00 00:00"])
def test_a_window_that_is_not_iso_8601_is_an_invalid_date(lago, given):
    _, client = lago
    assert client.details(client.get("/events", timestamp_from=given)) == {"timestamp_from": ["invalid_date"]}


def test_the_window_from_the_start_needs_a_subscription_and_excludes_another_start(lago):
    _, client = lago
    assert client.details(client.get("/events", timestamp_from_started_at="true"))
    both = {
        "timestamp_from_started_at": "true",
        "external_subscription_id": "sub",
        "timestamp_from": "2026-11-01",
    }
    assert client.details(client.get("/events", **both))


def test_pages_have_an_exact_count_and_start_at_0_when_empty(lago):
    _, client = lago
    empty = {"current_page": 0, "next_page": None, "prev_page": None, "total_pages": 0, "total_count": 0}
    assert client.get("/events")[1] == {"events": [], "meta": empty}
    client.send(*(event(f"tx-{n}") for n in range(5)))
    _, body = client.get("/events", per_page=2, page=2)
    assert [shown["transaction_id"] for shown in body["events"]] == ["tx-2", "tx-3"]
    assert body["meta"] == {
        "current_page": 2,
        "next_page": 3,
        "prev_page": 1,
        "total_pages": 3,
        "total_count": 5,
    }


def test_per_page_is_100_by_default_and_unbounded(lago):
    _, client = lago
    for batch in range(2):
        client.send(*(event(f"tx-{batch}-{n}") for n in range(75)))
    assert len(client.get("/events")[1]["events"]) == 100
    assert len(client.get("/events", per_page=100000)[1]["events"]) == 150


def test_current_usage_shows_every_charge_of_the_plan_in_the_current_period(lago):
    _, client = lago
    client.send(event("tx", "12.5"))
    _, body = client.get("/customers/driver/current_usage", external_subscription_id="sub")
    usage = body["customer_usage"]
    assert (usage["from_datetime"], usage["to_datetime"]) == ("2026-11-01T00:00:00Z", "2026-11-30T23:59:59Z")
    assert usage["amount_cents"] == 488
    assert usage["charges_usage"][0]["billable_metric"]["code"] == "ev_charging_kwh"


def test_current_usage_needs_an_active_subscription_and_fails_on_an_unknown_customer(lago):
    simulator, client = lago
    simulator.create_customer("stranger")
    for customer, subscription in (("driver", "nobody"), ("stranger", "sub")):
        status, body = client.get(
            f"/customers/{customer}/current_usage", external_subscription_id=subscription
        )
        assert (status, body["code"]) == (405, "no_active_subscription")
    assert client.get("/customers/nobody/current_usage", external_subscription_id="sub")[0] == 500


def test_current_usage_filters_by_metric_since_v1_47_only(start):
    for version, expected in (("1.46.0", 2), ("1.47.0", 1)):
        simulator, client = start(version=version, subscribed=False)
        simulator.create_metric("minutes")
        standard = {"charge_model": "standard", "properties": {"amount": "1"}}
        charges = [{"billable_metric_code": code, **standard} for code in ("ev_charging_kwh", "minutes")]
        simulator.create_plan("both", charges=charges)
        simulator.subscribe("driver", "both", "sub")
        query = {"external_subscription_id": "sub", "billable_metric_code": "minutes"}
        _, body = client.get("/customers/driver/current_usage", **query)
        assert len(body["customer_usage"]["charges_usage"]) == expected
    status, body = client.get("/customers/driver/current_usage", **query | {"billable_metric_code": "none"})
    assert (status, body["code"]) == (404, "charge_not_found")


@pytest.mark.parametrize(("version", "name"), [("1.46.0", "filter_by_charge_id"), ("1.51.0", "charge_id")])
def test_current_usage_of_one_charge(start, version, name):
    simulator, client = start(version=version)
    charge_id = client.get("/subscriptions/sub/charges")[1]["charges"][0]["lago_id"]
    query = {"external_subscription_id": "sub"}
    assert client.get("/customers/driver/current_usage", **query, **{name: charge_id})[0] == 200
    other = {name: simulator.organization_id}
    assert client.get("/customers/driver/current_usage", **query, **other)[1]["code"] == "charge_not_found"


def test_current_usage_is_stale_until_the_job_has_run(lago):
    simulator, client = lago
    simulator.delay_usage(20)
    assert client.usage() == [("0.0", 0)]
    client.send(event("tx"))
    assert client.usage() == [("0.0", 0)]
    simulator.set_clock(NOON + timedelta(seconds=20), frozen=True)
    assert client.usage() == [("10.0", 1)]


def test_a_lost_job_leaves_usage_stale_until_the_next_event(lago):
    simulator, client = lago
    client.usage()
    simulator.lose_jobs(1)
    client.send(event("quiet"))
    assert client.usage() == [("0.0", 0)]
    client.send(event("loud"))
    assert client.usage() == [("20.0", 2)]


def test_usage_carried_on_equals_usage_counted_anew(start):
    simulator, client = start("clickhouse")
    for number in range(20):
        client.send(event(f"tx-{number}", f"{number}.1"), event(f"tx-{number // 2}", f"{number}.7"))
        carried = client.usage()
        simulator.books.usage._cached.clear()
        assert client.usage() == carried


def test_usage_is_split_by_pricing_group_and_each_group_is_clamped(start):
    simulator, client = start(subscribed=False)
    properties = {"amount": "1", "pricing_group_keys": ["charge_box_id"]}
    charge = {"billable_metric_code": "ev_charging_kwh", "charge_model": "standard", "properties": properties}
    simulator.create_plan("grouped", charges=[charge])
    simulator.subscribe("driver", "grouped", "sub")
    for number, (box, kwh) in enumerate([("A", "10"), ("B", "-4"), ("A", "2")]):
        client.send(event(f"tx-{number}", properties={"kwh": kwh, "charge_box_id": box}))
    _, body = client.get("/customers/driver/current_usage", external_subscription_id="sub")
    usage = body["customer_usage"]["charges_usage"][0]
    assert usage["units"] == "12.0"
    shown = {group["grouped_by"]["charge_box_id"]: group["units"] for group in usage["grouped_usage"]}
    assert shown == {"A": "12.0", "B": "0.0"}


def test_a_value_outside_the_filters_is_billed_at_the_default_price(start):
    simulator, client = start(subscribed=False)
    charge = {
        "billable_metric_code": "ev_charging_kwh",
        "charge_model": "standard",
        "properties": {"amount": "1"},
        "filters": [{"values": {"tariff": ["offpeak"]}, "properties": {"amount": "0.5"}}],
    }
    simulator.create_plan("filtered", charges=[charge])
    simulator.subscribe("driver", "filtered", "sub")
    client.send(
        *(event(tariff, properties={"kwh": "10", "tariff": tariff}) for tariff in ("offpeak", "moonlight"))
    )
    _, body = client.get("/customers/driver/current_usage", external_subscription_id="sub")
    usage = body["customer_usage"]["charges_usage"][0]
    assert (usage["units"], usage["amount_cents"]) == ("20.0", 1500)
    assert [(item["values"], item["units"]) for item in usage["filters"]] == [
        ({"tariff": ["offpeak"]}, "10.0")
    ]


def test_a_dynamic_charge_takes_its_price_from_the_events(start):
    simulator, client = start(subscribed=False)
    simulator.create_plan(
        "dynamic", charges=[{"billable_metric_code": "ev_charging_kwh", "charge_model": "dynamic"}]
    )
    simulator.subscribe("driver", "dynamic", "sub")
    client.send(event("a", precise_total_amount_cents="100.4"), event("b", precise_total_amount_cents="20.2"))
    _, body = client.get("/customers/driver/current_usage", external_subscription_id="sub")
    assert body["customer_usage"]["charges_usage"][0]["amount_cents"] == 121


def test_past_usage_needs_a_subscription_and_knows_only_invoiced_periods(lago):
    simulator, client = lago
    assert client.details(client.get("/customers/driver/past_usage")) == {
        "external_subscription_id": ["value_is_mandatory"]
    }
    client.send(event("tx"))
    assert client.past() == []
    simulator.close_period("sub")
    simulator.close_period("sub")
    assert client.past() == [
        ("2026-12-01T00:00:00Z", "2026-12-31T23:59:59Z", []),
        ("2026-11-01T00:00:00Z", "2026-11-30T23:59:59Z", ["10.0"]),
    ]
    _, body = client.get("/customers/driver/past_usage", external_subscription_id="sub", periods_count=1)
    assert len(body["usage_periods"]) == 1
    query = {"external_subscription_id": "sub", "billable_metric_code": "none"}
    assert client.get("/customers/driver/past_usage", **query)[0] == 404


# -- 0.7, 1.5 periods and invoices ---------------------------------------------------------------------


def test_late_events_are_accepted_and_never_billed(lago):
    simulator, client = lago
    client.send(event("in-time"))
    simulator.set_clock(datetime(2026, 12, 1, 0, 9, 59, tzinfo=UTC), frozen=True)
    client.send(event("just-in-time", at=datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)))
    assert client.past() == []
    simulator.set_clock(datetime(2026, 12, 1, 0, 10, tzinfo=UTC), frozen=True)
    assert client.send(event("late", at=datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)))[0] == 200
    assert client.past()[0][2] == ["20.0"]
    assert client.usage() == [("0.0", 0)]
    assert fates(simulator) == {"in-time": "invoiced", "just-in-time": "invoiced", "late": "period_invoiced"}
    assert simulator.summary()["energy_wh"] == 20_000


def test_an_event_of_the_future_is_counted_when_its_period_comes(lago):
    simulator, client = lago
    client.send(event("ahead", at=NOON + timedelta(days=20)))
    assert client.usage() == [("0.0", 0)]
    assert fates(simulator) == {"ahead": "waiting"}
    simulator.close_period("sub")
    assert client.usage() == [("10.0", 1)]
    simulator.close_period("sub")
    assert fates(simulator) == {"ahead": "invoiced"}


def test_an_event_sent_before_its_subscription_exists_is_picked_up(start):
    simulator, client = start(subscribed=False)
    client.send(event("early", at=NOON - timedelta(days=3)))
    assert fates(simulator) == {"early": "unknown_subscription"}
    simulator.subscribe("driver", "ev_payg", "sub", subscription_at=NOON - timedelta(days=5))
    assert client.usage() == [("10.0", 1)]


def test_periods_that_ended_before_a_back_dated_subscription_was_made_are_never_billed(start):
    simulator, client = start(subscribed=False)
    simulator.subscribe("driver", "ev_payg", "sub", subscription_at=NOON - timedelta(days=60))
    client.send(event("skipped", at=NOON - timedelta(days=40)), event("now"))
    simulator.close_period("sub")
    assert fates(simulator) == {"skipped": "period_skipped", "now": "invoiced"}


def test_a_subscription_made_on_a_billing_day_and_back_dated_is_billed_that_day(start):
    now = datetime(2026, 12, 1, 9, 30, tzinfo=UTC)
    simulator, client = start(now=now, subscribed=False)
    simulator.subscribe("driver", "ev_payg", "sub", subscription_at=datetime(2026, 11, 20, tzinfo=UTC))
    client.send(event("tx", at=datetime(2026, 11, 25, tzinfo=UTC)))
    simulator.set_clock(datetime(2026, 12, 1, 10, 10, tzinfo=UTC), frozen=True)
    assert client.past() == [("2026-11-20T00:00:00Z", "2026-11-30T23:59:59Z", ["10.0"])]


def test_a_negative_total_is_invoiced_as_zero_and_nothing_carries_over(lago):
    simulator, client = lago
    client.send(event("up", "5"), event("correction", "-12"))
    assert client.usage() == [("0.0", 2)]
    simulator.close_period("sub")
    assert client.past()[0][2] == ["0.0"]
    client.send(event("next", "3", at=simulator.now()))
    assert client.usage() == [("3.0", 1)]
    line = simulator.billed("sub")[0]
    assert (line["units"], line["signed_units"], line["events_count"]) == (Decimal(0), Decimal(-7), 2)


def test_a_negative_event_lowers_a_total_that_stays_positive(lago):
    _, client = lago
    client.send(event("up", "5.5"), event("correction", "-2.25"))
    assert client.usage() == [("3.25", 2)]


def test_an_invoice_is_cut_in_the_time_zone_of_the_customer(start):
    # 2026-12-01 00:00 in Berlin is 23:00 UTC on 30 November.
    simulator, client = start(customer={"timezone": "Europe/Berlin"})
    _, body = client.get("/subscriptions/sub")
    assert body["subscription"]["current_billing_period_ending_at"] == "2026-11-30T22:59:59Z"
    simulator.set_clock(datetime(2026, 11, 30, 23, 9, tzinfo=UTC), frozen=True)
    assert client.past() == []
    simulator.set_clock(datetime(2026, 11, 30, 23, 10, tzinfo=UTC), frozen=True)
    assert client.past()[0][:2] == ("2026-11-01T00:00:00Z", "2026-11-30T22:59:59Z")


@pytest.mark.parametrize(
    ("zone", "at", "begins", "ends", "billed_at"),
    [
        # the night of 25 October 2026 has 25 hours in Berlin, that of 29 March 23
        ("Europe/Berlin", "2026-10-25T12:00", "2026-09-30T22:00", "2026-10-31T23:00", "2026-10-31T23:10"),
        ("Europe/Berlin", "2026-03-29T12:00", "2026-02-28T23:00", "2026-03-31T22:00", "2026-03-31T22:10"),
        ("Asia/Kolkata", "2026-10-25T12:00", "2026-09-30T18:30", "2026-10-31T18:30", "2026-10-31T19:10"),
        ("America/New_York", "2026-11-01T05:30", "2026-11-01T04:00", "2026-12-01T05:00", "2026-12-01T05:10"),
    ],
)
def test_calendar_months_on_the_nights_of_clock_changes(zone, at, begins, ends, billed_at):
    def instant(text):
        return datetime.fromisoformat(text).replace(tzinfo=UTC)

    anchor = date(2026, 1, 1)
    period = period_containing(
        instant(at), interval="monthly", billing_time="calendar", anchor=anchor, zone=ZoneInfo(zone)
    )
    assert (period.starts_at, period.ends_at) == (instant(begins), instant(ends) - timedelta(microseconds=1))
    assert billing_instant(period, instant(begins)) == instant(billed_at)


@pytest.mark.parametrize(
    ("interval", "billing_time", "day", "first", "after"),
    [
        ("weekly", "calendar", "2026-11-17", "2026-11-16", "2026-11-23"),
        ("weekly", "anniversary", "2026-11-17", "2026-11-14", "2026-11-21"),
        ("monthly", "calendar", "2024-02-29", "2024-02-01", "2024-03-01"),
        ("monthly", "anniversary", "2026-02-27", "2026-01-31", "2026-02-28"),
        ("monthly", "anniversary", "2026-02-28", "2026-02-28", "2026-03-31"),
        ("monthly", "anniversary", "2024-02-29", "2024-02-29", "2024-03-31"),
        ("monthly", "anniversary", "2026-04-30", "2026-04-30", "2026-05-31"),
        ("monthly", "anniversary", "2020-01-30", "2019-12-31", "2020-01-31"),
        ("quarterly", "calendar", "2026-11-17", "2026-10-01", "2027-01-01"),
        ("quarterly", "anniversary", "2026-11-17", "2026-10-31", "2027-01-31"),
        ("semiannual", "calendar", "2026-06-30", "2026-01-01", "2026-07-01"),
        ("yearly", "calendar", "2026-11-17", "2026-01-01", "2027-01-01"),
        ("yearly", "anniversary", "2026-11-17", "2026-10-31", "2027-10-31"),
    ],
)
def test_periods_at_month_ends(interval, billing_time, day, first, after):
    anchor = date(2020, 10, 31)  # a Saturday
    at = datetime.fromisoformat(f"{day}T23:59:59").replace(tzinfo=BERLIN)
    period = period_containing(at, interval=interval, billing_time=billing_time, anchor=anchor, zone=BERLIN)
    assert period.starts_at == datetime.fromisoformat(first).replace(tzinfo=BERLIN)
    assert period.ends_at == datetime.fromisoformat(after).replace(tzinfo=BERLIN).astimezone(UTC) - timedelta(
        microseconds=1
    )


def test_the_hourly_job_bills_at_ten_past_and_only_on_the_billing_day():
    rule = {"interval": "monthly", "billing_time": "calendar", "anchor": date(2026, 1, 1), "zone": BERLIN}
    november = period_containing(NOON, **rule)
    midnight = datetime(2026, 11, 30, 23, tzinfo=UTC)
    for existed_at, billed_at in (
        (NOON, midnight + timedelta(minutes=10)),
        (midnight + timedelta(hours=5, minutes=10), midnight + timedelta(hours=5, minutes=10)),
        (midnight + timedelta(hours=5, minutes=11), midnight + timedelta(hours=6, minutes=10)),
        (midnight + timedelta(hours=23, minutes=11), None),
    ):
        assert billing_instant(november, existed_at) == billed_at


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Africa/Cairo", "Pacific/Chatham"])
@pytest.mark.parametrize("interval", ["weekly", "monthly", "quarterly", "semiannual", "yearly"])
@pytest.mark.parametrize("billing_time", ["calendar", "anniversary"])
def test_periods_follow_each_other_without_gap_or_overlap(zone, interval, billing_time):
    rule = {
        "interval": interval,
        "billing_time": billing_time,
        "anchor": date(2023, 12, 31),
        "zone": ZoneInfo(zone),
    }
    period = period_containing(datetime(2024, 1, 15, tzinfo=UTC), **rule)
    for _ in range(30):
        following = period_containing(period.ends_at + timedelta(microseconds=1), **rule)
        assert following.starts_at == period.ends_at + timedelta(microseconds=1)
        assert period_containing(period.ends_at, **rule) == period
        period = following


def test_a_jump_over_several_periods_bills_each_of_them(lago):
    simulator, client = lago
    months = [datetime(2026, month, 20, tzinfo=UTC) for month in (11, 12)] + [
        datetime(2027, 1, 20, tzinfo=UTC)
    ]
    client.send(*(event(f"tx-{n}", str(n + 1), at=at) for n, at in enumerate(months)))
    simulator.set_clock(datetime(2027, 2, 5, tzinfo=UTC), frozen=True)
    assert [units for _, _, units in client.past()] == [["3.0"], ["2.0"], ["1.0"]]


def test_what_a_customer_owes_for_two_subscriptions_stands_in_one_invoice(lago):
    simulator, client = lago
    simulator.subscribe("driver", "ev_payg", "second", subscription_at=NOON.replace(day=2))
    client.send(event("a"), event("b", subscription="second"))
    simulator.close_period("sub")
    numbers = set()
    for subscription in ("sub", "second"):
        _, body = client.get("/customers/driver/past_usage", external_subscription_id=subscription)
        period = body["usage_periods"][0]
        numbers.add(period["lago_invoice_id"])
        assert (period["amount_cents"], period["charges_usage"][0]["amount_cents"]) == (780, 390)
    assert len(numbers) == 1


def test_a_recurring_metric_counts_back_dated_events_in_the_next_period(start):
    simulator, client = start(subscribed=False)
    simulator.create_metric("recurring", recurring=True)
    simulator.create_plan("recurring", metric_code="recurring")
    simulator.subscribe("driver", "recurring", "sub", subscription_at=NOON.replace(day=1))
    simulator.close_period("sub")
    client.send(event("late", code="recurring"))
    assert client.usage() == [("10.0", 1)]


def test_a_metric_without_a_charge_in_the_plan_is_never_billed(lago):
    simulator, client = lago
    simulator.create_metric("minutes")
    client.send(event("tx", code="minutes"))
    assert client.usage() == [("0.0", 0)]
    assert fates(simulator) == {"tx": "metric_not_charged"}


# -- 1.3, 3 subscriptions -------------------------------------------------------------------------------


def test_an_upgrade_in_mid_period_keeps_the_id_and_bills_the_old_row_at_once(lago):
    simulator, client = lago
    simulator.create_plan("dearer", amount="0.59", amount_cents=500)
    client.send(event("before", at=NOON - timedelta(hours=1)))
    _, body = client.post("/subscriptions", {"subscription": {**_subscription(), "plan_code": "dearer"}})
    new = body["subscription"]
    assert (new["external_id"], new["plan_code"], new["previous_plan_code"]) == ("sub", "dearer", "ev_payg")
    assert (new["status"], new["started_at"]) == ("active", "2026-11-17T12:00:00.001Z")
    assert client.past() == [("2026-11-01T00:00:00Z", "2026-11-17T12:00:00Z", ["10.0"])]
    client.send(event("late", at=NOON - timedelta(hours=1)), event("after", at=NOON + timedelta(hours=1)))
    assert client.usage() == [("10.0", 1)]
    assert fates(simulator) == {"before": "invoiced", "late": "period_invoiced", "after": "open"}
    rows = client.get("/subscriptions", **{"status[]": ["active", "terminated"]})[1]["subscriptions"]
    assert [(row["plan_code"], row["status"]) for row in rows] == [
        ("dearer", "active"),
        ("ev_payg", "terminated"),
    ]
    assert client.get("/subscriptions/sub", status="terminated")[1]["subscription"]["plan_code"] == "ev_payg"


def _subscription(**more):
    return {"external_customer_id": "driver", "plan_code": "ev_payg", "external_id": "sub", **more}


def test_a_downgrade_waits_as_a_pending_row_until_the_period_has_been_billed(lago):
    simulator, client = lago
    simulator.create_plan("dear", amount_cents=5000)
    simulator.create_plan("cheap", amount_cents=100, amount="0.20")
    simulator.upgrade("sub", "dear")
    _, body = client.post("/subscriptions", {"subscription": _subscription(plan_code="cheap")})
    assert (body["subscription"]["plan_code"], body["subscription"]["next_plan_code"]) == ("dear", "cheap")
    assert body["subscription"]["downgrade_plan_date"] == "2026-12-01"
    waiting = client.get("/subscriptions/sub", status="pending")[1]["subscription"]
    assert (waiting["started_at"], waiting["current_billing_period_started_at"]) == (None, None)
    client.send(event("november"))
    simulator.close_period("sub")
    row = client.get("/subscriptions/sub")[1]["subscription"]
    assert (row["plan_code"], row["started_at"]) == ("cheap", "2026-12-01T00:10:00.000Z")
    client.send(event("between", at=datetime(2026, 12, 1, 0, 5, tzinfo=UTC)))
    assert client.usage() == [("0.0", 0)], "between midnight and the job neither row counts"


def test_an_ended_subscription_is_billed_at_once_and_counts_nothing_more(lago):
    simulator, client = lago
    client.send(
        event("in-time", at=NOON - timedelta(minutes=1)), event("ahead", at=NOON + timedelta(hours=1))
    )
    assert client.request("DELETE", "/api/v1/subscriptions/sub")[1]["subscription"]["status"] == "terminated"
    assert client.send(event("late", at=NOON - timedelta(minutes=2)))[0] == 200
    assert client.past() == [("2026-11-01T00:00:00Z", "2026-11-17T12:00:00Z", ["10.0"])]
    assert fates(simulator) == {
        "in-time": "invoiced",
        "ahead": "after_termination",
        "late": "period_invoiced",
    }
    assert client.get("/subscriptions/sub")[0] == 404


def test_a_subscription_ends_by_itself_on_its_date(start):
    simulator, client = start(subscribed=False)
    simulator.subscribe("driver", "ev_payg", "sub", ending_at=NOON + timedelta(days=2))
    simulator.set_clock(NOON + timedelta(days=3), frozen=True)
    assert client.get("/subscriptions/sub", status="terminated")[1]["subscription"][
        "terminated_at"
    ].startswith("2026-11-19")
    assert len(client.past()) == 1


def test_a_subscription_that_has_not_begun_is_pending_and_counts_from_its_start(start):
    simulator, client = start(subscribed=False)
    begins = NOON + timedelta(days=2)
    simulator.subscribe("driver", "ev_payg", "sub", subscription_at=begins)
    client.send(event("before"), event("after", at=begins + timedelta(hours=1)))
    assert client.get("/subscriptions/sub")[1]["code"] == "subscription_not_found"
    assert client.get("/subscriptions/sub", status="pending")[1]["subscription"]["started_at"] is None
    assert fates(simulator) == {"before": "before_start", "after": "waiting"}
    simulator.set_clock(begins + timedelta(days=1), frozen=True)
    assert client.usage() == [("10.0", 1)]
    row = client.get("/subscriptions/sub")[1]["subscription"]
    assert row["current_billing_period_started_at"] == "2026-11-19T12:00:00Z"


def test_lists_show_active_subscriptions_unless_told_and_an_unknown_status_shows_all(lago):
    simulator, client = lago
    simulator.subscribe("driver", "ev_payg", "later", subscription_at=NOON + timedelta(days=9))

    def listed(**query):
        return [row["external_id"] for row in client.get("/subscriptions", **query)[1]["subscriptions"]]

    assert listed() == ["sub"]
    assert listed(**{"status[]": "pending"}) == ["later"]
    assert listed(status="pending") == ["sub"], "without brackets it is no filter"
    assert listed(**{"status[]": ["pending", "sleeping"]}) == ["later", "sub"]
    assert listed(external_customer_id="nobody") == []
    assert client.get("/customers/driver/subscriptions")[1]["meta"]["total_count"] == 1
    assert client.get("/customers/nobody/subscriptions")[0] == 404


def test_the_same_plan_again_returns_the_subscription_as_it_is(lago):
    simulator, client = lago
    _, body = client.post("/subscriptions", {"subscription": _subscription()})
    assert body["subscription"]["lago_id"] == simulator.books.subscriptions[0].lago_id
    assert len(simulator.books.subscriptions) == 1


def test_an_active_external_id_belongs_to_one_customer_of_the_organisation(lago):
    simulator, client = lago
    simulator.create_customer("other")
    answer = client.post("/subscriptions", {"subscription": _subscription(external_customer_id="other")})
    assert client.details(answer) == {"external_id": ["value_already_exist"]}


def test_plan_overrides_and_invoice_previews_are_premium(lago):
    _, client = lago
    body = {"subscription": _subscription(plan_overrides={"amount_cents": 1})}
    assert client.post("/subscriptions", body)[1]["code"] == "feature_unavailable"
    assert client.post("/invoices/preview", {})[0] == 403


# -- 0.8 paid in advance ------------------------------------------------------------------------------


def fees_of(client, **query):
    return [
        (fee["event_transaction_id"], fee["units"], fee["amount_cents"])
        for fee in client.get("/fees", **query)[1]["fees"]
    ]


def test_a_charge_paid_in_advance_makes_a_fee_and_an_invoice_per_event(start):
    simulator, client = start(plan={"pay_in_advance_charge": True})
    client.send(event("a", "10"), event("b", "5"))
    assert fees_of(client, external_subscription_id="sub") == [("a", "10.0", 390), ("b", "5.0", 195)]
    assert fees_of(client, event_transaction_id="b", billable_metric_code="ev_charging_kwh") == [
        ("b", "5.0", 195)
    ]
    assert fees_of(client, event_transaction_id="c") == []
    assert client.usage() == [("15.0", 2)]
    simulator.close_period("sub")
    assert client.past()[0][2] == [], "nothing is left for the invoice in arrears"
    assert simulator.summary()["energy_wh"] == 15_000
    assert set(fates(simulator).values()) == {"paid_in_advance"}


def test_a_negative_event_in_advance_is_charged_nothing_and_makes_later_usage_free(start):
    _, client = start(plan={"pay_in_advance_charge": True})
    for name, kwh in (("a", "10"), ("correction", "-4"), ("b", "3"), ("c", "2")):
        client.send(event(name, kwh))
    assert [units for _, units, _ in fees_of(client)] == ["10.0", "0.0", "0.0", "1.0"]
    assert client.usage() == [("11.0", 4)]


def test_an_id_is_charged_in_advance_once_in_the_whole_organisation(start):
    simulator, client = start(plan={"pay_in_advance_charge": True})
    simulator.subscribe("driver", "ev_payg", "other")
    client.send(event("tx"))
    client.send(event("tx", subscription="other", at=NOON + timedelta(minutes=1)))
    assert len(fees_of(client)) == 1
    assert [entry.get("reason") for entry in simulator.ledger()] == [None, "not_billed_in_advance"]


def test_an_event_that_was_charged_in_advance_stays_charged_when_it_is_overwritten(start):
    simulator, client = start("clickhouse", plan={"pay_in_advance_charge": True})
    for _ in range(2):
        client.send(event("tx"))
    assert len(fees_of(client)) == 1
    assert [entry.get("reason", entry["state"]) for entry in simulator.ledger()] == [
        "paid_in_advance",
        "not_billed_in_advance",
    ]


def test_milliseconds_are_never_charged_in_advance_either(start):
    simulator, client = start(plan={"pay_in_advance_charge": True})
    assert client.send(event("tx", at=int(NOON.timestamp() * 1000)))[0] == 200
    assert fees_of(client) == []
    assert fates(simulator) == {"tx": "beyond_all_periods"}


def test_a_lost_job_never_charges_in_advance(start):
    simulator, client = start(plan={"pay_in_advance_charge": True})
    simulator.lose_jobs(1)
    client.send(event("tx"))
    assert fees_of(client) == []
    assert fates(simulator) == {"tx": "not_billed_in_advance"}


def test_invoiceable_false_is_ignored_without_premium(lago):
    _, client = lago
    metric = client.get("/billable_metrics/ev_charging_kwh")[1]["billable_metric"]
    charge = {
        "billable_metric_id": metric["lago_id"],
        "charge_model": "standard",
        "pay_in_advance": True,
        "invoiceable": False,
        "properties": {"amount": "1"},
    }
    plan = {"name": "P", "code": "p", "interval": "monthly", "amount_cents": 0, "charges": [charge]}
    assert client.post("/plans", {"plan": plan})[1]["plan"]["charges"][0]["invoiceable"] is True


# -- 3 customers, plans, metrics ------------------------------------------------------------------------


def test_customers_are_searched_in_names_ids_and_mail_and_paged(lago):
    simulator, client = lago
    simulator.create_customer("driver_42", name="Jane Doe", email="jane@example.org")
    simulator.create_customer("fleet", legal_name="Wheels Ltd")

    def found(**query):
        return [customer["external_id"] for customer in client.get("/customers", **query)[1]["customers"]]

    assert found() == ["fleet", "driver_42", "driver"]
    assert found(search_term="JANE@") == found(search_term="doe") == ["driver_42"]
    assert found(search_term="wheels") == ["fleet"]
    assert found(external_id="driver") == ["driver"]
    assert found(per_page=1, page=2) == ["driver_42"]
    assert client.get("/customers/driver_42")[1]["customer"]["name"] == "Jane Doe"


def test_a_dot_in_a_customer_id_breaks_every_path_but_not_the_list(lago):
    simulator, client = lago
    simulator.create_customer("jane@example.org")
    simulator.create_customer("jane@example")
    simulator.subscribe("jane@example.org", "ev_payg", "mail")
    assert client.get("/customers/jane@example.org")[1]["customer"]["external_id"] == "jane@example"
    assert client.get("/customers/jane%40example%2Eorg")[1]["customer"]["external_id"] == "jane@example"
    assert client.get("/customers/a.b.c")[1]["code"] == "resource_not_found"
    path = "/customers/jane@example.org/current_usage"
    assert client.get(path, external_subscription_id="mail")[1]["code"] == "resource_not_found"
    assert len(client.get("/customers", external_id="jane@example.org")[1]["customers"]) == 1


def test_a_dot_in_a_subscription_id_breaks_its_path_up_to_v1_51(start):
    for version, found in (("1.51.0", "sub"), ("1.52.0", "sub.1")):
        simulator, client = start(version=version)
        simulator.subscribe("driver", "ev_payg", "sub.1")
        assert client.get("/subscriptions/sub.1")[1]["subscription"]["external_id"] == found


def test_the_setup_helper_creates_once_and_learns_what_exists(start):
    simulator, client = start(subscribed=False)
    metric = {
        "name": "EV charging",
        "code": "kwh",
        "aggregation_type": "sum_agg",
        "field_name": "kwh",
        "rounding_function": "round",
        "rounding_precision": 3,
    }
    status, body = client.post("/billable_metrics", {"billable_metric": metric})
    assert status == 200
    charge = {
        "billable_metric_id": body["billable_metric"]["lago_id"],
        "charge_model": "standard",
        "properties": {"amount": "0.39"},
    }
    plan = {"name": "EV PAYG", "code": "payg", "interval": "monthly", "amount_cents": 0, "charges": [charge]}
    assert client.post("/plans", {"plan": plan})[0] == 200
    exists = {"code": ["value_already_exist"]}
    assert client.details(client.post("/billable_metrics", {"billable_metric": metric})) == exists
    assert client.details(client.post("/plans", {"plan": plan})) == exists
    customer = {"external_id": "jane", "name": "Jane", "currency": "EUR", "timezone": "Europe/Berlin"}
    for name in ("Jane", "Janet"):
        assert (
            client.post("/customers", {"customer": {**customer, "name": name}})[1]["customer"]["name"] == name
        )
    subscription = {
        "external_customer_id": "jane",
        "plan_code": "payg",
        "external_id": "sub",
        "billing_time": "anniversary",
        "subscription_at": "2026-11-01T00:00:00Z",
    }
    assert (
        client.post("/subscriptions", {"subscription": subscription})[1]["subscription"]["status"] == "active"
    )
    charges = client.get("/subscriptions/sub/charges")[1]["charges"]
    assert [shown["billable_metric_code"] for shown in charges] == ["kwh"]
    client.send(event("tx", "2.0005", code="kwh"))
    assert client.usage(customer="jane") == [("2.001", 1)]
    assert simulator.summary()["units"] == "2.001"


def test_the_setup_is_refused_with_a_code_per_field(lago):
    _, client = lago
    metric = {"name": "", "code": "x", "aggregation_type": "sum_agg"}
    assert client.details(client.post("/billable_metrics", {"billable_metric": metric})) == {
        "name": ["value_is_mandatory"],
        "field_name": ["value_is_mandatory"],
    }
    charge = {"charge_model": "standard", "properties": {"amount": 0.39}}
    plan = {"name": "P", "code": "p", "interval": "monthly", "charges": [charge]}
    assert client.post("/plans", {"plan": plan})[1]["code"] == "billable_metrics_not_found"
    charge["billable_metric_id"] = client.get("/billable_metrics/ev_charging_kwh")[1]["billable_metric"][
        "lago_id"
    ]
    assert client.details(client.post("/plans", {"plan": plan})) == {"amount": ["invalid_amount"]}
    assert client.get("/plans/p")[1]["code"] == "plan_not_found"
    assert client.details(client.post("/customers", {"customer": {"name": "x"}}))
    assert client.details(client.post("/customers", {"customer": {"external_id": "x", "timezone": "Mars"}}))
    assert (
        client.post("/subscriptions", {"subscription": _subscription(plan_code="none")})[1]["code"]
        == "plan_not_found"
    )
    assert client.post("/plans", {})[0] == client.post("/billable_metrics", {})[0] == 400


# -- 0.12 the target ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES)
def test_health_needs_no_key_and_tells_the_version(start, store):
    simulator, client = start(store)
    status, body = client.request("GET", "/health", headers={"authorization": ""})
    assert (status, body["version"]) == (200, f"v{simulator.version}")


def test_the_organisation_tells_its_store_since_v1_47(start):
    for store, version, expected in (
        ("postgres", "1.47.0", "postgres"),
        ("clickhouse", "1.51.0", "clickhouse"),
        ("postgres", "1.46.0", None),
    ):
        _, client = start(
            store,
            version=version,
            organization_id="0ec0de00-0000-4000-8000-000000000001",
            timezone="Europe/Berlin",
        )
        organization = client.get("/organizations")[1]["organization"]
        assert organization.get("events_store") == expected
        assert organization["lago_id"] == "0ec0de00-0000-4000-8000-000000000001"
        assert organization["timezone"] == "Europe/Berlin"
        assert organization["billing_configuration"]["invoice_grace_period"] == 0


def test_it_can_become_another_organisation_behind_the_same_key(lago):
    simulator, client = lago
    simulator.organization_id = "0ec0de00-0000-4000-8000-000000000002"
    assert client.get("/organizations")[1]["organization"]["lago_id"].endswith("2")


def test_it_can_stand_behind_a_path_prefix(start):
    simulator, client = start(path_prefix="/api")
    assert simulator.api_url.endswith("/api")
    assert client.request("GET", "/api/api/v1/customers")[0] == 200
    client.connection.request("GET", "/api/v1/customers", headers=client.headers)
    response = client.connection.getresponse()
    assert (response.status, json.loads(response.read())["code"]) == (404, "resource_not_found")


# -- what only the simulator has ------------------------------------------------------------------------------


def test_the_whole_set_up_and_the_ledger_are_below_sim(start):
    simulator, client = start(subscribed=False)
    charge = {"billable_metric_code": "kwh", "charge_model": "standard", "properties": {"amount": "1"}}
    seed = {
        "metrics": [{"code": "kwh", "field_name": "kwh"}],
        "plans": [{"code": "p", "charges": [charge]}, {"code": "q", "charges": [charge]}],
        "customers": [{"external_id": "jane"}],
        "subscriptions": [
            {
                "external_customer_id": "jane",
                "plan_code": "p",
                "external_id": "s",
                "subscription_at": "2026-11-10T00:00:00Z",
                "billing_time": "anniversary",
            }
        ],
    }
    assert client.request("POST", "/_sim/seed", seed)[1]["subscriptions"] == 1
    client.send(event("tx", "1.234", code="kwh", subscription="s"))
    assert client.request("GET", "/_sim/summary")[1]["energy_wh"] == 1234
    assert client.request("GET", "/_sim/ledger?external_subscription_id=s")[1][0]["state"] == "open"
    assert client.request("GET", "/_sim/ledger?external_subscription_id=none")[1] == []
    assert (
        client.request("POST", "/_sim/upgrade", {"external_id": "s", "plan_code": "q"})[1]["plan_code"] == "q"
    )
    assert len(client.request("POST", "/_sim/close_period", {"external_id": "s"})[1]) == 1
    [line, *_] = client.request("GET", "/_sim/billed?external_subscription_id=s")[1]
    assert (line["units"], line["invoiced"], line["plan_code"]) == ("1.234", True, "p")
    assert client.request("POST", "/_sim/terminate", {"external_id": "none"})[0] == 400
    assert client.request("POST", "/_sim/seed", {"plans": [{"code": "p"}]})[0] == 422
    assert client.request("POST", "/_sim/nothing", {})[0] == 404
    assert simulator.summary()["counted_events"] == 1


@pytest.mark.parametrize("store", STORES)
def test_every_stored_event_is_counted_once_or_has_a_reason(start, store):
    simulator, client = start(store)
    simulator.create_plan("dearer", amount_cents=900)
    for day in range(1, 29):
        at = datetime(2026, 11, day, 18, 30, tzinfo=UTC)
        simulator.set_clock(max(at, simulator.now()), frozen=True)
        client.send(
            event(f"tx-{day}", f"{day}.{day:03d}", at=at),
            event(f"odd-{day}", "1e3" if day % 2 else "x", at=at),
        )
        if day == 20:
            simulator.upgrade("sub", "dearer")
    simulator.close_period("sub")
    entries = simulator.ledger()
    counted = [entry for entry in entries if entry["state"] == "invoiced"]
    assert sum(line["events_count"] for line in simulator.billed()) == len(counted)
    units = sum(Decimal(entry["units"]) for entry in counted)
    assert simulator.summary()["energy_wh"] == int(units * 1000)
    assert all(entry["reason"] for entry in entries if entry["state"] == "never")
    assert len([entry for entry in entries if entry["transaction_id"].startswith("tx")]) == 28


def test_an_unknown_store_and_an_unknown_subscription_are_errors():
    with pytest.raises(ValueError, match="no store 'mysql'"):
        LagoSimulator("mysql")
    with pytest.raises(ValueError, match=r"'latest' is no version of Lago such as 1\.47\.0"):
        LagoSimulator(version="latest")
    simulator = LagoSimulator()
    with pytest.raises(KeyError, match="no active subscription"):
        simulator.terminate("sub")
    simulator.create_metric()
    with pytest.raises(LagoError, match="value_already_exist"):
        simulator.create_metric()
    simulator.stop()


def test_the_command_serves_until_it_is_told_to_end():
    script = (
        "import argparse, sys; from ocpp_billing.simulators import lago; parser = argparse.ArgumentParser();"
        "lago.configure(parser); sys.exit(lago.run(parser.parse_args()))"
    )
    command = [sys.executable, "-c", script, "--store", "clickhouse", "--api-key", "k"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/api/v1/organizations", headers={"authorization": "Bearer k"})
        assert json.loads(connection.getresponse().read())["organization"]["events_store"] == "clickhouse"
        connection.close()
        taken = subprocess.run(
            [*command, "--port", str(port)], capture_output=True, text=True, check=False, timeout=30
        )
        assert taken.returncode == 1
        assert "Choose another with --port" in taken.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_it_takes_far_more_events_than_a_sync_sends(lago):
    simulator, client = lago
    simulator.keep_requests = False
    bodies = [
        json.dumps({"events": [event(f"tx-{batch}-{n}", "1.234") for n in range(100)]}).encode()
        for batch in range(100)
    ]
    begun = time.process_time()
    for body in bodies:
        assert client.request("POST", "/api/v1/events/batch", raw=body)[0] == 200
    # Client and server share this process, so this is a floor; alone the server takes about 50,000/s.
    assert 10_000 / (time.process_time() - begun) > 5_000
    assert client.usage() == [("12340.0", 10_000)]


# -- the published contract ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validate():
    if not CONTRACT.exists():
        pytest.skip(f"Lago's OpenAPI document is not beside this checkout ({CONTRACT.name})")
    document = yaml.load(CONTRACT.read_text(), Loader=yaml.CSafeLoader)

    def check(schema, body):
        components = {"components": document["components"]}
        jsonschema_rs.Draft202012Validator({"$ref": f"#/components/schemas/{schema}", **components}).validate(
            body
        )

    return check


@pytest.mark.parametrize("store", STORES)
def test_answers_follow_lagos_openapi(start, validate, store):
    simulator, client = start(
        store, customer={"name": "Jane", "email": "jane@example.org", "timezone": "Europe/Berlin"}
    )
    simulator.create_plan("advance", pay_in_advance_charge=True)
    simulator.subscribe("driver", "advance", "advance")
    validate("EventsCreated", client.send(event("a"), event("b", subscription="advance"))[1])
    validate(
        "EventCreated", client.post("/events", {"event": event("c", precise_total_amount_cents="1.5")})[1]
    )
    validate("Event", client.get("/events/a")[1])
    validate("EventsPaginated", client.get("/events")[1])
    validate("CustomersPaginated", client.get("/customers")[1])
    validate("Customer", client.get("/customers/driver")[1])
    validate("SubscriptionsPaginated", client.get("/subscriptions")[1])
    validate("SubscriptionExtended", client.get("/subscriptions/sub")[1])
    validate("ChargesPaginated", client.get("/subscriptions/sub/charges")[1])
    validate("PlansPaginated", client.get("/plans")[1])
    validate("Plan", client.get("/plans/ev_payg")[1])
    validate("BillableMetricsPaginated", client.get("/billable_metrics")[1])
    validate("BillableMetric", client.get("/billable_metrics/ev_charging_kwh")[1])
    validate("Organization", client.get("/organizations")[1])
    query = {"external_subscription_id": "sub"}
    validate("CustomerUsage", client.get("/customers/driver/current_usage", **query)[1])
    simulator.close_period("sub")
    validate("CustomerPastUsage", client.get("/customers/driver/past_usage", **query)[1])
    validate("Invoice", client.get(f"/invoices/{simulator.books.invoices[-1].lago_id}")[1])
    validate("FeesPaginated", client.get("/fees")[1])
    validate("ApiErrorNotFound", client.get("/events/none")[1])
    validate("ApiErrorNotFound", client.get("/nothing")[1])
    validate("ApiErrorUnprocessableEntity", client.post("/events", {"event": event("", code="")})[1])
    validate("ApiErrorBadRequest", client.post("/events", {})[1])
    validate("ApiErrorUnauthorized", client.request("GET", "/api/v1/fees", headers={"authorization": "x"})[1])
    query = {"external_subscription_id": "none"}
    validate("ApiErrorNotAllowed", client.get("/customers/driver/current_usage", **query)[1])


def test_a_pending_and_an_ended_subscription_follow_lagos_openapi(lago, validate):
    simulator, client = lago
    simulator.create_plan("cheap", amount_cents=0)
    simulator.create_plan("dear", amount_cents=5)
    simulator.upgrade("sub", "dear")
    simulator.downgrade("sub", "cheap")
    simulator.subscribe("driver", "cheap", "canceled", subscription_at=NOON + timedelta(days=9))
    client.request("DELETE", "/api/v1/subscriptions/canceled?status=pending")
    _, body = client.get("/subscriptions", **{"status[]": ["active", "pending", "terminated", "canceled"]})
    statuses = sorted(row["status"] for row in body["subscriptions"])
    assert statuses == ["active", "canceled", "pending", "terminated"]
    validate("SubscriptionsPaginated", body)
