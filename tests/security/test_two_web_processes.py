"""Two web processes, a worker and a standby, each a process of its own, over one database."""

from __future__ import annotations

import json
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest

from ocpp_billing.accounts.models import Role
from ocpp_billing.accounts.tokens import generate_token
from ocpp_billing.api.auth import REFUSALS
from ocpp_billing.sync.models import SyncRun, WorkerHeartbeat
from tests.caches import clear_caches
from tests.engine.processes import eventually, running, test_database_url
from tests.portal.conftest import PASSWORD, add_person
from tests.security.visitor import Visitor, web_process
from tests.world import forget_people

NEVER = "0 0 29 2 *"


@pytest.fixture
def now():
    """Processes of their own have the machine's clock."""
    return datetime.now(UTC)


@pytest.fixture
def live(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    clear_caches()
    for role in (Role.OPERATOR, Role.VIEWER):
        add_person(role)
    yield world
    clear_caches()
    forget_people()


@pytest.fixture
def settings(live):
    quiet = {"SYNC_CRON_SCHEDULE": NEVER, "SYNC_WATCH_SECONDS": "0", "LOG_LEVEL": "info"}
    return live.environment() | quiet | {"DATABASE_URL": test_database_url()}


def leader_pid():
    row = WorkerHeartbeat.objects.filter(leader=True).first()
    return None if row is None else row.worker.split(":")[1]


def test_what_one_process_does_holds_and_shows_in_the_other(live, settings, tmp_path):
    with ExitStack() as stack:
        one, first = stack.enter_context(web_process(settings, tmp_path / "one"))
        two, second = stack.enter_context(web_process(settings, tmp_path / "two"))

        # Sessions: signed in at one, known at two; signed out at two, unknown at one.
        ada = Visitor()
        assert ada.sign_in(one, "operator@example.org", PASSWORD) == 302
        assert ada.ask(f"{two}/")[0] == 200
        leaving = Visitor()
        assert leaving.sign_in(one, "operator@example.org", PASSWORD) == 302
        leaving.ask(f"{two}/accounts/logout/")
        assert leaving.ask(f"{two}/accounts/logout/", {})[0] == 302
        assert leaving.ask(f"{one}/")[2]["Location"].startswith("/accounts/login/")

        # Limits: wrong passwords, and wrong tokens, count wherever they are tried.
        guesser = Visitor()
        for number in range(5):
            assert guesser.sign_in((one, two)[number % 2], "viewer@example.org", "a wrong guess") == 200
        assert guesser.sign_in(one, "viewer@example.org", PASSWORD) == 200  # right, and too late
        assert guesser.sign_in(two, "viewer@example.org", PASSWORD) in {200, 429}
        answers = []
        for number in range(REFUSALS + 2):
            wrong = f"Bearer {generate_token()}"
            answers.append(Visitor().ask(f"{(one, two)[number % 2]}/api/balance", Authorization=wrong)[0])
        # One more than that only when the five minutes of the window ended in between.
        assert answers[:REFUSALS] == [401] * REFUSALS
        assert answers[-1] == 429 or 401 in answers[REFUSALS:]
        assert ada.ask(f"{two}/api/balance")[0] == 200  # others are not shut out

        # Workers: one leads, one stands by; a trigger through one is carried out and shown by two.
        workers = {}
        for name in ("left", "right"):
            worker = stack.enter_context(running("worker", settings=settings, log=tmp_path / name))
            workers[str(worker.pid)] = worker
        leader = eventually(leader_pid)
        session = live.session("TAG-ALICE", energy_wh=6_000)
        with ada.stream(f"{two}/live?seen={mark_of(ada, two)}") as stream:
            ada.ask(f"{one}/")
            status, _, headers = ada.ask(f"{one}/sync/now", {})
            assert status == 302
            told = next(line for line in stream if line.startswith(b"event:"))
            assert told == b"event: changed\n"
        run = headers["Location"]
        eventually(lambda: SyncRun.objects.filter(status="completed").exists(), first.said)
        assert live.lago_wh_by_session() == {session: 6_000}
        assert "Completed" in ada.ask(f"{two}{run}")[1]
        assert figures(ada, one) == figures(ada, two)

        # The leader dies; the standby takes over and does what is asked for through two.
        workers[leader].kill()
        eventually(lambda: leader_pid() not in {None, leader}, second.said)
        again = live.session("TAG-ALICE", energy_wh=500)
        assert ada.ask(f"{two}/sync/now", {})[0] == 302
        eventually(lambda: SyncRun.objects.filter(status="completed").count() >= 2, second.said)
        eventually(lambda: not SyncRun.objects.filter(ended_at=None).exists(), second.said)
        assert live.lago_wh_by_session() == {session: 6_000, again: 500}
        assert figures(ada, one) == figures(ada, two)
        live.assert_conserved()
        for web in (first, second):
            assert "Traceback" not in web.said()
            assert web.terminate() == 0


def mark_of(visitor, site):
    return visitor.ask(f"{site}/")[1].partition('data-seen="')[2].partition('"')[0]


def figures(visitor, site):
    balance = json.loads(visitor.ask(f"{site}/api/balance")[1])
    return {name: balance[name] for name in ("read", "states", "reasons", "unexplained")}
