"""Every watt-hour accounted for: the balance, its counters, their proof, and the breakdowns."""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections import defaultdict
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings
from django.db import connection, transaction
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ocpp_billing import cli, clock, effects
from ocpp_billing.billing import balance as module
from ocpp_billing.billing.balance import (
    DIMENSIONS,
    STATE_RANK_SQL,
    Amount,
    BreakdownRow,
    Drift,
    balance_by,
    compact_counters,
    counted_balance,
    keep_counters,
    last_proof,
    name_of,
    prove_balance,
    read_balance,
)
from ocpp_billing.billing.models import BalanceDelta, BalanceProof, Decision, EventState, UsageEvent
from ocpp_billing.charging.ingest import ingest_transactions
from ocpp_billing.charging.models import ChargingSession, IdTag, MalformedRow, SessionState, Source
from ocpp_billing.commands import balance as balance_command
from ocpp_billing.database import FenceError, fenced_transaction
from ocpp_billing.report import format_balance, format_breakdown
from ocpp_billing.steve.wire import MalformedRow as UnreadRow
from ocpp_billing.steve.wire import Transaction
from ocpp_billing.sync.journal import RunJournal, begin_run
from ocpp_billing.sync.run import account
from tests.engine.threads import Threads

NOON = datetime(2026, 3, 17, 12, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")

numbers = itertools.count(1)


def sql(statement, *bound):
    with connection.cursor() as cursor:
        cursor.execute(statement, bound)
        return cursor.fetchall() if cursor.description else cursor.rowcount


# -- a ledger, by plain SQL and rows --------------------------------------------------------------------


def add_source(name="main"):
    return Source.objects.get_or_create(name=name)[0]


def add_tag(text="TAG-1", source="main"):
    return IdTag.objects.get_or_create(
        source=add_source(source), folded=text.lower(), defaults={"text": text}
    )[0]


def add_session(
    *, source="main", stopped_at=NOON, energy_wh=10_000, state="held", reason=None, tag="TAG-1", **fields
):
    """A session whose energy lies in its rest, unless its state is one of a usage event."""
    number = next(numbers)
    rested = state in {"open", "stuck", "held", "excluded"}
    if state in {"held", "excluded"} and reason is None:
        reason = "unmapped_tag" if state == "held" else "before_go_live"
    if state in {"open", "stuck"}:
        stopped_at = None
    return ChargingSession.objects.create(
        **{
            "source": add_source(source),
            "steve_id": number,
            "fingerprint": number.to_bytes(32, "big"),
            "charge_box_id": "CP-1",
            "connector_id": 1,
            "id_tag": add_tag(tag, source),
            "id_tag_text": tag,
            "started_at": (stopped_at or NOON) - timedelta(hours=1),
            "start_wh": 1000,
            "stopped_at": stopped_at,
            "stop_wh": None if stopped_at is None else 1000 + energy_wh,
            "raw": {},
            "first_seen_at": NOON,
            "changed_at": NOON,
            "state": state,
            "reason": reason,
            "rest_state": state if rested else None,
            "rest_reason": reason if rested else None,
            "rest_wh": max(energy_wh, 0) if rested and stopped_at is not None else 0,
            **fields,
        }
    )


def decide(session, *, customer=None, subscription=None):
    return Decision.objects.create(
        session=session,
        revision=1,
        outcome="bill" if customer else "hold",
        energy_wh=0,
        external_customer_id=customer,
        external_subscription_id=subscription,
        decided_at=NOON,
    )


def add_event(session, energy_wh, *, state="accepted", reason=None, customer="ada", subscription="sub-ada"):
    n = session.events.count() + 1
    return UsageEvent.objects.create(
        source_id=session.source_id,
        session=session,
        decision=decide(session, customer=customer, subscription=subscription),
        n=n,
        transaction_id=f"steve:{session.source_id}:{session.pk}-00000000:{n}",
        kind="original" if n == 1 else "correction",
        external_customer_id=customer,
        external_subscription_id=subscription,
        lago_subscription_id="lago",
        metric_code="ev_charging_kwh",
        field_name="kwh",
        energy_wh=energy_wh,
        timestamp=NOON,
        payload="{}",
        state=state,
        reason=reason,
    )


def add_billed(energy_wh=10_000, *, state="accepted", **fields):
    """A session whose energy one usage event carries."""
    owner = {name: fields.pop(name) for name in ("customer", "subscription") if name in fields}
    session = add_session(energy_wh=energy_wh, state=state, **fields)
    add_event(session, energy_wh, state=state, reason=fields.get("reason"), **owner)
    return session


def deltas(source="main"):
    return list(
        BalanceDelta.objects.filter(source_id=source)
        .order_by("id")
        .values_list("kind", "state", "reason", "sessions", "energy_wh")
    )


def without_misstated(balance):
    """All but the one number that only a recount can know."""
    given = balance.to_json()
    del given["unexplained"]["sessions"]
    return given


def assert_counted(*sources):
    for source in sources or ("main",):
        assert without_misstated(counted_balance(source)) == without_misstated(read_balance(source))


@pytest.fixture
def at():
    """A function that sets the time."""
    yield lambda instant: clock.install_clock(lambda: instant)
    clock.install_clock(None)


# -- the counters follow every write --------------------------------------------------------------------


@pytest.mark.django_db
def test_a_new_session_is_counted_as_read_and_as_a_part():
    add_session(energy_wh=10_000)
    assert sorted(deltas(), key=str) == [
        ("read", None, None, 1, 10_000),
        ("rest", "held", "unmapped_tag", 0, 10_000),
        ("stated", "held", "unmapped_tag", 1, 0),
    ]
    assert counted_balance("main") == read_balance("main")


@pytest.mark.django_db
def test_negative_energy_counts_nothing_and_has_its_own_line():
    add_session(energy_wh=-812, reason="negative_energy")
    counted = counted_balance("main")
    assert (counted.read, counted.negative) == (Amount(1, 0), Amount(1, -812))
    assert counted == read_balance("main")


@pytest.mark.django_db
def test_a_reading_of_a_person_counts_as_the_stop():
    session = add_session(state="open")
    assert counted_balance("main").read == Amount(1, 0)
    sql(
        "UPDATE charging_session SET reading_stop_wh = 4500, reading_stopped_at = %s, state = 'held',"
        " rest_state = 'held', reason = 'undecided', rest_reason = 'undecided', rest_wh = 3500 WHERE id = %s",
        NOON,
        session.pk,
    )
    counted = counted_balance("main")
    assert (counted.read, counted.states["held"]) == (Amount(1, 3500), Amount(1, 3500))
    assert counted == read_balance("main")


@pytest.mark.django_db
def test_writing_what_is_not_counted_appends_nothing():
    session = add_billed(state="queued")
    before = deltas()
    lease = "0b9bd2a6-3d2c-4a9a-8a53-6a1c5c1c0001"
    sql("UPDATE usage_event SET attempts = attempts + 1, lease = %s, lease_until = now()", lease)
    sql("UPDATE charging_session SET needs_decision = true, asked = asked + 1, flags = '[\"x\"]'")
    sql("UPDATE charging_session SET state = state, rest_wh = rest_wh WHERE id = %s", session.pk)
    sql("UPDATE charging_session SET state = 'held' WHERE false")
    sql("UPDATE malformed_row SET last_seen_at = now()")
    assert deltas() == before


@pytest.mark.django_db
def test_a_void_event_counts_nowhere():
    session = add_billed(10_000, state="queued")
    sql("UPDATE usage_event SET state = 'void' WHERE session_id = %s", session.pk)
    counted = counted_balance("main")
    assert counted.states["queued"] == Amount(1, 0)
    assert counted.unexplained.energy_wh == 10_000
    assert_counted()


@pytest.mark.django_db
def test_a_statement_that_writes_a_thousand_rows_appends_one_delta_for_each_key():
    session = add_session()
    sql(
        "INSERT INTO charging_session (source_id, steve_id, fingerprint, charge_box_id, connector_id, id_tag_id,"
        " id_tag_text, start_wh, stopped_at, stop_wh, raw, first_seen_at, changed_at, state, reason, rest_state,"
        " rest_reason, rest_wh)"
        " SELECT source_id, 1000000 + i, int8send(i), charge_box_id, connector_id, id_tag_id, id_tag_text, 0,"
        " stopped_at, i, raw, first_seen_at, changed_at, state, reason, rest_state, rest_reason, i"
        " FROM charging_session, generate_series(1, 1000) i WHERE id = %s",
        session.pk,
    )
    assert len(deltas()) == 6
    assert counted_balance("main").states["held"] == Amount(1001, 10_000 + 500_500)
    assert_counted()


@pytest.mark.django_db(transaction=True)
def test_emptied_tables_are_counted_as_empty():
    add_billed()
    add_session()
    add_session(source="other")
    MalformedRow.objects.create(source_id="main", digest=b"1", raw="?", reason="?")
    sql("TRUNCATE usage_event")
    assert_counted("main", "other")
    assert counted_balance("main").unexplained.energy_wh == 10_000
    sql("TRUNCATE charging_session, malformed_row CASCADE")
    assert deltas("main") == deltas("other") == []
    assert_counted("main", "other")


def transaction_row(steve_id, stop_wh, *, start_wh=0):
    return Transaction(
        steve_id=steve_id,
        charge_box_id="CP-1",
        connector_id=1,
        id_tag="TAG-1",
        id_tag_pk=1,
        started_at=NOON,
        start_timestamp=NOON.isoformat(),
        start_wh=start_wh,
        start_value=str(start_wh),
        stopped_at=None if stop_wh is None else NOON + timedelta(hours=1),
        stop_timestamp=None if stop_wh is None else (NOON + timedelta(hours=1)).isoformat(),
        stop_wh=stop_wh,
        stop_value=None if stop_wh is None else str(stop_wh),
        stop_reason=None,
        stop_actor=None,
    )


class Ledger:
    """Random writes to two sources, each through SQL as a program or a person might send it."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.source = "main"

    def pick(self, table, column="source_id"):
        """The id of a row of this source, or None."""
        rows = sql(f"SELECT id FROM {table} WHERE {column} = %s ORDER BY id", self.source)
        return self.random.choice(rows)[0] if rows else None

    def some(self, table):
        """Some ids of this source."""
        rows = [row for (row,) in sql(f"SELECT id FROM {table} WHERE source_id = %s", self.source)]
        return self.random.sample(rows, self.random.randint(0, len(rows)))

    def part(self):
        return self.random.choice(
            [("held", "unmapped_tag"), ("held", "late_period"), ("excluded", "zero_energy"), ("open", None)]
        )

    def insert_session(self):
        state, reason = self.part()
        add_session(
            source=self.source, state=state, reason=reason, energy_wh=self.random.choice([-300, 0, 1, 7000])
        )

    def ingest(self):
        """Some new, some known, some changed: one statement that inserts and updates."""
        rows = [
            transaction_row(steve_id, self.random.choice([None, -5, 100, 2000]))
            for steve_id in self.random.sample(range(10_000_000, 10_000_006), 3)
        ]
        bad = [UnreadRow(steve_id=10_000_001, raw=f"{{{self.random.randint(1, 3)}", reason="no JSON")]
        with transaction.atomic(), connection.cursor() as cursor:
            ingest_transactions(cursor, self.source, rows, bad if self.random.random() < 0.5 else [], NOON)
            cursor.execute("DELETE FROM incoming")  # as the commit does, which here comes much later

    def change_registers(self):
        sql(
            "UPDATE charging_session SET stop_wh = start_wh + %s, stopped_at = %s WHERE id = ANY(%s)",
            self.random.choice([-50, 0, 12_345]),
            NOON,
            self.some("charging_session"),
        )

    def reopen(self):
        sql(
            "UPDATE charging_session SET stop_wh = NULL, stopped_at = NULL, reading_stop_wh = NULL,"
            " reading_stopped_at = NULL WHERE id = ANY(%s)",
            self.some("charging_session"),
        )

    def enter_reading(self):
        sql(
            "UPDATE charging_session SET reading_stop_wh = %s, reading_stopped_at = %s WHERE id = %s",
            self.random.randint(0, 5000),
            NOON,
            self.pick("charging_session"),
        )

    def change_rest(self):
        state, reason = self.part()
        energy_wh = 0 if state == "open" else self.random.randint(0, 9000)
        sql(
            "UPDATE charging_session SET rest_state = %s, rest_reason = %s, rest_wh = %s WHERE id = ANY(%s)",
            *(state, reason, energy_wh, self.some("charging_session")),
        )

    def drop_rest(self):
        sql(
            "UPDATE charging_session SET rest_state = NULL, rest_reason = NULL, rest_wh = 0 WHERE id = %s",
            self.pick("charging_session"),
        )

    def restate(self):
        sql(
            "UPDATE charging_session SET state = %s, reason = %s WHERE id = ANY(%s)",
            self.random.choice(SessionState.values),
            self.random.choice([None, "late_period"]),
            self.some("charging_session"),
        )

    def insert_event(self):
        chosen = self.pick("charging_session")
        if chosen is not None:
            session = ChargingSession.objects.get(pk=chosen)
            add_event(
                session, self.random.choice([-700, 0, 700]), state=self.random.choice(EventState.values)
            )

    def move_events(self):
        sql(
            "UPDATE usage_event SET state = %s, reason = %s, attempts = 0 WHERE id = ANY(%s)",
            self.random.choice(EventState.values),
            self.random.choice([None, "value_is_invalid"]),
            self.some("usage_event"),
        )

    def change_event_energy(self):
        sql("UPDATE usage_event SET energy_wh = energy_wh + 11 WHERE id = %s", self.pick("usage_event"))

    def delete_event(self):
        sql("DELETE FROM usage_event WHERE id = ANY(%s)", self.some("usage_event"))

    def delete_session(self):
        session = self.pick("charging_session")
        for table, column in (("usage_event", "session_id"), ("decision", "session_id")):
            sql(f"DELETE FROM {table} WHERE {column} = %s", session)
        sql("DELETE FROM charging_session WHERE id = %s", session)

    def resolve_malformed(self):
        sql("UPDATE malformed_row SET resolved_at = now() WHERE id = %s", self.pick("malformed_row"))

    def delete_malformed(self):
        sql("DELETE FROM malformed_row WHERE id = %s", self.pick("malformed_row"))

    def change_source(self):
        """Nobody does that; the counters would bear it."""
        add_source("main"), add_source("other")
        sql(
            "UPDATE malformed_row SET source_id = CASE source_id WHEN 'main' THEN 'other' ELSE 'main' END"
            " WHERE digest NOT IN (SELECT digest FROM malformed_row GROUP BY digest HAVING count(*) > 1)"
        )

    def fold(self):
        compact_counters(self.source)

    def write_and_roll_back(self):
        try:
            with transaction.atomic():
                self.insert_session()
                self.move_events()
                raise TimeoutError
        except TimeoutError:
            pass


WRITES = [name for name in vars(Ledger) if name not in {"pick", "some", "part"} and not name.startswith("_")]


@pytest.mark.django_db
@hypothesis_settings(max_examples=120, deadline=None)
@given(
    writes=st.lists(
        st.tuples(st.sampled_from(WRITES), st.sampled_from(["main", "main", "other"])),
        min_size=1,
        max_size=25,
    ),
    seed=st.integers(0, 2**32),
)
def test_whatever_is_written_the_counters_say_what_the_recount_says(writes, seed):
    with transaction.atomic():
        ledger = Ledger(seed)
        for name, source in writes:
            ledger.source = source
            getattr(ledger, name)()
            assert_counted("main", "other")
        for source in {source for _, source in writes}:
            add_source(source)
            assert prove_balance(source).drift == ()
            assert counted_balance(source) == read_balance(source) == last_proof(source).balance
        transaction.set_rollback(True)


@pytest.mark.django_db
def test_the_migration_counts_what_is_there_already():
    """As when a ledger in use is upgraded."""
    from importlib import import_module

    migration = import_module("ocpp_billing.billing.migrations.0002_balance_counters")
    for _ in range(3):
        add_billed()
        add_session(state="open")
    MalformedRow.objects.create(source_id="main", digest=b"1", raw="?", reason="?")
    sql("SET CONSTRAINTS ALL IMMEDIATE")
    for table, *_ in migration.COUNTED:
        sql(migration.drop_triggers(table))
    sql("DELETE FROM balance_delta")
    for counted in migration.COUNTED:
        sql(migration.create_triggers(*counted))
    assert counted_balance("main").read == Amount(6, 30_000)
    assert_counted()
    add_session()
    assert_counted()


# -- crashes and concurrency ----------------------------------------------------------------------------


class Crash(BaseException):
    """The process dies here."""


@contextmanager
def crash_at(name, phase):
    def hook(effect, now):
        if (effect, now) == (name, phase):
            raise Crash

    effects.install_hook(hook)
    try:
        with pytest.raises(Crash):
            yield
    finally:
        effects.install_hook(None)


@pytest.mark.django_db(transaction=True)
def test_a_crash_leaves_no_delta_of_what_was_not_committed():
    add_session()
    before = deltas()

    def write_and_die():
        with fenced_transaction("record", None) as cursor:
            cursor.execute("UPDATE charging_session SET rest_wh = 1, stop_wh = start_wh + 1")
            assert counted_balance("main").read == Amount(1, 1)
            raise Crash

    with pytest.raises(Crash):
        write_and_die()
    assert deltas() == before
    assert counted_balance("main") == read_balance("main")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("phase", ["before", "after"])
@pytest.mark.parametrize("commit", ["compact counters", "prove balance"])
def test_a_crash_while_the_counters_are_kept_is_made_up_for(monkeypatch, commit, phase):
    monkeypatch.setattr(module, "FOLD_ABOVE_ROWS", 2)
    for _ in range(3):
        add_session()
    sql("INSERT INTO balance_delta (source_id, kind, sessions, energy_wh) VALUES ('main', 'read', 1, 5)")
    with crash_at(f"db commit {commit}", phase):
        keep_counters("main")
    keep_counters("main")
    assert counted_balance("main") == read_balance("main")
    assert BalanceProof.objects.count() == 1
    assert len(last_proof("main").drift) == 1


@pytest.mark.django_db(transaction=True)
def test_delivery_portal_and_worker_write_at_once_and_nobody_waits_or_miscounts():
    """Each transaction leaves the balance whole, so whoever looks in between must find it whole."""
    writers, rounds = 4, 100
    sessions = [[add_billed(1000, state="queued").pk for _ in range(4)] for _ in range(writers)]
    add_source()
    done = threading.Event()
    looked = []

    def deliver(own, seed):
        chance = random.Random(seed)
        for _ in range(rounds):
            energy_wh, state = chance.randint(0, 5000), chance.choice(["accepted", "confirmed", "rejected"])
            with transaction.atomic():
                sql(
                    "UPDATE usage_event SET energy_wh = %s, state = %s WHERE session_id = ANY(%s)",
                    *(energy_wh, state, own),
                )
                sql(
                    "UPDATE charging_session SET stop_wh = start_wh + %s, state = %s WHERE id = ANY(%s)",
                    *(energy_wh, state, own),
                )

    def repeat(function):
        while not done.is_set():
            function("main")

    def look(source):
        looked.append(counted_balance(source).unexplained.energy_wh)

    delivering, keeping = Threads(), Threads()
    for function in (compact_counters, look):
        keeping.start(repeat, function)
    keeping.start(repeat, lambda source: looked.append(len(prove_balance(source).drift)))
    keeping.start(repeat, lambda source: looked.append(prove_balance(source).unexplained.sessions))
    for number, own in enumerate(sessions):
        delivering.start(deliver, own, number)
    delivering.join()
    done.set()
    keeping.join()
    assert len(looked) > 3
    assert set(looked) == {0}
    assert counted_balance("main") == read_balance("main")
    compact_counters("main")
    assert len(deltas()) <= 2 + 2 * 4


@pytest.mark.django_db(transaction=True)
def test_a_repair_beside_an_unfinished_write_is_right_before_and_after_it():
    add_session(energy_wh=10_000)
    sql("DELETE FROM balance_delta WHERE kind = 'read'")
    written, proved = threading.Event(), threading.Event()

    def write():
        with transaction.atomic():
            add_session(energy_wh=500)
            written.set()
            assert proved.wait(30)

    threads = Threads()
    threads.start(write)
    assert written.wait(30)
    assert prove_balance("main").drift == (Drift("read", None, None, 1, 10_000),)
    assert counted_balance("main").read == Amount(1, 10_000)
    proved.set()
    threads.join()
    assert counted_balance("main").read == Amount(2, 10_500)
    assert counted_balance("main") == read_balance("main")


@pytest.mark.django_db(transaction=True)
def test_a_proof_waits_for_another_one_and_does_not_repair_again():
    add_session()
    sql("DELETE FROM balance_delta WHERE kind = 'read'")
    second = threading.Thread(target=lambda: (prove_balance("main"), connection.close()))
    with transaction.atomic():
        prove_balance("main")
        second.start()
        while second.is_alive() and not sql(
            "SELECT FROM pg_locks WHERE relation = 'balance_proof'::regclass AND NOT granted"
        ):
            second.join(0.01)
    second.join(30)
    assert [len(proof.drift) for proof in BalanceProof.objects.order_by("id")] == [1, 0]
    assert counted_balance("main") == read_balance("main")


# -- drift and what is unexplained ----------------------------------------------------------------------


@pytest.mark.django_db
def test_drift_is_found_named_and_repaired(at):
    at(NOON)
    add_session()
    sql("UPDATE balance_delta SET energy_wh = energy_wh - 3, sessions = sessions + 1 WHERE kind = 'rest'")
    sql("INSERT INTO balance_delta (source_id, kind, sessions, energy_wh) VALUES ('main', 'malformed', 2, 0)")
    assert counted_balance("main") != read_balance("main")
    proof = prove_balance("main")
    assert proof.proved_at == NOON
    assert set(proof.drift) == {
        Drift("rest", "held", "unmapped_tag", -1, 3),
        Drift("malformed", None, None, -2, 0),
    }
    assert {str(drift) for drift in proof.drift} == {
        "rest held unmapped_tag -1 sessions +3 Wh",
        "malformed -2 sessions +0 Wh",
    }
    assert last_proof("main") == proof
    assert counted_balance("main") == read_balance("main")
    assert prove_balance("main").drift == ()


@pytest.mark.django_db
def test_a_write_that_the_triggers_did_not_see_is_found():
    sql("ALTER TABLE charging_session DISABLE TRIGGER USER")
    add_session()
    sql("SET CONSTRAINTS ALL IMMEDIATE")
    sql("ALTER TABLE charging_session ENABLE TRIGGER USER")
    assert counted_balance("main").read == Amount(0, 0)
    assert len(prove_balance("main").drift) == 3
    assert counted_balance("main").read == Amount(1, 10_000)


@pytest.mark.django_db
@pytest.mark.parametrize("read", [read_balance, counted_balance])
def test_a_lost_part_shows_as_unexplained(read):
    add_billed(10_000)
    sql("DELETE FROM usage_event")
    assert read("main").unexplained.energy_wh == 10_000
    assert read("main").read == Amount(1, 10_000)


@pytest.mark.django_db
@pytest.mark.parametrize("read", [read_balance, counted_balance])
def test_a_doubled_part_shows_as_unexplained(read):
    session = add_billed(10_000)
    add_event(session, 10_000)
    assert read("main").unexplained.energy_wh == -10_000


@pytest.mark.django_db
@pytest.mark.parametrize("read", [read_balance, counted_balance])
def test_energy_that_was_read_and_given_no_part_shows_as_unexplained(read):
    session = add_session(energy_wh=10_000)
    sql("UPDATE charging_session SET stop_wh = stop_wh + 250 WHERE id = %s", session.pk)
    assert read("main").unexplained == Amount(0, 250)


@pytest.mark.django_db
def test_a_session_that_does_not_stand_where_its_parts_are_is_unexplained_once_it_was_proved():
    add_billed(10_000, state="accepted")
    sql("UPDATE charging_session SET state = 'confirmed'")
    assert read_balance("main").unexplained == Amount(1, 0)
    assert counted_balance("main").unexplained == Amount(0, 0)
    assert prove_balance("main").unexplained == Amount(1, 0)
    assert counted_balance("main").unexplained == Amount(1, 0)


@pytest.mark.django_db
def test_sources_are_counted_and_proved_apart():
    add_session(energy_wh=1)
    add_session(energy_wh=20, source="other")
    sql("DELETE FROM balance_delta WHERE source_id = 'other' AND kind = 'read'")
    assert prove_balance("main").drift == ()
    assert last_proof("other") is None
    assert prove_balance("other").drift == (Drift("read", None, None, 1, 20),)
    assert (counted_balance("main").read, counted_balance("other").read) == (Amount(1, 1), Amount(1, 20))


@pytest.mark.django_db
def test_folding_keeps_the_sums_and_only_what_is_not_zero():
    session = add_billed(10_000, state="queued")
    for state in ("accepted", "confirmed"):
        sql("UPDATE usage_event SET state = %s", state)
        sql("UPDATE charging_session SET state = %s", state)
    before, other = counted_balance("main"), add_session(source="other")
    assert compact_counters("main") > 3
    assert counted_balance("main") == before == read_balance("main")
    assert sorted(deltas(), key=str) == [
        ("event", "confirmed", None, 0, 10_000),
        ("read", None, None, 1, 10_000),
        ("stated", "confirmed", None, 1, 0),
    ]
    assert session.source_id != other.source_id
    assert_counted("other")


# -- what a run does at its end -------------------------------------------------------------------------


@pytest.fixture
def journal(db):
    add_source()
    run = begin_run(None, source="main", trigger="manual", requested_by="", worker="test")
    return RunJournal(run)


def test_a_run_proves_once_a_day(journal, at):
    for hours, proofs in ((0, 1), (23.9, 1), (24, 2), (25, 2), (48, 3)):
        at(NOON + timedelta(hours=hours))
        account(settings.CONFIG, journal)
        assert BalanceProof.objects.count() == proofs


def test_a_clock_that_was_set_back_does_not_put_off_the_proof(journal, at):
    at(NOON)
    keep_counters("main")
    at(NOON - timedelta(days=30))
    assert keep_counters("main").proved_at == NOON - timedelta(days=30)


def test_a_run_folds_many_deltas_and_leaves_few_alone(journal, monkeypatch):
    monkeypatch.setattr(module, "FOLD_ABOVE_ROWS", 5)
    add_session(), keep_counters("main")
    assert len(deltas()) == 3
    add_session(), keep_counters("main")
    assert sorted(deltas(), key=str) == [
        ("read", None, None, 2, 20_000),
        ("rest", "held", "unmapped_tag", 0, 20_000),
        ("stated", "held", "unmapped_tag", 2, 0),
    ]


def test_a_run_says_that_everything_is_accounted_for(journal):
    add_session()
    account(settings.CONFIG, journal)
    (said,) = journal.run.log.all()
    assert (said.level, said.message) == ("info", "10.000 kWh read, every watt-hour accounted for")
    assert journal.finish("live").status == "completed"


def test_a_run_that_finds_energy_unexplained_is_partial_and_says_what_to_do(journal):
    add_billed(10_000)
    sql("DELETE FROM usage_event")
    account(settings.CONFIG, journal)
    run = journal.finish("live")
    assert run.status == "partial"
    assert "1 sessions and 10.000 kWh are unexplained" in run.errors[0]["error"]
    assert "ocpp-billing pause" in run.errors[0]["error"]


def test_a_run_that_repairs_the_counters_says_so(journal):
    add_session()
    sql("DELETE FROM balance_delta WHERE kind = 'stated'")
    account(settings.CONFIG, journal)
    said = {line.action: line.message for line in journal.run.log.all()}
    assert said["balance.repaired"].endswith("stated held unmapped_tag +1 sessions +0 Wh")
    assert journal.finish("live").status == "completed"


def test_a_run_that_was_ended_by_another_worker_neither_folds_nor_proves(journal, monkeypatch):
    monkeypatch.setattr(module, "FOLD_ABOVE_ROWS", 0)
    add_session()
    sql("UPDATE sync_run SET status = 'interrupted'")
    before = deltas()
    with pytest.raises(FenceError):
        keep_counters("main", journal.fence)
    with pytest.raises(FenceError):
        prove_balance("main", journal.fence)
    assert deltas() == before
    assert last_proof("main") is None


# -- breakdowns -----------------------------------------------------------------------------------------


def lines(dimension, **options):
    return {row.key: {state: (a.sessions, a.energy_wh) for state, a in row.states.items()}
            for row in balance_by("main", dimension, **options)}  # fmt: skip


@pytest.mark.django_db
def test_a_day_begins_at_midnight_in_the_organisations_zone():
    """The night of 29 March 2026 has 23 hours in Berlin."""
    for hour, minute in ((21, 59), (22, 0), (22, 1)):
        add_session(stopped_at=datetime(2026, 3, 29, hour, minute, tzinfo=UTC))
    add_session(stopped_at=datetime(2026, 3, 28, 22, 59, 59, tzinfo=UTC))
    add_session(stopped_at=datetime(2026, 3, 28, 23, 0, tzinfo=UTC))
    add_session(state="open")
    assert lines("day", zone=BERLIN) == {
        "2026-03-28": {"held": (1, 10_000)},
        "2026-03-29": {"held": (2, 20_000)},
        "2026-03-30": {"held": (2, 20_000)},
        None: {"open": (1, 0)},
    }
    assert [row.key for row in balance_by("main", "day", zone=BERLIN)][-1] is None


@pytest.mark.django_db
def test_without_a_zone_the_organisations_counts(settings):
    import dataclasses

    settings.CONFIG = dataclasses.replace(settings.CONFIG, sync_timezone="Pacific/Kiritimati")
    add_session(stopped_at=NOON)
    assert list(lines("day")) == ["2026-03-18"]


@pytest.mark.django_db
def test_a_range_takes_its_beginning_in_and_leaves_its_end_and_the_open_out():
    for minutes in (-1, 0, 1, 59, 60):
        add_session(stopped_at=NOON + timedelta(minutes=minutes))
    add_session(state="open")
    hour = {"from_": NOON, "to": NOON + timedelta(hours=1)}
    assert lines("reason", **hour) == {"unmapped_tag": {"held": (3, 30_000)}}
    assert lines("reason", from_=NOON) == {"unmapped_tag": {"held": (4, 40_000)}}
    assert lines("reason", to=NOON) == {"unmapped_tag": {"held": (1, 10_000)}}
    assert lines("reason") == {"unmapped_tag": {"held": (5, 50_000)}, None: {"open": (1, 0)}}


@pytest.mark.django_db
def test_a_reading_of_a_person_says_when_the_session_stopped():
    add_session(stopped_at=NOON, reading_stop_wh=3000, reading_stopped_at=NOON - timedelta(days=2))
    assert list(lines("day", to=NOON - timedelta(days=1), zone=BERLIN)) == ["2026-03-15"]
    assert lines("day", from_=NOON - timedelta(days=1), zone=BERLIN) == {}


@pytest.mark.django_db
def test_a_held_session_belongs_to_the_customer_of_its_latest_decision_or_to_nobody():
    decided = add_session(energy_wh=500)
    decide(decided, customer="first", subscription="old")
    decide(decided, customer="grace", subscription="sub-grace")
    decide(add_session(energy_wh=30))
    add_session(energy_wh=2)
    assert lines("customer") == {"grace": {"held": (1, 500)}, None: {"held": (2, 32)}}
    assert lines("subscription") == {"sub-grace": {"held": (1, 500)}, None: {"held": (2, 32)}}
    (grace, nobody) = balance_by("main", "customer")
    assert (name_of(grace, "customer"), name_of(nobody, "customer")) == ("grace", "(nobody)")


@pytest.mark.django_db
def test_each_part_of_a_session_goes_to_whoever_it_was_billed_to():
    """Billed to Ada, moved to Grace, and a correction held that was decided for Grace."""
    session = add_session(energy_wh=10_700, state="held", reason="changed_after_billing", rest_wh=700)
    add_event(session, 10_000, state="confirmed", customer="ada")
    add_event(session, -10_000, state="confirmed", customer="ada")
    add_event(session, 10_000, state="accepted", customer="grace")
    assert read_balance("main").unexplained == Amount(0, 0)
    assert lines("customer") == {
        "ada": {"confirmed": (0, 0)},
        "grace": {"held": (1, 700), "accepted": (0, 10_000)},
    }


@pytest.mark.django_db
def test_a_moved_session_is_counted_with_whom_it_was_moved_to():
    session = add_session(energy_wh=10_000, state="confirmed")
    for energy_wh, customer in ((10_000, "ada"), (-10_000, "ada"), (10_000, "grace")):
        add_event(session, energy_wh, state="confirmed", customer=customer)
    assert lines("customer") == {"ada": {"confirmed": (0, 0)}, "grace": {"confirmed": (1, 10_000)}}


@pytest.mark.django_db
def test_whom_only_a_void_event_names_does_not_appear():
    session = add_session(energy_wh=10_000, state="queued")
    add_event(session, 10_000, state="void", customer="grace")
    add_event(session, 10_000, state="queued", customer="ada")
    assert lines("customer") == {"ada": {"queued": (1, 10_000)}}


@pytest.mark.django_db
def test_most_energy_comes_first_and_what_has_no_name_last():
    for customer, energy_wh in (("small", 1), ("big", 90), ("even", 40), ("evan", 40)):
        add_billed(energy_wh, customer=customer)
    add_session(energy_wh=10_000)
    assert [row.key for row in balance_by("main", "customer")] == ["big", "evan", "even", "small", None]


def slow_breakdown(source, dimension, zone):
    """A second implementation, one row after the other."""
    found = defaultdict(lambda: defaultdict(Amount))
    for session in ChargingSession.objects.filter(source_id=source):
        events = [event for event in session.events.all() if event.state != "void"]
        latest = session.decisions.order_by("-id").first()
        stopped_at = session.reading_stopped_at or session.stopped_at

        def key(event, of_rest, session=session, latest=latest, stopped_at=stopped_at):
            if dimension == "day":
                return stopped_at and stopped_at.astimezone(zone).date().isoformat()
            if dimension == "tag":
                return session.id_tag.text
            if dimension == "reason":
                return session.rest_reason if of_rest else event.reason
            column = f"external_{dimension}_id"
            return getattr(latest, column, None) if of_rest else getattr(event, column, None)

        if session.rest_state is not None:
            found[key(None, True)][session.rest_state].add(0, session.rest_wh)
        for event in events:
            found[key(event, False)][event.state].add(0, event.energy_wh)
        naming = [event for event in events if event.state == session.state]
        newest = max(naming, key=lambda event: event.n, default=None)
        where = session.reason if dimension == "reason" else key(newest, session.rest_state == session.state)
        found[where][session.state].add(1, 0)
    return {name: dict(states) for name, states in found.items()}


@pytest.mark.django_db
@hypothesis_settings(max_examples=25, deadline=None)
@given(
    parts=st.lists(
        st.tuples(
            st.sampled_from(["open", "held", "excluded", "accepted", "confirmed", "rejected", "queued"]),
            st.integers(0, 5000),
            st.integers(0, 60),
            st.sampled_from(["TAG-1", "TAG-2"]),
            st.sampled_from([None, "ada", "grace"]),
            st.lists(
                st.tuples(
                    st.sampled_from(EventState.values),
                    st.integers(-900, 900),
                    st.sampled_from(["ada", "grace"]),
                    st.sampled_from([None, "conflict_in_lago"]),
                ),
                max_size=3,
            ),
        ),
        max_size=8,
    )
)
def test_every_breakdown_agrees_with_a_slow_one_and_adds_up_to_the_balance(parts):
    with transaction.atomic():
        for state, energy_wh, hours, tag, customer, events in parts:
            stopped_at = NOON + timedelta(hours=hours)
            session = add_session(state=state, energy_wh=energy_wh, stopped_at=stopped_at, tag=tag)
            for event_state, event_wh, payer, reason in events:
                add_event(session, event_wh, state=event_state, customer=payer, reason=reason)
            if customer:
                decide(session, customer=customer, subscription=f"sub-{customer}")
        whole = read_balance("main").states
        for dimension in DIMENSIONS:
            rows = balance_by("main", dimension, zone=BERLIN)
            assert {row.key: row.states for row in rows} == slow_breakdown("main", dimension, BERLIN)
            for state, amount in whole.items():
                assert amount == Amount(
                    sum(row.states.get(state, Amount()).sessions for row in rows),
                    sum(row.states.get(state, Amount()).energy_wh for row in rows),
                )
        transaction.set_rollback(True)


# -- on the command line --------------------------------------------------------------------------------


@pytest.fixture
def command(db, capsys, monkeypatch):
    """Run ``ocpp-billing`` on this test's ledger: (exit code, standard output, standard error)."""

    @contextmanager
    def this_ledger(config):
        yield

    monkeypatch.setattr(balance_command, "ledger", this_ledger)

    def run(*arguments):
        code = cli.main(list(arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_the_balance_as_json_has_the_documented_shape(command):
    add_billed(10_000)
    add_session(energy_wh=700)
    code, out, _ = command("balance", "--json")
    assert code == 0
    assert json.loads(out) == {
        "read": {"sessions": 2, "energy_wh": 10_700},
        "states": {
            state: {"sessions": 0, "energy_wh": 0}
            | ({"sessions": 1, "energy_wh": 700} if state == "held" else {})
            | ({"sessions": 1, "energy_wh": 10_000} if state == "accepted" else {})
            for state in SessionState.values
        },
        "reasons": {"unmapped_tag": {"sessions": 1, "energy_wh": 700}},
        "negative": {"sessions": 0, "energy_wh": 0},
        "malformed": 0,
        "unexplained": {"sessions": 0, "energy_wh": 0},
        "proved_at": None,  # never in full yet
    }


def test_the_balance_on_the_command_line_is_recounted_never_read_from_counters(command):
    add_session()
    sql("DELETE FROM balance_delta")
    _, out, _ = command("balance", "--json")
    assert json.loads(out)["read"] == {"sessions": 1, "energy_wh": 10_000}
    assert deltas() == []


def test_prove_prints_the_balance_and_what_was_put_right(command, at):
    at(NOON)
    add_session()
    sql("DELETE FROM balance_delta WHERE kind = 'read'")
    code, out, _ = command("balance", "--prove")
    assert code == 0
    assert out.startswith(format_balance(read_balance("main")))
    assert out.endswith(
        "Proved at 2026-03-17 12:00:00 UTC: the counters differed from the full recount and were put right.\n"
        "  read +1 sessions +10000 Wh\n"
    )
    _, out, _ = command("balance", "--prove")
    assert out.endswith("the counters say the same as the full recount.\n")


@pytest.mark.django_db(transaction=True)
def test_a_source_that_was_never_read_can_be_proved(command):
    code, out, _ = command("balance", "--prove", "--json")
    assert code == 0
    assert json.loads(out)["read"] == {"sessions": 0, "energy_wh": 0}
    assert not Source.objects.exists()


def test_prove_as_json_adds_the_proof_to_the_balance(command, at):
    at(NOON)
    add_session()
    _, out, _ = command("balance", "--prove", "--json")
    said = json.loads(out)
    assert said.pop("proof") == {
        "proved_at": "2026-03-17T12:00:00+00:00",
        "unexplained": {"sessions": 0, "energy_wh": 0},
        "drift": [],
    }
    assert said == {**read_balance("main").to_json(), "proved_at": "2026-03-17T12:00:00+00:00"}


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_each_breakdown_is_printed_with_its_sums(command, dimension):
    add_billed(10_000)
    add_session(energy_wh=1_234_567)
    code, out, _ = command("balance", "--by", dimension)
    assert code == 0
    assert out == format_breakdown(balance_by("main", dimension), dimension) + "\n"
    assert out.splitlines()[-1].split() == ["all", "2", "1,244.567", "1,234.567", "10.000"]


def test_a_breakdown_reads_like_a_table():
    rows = [
        BreakdownRow("ada", {"held": Amount(1, 700), "confirmed": Amount(2, 1_500_000)}),
        BreakdownRow(None, {"held": Amount(1200, 5)}),
    ]
    assert format_breakdown(rows, "customer").splitlines() == [
        "customer  sessions        kWh   held  confirmed",
        "-----------------------------------------------",
        "ada              3  1,500.700  0.700  1,500.000",
        "(nobody)     1,200      0.005  0.005      0.000",
        "-----------------------------------------------",
        "all          1,203  1,500.705  0.705  1,500.000",
    ]


def test_a_breakdown_as_json(command):
    add_billed(10_000, stopped_at=NOON)
    add_session(stopped_at=NOON + timedelta(days=1))
    _, out, _ = command("balance", "--by", "day", "--from", "2026-03-17", "--to", "2026-03-18", "--json")
    assert json.loads(out) == {
        "by": "day",
        "rows": [
            {
                "key": "2026-03-17",
                "sessions": 1,
                "energy_wh": 10_000,
                "states": {"accepted": {"sessions": 1, "energy_wh": 10_000}},
            }
        ],
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--from", "2026-03-17"], "choose sessions for --by"),
        (["--by", "day", "--to", "tomorrow"], "--to is 'tomorrow', but must be a date such as"),
        (["--by", "day", "--prove"], "leave --by away"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_sentence(command, arguments, says):
    code, out, err = command("balance", *arguments)
    assert (code, out) == (2, "")
    assert says in err


def test_the_command_offers_every_dimension():
    assert balance_command.BREAKDOWNS == DIMENSIONS


@pytest.mark.django_db
def test_the_rank_of_states_is_the_order_of_the_ledger():
    for rank, state in enumerate(SessionState.values, 1):
        assert sql(f"SELECT {STATE_RANK_SQL.format(column='%s')}", state) == [(rank,)]
