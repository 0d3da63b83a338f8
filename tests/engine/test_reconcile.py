"""``ocpp-billing reconcile``: StEvE, ledger and Lago side by side, and each way in which they can differ."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.parse import parse_qs, urlsplit

import pytest
from django.db import connection
from msgspec import structs

from ocpp_billing.billing.confirm import LOST_AFTER
from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.cli import main
from ocpp_billing.lago.wire import UsageEvent as EventToSend
from ocpp_billing.reconcile import pieces
from ocpp_billing.steve import capabilities
from ocpp_billing.sync.clients import lago_client

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
RELEASES = ["3.7", "3.8", "3.9", "3.10", "3.11", "3.12", "3.14"]


@pytest.fixture
def ahead(world):
    """Alice pays by a plan that charges in advance, and billing is live."""
    world.plan("ahead", pay_in_advance_charge=True)
    world.payer("TAG-ALICE", "alice", plan="ahead")
    world.go_live()
    return world


@pytest.fixture
def reconcile(world, monkeypatch, capsys):
    """(exit code, what it found) of a look with these arguments."""

    def look(*arguments):
        for name, value in world.environment().items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()  # what a run in this process has logged
        code = main(["reconcile", "--json", *arguments])
        found = json.loads(capsys.readouterr().out)
        assert found["agrees"] == (code == 0) == (not found["differences"])
        assert all(difference["do"] for difference in found["differences"])
        return found

    return look


def lines(found):
    return {line["subscription_id"]: line for line in found["subscriptions"]}


def differences(found):
    return {(each["code"], each["subscription_id"], each["what"]) for each in found["differences"]}


def sent(event):
    return EventToSend(**json.loads(event.payload), value_field=event.field_name)


@pytest.mark.parametrize("release", RELEASES)
def test_after_a_run_all_three_agree_on_every_release(live, reconcile, release):
    live.session("TAG-ALICE", energy_wh=12_345)
    live.session("TAG-BOB", "CP-2", start=30 * HOUR, stop=26 * HOUR, energy_wh=700)
    live.session("TAG-NOBODY", "CP-3", energy_wh=2_000)
    live.sync()
    before = ledger_rows()
    asked = len(live.steve.requests)
    found = reconcile()
    assert found["agrees"]
    assert ledger_rows() == before
    nothing = {"sessions": 0, "energy_wh": 0}
    assert lines(found)["sub-alice"] | {"periods": []} == {
        "subscription_id": "sub-alice",
        "customer_id": "alice",
        "steve": {"sessions": 1, "energy_wh": 12_345},
        "ledger": {"confirmed": {"sessions": 1, "energy_wh": 12_345}},
        "lago": {"events": 1, "energy_wh": 12_345},
        "periods": [],
    }
    (period,) = lines(found)["sub-alice"]["periods"]
    assert (period["counted_kwh"], period["ours_wh"], period["agrees"]) == ("12.345", 12_345, True)
    assert lines(found)[None]["ledger"] == {"held": {"sessions": 1, "energy_wh": 2_000}}
    assert lines(found)[None]["lago"] == {"events": 0, "energy_wh": 0}
    assert sum(line["steve"]["energy_wh"] for line in found["subscriptions"]) == 15_045
    assert nothing not in [line["steve"] for line in found["subscriptions"]]
    for request in live.steve.requests[asked:]:  # the trap: FROM_TO with all types returns everything
        if release in {"3.8", "3.9"} and "periodType=FROM_TO" in request["path"]:
            assert "type=STOPPED" in request["path"] or "transactionPk=" in request["path"]
    live.assert_conserved()


def ledger_rows():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT (SELECT count(*) FROM sync_run), (SELECT count(*) FROM lago_subscription),"
            " (SELECT max(read_at) FROM lago_subscription), (SELECT string_agg(state, ',') FROM usage_event)"
        )
        return cursor.fetchone()


@pytest.mark.parametrize("release", ["3.7", "3.9", "3.14"])
def test_only_what_stopped_in_the_window_counts(live, reconcile, release):
    live.session("TAG-ALICE", start=6 * DAY, stop=5 * DAY, energy_wh=1_000)
    live.session("TAG-ALICE", start=4 * DAY, stop=3 * DAY, energy_wh=2_000)
    live.session("TAG-ALICE", start=2 * DAY, stop=1 * DAY, energy_wh=4_000)
    live.sync()
    now = live.clock.now()
    found = reconcile("--from", (now - 4 * DAY).isoformat(), "--to", (now - 2 * DAY).isoformat())
    assert found["agrees"]
    (line,) = found["subscriptions"]
    assert line["steve"] == {"sessions": 1, "energy_wh": 2_000}
    assert line["ledger"] == {"confirmed": {"sessions": 1, "energy_wh": 2_000}}
    assert line["lago"] == {"events": 1, "energy_wh": 2_000}
    assert line["periods"][0]["ours_wh"] == 7_000  # Lago counts the whole billing period


@pytest.mark.parametrize("release", ["3.9", "3.11", "3.14"])
def test_what_steve_shows_otherwise_than_the_ledger_is_named(live, reconcile, release):
    known = live.session("TAG-ALICE", energy_wh=5_000)
    deleted = live.session("TAG-BOB", "CP-2", energy_wh=700)
    live.sync()
    new = live.session("TAG-ALICE", "CP-3", energy_wh=900)
    ChargingSession.objects.filter(steve_id=known).update(stop_wh=1_000 + 4_000)
    live.steve.delete_tag("TAG-BOB")
    found = differences(reconcile())
    assert ("not_read", None, str(new)) in found
    assert ("changed", "sub-alice", str(known)) in found
    assert ("gone", "sub-bob", str(deleted)) in found


@pytest.mark.parametrize("release", ["3.9", "3.14"])
def test_a_number_that_names_another_session_is_found_even_with_the_same_energy(live, reconcile, release):
    tag, started, stopped = (live.session("TAG-ALICE", f"CP-{n}", energy_wh=5_000) for n in (1, 2, 3))
    live.session("TAG-ALICE", "CP-4", energy_wh=5_000)
    live.sync()
    before = live.clock.now() - 3 * HOUR
    sessions = {each: ChargingSession.objects.filter(steve_id=each) for each in (tag, started, stopped)}
    sessions[tag].update(id_tag_text="TAG-SOMEBODY")
    sessions[started].update(started_at=before)
    sessions[stopped].update(stopped_at=live.clock.now() - HOUR / 2)
    found = reconcile()
    assert differences(found) == {
        ("other_session", "sub-alice", str(tag)),
        ("other_session", "sub-alice", str(started)),
        ("changed", "sub-alice", str(stopped)),
    }
    says = {difference["what"]: difference["says"] for difference in found["differences"]}
    assert says[str(tag)] == (
        "StEvE shows another session by this number: another id tag (…LICE, the ledger …BODY)."
    )
    assert f"the ledger one at {before:%Y-%m-%d %H:%M:%S} UTC" in says[str(started)]


@pytest.mark.parametrize("release", ["3.7", "3.14"])
def test_a_window_is_read_in_pieces_and_each_session_is_compared_once(live, reconcile, release, monkeypatch):
    monkeypatch.setattr(pieces, "MOST_ROWS", 2)
    ids = [
        live.session(f"TAG-{who}", "CP-1", start=(days + 1) * DAY, stop=days * DAY + HOUR, energy_wh=1_000)
        for days, who in zip(range(18, -1, -1), ["ALICE", "BOB"] * 10, strict=False)
    ]
    live.sync()
    asked = len(live.steve.requests)
    found = reconcile()
    assert found["agrees"]
    assert sum(line["ledger"]["confirmed"]["sessions"] for line in found["subscriptions"]) == len(ids)
    assert sum(line["steve"]["sessions"] for line in found["subscriptions"]) == len(ids)
    assert sum(line["lago"]["events"] for line in found["subscriptions"]) == len(ids)
    windows = [parse_qs(urlsplit(each["path"]).query) for each in live.steve.requests[asked:]]
    widths = [
        datetime.fromisoformat(window["to"][0]) - datetime.fromisoformat(window["from"][0])
        for window in windows
        if "to" in window and "transactionPk" not in window
    ]
    assert len(widths) > 9
    assert max(widths) <= pieces.LONGEST
    # StEvE shows it in another piece than the ledger has it.
    moved = ChargingSession.objects.get(steve_id=ids[3])
    ChargingSession.objects.filter(pk=moved.pk).update(
        stopped_at=moved.stopped_at + 9 * DAY, started_at=moved.started_at + 9 * DAY
    )
    found = reconcile()
    assert [difference["what"] for difference in found["differences"]] == [str(ids[3])]
    assert sum(line["steve"]["sessions"] for line in found["subscriptions"]) == len(ids)
    assert sum(line["ledger"]["confirmed"]["sessions"] for line in found["subscriptions"]) == len(ids)


@pytest.mark.parametrize("release", ["3.7"])
def test_the_weeks_before_a_window_of_starts_are_cut_by_all_that_began_in_them(
    live, reconcile, release, monkeypatch
):
    """StEvE shows those, too: no piece holds many more rows than it may."""
    monkeypatch.setattr(pieces, "MOST_ROWS", 3)
    for days in range(18, -1, -1):
        live.session("TAG-ALICE", "CP-1", start=(days + 1) * DAY, stop=days * DAY + HOUR, energy_wh=1_000)
    live.sync()
    asked = len(live.steve.requests)
    found = reconcile("--from", (live.clock.now() - 2 * DAY).isoformat())
    assert found["agrees"]
    assert sum(line["steve"]["sessions"] for line in found["subscriptions"]) == 2
    widths = window_widths(live, asked)
    assert len(widths) > 18 // 3 + 1
    assert max(width for width, begin in widths if begin > live.clock.now() - 19 * DAY) <= 4 * DAY


def window_widths(world, asked):
    """How wide each window of StEvE was that was asked for since, and where it began."""
    widths = []
    for request in world.steve.requests[asked:]:
        window = parse_qs(urlsplit(request["path"]).query)
        if "to" in window and "transactionPk" not in window:
            begin, end = (datetime.fromisoformat(window[side][0]) for side in ("from", "to"))
            widths.append((end - begin, begin.replace(tzinfo=begin.tzinfo or UTC)))
    return widths


@pytest.mark.parametrize("release", ["3.8", "3.9", "3.10"])
def test_where_it_is_unknown_what_a_window_compares_each_session_is_still_compared_once(
    live, reconcile, release, monkeypatch
):
    """Many of them begin in one piece and stop in another one, and one is not in the ledger."""
    monkeypatch.setattr(pieces, "MOST_ROWS", 2)
    known = capabilities.probe
    monkeypatch.setattr(
        capabilities,
        "probe",
        lambda *given: structs.replace(known(*given), window_basis=None, complete=False),
    )
    ids = [
        live.session(
            "TAG-ALICE", f"CP-{days}", start=(days + 2) * DAY, stop=days * DAY + HOUR, energy_wh=1_000
        )
        for days in range(12, -1, -1)
    ]
    live.sync()
    missing = live.session("TAG-ALICE", "CP-99", start=5 * DAY, stop=3 * DAY, energy_wh=500)
    found = reconcile("--from", (live.clock.now() - 9 * DAY).isoformat())
    assert differences(found) == {("not_read", None, str(missing))}
    assert sum(line["steve"]["sessions"] for line in found["subscriptions"]) == 9 + 1
    assert (
        sum(line["ledger"].get("confirmed", {"sessions": 0})["sessions"] for line in found["subscriptions"])
        == 9
    )
    assert len(ids) == 13


@pytest.mark.parametrize("release", ["3.9"])
def test_a_latest_session_without_a_readable_start_leaves_nothing_unknown(
    live, reconcile, release, monkeypatch
):
    live.session("TAG-ALICE", energy_wh=1_000)
    odd = live.session("TAG-ALICE", "CP-2", energy_wh=2_000)
    live.show_as(odd, startTimestamp="1990-01-01T12:00:00.000Z")
    live.sync()
    told = []
    known = capabilities.probe
    monkeypatch.setattr(capabilities, "probe", lambda *given: told.append(known(*given)) or told[-1])
    reconcile()
    assert [each.complete for each in told] == [False, True]


def test_a_correction_that_is_dated_after_the_window_is_compared_with_its_session(live, reconcile):
    steve_id = live.session("TAG-ALICE", energy_wh=5_000)
    live.sync()
    ended = live.clock.now()
    live.lago.close_period("sub-alice")
    live.show_as(steve_id, stopValue="8000")
    live.sync(late_policy="current_period")
    live.clock.advance(LOST_AFTER)
    window = ("--from", live.begins_at.isoformat(), "--to", ended.isoformat())
    found = reconcile(*window)
    assert found["agrees"]
    assert lines(found)["sub-alice"]["lago"] == {"events": 2, "energy_wh": 7_000}
    UsageEvent.objects.filter(n=2).update(transaction_id="steve:main:999-00000000:2")
    assert ("missing_in_lago", "sub-alice", "steve:main:999-00000000:2") in differences(reconcile(*window))


def test_a_session_older_than_every_window_is_asked_for_by_its_number(live, reconcile):
    live.session("TAG-ALICE", start=19 * DAY, stop=HOUR, energy_wh=5_000)
    live.sync(max_session_hours=1000)
    assert reconcile("--from", (live.clock.now() - 2 * HOUR).isoformat())["agrees"]


def test_an_event_that_lago_lost_or_holds_otherwise_or_twice_is_named(live, reconcile):
    live.session("TAG-ALICE", energy_wh=5_000)
    live.session("TAG-BOB", "CP-2", energy_wh=700)
    live.sync()
    alice, bob = (UsageEvent.objects.get(external_subscription_id=f"sub-{who}") for who in ("alice", "bob"))
    UsageEvent.objects.filter(pk=bob.pk).update(payload=bob.payload.replace('"0.700"', '"0.800"'))
    UsageEvent.objects.filter(pk=alice.pk).update(transaction_id="steve:main:999-00000000:1")
    found = differences(reconcile())
    assert ("missing_in_lago", "sub-alice", "steve:main:999-00000000:1") in found
    assert ("unknown_to_ledger", "sub-alice", alice.transaction_id) in found
    assert ("differs_in_lago", "sub-bob", bob.transaction_id) in found


def test_an_event_that_was_given_up_and_is_in_lago_is_named_unless_it_is_known_not_to_count(live, reconcile):
    live.session("TAG-ALICE", energy_wh=12_345)
    live.sync()
    name, now = UsageEvent.objects.get().transaction_id, live.clock.now()
    UsageEvent.objects.update(state="void", given_up_at=now)
    assert ("turned_up", "sub-alice", name) in differences(reconcile())
    UsageEvent.objects.update(turned_up_at=now)
    assert name not in {what for _, _, what in differences(reconcile())}


def test_an_event_whose_answer_was_lost_is_ahead_of_the_ledger(live, reconcile):
    live.session("TAG-ALICE", energy_wh=5_000)
    live.crash_at("http lago POST /events/batch", "after")
    event = UsageEvent.objects.get()
    assert event.state == "queued"
    assert ("ahead_of_ledger", "sub-alice", event.transaction_id) in differences(reconcile())


def test_what_lago_does_not_count_is_named(live, reconcile):
    live.session("TAG-ALICE", energy_wh=5_000)
    live.sync()
    UsageEvent.objects.update(energy_wh=6_000)
    found = reconcile()
    (difference,) = [each for each in found["differences"] if each["code"] == "count_differs"]
    assert difference["says"] == "Lago counts 5.0 kWh; ours are 6.000 kWh, those of others 0 kWh."
    assert not lines(found)["sub-alice"]["periods"][0]["agrees"]


def test_what_others_sent_is_on_a_line_of_its_own(live, reconcile):
    live.session("TAG-ALICE", energy_wh=5_000)
    live.sync()
    event = UsageEvent.objects.get()
    theirs = replace(sent(event), transaction_id="theirs", properties={"kwh": "2.5"})
    with lago_client(live.config()) as client:
        client.post_batch([theirs])
    found = reconcile()
    assert found["agrees"]
    (period,) = lines(found)["sub-alice"]["periods"]
    assert (period["counted_kwh"], period["ours_wh"], period["others_kwh"]) == ("7.5", 5_000, "2.5")


def test_a_charge_in_advance_is_compared_by_its_fees(ahead, reconcile):
    ahead.session("TAG-ALICE", energy_wh=5_000)
    ahead.sync()
    assert reconcile()["agrees"]
    ahead.clock.advance(LOST_AFTER)
    UsageEvent.objects.update(transaction_id="steve:main:999-00000000:1")
    assert ("no_fee", "sub-alice", "steve:main:999-00000000:1") in differences(reconcile())


def test_a_fee_is_waited_for_as_long_as_lago_may_take_to_make_it(ahead, reconcile):
    ahead.lago.lose_jobs(1)
    ahead.session("TAG-ALICE", energy_wh=5_000)
    ahead.sync()
    assert reconcile()["agrees"]
    ahead.clock.advance(LOST_AFTER)
    assert [code for code, _, _ in differences(reconcile())] == ["no_fee"]


def test_two_fees_of_one_event_are_one_too_many(ahead, reconcile):
    ahead.session("TAG-ALICE", energy_wh=5_000)
    ahead.sync()
    books = ahead.lago.books
    (fee,) = books.fees
    books.fees.append(replace(fee, lago_id="another"))
    (difference,) = reconcile()["differences"]
    assert (difference["code"], difference["what"]) == ("billed_twice", fee.event_transaction_id)
    assert difference["says"] == "Lago charged it 2 times: 5.0 kWh, 5.0 kWh."
    UsageEvent.objects.update(answer={"outcome": "credited", "says": "credited by credit note CN-7"})
    assert reconcile()["agrees"]
    UsageEvent.objects.update(answer=None)
    books.fees[:] = [replace(fee, usage=replace(fee.usage, units=Decimal(4)))]
    (difference,) = reconcile()["differences"]
    assert (difference["code"], difference["says"]) == (
        "fee_differs",
        "Lago charged 4.0 kWh for it, 5.000 kWh were sent.",
    )


def test_after_an_upgrade_from_arrears_to_advance_each_event_is_compared_as_it_was_charged(live, reconcile):
    live.plan("ahead", pay_in_advance_charge=True)
    live.session("TAG-ALICE", energy_wh=5_000)
    live.sync()
    live.lago.upgrade("sub-alice", "ahead")
    live.clock.advance(hours=6)
    live.session("TAG-ALICE", energy_wh=700)
    live.sync()
    live.clock.advance(LOST_AFTER)
    found = reconcile()
    assert found["agrees"]
    assert lines(found)["sub-alice"]["lago"] == {"events": 2, "energy_wh": 5_700}
    (period,) = lines(found)["sub-alice"]["periods"]
    assert (period["counted_kwh"], period["invoiced"]) == ("5.0", True)
    UsageEvent.objects.filter(energy_wh=5_000).update(energy_wh=6_000)  # as if the invoice counted less
    assert [code for code, _, _ in differences(reconcile())] == ["count_differs"]


def test_what_was_invoiced_before_the_charge_was_paid_in_advance_needs_no_fee(live, reconcile):
    live.session("TAG-ALICE", energy_wh=5_000)
    live.sync()
    live.lago.close_period("sub-alice")
    charge = live.lago.books.catalogue.plans["ev_payg"].charges[0]
    live.lago.books.catalogue.plans["ev_payg"].charges[:] = [replace(charge, pay_in_advance=True)]
    window = ("--from", live.begins_at.isoformat(), "--to", live.clock.now().isoformat())
    assert reconcile(*window)["agrees"]
    UsageEvent.objects.update(energy_wh=6_000)
    assert [code for code, _, _ in differences(reconcile(*window))] == ["no_fee"]


def test_usage_that_lags_behind_by_minutes_is_no_difference(live, reconcile):
    live.session("TAG-ALICE", energy_wh=5_000)
    live.sync()
    live.lago.delay_usage(3_600)
    live.session("TAG-ALICE", "CP-2", energy_wh=700)
    live.sync()
    found = reconcile()
    assert found["agrees"]
    (period,) = lines(found)["sub-alice"]["periods"]
    assert (period["counted_kwh"], period["ours_wh"], period["uncounted_wh"]) == ("5.0", 5_700, 700)
    live.clock.advance(LOST_AFTER)
    assert [code for code, _, _ in differences(reconcile())] == ["count_differs"]


def test_an_invoiced_period_is_compared_too(live, reconcile):
    live.session("TAG-ALICE", energy_wh=5_000)
    live.sync()
    live.lago.close_period("sub-alice")
    found = reconcile("--from", live.begins_at.isoformat(), "--to", live.clock.now().isoformat())
    assert found["agrees"]
    invoiced = [period for period in lines(found)["sub-alice"]["periods"] if period["invoiced"]]
    assert [(period["counted_kwh"], period["ours_wh"]) for period in invoiced] == [("5.0", 5_000)]


def test_a_customer_whom_lago_cannot_be_asked_about_is_named(live, reconcile):
    live.payer("TAG-EVE", "eve.x")
    live.session("TAG-EVE", energy_wh=5_000)
    live.sync()
    (difference,) = reconcile()["differences"]
    assert (difference["code"], difference["subscription_id"]) == ("not_counted", "sub-eve.x")
    assert "no dot or slash" in difference["says"]


def test_it_is_readable_without_json(live, monkeypatch, capsys):
    live.session("TAG-ALICE", energy_wh=12_345)
    live.sync()
    for name, value in live.environment().items():
        monkeypatch.setenv(name, value)
    capsys.readouterr()
    assert main(["reconcile"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "All three agree."
    line = next(line.split() for line in out if line.startswith("sub-alice"))
    assert line == ["sub-alice", "1", "12.345", "1", "confirmed", "12.345", "1", "12.345", "12.345", "kWh"]
    assert main(["reconcile", "--from", "2026-03-02", "--to", "2026-03-01"]) == 2
    assert "--to must be after --from." in capsys.readouterr().err
