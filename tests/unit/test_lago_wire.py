"""What goes to Lago on the wire, and what is made of what comes back."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocpp_billing.lago import wire
from ocpp_billing.lago.errors import Unsendable

EVENT = wire.UsageEvent(
    transaction_id="steve:main:42-0a1b2c3d:1",
    code="ev_charging_kwh",
    external_subscription_id="sub_alice",
    timestamp="1767225600.250",
    properties={"kwh": "12.345", "connector_id": "1", "id_tag_last4": "0042"},
    value_field="kwh",
)


def held(**changes):
    answer = {
        "lago_id": None,
        "transaction_id": EVENT.transaction_id,
        "lago_customer_id": None,
        "code": EVENT.code,
        "timestamp": "2026-01-01T00:00:00.250Z",
        "precise_total_amount_cents": None,
        "properties": dict(EVENT.properties),
        "lago_subscription_id": None,
        "external_subscription_id": EVENT.external_subscription_id,
        "created_at": "2026-01-01T00:00:01Z",
        **changes,
    }
    return msgspec.json.Decoder(wire.Event, float_hook=Decimal).decode(json.dumps(answer))


class TestTimestampText:
    def test_is_decimal_seconds_with_milliseconds(self):
        assert wire.timestamp_text(datetime(2026, 1, 1, 0, 0, 0, 250_999, tzinfo=UTC)) == "1767225600.250"

    def test_is_the_same_instant_from_any_time_zone(self):
        berlin = timezone(timedelta(hours=1))
        assert wire.timestamp_text(datetime(2026, 1, 1, 1, tzinfo=berlin)) == "1767225600.000"

    def test_refuses_a_time_without_a_zone(self):
        with pytest.raises(ValueError, match="time zone"):
            wire.timestamp_text(datetime(2026, 1, 1))  # noqa: DTZ001 - the point of the test

    def test_refuses_a_time_before_1970(self):
        with pytest.raises(ValueError, match="1970"):
            wire.timestamp_text(datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC))

    @given(st.datetimes(datetime(2000, 1, 1), datetime(2099, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001
    def test_of_any_sane_instant_is_exact_to_the_millisecond_and_sendable(self, at):
        text = wire.timestamp_text(at)
        milliseconds = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
        assert Decimal(text) * 1000 == milliseconds
        assert wire.problems(replace(EVENT, timestamp=text)) == ()


class TestProblems:
    def test_a_good_event_has_none(self):
        assert wire.problems(EVENT) == ()

    @pytest.mark.parametrize("value", ["0", "-3.000", "007.50", "118.945", "1" * 40])
    def test_plain_decimal_numbers_may_be_sent(self, value):
        assert wire.problems(replace(EVENT, properties={"kwh": value})) == ()

    @pytest.mark.parametrize(
        "value",
        [
            "1E+2",
            "1e-05",
            "+5",
            ".5",
            "5.",
            " 5",
            "5 ",
            "5\n",
            "5,0",
            "",
            "NaN",
            "Infinity",
            "--5",
            "٣",
            "0x10",
        ],
    )
    def test_what_lago_would_take_and_never_bill_is_refused(self, value):
        (problem,) = wire.problems(replace(EVENT, properties={"kwh": value}))
        assert "not a plain decimal number" in problem

    @pytest.mark.parametrize("value", [5, 5.0, Decimal(5), None])
    def test_a_quantity_that_is_no_text_is_refused(self, value):
        assert wire.problems(replace(EVENT, properties={"kwh": value}))

    def test_an_event_without_the_field_that_the_metric_sums_is_refused(self):
        (problem,) = wire.problems(replace(EVENT, properties={"wh": "5"}))
        assert "'kwh'" in problem
        assert "missing" in problem

    @pytest.mark.parametrize("transaction_id", ["", "a/b", "a.b", "a b", "a\n", "ä", "a\x00"])
    def test_a_transaction_id_with_other_characters_is_refused(self, transaction_id):
        assert wire.problems(replace(EVENT, transaction_id=transaction_id))

    @pytest.mark.parametrize(
        "timestamp",
        ["1767225600250", "0.000", "946684799.999", "4102444800.000", "1767225600.2501", "-1.0", "", "1e9",
         "2026-01-01T00:00:00Z", "1767225600.", "1767225600\n"],
    )  # fmt: skip
    def test_a_timestamp_that_is_not_seconds_of_this_century_is_refused(self, timestamp):
        (problem,) = wire.problems(replace(EVENT, timestamp=timestamp))
        assert "timestamp" in problem

    @pytest.mark.parametrize("timestamp", ["946684800", "4102444799.999", "1767225600.5"])
    def test_the_range_of_timestamps_is_exact(self, timestamp):
        assert wire.problems(replace(EVENT, timestamp=timestamp)) == ()

    def test_a_blank_subscription_or_metric_is_refused(self):
        assert wire.problems(replace(EVENT, external_subscription_id=" "))
        assert wire.problems(replace(EVENT, code=""))

    @pytest.mark.parametrize("text", ["a\x00b", "\ud800"])
    def test_a_text_that_lago_cannot_store_is_refused(self, text):
        properties = {"kwh": "1", "charge_box_id": text}
        assert wire.problems(replace(EVENT, properties=properties))
        assert wire.problems(replace(EVENT, external_subscription_id=text))
        assert wire.problems(replace(EVENT, properties={"kwh": "1", text: "x"}))


class TestEncoding:
    def test_events_are_wrapped_as_lago_reads_them(self):
        assert json.loads(wire.encode_batch([EVENT])) == {
            "events": [
                {
                    "transaction_id": "steve:main:42-0a1b2c3d:1",
                    "external_subscription_id": "sub_alice",
                    "code": "ev_charging_kwh",
                    "timestamp": "1767225600.250",
                    "properties": {"kwh": "12.345", "connector_id": "1", "id_tag_last4": "0042"},
                }
            ]
        }

    def test_a_batch_keeps_its_order_and_is_the_same_bytes_every_time(self):
        batch = [replace(EVENT, transaction_id=f"t:{n}") for n in (3, 1, 2)]
        body = wire.encode_batch(batch)
        assert [event["transaction_id"] for event in json.loads(body)["events"]] == ["t:3", "t:1", "t:2"]
        assert wire.encode_batch(batch) == body

    def test_names_every_bad_event_of_a_batch(self):
        batch = [
            EVENT,
            replace(EVENT, transaction_id="t:2", properties={}),
            replace(EVENT, transaction_id="/"),
        ]
        with pytest.raises(Unsendable) as refused:
            wire.encode_batch(batch)
        assert set(refused.value.problems) == {1, 2}

    def test_refuses_a_batch_that_could_never_succeed(self):
        elsewhere = replace(EVENT, external_subscription_id="sub_bob")
        for batch, why in (
            ([], "empty"),
            ([replace(EVENT, transaction_id=f"t:{n}") for n in range(101)], "101"),
            ([EVENT, elsewhere], "twice"),
        ):
            with pytest.raises(Unsendable, match=why):
                wire.encode_batch(batch)

    def test_a_hundred_events_are_not_too_many(self):
        body = wire.encode_batch([replace(EVENT, transaction_id=f"t:{n}") for n in range(100)])
        assert len(json.loads(body)["events"]) == 100


class TestEventsEqual:
    def test_the_event_that_lago_echoes_is_ours(self):
        assert wire.events_equal(EVENT, held()) == []

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"code": "other"}, "code"),
            ({"external_subscription_id": "sub_bob"}, "external_subscription_id"),
            ({"external_subscription_id": None}, "external_subscription_id"),
            ({"transaction_id": "steve:main:43"}, "transaction_id"),
            ({"timestamp": "2026-01-01T00:00:00.252Z"}, "timestamp"),
            ({"timestamp": "2026-01-01T01:00:00.250Z"}, "timestamp"),
            ({"timestamp": "+57971-01-01T00:00:00.000Z"}, "timestamp"),
            ({"properties": None}, "kwh"),
        ],
    )
    def test_names_what_differs(self, changes, named):
        assert any(
            difference.startswith(f"{named}: ") for difference in wire.events_equal(EVENT, held(**changes))
        )

    @pytest.mark.parametrize("stamp", ["00:00:00.249Z", "00:00:00.250Z", "00:00:00.251Z"])
    def test_one_millisecond_is_the_float_of_an_older_lago(self, stamp):
        assert wire.events_equal(EVENT, held(timestamp=f"2026-01-01T{stamp}")) == []

    def test_a_time_in_another_zone_is_the_same_instant(self):
        assert wire.events_equal(EVENT, held(timestamp="2026-01-01T01:00:00.250+01:00")) == []

    @pytest.mark.parametrize("value", ["12.345", "12.3450", "012.345", 12.345])
    def test_the_quantity_is_compared_as_a_number(self, value):
        assert wire.events_equal(EVENT, held(properties={**EVENT.properties, "kwh": value})) == []

    @pytest.mark.parametrize("value", ["12.346", "12,345", "1.2345e1", "", 12.346, 12, True, None, [], {}])
    def test_another_quantity_is_a_difference(self, value):
        (difference,) = wire.events_equal(EVENT, held(properties={**EVENT.properties, "kwh": value}))
        assert difference.startswith("kwh: sent '12.345', Lago holds ")

    def test_a_large_number_is_compared_digit_by_digit(self):
        sent = replace(EVENT, properties={"kwh": "9007199254740993.001"})
        assert wire.events_equal(sent, _event_with_kwh("9007199254740993.001")) == []
        assert wire.events_equal(sent, _event_with_kwh("9007199254740992.001"))

    def test_other_properties_are_compared_letter_by_letter(self):
        assert wire.events_equal(EVENT, held(properties={**EVENT.properties, "id_tag_last4": "42"}))

    def test_what_lago_adds_for_an_expression_is_no_difference(self):
        assert wire.events_equal(EVENT, held(properties={**EVENT.properties, "computed": "99"})) == []


def _event_with_kwh(number):
    text = json.dumps(
        {"transaction_id": EVENT.transaction_id, "code": EVENT.code, "timestamp": "2026-01-01T00:00:00.250Z",
         "external_subscription_id": EVENT.external_subscription_id, "properties": {"kwh": "NUMBER"}}
    )  # fmt: skip
    return msgspec.json.Decoder(wire.Event, float_hook=Decimal).decode(text.replace('"NUMBER"', number))


class TestAnswers:
    def test_quantities_are_decimals(self):
        fee = msgspec.json.decode(b'{"units": "0.30", "amount_cents": 12}', type=wire.Fee)
        assert fee.units == Decimal("0.30")
        assert isinstance(fee.units, Decimal)

    @pytest.mark.parametrize("units", ['"NaN"', '"Infinity"', '"many"', "null"])
    def test_a_quantity_that_is_no_number_is_refused(self, units):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(f'{{"units": {units}, "amount_cents": 1}}', type=wire.Fee)

    def test_an_older_lago_without_the_newer_fields_is_read(self):
        row = msgspec.json.decode(
            b'{"lago_id":"x","external_id":"s","external_customer_id":"c","plan_code":"p","status":"active"}',
            type=wire.Subscription,
        )
        assert row.current_billing_period_started_at is None
        organization = msgspec.json.decode(b'{"lago_id":"x","name":"Org"}', type=wire.Organization)
        assert (organization.events_store, organization.grace_period_days) == (None, 0)

    def test_a_time_without_a_zone_is_refused(self):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(
                b'{"from_datetime":"2026-01-01T00:00:00","to_datetime":"2026-02-01T00:00:00Z"}',
                type=wire.Usage,
            )

    @pytest.mark.parametrize(
        ("fields", "label"),
        [
            ({"name": "Ada Ltd", "firstname": "Ada"}, "Ada Ltd"),
            ({"name": None, "firstname": "Ada", "lastname": "L"}, "Ada L"),
            ({"name": "", "lastname": "L"}, "L"),
            ({"legal_name": "Ada Legal"}, "Ada Legal"),
            ({}, "cust_1"),
        ],
    )
    def test_a_customer_is_called_by_the_best_name_there_is(self, fields, label):
        answer = {"lago_id": "x", "external_id": "cust_1", **fields}
        assert msgspec.json.decode(json.dumps(answer), type=wire.Customer).label == label

    def test_the_time_of_an_event_in_a_far_year_is_unknown(self):
        assert held(timestamp="+57971-01-01T00:00:00.000Z").at is None
        assert held().at == datetime(2026, 1, 1, 0, 0, 0, 250_000, tzinfo=UTC)
