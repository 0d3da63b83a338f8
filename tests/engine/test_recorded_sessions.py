"""The 18 sessions recorded from three real StEvE, and what becomes of each (scenario 25).

Their times are shifted so that the newest lies an hour back; mappings, subscriptions and billing begin 20
days before now. 3.14.1 does not take a stop that cannot be right, so four sessions that were finished stay
open there for ever (3 to 5 and 9); the older releases take every stop, and the rules judge them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.simulators.steve_recording import recording_offset

BERLIN = ZoneInfo("Europe/Berlin")

# StEvE's transaction id: (state, reason, Wh read, Wh billed)
ON_EVERY_RELEASE = {
    1: ("confirmed", None, 12_345, 12_345),  # plain
    2: ("excluded", "zero_energy", 0, 0),
    6: ("confirmed", None, 21_000, 21_000),  # delivered nine days late
    7: ("confirmed", None, 44_000, 44_000),  # thirty hours long
    8: ("held", "unmapped_tag", 3_500, 0),
    10: ("confirmed", None, 3_000, 3_000),  # stopped twice
    11: ("confirmed", None, 500, 500),  # started twice
    12: ("held", "clock_skew", 1_000, 0),  # 1970
    13: ("confirmed", None, 2_700, 2_700),  # meter values in mixed units
    14: ("open", None, 0, 0),  # still running
    16: ("confirmed", None, 6_000, 6_000),  # the charger's next after a session that never stopped
    17: ("confirmed", None, 7_200, 7_200),  # register begins at zero
    18: ("confirmed", None, 22_200, 22_200),  # the tag's parent is mapped
}
OLDER = ON_EVERY_RELEASE | {
    3: ("held", "negative_energy", 0, 0),
    4: ("held", "clock_skew", 2_655, 0),  # stopped before it started
    5: ("held", "clock_skew", 3_000, 0),  # stopped tomorrow
    9: ("confirmed", None, 1_500, 1_500),  # tag-alice, mapped as TAG-ALICE
    15: ("open or stuck", None, 0, 0),  # the charger died
}
OUTCOMES = {
    "3.14.1": ON_EVERY_RELEASE | dict.fromkeys((3, 4, 5, 9, 15), ("open or stuck", None, 0, 0)),
    "3.9.0": OLDER,
    "3.7.1": OLDER,
}
TOTALS = {  # sessions and Wh billed, held, excluded, open or stuck
    "3.14.1": {"billed": (9, 118_945), "held": (2, 4_500), "excluded": (1, 0), "waiting": (6, 0)},
    "3.9.0": {"billed": (10, 120_445), "held": (5, 10_155), "excluded": (1, 0), "waiting": (2, 0)},
    "3.7.1": {"billed": (10, 120_445), "held": (5, 10_155), "excluded": (1, 0), "waiting": (2, 0)},
}
DATES = [
    pytest.param(datetime(2026, 5, 1, 0, 10, tzinfo=UTC), "UTC", id="first-of-a-month"),
    pytest.param(datetime(2026, 12, 31, 23, 30, tzinfo=UTC), "UTC", id="new-years-eve"),
    pytest.param(datetime(2028, 2, 29, 9, tzinfo=UTC), "UTC", id="leap-day"),
    pytest.param(datetime(2027, 3, 1, 0, 5, tzinfo=UTC), "UTC", id="after-a-short-month"),
    pytest.param(datetime(2026, 3, 29, 3, 15, tzinfo=BERLIN), "Europe/Berlin", id="summer-time-begins"),
    pytest.param(datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN), "Europe/Berlin", id="hour-before-winter-time"),
    pytest.param(
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN), "Europe/Berlin", id="winter-time-begins"
    ),
    pytest.param(datetime.now(UTC).replace(microsecond=0), "UTC", id="today"),
]
every_release = pytest.mark.parametrize("release", list(OUTCOMES))


@pytest.fixture
def zone():
    return "UTC"


@pytest.fixture
def recorded(world, release, zone):
    """A world with the recorded sessions, the mappings of the demo, and billing live."""
    world.settings["SYNC_TIMEZONE"] = zone
    world.steve.load_recording(release, shift=recording_offset(world.clock.now(), release))
    for tag in ("ALICE", "BOB", "CAROL", "DAVE", "FLEET"):
        world.payer(f"TAG-{tag}", tag.lower(), timezone=zone)
    world.go_live()
    return world


def outcomes(world):
    """What the ledger says of every session, in the form of the table above."""
    sessions = ChargingSession.objects.values_list("steve_id", "state", "reason", "energy_wh")
    found = {}
    for steve_id, state, reason, energy_wh in sessions:
        waiting = state in {"open", "stuck"} and steve_id != 14
        found[steve_id] = (
            "open or stuck" if waiting else state,
            reason,
            max(energy_wh or 0, 0),
            world.billed_wh(steve_id),
        )
    return found


def totals(world):
    """Sessions and Wh by what it means for money."""
    states = world.balance().states
    groups = {
        "billed": ("queued", "accepted", "confirmed"),
        "held": ("held", "rejected"),
        "excluded": ("excluded",),
        "waiting": ("open", "stuck"),
    }
    return {
        group: (sum(states[s].sessions for s in members), sum(states[s].energy_wh for s in members))
        for group, members in groups.items()
    }


@every_release
@pytest.mark.parametrize(("now", "zone"), DATES)
def test_each_recorded_session_ends_as_it_should_on_any_date(recorded, release):
    run = recorded.sync()
    assert run.errors == []
    assert run.status == "completed"
    assert outcomes(recorded) == OUTCOMES[release]
    assert totals(recorded) == TOTALS[release]
    assert recorded.lago_wh() == TOTALS[release]["billed"][1]
    recorded.assert_conserved()


@every_release
def test_the_totals_are_those_of_the_table(release):
    table = OUTCOMES[release]
    assert sorted(table) == list(range(1, 19))
    for group, member in (
        ("billed", "confirmed"),
        ("held", "held"),
        ("excluded", "excluded"),
        ("waiting", "open"),
    ):
        rows = [row for row in table.values() if row[0].startswith(member)]
        assert (len(rows), sum(row[2] for row in rows)) == TOTALS[release][group]


@every_release
def test_the_run_counts_what_it_did(recorded, release):
    run = recorded.sync()
    billed, held, excluded = (TOTALS[release][group][0] for group in ("billed", "held", "excluded"))
    assert {name: run.counts[name] for name in run.counts if not name.endswith("_calls")} == {
        "discovered": 18,
        "changed": 0,
        "malformed": 0,
        "held": held,
        "excluded": excluded,
        "queued": billed,
        "accepted": billed,
        "rejected": 0,
        "confirmed": billed,
    }
    assert run.counts["steve_calls"] == len(recorded.steve.requests)
    assert run.counts["lago_calls"] == len(recorded.lago.requests)


@every_release
def test_the_balance_adds_up_by_reason_and_names_the_negative_one(recorded, release):
    recorded.sync()
    balance = recorded.balance().to_json()
    read_wh = sum(row[2] for row in OUTCOMES[release].values())
    assert balance["read"] == {"sessions": 18, "energy_wh": read_wh}
    assert balance["malformed"] == 0
    expected = {}
    for _, reason, energy_wh, _ in OUTCOMES[release].values():
        if reason:
            entry = expected.setdefault(reason, {"sessions": 0, "energy_wh": 0})
            entry["sessions"] += 1
            entry["energy_wh"] += energy_wh
    assert balance["reasons"] == expected
    negative = (
        {"sessions": 0, "energy_wh": 0} if release == "3.14.1" else {"sessions": 1, "energy_wh": -111_845}
    )
    assert balance["negative"] == negative


@every_release
def test_a_second_sync_sends_nothing(recorded, release):
    recorded.sync()
    events = set(UsageEvent.objects.values_list("transaction_id", "payload"))
    recorded.lago.requests.clear()
    run = recorded.sync()
    assert run.status == "completed"
    assert recorded.posts() == []
    assert set(UsageEvent.objects.values_list("transaction_id", "payload")) == events
    assert {name: number for name, number in run.counts.items() if number} == {
        "steve_calls": run.counts["steve_calls"],
        "lago_calls": run.counts["lago_calls"],
    }
    assert outcomes(recorded) == OUTCOMES[release]
    recorded.assert_conserved()


@every_release
@pytest.mark.parametrize("store", ["postgres-1.32", "postgres-1.30", "clickhouse"])
def test_every_event_store_of_lago_counts_the_same(recorded, release):
    recorded.sync()
    assert recorded.lago_wh() == TOTALS[release]["billed"][1]
    assert outcomes(recorded) == OUTCOMES[release]
    recorded.assert_conserved()


@every_release
def test_each_payer_gets_their_own(recorded, release):
    recorded.sync()
    alice = 12_345 + 21_000 + 2_700 + 6_000 + 7_200 + (0 if release == "3.14.1" else 1_500)
    assert {name: recorded.lago_wh(f"sub-{name}") for name in ("alice", "bob", "carol", "dave", "fleet")} == {
        "alice": alice,
        "bob": 0,
        "carol": 44_000 + 3_000 + 500,
        "dave": 0,
        "fleet": 22_200,
    }
