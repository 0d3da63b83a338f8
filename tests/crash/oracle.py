"""What must be true: at every moment, also just after a crash, and once everything has come to rest.

The judges are the charge points (what was delivered) and Lago's own books (what it will invoice); the
ledger is only asked what it knows of and what it visibly holds.
"""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db.models import Q

from ocpp_billing.billing import control
from ocpp_billing.billing.balance import counted_balance, read_balance
from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.charging.models import ChargingSession, MalformedRow

if TYPE_CHECKING:
    from tests.world import World

TAKEN = ("accepted", "confirmed")
NOTHING = {"sessions": 0, "energy_wh": 0}


class Outcome(NamedTuple):
    """Where everything stands.

    Attributes:
        invoiced: what Lago charges, in Wh, by subscription.
        states: state and reason of each session, by StEvE's id.
    """

    invoiced: dict[str, int]
    states: dict[int, tuple[str, str | None]]


def outcome_of(world: World) -> Outcome:
    """What Lago charges and how the sessions stand."""
    invoiced: dict[str, int] = defaultdict(int)
    for line in world.lago.billed():
        invoiced[line["external_subscription_id"]] += int(line["units"] * 1000)
    sessions = ChargingSession.objects.filter(superseded_at=None)
    states = {
        steve_id: tuple(rest) for steve_id, *rest in sessions.values_list("steve_id", "state", "reason")
    }
    return Outcome(dict(invoiced), states)


def assert_whole(world: World, *, knows_all: bool = True, contract_holds: bool = True) -> None:
    """True at every moment: the balance adds up, and Lago has nothing twice and nothing that is not ours.

    Args:
        world: as it is now.
        knows_all: the ledger knows every event that Lago has; False while a restored one is behind.
        contract_holds: Lago bills as it did; False while its metric or a charge is gone for a while.
    """
    source = world.config().steve_source
    balance, counted = read_balance(source), counted_balance(source)
    assert balance.unexplained.to_json() == NOTHING, f"unexplained: {balance.unexplained}"
    assert counted.to_json() == balance.to_json(), "the counters differ from the recount"
    ours = {event.transaction_id: event for event in UsageEvent.objects.all()}
    counted_by_lago = set()
    for entry in world.lago.ledger():
        name = entry["transaction_id"]
        if not name.startswith("steve:") or entry.get("reason") == "overwritten":
            continue
        if entry["state"] != "never":
            assert name not in counted_by_lago, f"Lago counts {name} twice"
            counted_by_lago.add(name)
        event = ours.get(name)
        if event is None:
            assert not knows_all, f"Lago has {name}, the ledger does not"
            continue
        if not event.attempts:
            assert not knows_all, f"Lago has {name}, the ledger says that it cannot"
            continue
        sent = (event.external_subscription_id, event.energy_wh)
        assert sent == (entry["external_subscription_id"], wh_of(entry)), f"{name} is another in Lago"
    confirmed = {name for name, event in ours.items() if event.state == "confirmed"}
    assert confirmed <= counted_by_lago or not contract_holds, (
        f"confirmed but not counted: {confirmed - counted_by_lago}"
    )


def assert_conserved(world: World) -> None:
    """True at rest: of every session Lago counts what the charge point delivered, less what we hold."""
    in_lago: dict[int, int] = defaultdict(int)
    by_subscription: dict[str, int] = defaultdict(int)
    for entry in world.lago.ledger():
        if entry["transaction_id"].startswith("steve:") and entry["state"] != "never":
            steve_id = int(entry["transaction_id"].split(":")[2].partition("-")[0])
            in_lago[steve_id] += wh_of(entry)
            by_subscription[entry["external_subscription_id"]] += wh_of(entry)
    held: dict[int, int] = defaultdict(int)
    for event in UsageEvent.objects.exclude(state__in=[*TAKEN, "void"]).select_related("session"):
        held[event.session.steve_id] += event.energy_wh
    sessions = {session.steve_id: session for session in ChargingSession.objects.filter(superseded_at=None)}
    for steve_id, session in sessions.items():
        held[steve_id] += session.rest_wh
    set_aside = set(MalformedRow.objects.filter(resolved_at=None).values_list("steve_id", flat=True))
    for entry in world.steve.ledger():
        number = entry.transaction_id
        if not entry.visible or number in set_aside:
            continue
        assert number in sessions, f"session {number} was never discovered"
        if entry.stopped:
            assert entry.delivered_wh is not None
            delivered = max(entry.delivered_wh, 0)
            assert in_lago[number] + held[number] == delivered, (
                f"session {number}: {delivered} Wh delivered, {in_lago[number]} in Lago, {held[number]} held"
            )
        else:
            assert in_lago[number] == 0, f"session {number} still runs and Lago has {in_lago[number]} Wh"
    for subscription, energy_wh in by_subscription.items():
        taken = UsageEvent.objects.filter(external_subscription_id=subscription, state__in=TAKEN)
        said = sum(event.energy_wh for event in taken)
        assert energy_wh == said, f"{subscription}: Lago counts {energy_wh} Wh, the ledger says {said}"
    invoiced = {name: energy_wh for name, energy_wh in outcome_of(world).invoiced.items() if energy_wh}
    assert invoiced == {name: energy_wh for name, energy_wh in by_subscription.items() if energy_wh}


def under_way(world: World) -> list[str]:
    """What will still happen by itself: sessions to decide, events to send or confirm."""
    undecided = ChargingSession.objects.filter(needs_decision=True, stopped_at__isnull=False)
    states = ["accepted", "queued"] if control.read_status(world.config()).mode == "live" else ["accepted"]
    missed = Q(state="held", missing_since__isnull=False, given_up_at=None)
    events = UsageEvent.objects.filter(Q(state__in=states) | missed)
    return [f"session {session.steve_id} is undecided" for session in undecided] + [
        f"{event} is {event.state}, {event.answer}" for event in events
    ]


def wh_of(entry: dict[str, Any]) -> int:
    """What an event in Lago's ledger says, in Wh, whether its metric exists at present or not."""
    return int(Decimal(entry["properties"]["kwh"]) * 1000)
