"""Open pages learn of changes, and hold no database connection while they wait."""

import asyncio
import threading
from contextlib import suppress
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.contrib.sessions.models import Session
from django.db import OperationalError, connection

from ocpp_billing import clock
from ocpp_billing.accounts.audit import record
from ocpp_billing.accounts.models import Role, User
from ocpp_billing.accounts.people import change_person
from ocpp_billing.portal import live
from ocpp_billing.sync.models import WorkerHeartbeat
from tests.portal import ledger


@pytest.mark.django_db
class TestMark:
    def changes(self, act):
        before = live.current_mark("main")
        act()
        return live.current_mark("main") != before

    def test_it_stays_while_nothing_happens(self, now):
        ledger.fill(now)
        assert not self.changes(lambda: None)

    def test_a_heartbeat_alone_is_no_news(self, now):
        ledger.add_worker(now)
        assert not self.changes(lambda: WorkerHeartbeat.objects.update(seen_at=now))

    @pytest.mark.parametrize(
        "act",
        [
            lambda now: ledger.add_run(now, ago=timedelta(seconds=1), status="requested"),
            lambda now: ledger.add_session(now, state="confirmed"),
            lambda now: ledger.add_mapping(now, tag="NEW"),
            lambda now: record("delivery.paused", actor="Ada"),
            lambda now: WorkerHeartbeat.objects.update(seen_at=now - timedelta(minutes=1)),
        ],
        ids=["a run", "a session", "a mapping", "an act", "a worker falling silent"],
    )
    def test_it_changes_with(self, act, now):
        ledger.add_worker(now)
        assert self.changes(lambda: act(now))

    def test_it_moves_while_a_run_is_under_way(self, now, monkeypatch):
        ledger.add_run(now, ago=timedelta(seconds=5), status="running")
        marks = set()
        finished = threading.Event()
        for _ in range(60):
            marks.add(live.current_mark("main"))
            if len(marks) > 1:
                break
            finished.wait(0.1)
        assert len(marks) > 1


class EnoughError(Exception):
    """Ends a stream that would go on for minutes."""


def listen(looks, seen, monkeypatch, *, holds=lambda _key: True):
    """What a client hears, after the greeting, while the mark takes these values, one per look."""
    monkeypatch.setattr(live, "_holds", holds)
    values = iter(looks)

    def look(_source):
        value = next(values, EnoughError())
        if isinstance(value, Exception):
            raise value
        return value

    monkeypatch.setattr(live, "_look", look)
    heard = []

    async def collect():
        async for line in live.stream_changes("main", seen, "key", poll_s=0):
            heard.append(line)  # noqa: PERF401 - what was heard before the end must be kept

    with suppress(EnoughError):
        asyncio.run(collect())
    assert next(values, None) is None
    return heard[1:]


def test_nothing_is_said_while_nothing_changes(monkeypatch):
    assert listen(["a", "a", "a"], "a", monkeypatch) == []


def test_a_change_since_the_page_was_drawn_is_told_at_once(monkeypatch):
    assert listen(["b"], "a", monkeypatch) == ["id: b\nevent: changed\ndata: \n\n"]


def test_each_change_is_told_once(monkeypatch):
    told = listen(["b", "b", "c", "c"], "a", monkeypatch)
    assert [line.splitlines()[0] for line in told] == ["id: b", "id: c"]


def test_whose_session_has_ended_is_told_nothing_more(monkeypatch):
    holds = iter([True, False])
    told = listen(["b", "b", "c"], "a", monkeypatch, holds=lambda key: key == "key" and next(holds))
    assert [line.splitlines()[0] for line in told] == ["id: b"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("end", ["deactivated", "signed out", "ran out"])
def test_a_session_holds_until_it_ends(signed_in, end):
    client = signed_in(Role.VIEWER)
    client.get("/")
    key = client.session.session_key
    assert live._holds(key)
    if end == "deactivated":
        user = User.objects.get()
        change_person(user.pk, active=False, by=user)
    elif end == "signed out":
        client.post("/accounts/logout/")
    else:
        Session.objects.update(expire_date=clock.now())
    assert not live._holds(key)


def test_a_database_that_is_away_is_waited_out(monkeypatch):
    told = listen([OperationalError("gone"), OperationalError("gone"), "b"], "a", monkeypatch)
    assert [line.splitlines()[0] for line in told] == ["id: b"]


def test_a_quiet_stream_is_kept_alive(monkeypatch):
    monkeypatch.setattr(live, "KEEP_ALIVE_S", 0)
    assert listen(["a", "a"], "a", monkeypatch) == [": still here\n\n"] * 2


def test_a_stream_ends_so_that_the_right_to_it_is_checked_again(monkeypatch):
    monkeypatch.setattr(live, "_look", lambda _source: "b")

    async def collect():
        return [line async for line in live.stream_changes("main", "a", "key", poll_s=0, stream_s=0)]

    assert asyncio.run(collect()) == ["retry: 3000\n\n"]


def test_a_person_has_so_many_streams_and_no_more(rf, monkeypatch):
    """One more is refused while they are open, and let in when one has ended, however it did."""
    monkeypatch.setattr(live, "STREAMS_PER_PERSON", 2)
    monkeypatch.setattr(live, "_look", lambda _source: "a")

    def asked(pk):
        request = rf.get("/live?seen=a")
        request.user = User(pk=pk, role=Role.VIEWER)
        request.session = SimpleNamespace(session_key="key")
        return live.changes(request)

    async def play():
        answers = [await asked(7), await asked(7)]
        streams = [aiter(answer) for answer in answers]
        for stream in streams:
            assert await anext(stream) == b"retry: 3000\n\n"
        assert (await asked(7)).status_code == 429
        assert (await asked(8)).status_code == 200
        for left, stream in enumerate(reversed(streams)):  # as the server does when a client goes away
            waiting = asyncio.create_task(anext(stream))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert live._open_streams[7] == 1 - left
            assert (await asked(7)).status_code == 200

    asyncio.run(play())


@pytest.mark.django_db(transaction=True)
def test_no_connection_is_held_between_two_looks():
    left = []

    def look_from_a_thread_of_the_pool():
        live._look("main")
        left.append(connection.connection)

    thread = threading.Thread(target=look_from_a_thread_of_the_pool)
    thread.start()
    thread.join()
    assert left == [None]
