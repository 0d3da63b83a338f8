"""The client against a whole Lago, simulated with each of its four event stores."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from ocpp_billing.lago import errors, wire
from ocpp_billing.lago.client import LagoClient, LagoSettings
from ocpp_billing.lago.delivery import Accepted, Refused, Rejected, Unauthorised, Unknown
from ocpp_billing.simulators.lago import LagoSimulator
from ocpp_billing.simulators.server import Fault

NOW = datetime(2026, 3, 15, 12, tzinfo=UTC)
STARTED_AT = datetime(2026, 3, 1, tzinfo=UTC)
METRIC = "ev_charging_kwh"
STORES = ["postgres", "postgres-1.32", "postgres-1.30", "clickhouse"]
POSTGRES = STORES[:3]


@pytest.fixture(params=STORES)
def lago(request):
    with LagoSimulator(request.param) as simulator:
        simulator.set_clock(NOW, frozen=True)
        simulator.create_metric(METRIC)
        simulator.create_plan("ev_payg")
        simulator.create_customer("cust_1", name="Alice GmbH")
        simulator.subscribe("cust_1", "ev_payg", "sub_alice", subscription_at=STARTED_AT)
        yield simulator


@pytest.fixture
def client(lago):
    settings = LagoSettings(lago.api_url, lago.api_key, connect_timeout_s=2, read_timeout_s=5)
    with LagoClient(settings) as client:
        yield client


def usage_event(number, **changes):
    event = wire.UsageEvent(
        transaction_id=f"steve:main:{number}-0a1b2c3d:1",
        code=METRIC,
        external_subscription_id="sub_alice",
        timestamp=wire.timestamp_text(NOW - timedelta(hours=number, milliseconds=number)),
        properties={"kwh": f"{number}.125", "charge_box_id": "CB-1"},
        value_field="kwh",
    )
    return replace(event, **changes)


def stored_ids(lago):
    return sorted(entry["transaction_id"] for entry in lago.ledger())


only_postgres = pytest.mark.parametrize("lago", POSTGRES, indirect=True)


class TestWhoIsThere:
    def test_version_store_and_organisation(self, lago, client):
        assert client.health().version.removeprefix("v") == lago.version
        organization = client.organization()
        assert organization.lago_id == lago.organization_id
        known_since_1_47 = {"postgres": "postgres", "clickhouse": "clickhouse"}
        assert organization.events_store == known_since_1_47.get(lago.store)

    def test_a_wrong_key(self, lago):
        with LagoClient(LagoSettings(lago.api_url, "wrong-key")) as stranger:
            with pytest.raises(errors.Unauthorised, match="LAGO_API_KEY"):
                stranger.organization()
            assert isinstance(stranger.post_batch([usage_event(1)]), Unauthorised)
        assert stored_ids(lago) == []

    def test_a_wrong_address(self, lago):
        with LagoClient(LagoSettings(f"{lago.url}/elsewhere", lago.api_key)) as lost:
            with pytest.raises(errors.WrongAddress, match="LAGO_API_URL"):
                lost.organization()
            assert isinstance(lost.post_batch([usage_event(1)]), Refused)

    @pytest.mark.parametrize("given", ["/api", "/api/", "/api/api/v1"])
    def test_behind_the_prefix_of_lagos_own_compose_file(self, given):
        with LagoSimulator(path_prefix="/api") as simulator:
            settings = LagoSettings(f"{simulator.url}{given}", simulator.api_key)
            with LagoClient(settings) as client:
                assert client.health().version
                assert client.organization().lago_id == simulator.organization_id


class TestSettingUp:
    def test_what_is_created_is_read_back(self, lago, client):
        metric = client.create_metric(
            wire.NewMetric(name="Minutes", code="minutes", aggregation_type="sum_agg", field_name="min")
        )
        assert client.metric("minutes") == metric
        charge = wire.NewCharge(
            billable_metric_id=metric.lago_id, charge_model="standard", properties={"amount": "0.02"}
        )
        plan = client.create_plan(
            wire.NewPlan(
                name="By the minute",
                code="by_minute",
                interval="monthly",
                amount_cents=0,
                amount_currency="EUR",
                pay_in_advance=False,
                charges=[charge],
            )
        )
        assert client.plan("by_minute") == plan
        assert [c.charge_model for c in plan.charges_on("minutes")] == ["standard"]
        assert sorted(p.code for p in client.plans()) == ["by_minute", "ev_payg"]
        with pytest.raises(errors.Unprocessable, match="value_already_exist"):
            client.create_metric(wire.NewMetric(name="M", code="minutes", aggregation_type="count_agg"))

    def test_what_is_missing_is_none(self, client):
        assert client.metric("none") is None
        assert client.plan("none") is None
        assert client.customer("none") is None
        assert client.customer("none@x.com") is None
        assert client.event("none") is None
        assert list(client.subscriptions(external_customer_id="none")) == []

    def test_a_customer_with_an_email_for_an_id(self, lago, client):
        lago.create_customer("jane@x", name="Somebody else")
        lago.create_customer("jane@x.com", name="Jane")
        lago.subscribe("jane@x.com", "ev_payg", "sub_jane", subscription_at=STARTED_AT)
        assert client.customer("jane@x.com").label == "Jane"
        assert [row.external_id for row in client.subscriptions(external_customer_id="jane@x.com")] == [
            "sub_jane"
        ]
        with pytest.raises(errors.NotAddressable):
            client.current_usage("jane@x.com", "sub_jane")

    def test_customers_to_choose_from(self, lago, client):
        lago.create_customer("cust_2", name="Bob")
        page = client.customers("alice")
        assert [(customer.external_id, customer.label) for customer in page.rows] == [
            ("cust_1", "Alice GmbH")
        ]
        assert client.customers().meta.total_count == 2

    def test_an_upgrade_leaves_two_rows_under_one_id(self, lago, client):
        lago.create_plan("ev_flat")
        lago.upgrade("sub_alice", "ev_flat")
        rows = list(client.subscriptions(external_customer_id="cust_1"))
        assert {row.external_id for row in rows} == {"sub_alice"}
        assert sorted((row.status, row.plan_code) for row in rows) == [
            ("active", "ev_flat"),
            ("terminated", "ev_payg"),
        ]
        (active,) = client.subscriptions(external_customer_id="cust_1", statuses=["active"])
        assert active.current_billing_period_started_at is not None


class TestDelivery:
    def test_a_batch_arrives_exactly_as_sent(self, lago, client):
        batch = [usage_event(n) for n in range(1, 101)]
        outcome = client.post_batch(batch)
        assert isinstance(outcome, Accepted)
        assert set(outcome.lago_ids) == {event.transaction_id for event in batch}
        for event in (batch[0], batch[99]):
            assert wire.events_equal(event, client.event(event.transaction_id)) == []
        assert lago.summary()["energy_wh"] == sum(n * 1000 + 125 for n in range(1, 101))

    def test_a_batch_of_one_arrives_exactly_as_sent(self, client):
        event = usage_event(7)
        assert isinstance(client.post_batch([event]), Accepted)
        assert wire.events_equal(event, client.event(event.transaction_id)) == []

    @pytest.mark.parametrize(
        "fault",
        [
            Fault("drop_before", method="POST"),
            Fault("drop_after", method="POST"),
            Fault("truncate", method="POST"),
            Fault("garbage", method="POST"),
            Fault("html", method="POST", status=504, after=True),
            Fault("html", method="POST", status=502),
        ],
        ids=lambda fault: f"{fault.kind}-{fault.status}",
    )
    def test_after_an_unknown_outcome_the_same_bytes_again_bill_once(self, lago, client, fault):
        batch = [usage_event(n) for n in range(1, 6)]
        lago.add_fault(replace(fault))
        assert isinstance(client.post_batch(batch), Unknown)
        again = client.post_batch(batch)
        if isinstance(again, Rejected):
            assert set(again.errors) == set(range(5))
            assert all(error.already_exists for error in again.errors.values())
        else:
            assert isinstance(again, Accepted)
        for event in batch:
            assert wire.events_equal(event, client.event(event.transaction_id)) == []
        assert lago.summary()["energy_wh"] == 15_625

    @only_postgres
    def test_one_duplicate_names_itself_and_the_rest_is_billed_once(self, lago, client):
        batch = [usage_event(n) for n in range(1, 6)]
        assert isinstance(client.post_batch([batch[2]]), Accepted)

        outcome = client.post_batch(batch)
        assert isinstance(outcome, Rejected)
        assert {index: e.already_exists for index, e in outcome.errors.items()} == {2: True}

        # v1.32.4 to v1.38 stored the others although they refused the batch.
        rest = [event for index, event in enumerate(batch) if index not in outcome.errors]
        again = client.post_batch(rest)
        if lago.store == "postgres-1.32":
            assert isinstance(again, Rejected)
            assert all(again.errors[index].already_exists for index in range(4))
        else:
            assert isinstance(again, Accepted)
        assert stored_ids(lago) == sorted(event.transaction_id for event in batch)

    @only_postgres
    def test_a_changed_payload_under_a_known_id_is_seen(self, client):
        sent = usage_event(3)
        client.post_batch([replace(sent, properties={"kwh": "99.000"})])
        outcome = client.post_batch([sent])
        assert outcome.errors[0].already_exists
        assert wire.events_equal(sent, client.event(sent.transaction_id)) == [
            "kwh: sent '3.125', Lago holds '99.000'",
            "charge_box_id: sent 'CB-1', Lago holds nothing",
        ]

    def test_a_lowered_batch_limit_is_recognised(self, lago, client):
        lago.set_batch_max(10)
        outcome = client.post_batch([usage_event(n) for n in range(1, 12)])
        assert isinstance(outcome, Rejected)
        assert outcome.too_large
        assert isinstance(client.post_batch([usage_event(n) for n in range(1, 11)]), Accepted)

    def test_an_unknown_subscription_is_refused_by_index_where_lago_refuses_it(self, lago, client):
        lago.refuse_unknown_subscriptions()
        outcome = client.post_batch([usage_event(1), usage_event(2, external_subscription_id="typo")])
        assert isinstance(outcome, Rejected)
        assert set(outcome.errors) == {1}
        assert not outcome.errors[1].already_exists

    def test_a_rate_limit_and_a_revoked_permission(self, lago, client):
        lago.limit_rate(1, reset_s=7)
        assert client.post_batch([usage_event(1)]).retry_after_s == 7
        lago.deny("write", "event")
        assert isinstance(client.post_batch([usage_event(1)]), Unauthorised)


class TestReadingBack:
    def test_current_usage_is_what_was_sent(self, lago, client):
        client.post_batch([usage_event(n) for n in range(1, 4)])
        usage = client.current_usage("cust_1", "sub_alice", METRIC)
        (line,) = usage.charges_usage
        assert (line.units, line.events_count) == (Decimal("6.375"), 3)
        assert usage.from_datetime == STARTED_AT
        assert usage.from_datetime <= NOW <= usage.to_datetime

    def test_past_usage_once_the_period_is_closed(self, lago, client):
        client.post_batch([usage_event(n) for n in range(1, 4)])
        assert client.past_usage("cust_1", "sub_alice") == []
        lago.close_period("sub_alice")
        (usage,) = client.past_usage("cust_1", "sub_alice", METRIC)
        assert client.invoice(usage.lago_invoice_id).is_final
        lago.books.invoices[-1].status = "draft"
        assert not client.invoice(usage.lago_invoice_id).is_final
        lago.books.invoices[-1].status = "closed"
        assert client.invoice(usage.lago_invoice_id) is None
        assert [line.units for line in usage.charges_usage] == [Decimal("6.375")]

    def test_usage_of_what_is_not_there(self, lago, client):
        with pytest.raises(errors.NoActiveSubscription):
            client.current_usage("cust_1", "typo")
        with pytest.raises(errors.ServerFault):
            client.current_usage("nobody", "sub_alice")
        lago.create_metric("other", "other")
        if lago.version.startswith("1.51"):
            with pytest.raises(errors.MetricNotCharged):
                client.current_usage("cust_1", "sub_alice", "other")
        else:
            assert client.current_usage("cust_1", "sub_alice", "other").charges_usage == ()

    def test_events_of_a_window_over_pages(self, client):
        batch = [usage_event(n) for n in range(1, 31)]
        client.post_batch(batch)
        found = client.events(
            external_subscription_id="sub_alice",
            metric=METRIC,
            timestamp_from=NOW - timedelta(hours=20, milliseconds=20),
            timestamp_to=NOW - timedelta(hours=11, milliseconds=11),
            per_page=3,
        )
        assert [event.transaction_id for event in found] == [e.transaction_id for e in batch[10:20]]

    def test_the_fee_of_an_event_paid_in_advance(self, lago, client):
        lago.create_plan("ev_now", pay_in_advance_charge=True)
        lago.subscribe("cust_1", "ev_now", "sub_now", subscription_at=STARTED_AT)
        event = usage_event(4, external_subscription_id="sub_now")
        client.post_batch([event])
        (fee,) = client.fees(
            external_subscription_id="sub_now", event_transaction_id=event.transaction_id, metric=METRIC
        )
        assert (fee.units, fee.pay_in_advance) == (Decimal("4.125"), True)
        assert list(client.fees(event_transaction_id="other")) == []
