"""``ocpp-billing runs`` and ``retry``: what the portal shows and does, on a terminal."""

from __future__ import annotations

import json

import pytest

from ocpp_billing.accounts.models import AuditEntry
from ocpp_billing.cli import main
from ocpp_billing.simulators.server import Fault

REFUSED = {
    "status": 422,
    "error": "Unprocessable Entity",
    "code": "validation_errors",
    "error_details": {"0": "expression_evaluation_failed: it cannot be"},
}


@pytest.fixture
def live(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    return world


@pytest.fixture
def here(world, monkeypatch, capsys):
    """A command within this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        for name, value in world.environment().items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        code = main(arguments)
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def test_runs_are_listed_with_what_they_did_and_what_went_wrong(live, here):
    live.session("TAG-ALICE")
    first = live.sync()
    second = live.sync(steve_api_key="wrong")
    code, out, _ = here("runs")
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 3)
    assert lines[0] == f"2026-03-17 12:01:00  run {second.pk} failed (By hand, test)"
    assert "STEVE_API_KEY" in lines[1]
    assert lines[2] == (
        f"2026-03-17 12:00:00  run {first.pk} completed (By hand, test): "
        "+1 session · 1 queued · 1 accepted · 1 confirmed"
    )
    assert here("runs", "--errors", "--limit", "1")[1].splitlines() == lines[:2]
    told = json.loads(here("runs", "--json")[1])
    assert [each["run_id"] for each in told] == [second.pk, first.pk]
    assert (told[1]["confirmed"], told[1]["started_at"]) == (1, "2026-03-17T12:00:00+00:00")


def test_one_run_is_shown_with_its_log_and_its_steps(live, here):
    live.session("TAG-ALICE")
    run = live.sync()
    code, out, _ = here("runs", str(run.pk))
    assert code == 0
    assert "1 sessions decided: 1 to bill, 0 held, 0 excluded" in out
    told = json.loads(here("runs", str(run.pk), "--json")[1])
    assert [step["name"] for step in told["steps"]] == ["discover", "record", "decide", "deliver", "confirm"]
    assert told["log"][0]["action"] == "discover.progress"
    code, _, err = here("runs", str(run.pk + 1))
    assert (code, err) == (
        1,
        f"There is no run {run.pk + 1}: it may be too old to be kept. See: ocpp-billing runs\n",
    )


def test_what_lago_rejected_is_sent_again_under_the_same_id(live, here):
    assert here("retry", "--yes") == (0, "Lago rejected nothing there.\n", "")
    session = live.session("TAG-ALICE")
    live.lago.add_fault(Fault("status", path="/events/batch", status=422, body=REFUSED, times=-1))
    live.sync()
    assert live.state_of(session)[0] == "rejected"
    live.lago.clear_faults()
    code, out, err = here("retry")
    assert (code, "--yes" in err) == (1, True)
    assert f"session {session}, 10.000 kWh: Lago refused it" in out
    code, out, _ = here("retry", "--yes", "--note", "Lago was mended", "--from", "2026-03-18")
    assert out == "Lago rejected nothing there.\n"
    code, out, _ = here("retry", "--yes", "--note", "Lago was mended")
    assert (code, "Ordered for 1 sessions" in out) == (0, True)
    assert AuditEntry.objects.get(action="event.retry").note == "Lago was mended"
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh_by_session() == {session: 10_000}
    live.assert_conserved()
