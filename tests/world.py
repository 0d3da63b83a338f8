"""A small world to run the engine in: one simulated StEvE, one simulated Lago, one clock.

Both systems are real HTTP servers in threads, the ledger is a real PostgreSQL, and the engine, StEvE and
Lago read the same clock, which stands still unless a test moves it or the engine waits.
"""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.db import connection, transaction

from ocpp_billing import clock
from ocpp_billing.billing import control
from ocpp_billing.billing.balance import Balance, read_balance
from ocpp_billing.billing.models import Decision, UsageEvent
from ocpp_billing.billing.parts import DIFFERS
from ocpp_billing.charging.models import ChargingSession, MalformedRow, SessionState
from ocpp_billing.config import Config, load_config
from ocpp_billing.effects import install_hook
from ocpp_billing.mappings.store import create_mapping
from ocpp_billing.simulators.lago import LagoSimulator
from ocpp_billing.simulators.steve import SteveSimulator
from ocpp_billing.simulators.steve_json import TransactionWriter
from ocpp_billing.sync.clients import open_clients
from ocpp_billing.sync.journal import RunJournal, begin_run, end_abandoned_runs
from ocpp_billing.sync.lanes import Dues, take_up
from ocpp_billing.sync.models import WorkerHeartbeat
from ocpp_billing.sync.triggers import request_run
from ocpp_billing.sync.watch import look
from ocpp_billing.sync.worker import carry_out

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocpp_billing.effects import Phase
    from ocpp_billing.mappings.models import TagMapping
    from ocpp_billing.sync.models import SyncRun

NOON = datetime(2026, 3, 17, 12, tzinfo=UTC)
# Mappings, subscriptions and billing begin so long before the world does.
BEGINS_BEFORE = timedelta(days=20)
# So long after a run the next one begins, unless a test lets more time pass: paced calls have rested.
BETWEEN_RUNS = timedelta(minutes=1)
PLAN = "ev_payg"


class WorldClock:
    """The one clock. It stands still; waiting moves it, and nobody really waits."""

    def __init__(self, now: datetime = NOON) -> None:
        self._now = now
        self._lock = threading.Lock()

    def now(self) -> datetime:
        return self._now

    def set(self, now: datetime) -> None:
        self._now = now.astimezone(UTC)

    def advance(self, by: timedelta = timedelta(), **units: float) -> datetime:
        """Let time pass: ``advance(hours=2)``."""
        with self._lock:
            self._now += by + timedelta(**units)
            return self._now

    def sleep(self, seconds: float) -> None:
        self.advance(seconds=max(seconds, 0))


class WorldSteve(SteveSimulator):
    """The simulated StEvE, on the world's clock."""

    def __init__(self, world_clock: WorldClock, release: str, **given: Any) -> None:
        self.world_clock = world_clock
        super().__init__(release, **given)

    def now(self) -> datetime:
        return self.world_clock.now()


class WorldLago(LagoSimulator):
    """The simulated Lago, on the world's clock; closing a period moves the clock for all."""

    def __init__(self, world_clock: WorldClock, store: str, **given: Any) -> None:
        self.world_clock = world_clock
        super().__init__(store, **given)

    def now(self) -> datetime:
        return self.world_clock.now()

    def set_clock(self, now: datetime, *, frozen: bool = False) -> None:
        self.world_clock.set(now)


@dataclass
class World:
    """One StEvE, one Lago, and the ledger between them.

    Attributes:
        clock: of the engine and both systems.
        settings: environment variables of every run, over those of :meth:`config`.
    """

    clock: WorldClock
    steve: WorldSteve
    lago: WorldLago
    settings: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.begins_at = self.clock.now() - BEGINS_BEFORE
        self._registers: dict[tuple[str, int], int] = {}

    # -- settings ----------------------------------------------------------------------------------

    def config(self, **settings: object) -> Config:
        """The settings that connect the engine to this world, with some changed: ``late_policy="hold"``.

        ``None`` leaves a variable out. Events are confirmed without a settle delay and sent without a pace,
        by one thread.
        """
        environ: dict[str, object] = {
            "STEVE_API_URL": self.steve.base_url,
            "STEVE_API_USERNAME": self.steve.api.username if self.steve.release.basic_auth else None,
            "STEVE_API_KEY": self.steve.api.password,
            "LAGO_API_URL": self.lago.api_url,
            "LAGO_API_KEY": self.lago.api_key,
            "CONFIRM_SETTLE_SECONDS": 0,
            "DELIVERY_EVENTS_PER_SECOND": 0,
            "DELIVERY_CONCURRENCY": 1,
            "OCPP_BILLING_ENV_FILE": "",
            **self.settings,
            **{name.upper(): value for name, value in settings.items()},
        }
        return load_config({name: str(value) for name, value in environ.items() if value is not None})

    def environment(self, **settings: object) -> dict[str, str]:
        """The same for a process of its own, as environment variables."""
        config = self.config(**settings)
        names = ("steve_api_url", "steve_api_username", "steve_api_key", "lago_api_url", "lago_api_key")
        chosen = {name.upper(): getattr(config, name) for name in names}
        chosen |= {"CONFIRM_SETTLE_SECONDS": "0", "OCPP_BILLING_ENV_FILE": ""}
        chosen |= {name.upper(): value for name, value in {**self.settings, **settings}.items()}
        return {name: str(value) for name, value in chosen.items() if value is not None}

    # -- Lago's side -------------------------------------------------------------------------------

    def customer(
        self,
        name: str,
        subscription: str | None = None,
        plan: str = PLAN,
        *,
        since: datetime | None = None,
        billing_time: str = "anniversary",
        timezone: str | None = None,
    ) -> str:
        """A customer of Lago with a subscription; metric and plan are made when they are missing.

        The subscription began when the world did, unless ``since`` says otherwise, so that one billing
        period holds all that happens. Called again for the same customer it adds a subscription.

        Returns:
            The external id of the subscription, ``sub-<name>`` by default.
        """
        self.plan(plan)
        if name not in self.lago.books.catalogue.customers:
            self.lago.create_customer(name, currency="EUR", **({"timezone": timezone} if timezone else {}))
        external_id = subscription or f"sub-{name}"
        self.lago.subscribe(
            name, plan, external_id, subscription_at=since or self.begins_at, billing_time=billing_time
        )
        return external_id

    def plan(self, code: str = PLAN, **given: Any) -> str:
        """A plan of Lago that charges the metric, unless it is there already."""
        catalogue = self.lago.books.catalogue
        if "ev_charging_kwh" not in catalogue.metrics:
            self.lago.create_metric()
        if code not in catalogue.plans:
            self.lago.create_plan(code, **given)
        return code

    def lago_wh(self, subscription: str | None = None) -> int:
        """What Lago counts by its own ledger, in Wh: of everybody, or of one subscription."""
        if subscription is None:
            return int(self.lago.summary()["energy_wh"])
        return sum(int(line["units"] * 1000) for line in self.lago.billed(subscription))

    def lago_events(self) -> dict[str, tuple[str, int]]:
        """The events of this ledger that Lago counts: transaction id -> (subscription, Wh)."""
        counted: dict[str, tuple[str, int]] = {}
        for entry in self.lago.ledger():
            if not entry["transaction_id"].startswith("steve:") or entry["state"] == "never":
                continue
            assert entry["transaction_id"] not in counted, f"counted twice: {entry}"
            counted[entry["transaction_id"]] = (
                entry["external_subscription_id"],
                int(Decimal(entry["units"]) * 1000),
            )
        return counted

    def lago_wh_by_session(self) -> dict[int, int]:
        """What Lago counts of each session, in Wh, by StEvE's id, over all its events."""
        counted: dict[int, int] = {}
        for transaction_id, (_, energy_wh) in self.lago_events().items():
            steve_id = int(transaction_id.split(":")[2].split("-")[0])
            counted[steve_id] = counted.get(steve_id, 0) + energy_wh
        return counted

    def others_send(self, subscription: str, kwh: str) -> None:
        """Somebody else sends Lago an event of the metric, such as ``"-2.000"``, for now."""
        now_s = self.clock.now().timestamp()
        event = {
            "transaction_id": "somebody-elses",
            "code": "ev_charging_kwh",
            "external_subscription_id": subscription,
            "timestamp": now_s,
            "properties": {"kwh": kwh},
        }
        self.lago.books.events.add_one(event, int(now_s * 1_000_000))

    def posts(self) -> list[str]:
        """Paths of the usage events that were posted to Lago, by request."""
        return [
            request["path"]
            for request in self.lago.requests
            if request["method"] == "POST" and "/events" in request["path"]
        ]

    # -- the charge points' side -------------------------------------------------------------------

    def at(self, when: datetime | timedelta) -> datetime:
        """An instant; a duration means so long ago."""
        return when if isinstance(when, datetime) else self.clock.now() - when

    def session(
        self,
        tag: str,
        box: str = "CP-1",
        connector: int = 1,
        start: datetime | timedelta = timedelta(hours=2),
        stop: datetime | timedelta = timedelta(hours=1),
        start_wh: int | None = None,
        stop_wh: int | None = None,
        *,
        energy_wh: int = 10_000,
    ) -> int:
        """A whole charging session as a charge point tells it; durations mean so long ago.

        Registers go on from the connector's last one unless they are given.

        Returns:
            StEvE's transaction id.
        """
        steve_id = self.start(tag, box, connector, start, start_wh)
        begun_at = self._registers[box, connector]
        self.stop(steve_id, box, connector, stop, begun_at + energy_wh if stop_wh is None else stop_wh)
        return steve_id

    def start(
        self,
        tag: str,
        box: str = "CP-1",
        connector: int = 1,
        at: datetime | timedelta = timedelta(hours=2),
        meter_wh: int | None = None,
    ) -> int:
        """A charging session begins; returns StEvE's transaction id."""
        register = self._registers.get((box, connector), 1_000) if meter_wh is None else meter_wh
        self._registers[box, connector] = register
        return self.steve.start_transaction(box, connector, tag, self.at(at), register)

    def stop(
        self,
        steve_id: int,
        box: str = "CP-1",
        connector: int = 1,
        at: datetime | timedelta = timedelta(hours=1),
        meter_wh: int = 11_000,
    ) -> str | None:
        """A charging session ends; returns why StEvE set the stop aside, None when it took it."""
        self._registers[box, connector] = meter_wh
        return self.steve.stop_transaction(steve_id, box, self.at(at), meter_wh)

    def show_as(self, steve_id: int, **fields: Any) -> None:
        """Let StEvE show a transaction with some fields changed, whatever is wrong with them."""
        with self.steve.lock:
            row = self.steve.store.row_of(steve_id)
            assert row is not None
            raw = json.loads(TransactionWriter(self.steve.store, self.steve.release).row(row))
        self.steve.inject({**raw, **fields}, steve_id)

    # -- our side ----------------------------------------------------------------------------------

    def map(
        self,
        tag: str,
        customer: str,
        since: datetime | None = None,
        *,
        subscription: str | None = None,
        until: datetime | None = None,
        active: bool = True,
    ) -> TagMapping:
        """Map a tag to a customer, from when the world began unless ``since`` says otherwise."""
        return create_mapping(
            source=self.config().steve_source,
            id_tag=tag,
            customer=customer,
            subscription=subscription,
            valid_from=since or self.begins_at,
            valid_to=until,
            active=active,
            by="test",
        )

    def payer(self, tag: str, customer: str, **given: Any) -> str:
        """A customer with a subscription whom a tag is mapped to; returns the subscription."""
        subscription = self.customer(customer, **given)
        self.map(tag, customer)
        return subscription

    def go_live(self, since: datetime | None = None) -> None:
        """Bill what stopped since then: since the world began unless said otherwise."""
        control.go_live(self.config(), since or self.begins_at, by="test")

    def pause(self, reason: str = "we look into something") -> None:
        """Send nothing until :meth:`resume`."""
        control.pause(self.config(), by="test", reason=reason)

    def resume(self) -> None:
        """Send again."""
        control.resume(self.config(), by="test")

    def sync(self, **settings: object) -> SyncRun:
        """One run of the leader, in this process, with some settings changed; a minute passes after it.

        What a crash left of an earlier run is ended first, as every new leader does.
        """
        config = self.config(**settings)
        end_abandoned_runs(config.steve_source)
        requested = request_run(config.steve_source, trigger="manual", requested_by="test")
        run = begin_run(
            requested.run_id, source=config.steve_source, trigger="manual", requested_by="test", worker="test"
        )
        assert run is not None
        ended = carry_out(config, run, RunJournal(run))
        self.clock.advance(BETWEEN_RUNS)
        return ended

    def watch(self) -> bool:
        """One tick of the watch lane, as the leader does it; no time passes.

        Returns:
            Whether StEvE was still itself; if not, a full run is to follow.
        """
        config = self.config()
        WorkerHeartbeat.objects.get_or_create(
            worker="test", defaults={"source_id": config.steve_source, "leader": True}
        )
        with open_clients(config) as (steve, lago):
            found = look(config, steve, worker="test")
            if found is not None and found.news and found.same_steve:
                run = begin_run(
                    None, source=config.steve_source, trigger="watch", requested_by="test", worker="test"
                )
                assert run is not None
                take_up(config, steve, lago, RunJournal(run), Dues(config), found)
        return found is None or found.same_steve

    def crash_at(self, name: str, phase: Phase, **settings: object) -> None:
        """One run that dies just before or after an effect, such as ``db commit deliver``.

        Raises:
            AssertionError: when the run never comes there.
        """

        def die(happening: str, when: Phase) -> None:
            if (happening, when) == (name, phase):
                raise Crash

        install_hook(die)
        try:
            self.sync(**settings)
        except Crash:
            return
        finally:
            install_hook(None)
        raise AssertionError(f"the run ended without {name}")

    def steve_calls(self, *containing: str) -> list[str]:
        """Addresses that StEvE was asked, with their query; only those that contain all of these words."""
        asked = [request["path"] for request in self.steve.requests]
        return [path for path in asked if all(word in path for word in containing)]

    def balance(self) -> Balance:
        """The balance of the ledger."""
        return read_balance(self.config().steve_source)

    def state_of(self, steve_id: int) -> tuple[str, str | None]:
        """State and reason of a session."""
        return self._session(steve_id).values_list("state", "reason").get()

    def words_about(self, steve_id: int) -> str:
        """What the latest decision about a session says."""
        decisions = Decision.objects.filter(session__in=self._session(steve_id))
        return decisions.latest("id").says

    def billed_wh(self, steve_id: int) -> int:
        """What Lago took of a session, in Wh, according to the ledger."""
        events = UsageEvent.objects.filter(session__in=self._session(steve_id), state__in=TAKEN)
        return sum(events.values_list("energy_wh", flat=True))

    def _session(self, steve_id: int) -> Any:
        source = self.config().steve_source
        return ChargingSession.objects.filter(source=source, steve_id=steve_id, superseded_at=None)

    def assert_conserved(self) -> None:
        """At rest: everything StEvE shows is accounted for once, and Lago counts what we say it took."""
        balance = self.balance()
        assert balance.unexplained.to_json() == {"sessions": 0, "energy_wh": 0}
        states = dict(ChargingSession.objects.filter(superseded_at=None).values_list("steve_id", "state"))
        assert set(states.values()) <= set(SessionState.values)
        set_aside = set(MalformedRow.objects.filter(resolved_at=None).values_list("steve_id", flat=True))
        shown = {entry.transaction_id for entry in self.steve.ledger() if entry.visible}
        assert shown <= states.keys() | set_aside
        taken = UsageEvent.objects.filter(state__in=TAKEN)
        ours = {event.transaction_id: (event.external_subscription_id, event.energy_wh) for event in taken}
        assert self.lago_events() == ours
        beside = ChargingSession.objects.filter(
            rest_state__isnull=False, pk__in=UsageEvent.objects.exclude(state="void").values("session_id")
        )
        assert set(beside.values_list("rest_reason", flat=True)) <= {*DIFFERS, "undecided"}


TAKEN = ("accepted", "confirmed")


class Crash(BaseException):
    """The process dies: nothing in the engine may catch this."""


@contextmanager
def open_world(
    *, release: str = "3.14.1", store: str = "postgres", now: datetime = NOON, **lago: Any
) -> Iterator[World]:
    """A fresh world whose clock is the engine's; at the end both servers are stopped and the ledger is empty.

    Args:
        release: of StEvE.
        store: of Lago.
        now: what time it is.
        **lago: other arguments of :class:`LagoSimulator`.
    """
    world_clock = WorldClock(now.astimezone(UTC))
    clock.install_clock(world_clock.now, world_clock.sleep)
    servers = WorldSteve(world_clock, release), WorldLago(world_clock, store, **lago)
    try:
        yield World(world_clock, *(server.start() for server in servers))
    finally:
        for (
            server
        ) in servers:  # a server looks only now and then whether it is to stop: nobody waits for that
            threading.Thread(target=server.stop).start()
        clock.install_clock(None)
        empty_ledger()


def empty_ledger() -> None:
    """Delete all rows of the ledger; users stay.

    Deleting few rows is faster than truncating; many would be looked for in what was deleted before them.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) >= 500 FROM charging_session")
        ((many,),) = cursor.fetchall()
        cursor.execute(_TRUNCATE if many else _EMPTY)


def forget_people() -> None:
    """Delete all users and what is theirs, after tests that commit them: others make people of the same names."""
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE app_user CASCADE")


def back_up_ledger() -> dict[str, bytes]:
    """A backup of our own database: the rows of every table of the ledger."""
    rows: dict[str, bytes] = {}
    with transaction.atomic(), connection.cursor() as cursor:
        for table in ledger_tables():
            with cursor.copy(f"COPY {table} TO STDOUT") as copy:
                rows[table] = b"".join(bytes(piece) for piece in copy)
    return rows


def restore_ledger(backup: dict[str, bytes]) -> None:
    """Play a backup back: what came later is forgotten, and numbers are given out again."""
    empty_ledger()
    with transaction.atomic(), connection.cursor() as cursor:
        for table in reversed(ledger_tables()):
            with cursor.copy(f"COPY {table} FROM STDIN") as copy:
                copy.write(backup[table])
        cursor.execute("DELETE FROM balance_delta")  # the triggers counted anew while rows came back
        with cursor.copy("COPY balance_delta FROM STDIN") as copy:
            copy.write(backup["balance_delta"])
        for table in ledger_tables():
            cursor.execute(
                "SELECT pg_get_serial_sequence(%s, column_name) FROM information_schema.columns"
                " WHERE table_schema = current_schema AND table_name = %s AND is_identity = 'YES'",
                [table, table],
            )
            for (sequence,) in cursor.fetchall():
                cursor.execute(
                    f"SELECT setval(%s, (SELECT coalesce(max(id), 0) + 1 FROM {table}), false)", [sequence]
                )


def ledger_tables() -> list[str]:
    """The tables of the ledger, those that refer to others before these."""
    models = [
        model
        for label in ("sync", "billing", "mappings", "charging")
        for model in apps.get_app_config(label).get_models()
    ]
    return [model._meta.db_table for model in reversed(models)]


_EMPTIED = [*ledger_tables(), "audit_entry"]
# What triggers count while rows go is deleted last.
_EMPTY = "; ".join(f"DELETE FROM {table}" for table in [*_EMPTIED, "balance_delta"])
_TRUNCATE = f"TRUNCATE {', '.join(_EMPTIED)} CASCADE"
