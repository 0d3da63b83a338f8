"""Every answer that Lago, a proxy or chance may give to events means exactly one thing."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocpp_billing.lago.delivery import (
    Accepted,
    RateLimited,
    Refused,
    Rejected,
    Unauthorised,
    Unknown,
    classify,
)
from ocpp_billing.lago.wire import UsageEvent

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
EVENT = UsageEvent(
    transaction_id="t:0",
    code="ev_charging_kwh",
    external_subscription_id="sub_alice",
    timestamp="1767225600.250",
    properties={"kwh": "12.345"},
    value_field="kwh",
)


def batch(count):
    return [replace(EVENT, transaction_id=f"t:{n}") for n in range(count)]


def echo(event, **changes):
    return {
        "lago_id": f"lago-{event.transaction_id}",
        "transaction_id": event.transaction_id,
        "lago_customer_id": None,
        "code": event.code,
        "timestamp": "2026-01-01T00:00:00.250Z",
        "properties": dict(event.properties),
        "lago_subscription_id": None,
        "external_subscription_id": event.external_subscription_id,
        "created_at": "2026-01-01T00:00:01Z",
        **changes,
    }


def answer(status, body, count=3, headers=None):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return classify(status, headers or {}, raw, batch(count), now=NOW)


def refusal(details):
    return {
        "status": 422,
        "error": "Unprocessable Entity",
        "code": "validation_errors",
        "error_details": details,
    }


class TestAccepted:
    def test_200_with_every_event_echoed(self):
        outcome = answer(200, {"events": [echo(event) for event in batch(3)]})
        assert outcome == Accepted({"t:0": "lago-t:0", "t:1": "lago-t:1", "t:2": "lago-t:2"})

    def test_200_to_a_single_event(self):
        assert answer(200, {"event": echo(EVENT)}, count=1) == Accepted({"t:0": "lago-t:0"})

    def test_the_clickhouse_store_gives_no_id(self):
        outcome = answer(200, {"event": echo(EVENT, lago_id=None)}, count=1)
        assert outcome == Accepted({"t:0": None})

    def test_the_order_of_the_echo_does_not_matter(self):
        assert isinstance(answer(200, {"events": [echo(event) for event in reversed(batch(3))]}), Accepted)


class TestTwoHundredsThatProveNothing:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>signed in</html>",
            b"{not json",
            b"\xff\xfe",
            b"null",
            b"[]",
            b"{}",
            b'"ok"',
            b'{"events": []}',
            b'{"events": null}',
            b'{"events": [{"lago_id": "1"}]}',
            b'{"events": [null, null, null]}',
            b"[" * 100_000,
        ],
    )
    def test_without_lagos_answer_in_it(self, body):
        outcome = answer(200, body)
        assert isinstance(outcome, Unknown)
        assert outcome.status == 200

    @pytest.mark.parametrize(
        "events",
        [
            [echo(event) for event in batch(2)],
            [echo(event) for event in batch(4)],
            [echo(event) for event in [*batch(3), batch(3)[2]]],
            [echo(batch(3)[0]), echo(batch(3)[0]), echo(batch(3)[1])],
            [echo(batch(3)[0]), echo(batch(3)[1]), echo(replace(EVENT, transaction_id="other"))],
            [*[echo(event) for event in batch(2)], echo(batch(3)[2], external_subscription_id="sub_bob")],
            [*[echo(event) for event in batch(2)], echo(batch(3)[2], code="other")],
        ],
    )
    def test_whose_echo_is_not_what_was_sent(self, events):
        assert isinstance(answer(200, {"events": events}), Unknown)

    def test_no_content(self):
        assert isinstance(answer(204, b""), Unknown)


class TestRejected:
    def test_names_each_guilty_event_by_index_in_lagos_words(self):
        outcome = answer(
            422,
            refusal(
                {
                    "0": {"transaction_id": ["value_already_exist"]},
                    "2": {"timestamp": ["invalid_format"], "code": ["value_is_mandatory"]},
                    "4": "expression_evaluation_failed: Variable: b not found",
                }
            ),
            count=5,
        )
        assert isinstance(outcome, Rejected)
        assert outcome.whole == ()
        assert {index: (e.already_exists, e.text) for index, e in outcome.errors.items()} == {
            0: (True, "transaction_id: value_already_exist"),
            2: (False, "timestamp: invalid_format; code: value_is_mandatory"),
            4: (False, "expression_evaluation_failed: Variable: b not found"),
        }
        assert outcome.errors[2].codes == (("timestamp", "invalid_format"), ("code", "value_is_mandatory"))

    def test_a_duplicate_that_also_has_another_fault_is_not_simply_delivered(self):
        details = {"0": {"transaction_id": ["value_already_exist"], "timestamp": ["invalid_format"]}}
        outcome = answer(422, refusal(details))
        assert outcome.errors[0].already_exists is False

    @pytest.mark.parametrize(
        ("details", "exists", "text"),
        [
            ({"transaction_id": ["value_already_exist"]}, True, "transaction_id: value_already_exist"),
            ({"0": {"transaction_id": ["value_already_exist"]}}, True, "transaction_id: value_already_exist"),
            ({"timestamp": ["invalid_format"]}, False, "timestamp: invalid_format"),
            ("expression_evaluation_failed: x", False, "expression_evaluation_failed: x"),
            ({"events": ["too_many_events"]}, False, "events: too_many_events"),
            ({"0": None}, False, "refused without a reason"),
            ({}, False, "Unprocessable Entity, validation_errors"),
            (None, False, "Unprocessable Entity, validation_errors"),
        ],
    )
    def test_every_reason_for_a_single_event_is_that_events(self, details, exists, text):
        outcome = answer(422, refusal(details), count=1)
        assert isinstance(outcome, Rejected)
        assert (outcome.errors[0].already_exists, outcome.errors[0].text) == (exists, text)

    @pytest.mark.parametrize(
        ("details", "whole"),
        [
            ({"events": ["too_many_events"]}, "events: too_many_events"),
            ({"events": ["no_events"]}, "events: no_events"),
            ({"transaction_id": ["value_already_exist"]}, "transaction_id: value_already_exist"),
            ("expression_evaluation_failed: x", "expression_evaluation_failed: x"),
            ({"3": {"code": ["value_is_mandatory"]}}, "3: code: value_is_mandatory"),
            ({"-1": ["x"]}, "-1: x"),
            ({"01": ["x"]}, "01: x"),
            ({"²": ["x"]}, "²: x"),
            ({}, "Unprocessable Entity, validation_errors"),
        ],
    )
    def test_a_reason_that_names_no_event_of_ours_is_the_batchs(self, details, whole):
        outcome = answer(422, refusal(details))
        assert outcome == Rejected({}, (whole,))

    def test_knows_when_a_smaller_batch_is_asked_for(self):
        assert answer(422, refusal({"events": ["too_many_events"]})).too_large
        assert answer(413, b"<html>").too_large
        assert not answer(422, refusal({"events": ["no_events"]})).too_large

    @pytest.mark.parametrize("body", [b"<html>", b"", b"[1]", b"null", b"7"])
    def test_a_422_that_is_not_lagos_leaves_it_open(self, body):
        assert isinstance(answer(422, body), Unknown)

    def test_long_reasons_are_shortened(self):
        outcome = answer(422, refusal({"0": "x" * 100_000}))
        assert len(outcome.errors[0].text) == 500


class TestOtherAnswers:
    def test_401_is_the_key(self):
        outcome = answer(401, {"status": 401, "error": "Unauthorized"})
        assert outcome == Unauthorised(401, "Lago answered 401: Unauthorized")

    def test_403_is_the_permission(self):
        body = {"status": 403, "error": "Forbidden", "code": "write_action_not_allowed_for_event"}
        outcome = answer(403, body)
        assert outcome == Unauthorised(
            403, "Lago answered 403: Forbidden, write_action_not_allowed_for_event"
        )

    @pytest.mark.parametrize("status", [400, 402, 404, 405, 406, 409, 410, 415, 421, 451])
    def test_other_4xx_stop_the_delivery(self, status):
        assert answer(status, b"<html>") == Refused(status, f"Lago answered {status}")

    def test_a_redirect_says_where_to_without_its_query(self):
        outcome = answer(302, b"", headers={"Location": "https://sso.example/login?ticket=secret"})
        assert outcome == Refused(302, "Lago answered 302, redirects to https://sso.example/login")

    @pytest.mark.parametrize("status", [408, 425, 500, 502, 503, 504, 520, 599, 999, 0, 100, -1])
    def test_what_leaves_it_open_is_unknown(self, status):
        assert answer(status, b"<html><h1>Bad gateway</h1></html>") == Unknown(
            f"Lago answered {status}", None, status
        )


class TestWaiting:
    @pytest.mark.parametrize(
        ("headers", "wait_s"),
        [
            ({}, None),
            ({"X-RateLimit-Reset": "7"}, 7.0),
            ({"x-ratelimit-reset": "0.5"}, 0.5),
            ({"Retry-After": "12"}, 12.0),
            ({"Retry-After": "12", "X-RateLimit-Reset": "40"}, 40.0),
            ({"Retry-After": "Thu, 01 Jan 2026 12:01:30 GMT"}, 90.0),
            (
                {"Retry-After": "Fri, 02 Jan 2026 00:00:30 GMT", "Date": "Fri, 02 Jan 2026 00:00:00 GMT"},
                30.0,
            ),
            ({"Retry-After": "Thu, 01 Jan 2026 11:00:00 GMT"}, 0.0),
            ({"X-RateLimit-Reset": "1767268800"}, 3600.0),
            ({"Retry-After": "-5"}, None),
            ({"Retry-After": "nan"}, None),
            ({"Retry-After": "soon"}, None),
            ({"Retry-After": ""}, None),
        ],
    )
    def test_429_waits_as_long_as_it_asks_within_an_hour(self, headers, wait_s):
        outcome = answer(429, {"status": 429, "code": "too_many_provider_requests"}, headers=headers)
        assert isinstance(outcome, RateLimited)
        assert outcome.retry_after_s == wait_s

    def test_a_503_may_ask_for_a_wait(self):
        assert answer(503, b"", headers={"Retry-After": "20"}).retry_after_s == 20

    def test_the_limit_that_lago_cloud_tells_with_every_answer_is_no_wish_to_wait(self):
        told = {"X-RateLimit-Limit": "500", "X-RateLimit-Remaining": "499", "X-RateLimit-Reset": "1"}
        assert answer(503, b"", headers=told).retry_after_s is None
        assert answer(503, b"", headers={**told, "X-RateLimit-Remaining": "0"}).retry_after_s == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
details_keys = st.integers(-2, 8).map(str) | st.sampled_from(["events", "transaction_id", "00", "1 "])
bodies = st.one_of(
    st.binary(max_size=200),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(details_keys, json_values, max_size=5).map(lambda d: json.dumps(refusal(d)).encode()),
    st.integers(0, 6).map(lambda n: json.dumps({"events": [echo(event) for event in batch(n)]}).encode()),
)
header_names = st.sampled_from(
    ["Retry-After", "X-RateLimit-Reset", "x-ratelimit-remaining", "Date", "Location", "X"]
)
header_values = st.text(max_size=40) | st.sampled_from(
    [
        "0",
        "Thu, 01 Jan 2026 12:00:00 GMT",
        "Thu, 01 Jan 0001 00:00:00 +9999",
        "Thu, 01 Jan 99999 00:00:00 GMT",
    ]
)
statuses = st.sampled_from([200, 201, 204, 401, 404, 413, 422, 429, 500, 520]) | st.integers(-1, 1000)


class TestAnyAnswerAtAll:
    @settings(max_examples=400)
    @given(statuses, st.dictionaries(header_names, header_values, max_size=4), bodies, st.integers(1, 6))
    def test_accepts_or_rejects_nothing_without_lagos_word(self, status, headers, body, count):
        outcome = classify(status, headers, body, batch(count), now=NOW)

        rejected = set(outcome.errors) if isinstance(outcome, Rejected) else set()
        # Accepted is all or nothing, and only a 2xx can say it.
        assert not isinstance(outcome, Accepted) or (
            200 <= status < 300 and set(outcome.lago_ids) == {f"t:{i}" for i in range(count)}
        )
        assert rejected <= set(range(count))
        # Rejected comes with a reason, from a 422 or 413 only.
        assert not rejected or (status in {413, 422} and all(outcome.errors[i].text for i in rejected))
        if isinstance(outcome, Rejected):
            assert outcome.errors or all(outcome.whole)
            assert count > 1 or not outcome.whole
        if isinstance(outcome, (RateLimited, Unknown)) and outcome.retry_after_s is not None:
            assert 0 <= outcome.retry_after_s <= 3600

    @given(st.sets(st.integers(0, 19), min_size=1), st.sets(st.integers(0, 19)))
    def test_a_refusal_is_exactly_what_its_keys_say(self, duplicates, bad):
        details = {str(i): {"transaction_id": ["value_already_exist"]} for i in duplicates}
        details |= {str(i): {"timestamp": ["invalid_format"]} for i in bad}
        outcome = answer(422, refusal(details), count=20)
        assert {i for i, error in outcome.errors.items() if error.already_exists} == duplicates - bad
        assert {i for i, error in outcome.errors.items() if not error.already_exists} == bad
