"""What the engine is doing while it is killed: small stories, each about one danger to exactly once."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from ocpp_billing.billing import control, review
from ocpp_billing.billing.adopt import adopt_events
from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.billing.move import MoveError, carry_out_move, preview_move
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.lago.directory import LagoDirectory
from ocpp_billing.mappings.store import MappingError
from ocpp_billing.simulators.server import Fault
from ocpp_billing.sync.clients import open_clients
from ocpp_billing.sync.policy import policy_of
from tests.crash.mortal import Boundary
from tests.crash.saved import SavedLedger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.world import World

HOUR = timedelta(hours=1)


def _nothing(_world: World) -> None:
    """The world stands still."""


def sync(world: World) -> None:
    """One run of the leader."""
    world.sync()


@dataclass(frozen=True)
class Story:
    """One story.

    Attributes:
        name: of it.
        prepare: what was before.
        act: what the process does that is killed; the next process does the same again.
        between: what happens in the world after the first process, whether it died or not.
        meanwhile: what happens in the world when the first process that comes there passes a boundary.
        invoiced: what Lago charges in the end, in Wh, by subscription; None = it depends on the moment of
            the crash how much is held instead.
        knows_all: the ledger knows what Lago has, at every moment.
        on_any_store: no event comes to Lago again of which the ledger cannot know: else only a store that
            takes an id once bills it once.
    """

    name: str
    prepare: Callable[[World], None]
    invoiced: Mapping[str, int] | None
    act: Callable[[World], None] = sync
    between: Callable[[World], None] = _nothing
    meanwhile: Mapping[Boundary, Callable[[World], None]] = field(default_factory=dict)
    knows_all: bool = True
    on_any_store: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def stores(self) -> tuple[str, ...]:
        """Lago's stores on which it ends well: those of PostgreSQL, and the nastiest of ClickHouse."""
        clickhouse = "clickhouse-plain" if self.on_any_store else "clickhouse"
        return ("postgres", "postgres-1.32", "postgres-1.30", clickhouse)

    @property
    def acts_twice(self) -> bool:
        """Whether a second process acts also when the first one survived."""
        return self.between is not _nothing


# -- a first synchronization of everything there is ----------------------------------------------------


def _mixed(world: World) -> None:
    world.payer("TAG-ALICE", "alice")
    world.payer("TAG-BOB", "bob")
    world.go_live()
    world.session("TAG-ALICE", "CP-1", energy_wh=10_000)
    world.session("TAG-BOB", "CP-2", energy_wh=3_210)
    world.session("TAG-NOBODY", "CP-3", energy_wh=4_000)
    world.session("TAG-ALICE", "CP-4", energy_wh=0)
    malformed = world.session("TAG-ALICE", "CP-5", energy_wh=64_000)
    world.show_as(malformed, startValue="NaN")
    world.start("TAG-BOB", "CP-6")


# -- corrections -----------------------------------------------------------------------------------------


def show_stop(world: World, steve_id: int, energy_wh: int) -> None:
    """Let StEvE show another stop register: that is what was delivered."""
    (entry,) = (entry for entry in world.steve.ledger() if entry.transaction_id == steve_id)
    assert entry.start_wh is not None
    world.show_as(steve_id, stopValue=str(entry.start_wh + energy_wh))
    world.steve.note_delivered(steve_id, energy_wh)


def _billed_two(world: World) -> None:
    world.payer("TAG-ALICE", "alice")
    world.payer("TAG-BOB", "bob")
    world.go_live()
    world.session("TAG-ALICE", "CP-1", energy_wh=10_000)
    world.session("TAG-BOB", "CP-2", energy_wh=8_000)
    world.sync()


def _changed_stops(world: World) -> None:
    _billed_two(world)
    show_stop(world, 1, 12_500)
    show_stop(world, 2, 5_000)


def _stop_changes(world: World) -> None:
    """What was just sent, or was not, changes before the next process looks."""
    show_stop(world, 3, 9_000)


def _one_more(world: World) -> None:
    _billed_two(world)
    world.session("TAG-ALICE", "CP-3", energy_wh=6_000)


# -- Lago's answers get lost ---------------------------------------------------------------------------


def _lost_answers(world: World) -> None:
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    world.sync()
    for number in range(3):
        world.session("TAG-ALICE", f"CP-{number}", energy_wh=1_000 + number)
    world.lago.add_fault(Fault("drop_after", path="/events/batch", times=2))


def _unheard_requests(world: World) -> None:
    _lost_answers(world)
    world.lago.clear_faults()
    world.lago.add_fault(Fault("status", path="/events/batch", status=503, times=4))


def _lost_in_lago(world: World) -> None:
    """Lago answers 200 to the first event and stores nothing of it."""
    _three_sessions(world)
    world.lago.lose_events(1)


# -- a batch with a duplicate, which older Lagos store in part ---------------------------------------


def _three_sessions(world: World) -> None:
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    world.sync()
    for number in range(3):
        world.session("TAG-ALICE", f"CP-{number}", energy_wh=2_000 + number)


def late_request_arrives(world: World) -> None:
    """A request of an earlier leader, long under way, arrives just before ours: one event is known then."""
    event = UsageEvent.objects.filter(state="queued").order_by("id")[1]
    body = b'{"event": %s}' % event.payload.encode()
    headers = {"Authorization": f"Bearer {world.lago.api_key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{world.lago.api_url}/api/v1/events", body, headers)
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["event"]["transaction_id"] == event.transaction_id


# -- going live ----------------------------------------------------------------------------------------


def _shadow(world: World) -> None:
    world.payer("TAG-ALICE", "alice")
    world.session("TAG-ALICE", "CP-1", start=31 * HOUR, stop=30 * HOUR, energy_wh=7_000)
    world.session("TAG-ALICE", "CP-2", energy_wh=5_000)
    world.sync()


def _go_live(world: World) -> None:
    live_from = world.begins_at + timedelta(days=19)
    try:
        world.go_live(live_from)
    except control.ControlError:
        assert control.read_status(world.config()).live_from == live_from
    world.sync()


# -- the end of a billing period -----------------------------------------------------------------------


def _before_the_period_ends(world: World) -> None:
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    world.sync()
    world.session("TAG-ALICE", "CP-1", energy_wh=2_000)
    world.session("TAG-ALICE", "CP-2", energy_wh=3_000)
    world.lago.add_fault(Fault("status", path="/events/batch", status=503))


def _before_the_period_ends_by_policy(world: World) -> None:
    world.settings["LATE_POLICY"] = "current_period"
    _before_the_period_ends(world)


def _close_period(world: World) -> None:
    world.lago.close_period("sub-alice")


def _in_vain_before_the_period_ends(world: World) -> None:
    _before_the_period_ends(world)
    world.lago.clear_faults()
    world.lago.add_fault(Fault("status", path="/events/batch", status=503, times=-1))


def _in_vain_before_the_period_ends_by_policy(world: World) -> None:
    world.settings["LATE_POLICY"] = "current_period"
    _in_vain_before_the_period_ends(world)


def _recover_in_the_next_period(world: World) -> None:
    world.lago.clear_faults()
    _close_period(world)


def _sync_and_accept(world: World) -> None:
    """A run, and a person who lets everything that is late be billed now; and the next run."""
    world.sync()
    world.clock.advance(minutes=15)
    for session in ChargingSession.objects.filter(state="held", reason="late_period").order_by("id"):
        if not session.rulings.filter(kind="accept").exists():
            review.accept(session.pk, note="bill it now", by="test")
    world.sync()


# -- mappings --------------------------------------------------------------------------------------------


def _unmapped(world: World) -> None:
    world.payer("TAG-ALICE", "alice")
    world.customer("bob")
    world.go_live()
    world.session("TAG-ALICE", "CP-1", energy_wh=2_000)
    world.session("TAG-BOB", "CP-2", energy_wh=3_000)
    world.sync()
    world.session("TAG-BOB", "CP-2", start=timedelta(minutes=40), stop=timedelta(minutes=20), energy_wh=500)


def _map(world: World) -> None:
    try:
        world.map("TAG-BOB", "bob")
    except MappingError:
        assert ChargingSession.objects.filter(id_tag__text="TAG-BOB", id_tag__mappings__isnull=False).exists()
    world.sync()


# -- moving ----------------------------------------------------------------------------------------------


def _billed_to_the_wrong_one(world: World) -> None:
    _billed_two(world)
    world.customer("carol")


def _move(world: World) -> None:
    config = world.config()
    with open_clients(config) as (_, lago):
        directory, policy = LagoDirectory(lago, config.lago_metric_code), policy_of(config)
        session = ChargingSession.objects.get(steve_id=1)
        try:
            (move,) = preview_move(
                [session.pk], customer="carol", subscription=None, policy=policy, directory=directory
            )
        except MoveError:
            assert session.events.filter(kind="move").exists()
        else:
            carry_out_move(move, policy=policy, directory=directory, note="wrong tag", by="test")
    world.sync()


# -- our own database was restored from a backup ----------------------------------------------------


def _restored_ledger(world: World) -> None:
    _billed_two(world)
    backup = SavedLedger("backup")
    world.session("TAG-ALICE", "CP-1", start=timedelta(minutes=50), stop=timedelta(minutes=30), energy_wh=700)
    world.session("TAG-BOB", "CP-2", start=timedelta(minutes=50), stop=timedelta(minutes=30), energy_wh=900)
    world.sync()
    backup.restore()
    backup.drop()
    show_stop(world, 3, 1_100)


def _adopt(world: World) -> None:
    """What ``ocpp-billing adopt`` does, and the run after it."""
    config = world.config()
    control.pause(config, by=control.BY_ITSELF, reason=control.ADOPTING)
    world.sync()
    with open_clients(config) as (_, lago):
        adopt_events(config, lago, by="test", say=str)
    control.resume_after_adopting(config, by="test")
    world.sync()


# -- charged in advance ---------------------------------------------------------------------------------


def _in_advance(world: World) -> None:
    world.plan("ev_payg")
    world.plan("ev_advance", pay_in_advance_charge=True)
    world.payer("TAG-ALICE", "alice", plan="ev_advance")
    world.go_live()
    world.sync()
    world.session("TAG-ALICE", "CP-1", energy_wh=2_000)
    world.session("TAG-ALICE", "CP-2", energy_wh=3_000)
    world.lago.add_fault(Fault("drop_after", path="/events/batch"))


# -- a session that runs ---------------------------------------------------------------------------------


def _running(world: World) -> None:
    _billed_two(world)
    world.start("TAG-ALICE", "CP-3", at=timedelta(minutes=50))
    world.sync()


def _it_stops(world: World) -> None:
    world.stop(3, "CP-3", at=timedelta(minutes=1), meter_wh=6_500)


BEFORE_POST = Boundary("http lago POST /events/batch", "before")

STORIES = (
    Story("first_run", _mixed, {"sub-alice": 10_000, "sub-bob": 3_210}),
    Story("corrections", _changed_stops, {"sub-alice": 12_500, "sub-bob": 5_000}),
    Story(
        "stop_changes_after_the_crash",
        _one_more,
        {"sub-alice": 19_000, "sub-bob": 8_000},
        between=_stop_changes,
    ),
    Story("lost_answers", _lost_answers, {"sub-alice": 3_003}),
    Story("unheard_requests", _unheard_requests, {"sub-alice": 3_003}),
    Story("lost_in_lago", _lost_in_lago, {"sub-alice": 6_003}),
    Story(
        "duplicate_in_a_batch",
        _three_sessions,
        {"sub-alice": 6_003},
        meanwhile={BEFORE_POST: late_request_arrives},
        on_any_store=False,
    ),
    Story("going_live", _shadow, {"sub-alice": 5_000}, act=_go_live),
    Story(
        "period_ends_and_late_is_billed_now",
        _before_the_period_ends_by_policy,
        {"sub-alice": 5_000},
        between=_close_period,
    ),
    Story(
        "tried_in_vain_and_late_is_billed_now",
        _in_vain_before_the_period_ends_by_policy,
        {"sub-alice": 5_000},
        between=_recover_in_the_next_period,
    ),
    Story(
        "tried_in_vain_and_late_is_accepted",
        _in_vain_before_the_period_ends,
        {"sub-alice": 5_000},
        act=_sync_and_accept,
        between=_recover_in_the_next_period,
    ),
    Story("mapping_added", _unmapped, {"sub-alice": 2_000, "sub-bob": 3_500}, act=_map),
    Story(
        "move",
        _billed_to_the_wrong_one,
        {"sub-alice": 0, "sub-bob": 8_000, "sub-carol": 10_000},
        act=_move,
    ),
    Story(
        "adopt_after_a_restore",
        _restored_ledger,
        {"sub-alice": 11_100, "sub-bob": 8_900},
        act=_adopt,
        knows_all=False,
    ),
    Story("charged_in_advance", _in_advance, {"sub-alice": 5_000}),
    Story("stops_after_the_crash", _running, {"sub-alice": 15_500, "sub-bob": 8_000}, between=_it_stops),
)
