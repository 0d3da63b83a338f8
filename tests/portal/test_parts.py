"""Lists and totals by parts: what they say against the balance, and against adding up in Python."""

import random
from datetime import timedelta

import pytest

from ocpp_billing.billing.balance import balance_by, prove_balance, read_balance
from ocpp_billing.billing.listing import LedgerFilter
from ocpp_billing.billing.models import Decision, UsageEvent
from ocpp_billing.billing.parts import all_parted, list_parted, total_parts
from ocpp_billing.charging.models import ChargingSession
from tests.portal import ledger

pytestmark = pytest.mark.django_db

RANK = ["open", "stuck", "held", "rejected", "queued", "accepted", "confirmed", "excluded"]
EVENT_REASONS = {"rejected": ["value_is_invalid"], "held": ["late_period", "conflict_in_lago"]}


def add_parts(now, rng):
    """Sessions of one to four parts each, as decisions, corrections, moves and refunds leave them.

    We heard of them in another order than StEvE, and twice of four of its numbers: it was restored.
    """
    numbers = [*range(1000, 1036), *range(1000, 1004)]
    rng.shuffle(numbers)
    for number in range(40):
        steve_id = numbers[number]
        stopped_ago = timedelta(days=rng.randrange(40), hours=1)
        session = ledger.add_session(
            now, stopped_ago=stopped_ago, energy_wh=0, state="held", reason="x", steve_id=2000 + number
        )
        parts = []
        for _ in range(rng.randrange(4)):
            state = rng.choice(["held", "rejected", "queued", "accepted", "confirmed"])
            reason = rng.choice(EVENT_REASONS.get(state, [None]))
            event = ledger.add_event(
                session,
                now,
                energy_wh=rng.randrange(-900 if parts else 3_000, 5_000),
                state=state,
                reason=reason,
            )
            customer = rng.choice("AB")
            UsageEvent.objects.filter(pk=event.pk).update(
                external_customer_id=customer, external_subscription_id=f"sub-{customer}"
            )
            parts.append((state, reason, event.energy_wh, customer, event.n))
        rest = rng.choice(["held", "excluded"]) if not parts or rng.random() < 0.3 else None
        if rest == "excluded" and parts:
            rest_reason = "by_operator"
        else:
            # What a rest beside an event is held for, and what one without is.
            held = (
                ["changed_after_billing", "refund_by_credit_note"]
                if parts
                else ["unmapped_tag", "late_period"]
            )
            rest_reason = rng.choice(held) if rest == "held" else "before_go_live"
        rest_wh = rng.randrange(3_000) if rest else 0
        decided = rng.choice([None, "A", "B"])
        Decision.objects.create(
            session=session, revision=1, outcome="hold" if rest else "bill", energy_wh=0, decided_at=now,
            external_customer_id=decided, external_subscription_id=decided and f"sub-{decided}",
        )  # fmt: skip
        if rest:
            parts.append((rest, rest_reason, rest_wh, decided, 0))
        # The least advanced part names it; of the rest and events in one state the rest, else the newest.
        state, reason, *_ = min(parts, key=lambda part: (RANK.index(part[0]), part[4] != 0, -part[4]))
        energy_wh = sum(part[2] for part in parts)
        ChargingSession.objects.filter(pk=session.pk).update(
            state=state, reason=reason, rest_state=rest, rest_reason=rest_reason if rest else None,
            rest_wh=rest_wh, stop_wh=1000 + energy_wh, charge_box_id=f"CP-{number % 3}",
            steve_id=steve_id, superseded_at=now if steve_id in numbers[number + 1 :] else None,
        )  # fmt: skip
        yield (steve_id, session.pk), stopped_ago, number % 3, parts


def naming(parts):
    return min(parts, key=lambda part: (RANK.index(part[0]), part[4] != 0, -part[4]))


FILTERS = [
    {},
    *({"states": [state]} for state in RANK),
    {"states": ["held", "confirmed"]},
    {"reason": "late_period"},
    {"states": ["held"], "reason": "late_period"},
    {"states": ["excluded"], "reason": "by_operator"},
    {"customer": "A"},
    {"subscription": "sub-B"},
    {"customer": "B", "states": ["confirmed"]},
    {"charge_box": "CP-1"},
    {"charge_box": "CP-1", "states": ["queued"]},
    {"days": (30, 10)},
    {"days": (30, 10), "states": ["accepted"], "customer": "A"},
]


@pytest.mark.parametrize("seed", range(2))
def test_every_filter_says_what_adding_up_says(now, seed):
    world = list(add_parts(now, random.Random(seed)))
    for asked in FILTERS:
        given = dict(asked)
        oldest, newest = given.pop("days", (10**4, -1))
        if oldest < 10**4:
            given |= {"since": now - timedelta(days=oldest), "until": now - timedelta(days=newest)}
        chosen = LedgerFilter(source="main", **given)

        def matches(part, asked=asked):
            state, reason, _, customer, _ = part
            return (
                state in asked.get("states", [state])
                and asked.get("reason") in {None, reason}
                and asked.get("customer") in {None, customer}
                and asked.get("subscription") in {None, customer and f"sub-{customer}"}
            )

        expected, states, elsewhere = [], {}, 0
        for numbers, stopped_ago, box, parts in world:
            inside = timedelta(days=newest) < stopped_ago <= timedelta(days=oldest)
            if not inside or asked.get("charge_box") not in {None, f"CP-{box}"}:
                continue
            found = [part for part in parts if matches(part)]
            if not found:
                continue
            expected.append(numbers)
            for state, _, energy_wh, *_ in found:
                states.setdefault(state, [0, 0])[1] += energy_wh
            if matches(naming(parts)):
                states[naming(parts)[0]][0] += 1
            else:
                elsewhere += 1

        totals = total_parts(chosen)
        assert {state: [a.sessions, a.energy_wh] for state, a in totals.states.items() if a} == {
            state: amount for state, amount in states.items() if any(amount)
        }, asked
        assert totals.elsewhere == elsewhere, asked
        newest_first = [session_id for _steve_id, session_id in sorted(expected, reverse=True)]
        listed = list(all_parted(chosen))
        assert [row.session.session_id for row in listed] == newest_first, asked
        assert sum(p.energy_wh for row in listed for p in row.matching) == totals.total.energy_wh, asked
        pages, before = [], None
        while page := list_parted(chosen, before=before, limit=7):
            pages += [row.session.session_id for row in page]
            before = pages[-1]
        assert pages == newest_first, asked


def test_each_figure_of_the_board_is_the_total_of_its_list(now):
    list(add_parts(now, random.Random(7)))
    balance = read_balance("main")
    for state, amount in balance.states.items():
        total = total_parts(LedgerFilter(source="main", states=[state])).total
        assert (total.sessions, total.energy_wh) == (amount.sessions, amount.energy_wh), state
    whole = total_parts(LedgerFilter(source="main"))
    assert whole.total == whole.read == balance.read
    for reason, amount in balance.reasons.items():
        total = total_parts(LedgerFilter(source="main", reason=reason)).total
        assert (total.sessions, total.energy_wh) == (amount.sessions, amount.energy_wh), reason
    for row in balance_by("main", "customer"):
        if row.key:
            assert total_parts(LedgerFilter(source="main", customer=row.key)).total == row.total


def test_counters_and_adding_up_agree(now):
    list(add_parts(now, random.Random(8)))
    assert prove_balance("main").drift == ()
    long_ago = LedgerFilter(source="main", since=now - timedelta(days=400))
    assert total_parts(long_ago) == total_parts(LedgerFilter(source="main"))


def test_a_reading_of_a_person_is_the_stop_that_a_range_is_about(now):
    session = ledger.add_session(now, stopped_ago=timedelta(days=20), energy_wh=2_000, reason="x")
    ChargingSession.objects.filter(pk=session.pk).update(
        reading_stop_wh=4_000, reading_stopped_at=now - timedelta(days=3), rest_wh=3_000
    )
    week = LedgerFilter(source="main", since=now - timedelta(days=7))
    before = LedgerFilter(source="main", until=now - timedelta(days=7))
    assert [row.session.session_id for row in list_parted(week)] == [session.pk]
    assert total_parts(week).total.energy_wh == 3_000
    assert list_parted(before) == []
