"""``ocpp-billing doctor``: what it finds, what it says to do, and that it changes nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection

from ocpp_billing.billing import control
from ocpp_billing.billing.models import DeliveryControl
from ocpp_billing.cli import main
from ocpp_billing.doctor.findings import judge_clock
from ocpp_billing.doctor.ours import look_at_front_door, misspelled_settings
from ocpp_billing.lago.contract import metric_faults
from ocpp_billing.lago.wire import BillableMetric
from ocpp_billing.simulators.server import Fault
from ocpp_billing.sync.models import WorkerHeartbeat, WorkerKind

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


@pytest.fixture
def now():
    """The database has the machine's clock, and it is compared."""
    return datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def live(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    WorkerHeartbeat.objects.create(
        worker="w", source_id="main", kind=WorkerKind.WORKER, leader=True,
        seen_at=world.clock.now() + timedelta(hours=1), started_at=world.clock.now(),
    )  # fmt: skip
    return world


@pytest.fixture
def doctor(world, monkeypatch, capsys):
    """(exit code, findings that are not ok by code) of a look with some settings changed."""

    def look(**settings):
        for name, value in world.environment(**settings).items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()  # what a run in this process has logged
        code = main(["doctor", "--json"])
        said = json.loads(capsys.readouterr().out)
        assert said["fine"] == (code == 0)
        for finding in said["findings"]:
            assert bool(finding["do"]) == (finding["level"] != "ok"), finding
        return code, said["findings"]

    return look


def by_code(findings, level=None):
    return {each["code"]: each for each in findings if level is None or each["level"] == level}


RELEASES = ["3.7", "3.9", "3.10", "3.11", "3.14"]


@pytest.mark.parametrize("release", RELEASES)
def test_all_is_well_on_every_release_and_nothing_is_changed(live, doctor, release):
    live.session("TAG-ALICE")
    live.sync()
    posted, rows = len(live.posts()), count_rows()
    code, findings = doctor()
    assert (code, by_code(findings, "problem")) == (0, {})
    found = by_code(findings)
    assert found["address"]["says"] == f"The API answers at {live.steve.base_url}/api/v1."
    family = {"3.7": "3.6/3.7", "3.14": "3.13+"}.get(release, release)
    assert found["release"]["says"].startswith(f"Release {family}: ")
    assert "Metric ev_charging_kwh sums the property kwh." in found["metric"]["says"]
    assert found["mappings"]["says"] == "Sessions of 1 payers would be billed by Lago."
    assert found["identity"]["level"] == found["worker"]["level"] == found["balance"]["level"] == "ok"
    assert (len(live.posts()), count_rows()) == (posted, rows)
    assert {request["method"] for request in live.steve.requests} == {"GET"}


@pytest.mark.parametrize("release", ["3.7", "3.14"])
def test_an_api_that_lets_anybody_in_is_a_warning(live, doctor, release):
    assert "open_api" not in by_code(doctor()[1])
    live.steve.api.is_open = True
    found = by_code(doctor()[1])["open_api"]
    assert found["level"] == "warning"
    assert found["says"].startswith("The API answers without credentials: ")
    assert "nobody else can reach it" in found["do"]


def test_a_page_to_sign_in_is_no_open_api(live, doctor):
    live.steve.add_fault(Fault("html", path="transactionPk=0", status=200, skip=1))
    assert "open_api" not in by_code(doctor()[1])


def count_rows():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT (SELECT count(*) FROM sync_run), (SELECT count(*) FROM audit_entry),"
            " (SELECT count(*) FROM lago_subscription), (SELECT max(read_at) FROM lago_subscription)"
        )
        return cursor.fetchone()


def test_it_says_which_base_path_works(live, doctor):
    bare = live.steve.base_url.removesuffix("/steve")
    assert bare != live.steve.base_url
    code, findings = doctor(steve_api_url=bare)
    assert code == 0
    assert by_code(findings)["address"]["says"].startswith(f"The API answers at {bare}/steve/api/v1; ")


@pytest.mark.parametrize(
    ("settings", "code", "names"),
    [
        pytest.param({"steve_api_url": NOBODY}, "steve_Unreachable", "STEVE_API_URL", id="steve-down"),
        pytest.param({"steve_api_key": "wrong"}, "steve_Unauthorised", "STEVE_API_KEY", id="steve-key"),
        pytest.param(
            {"steve_api_username": "a:b"}, "setting_unusable", "STEVE_API_USERNAME", id="unusable-name"
        ),
        pytest.param({"lago_api_url": NOBODY}, "lago_Unreachable", "LAGO_API_URL", id="lago-down"),
        pytest.param({"lago_api_key": "wrong"}, "lago_Unauthorised", "LAGO_API_KEY", id="lago-key"),
        pytest.param({"lago_metric_code": "other"}, "metric_missing", "setup-lago", id="metric-missing"),
        pytest.param({"steve_release": "3.9"}, "release_overridden", "STEVE_RELEASE", id="wrong-release"),
    ],
)
def test_what_is_in_the_way_is_named_and_the_rest_is_looked_at_all_the_same(
    live, doctor, settings, code, names
):
    exit_code, findings = doctor(**settings)
    assert exit_code == 1
    found = by_code(findings, "problem")[code]
    assert names in found["says"] + found["do"]
    assert {"settings", "database", "worker"} <= {each["area"] for each in findings}
    assert {"StEvE", "Lago"} & {each["area"] for each in findings if each["level"] == "ok"}


def test_each_payer_that_lago_would_not_bill_is_named(live, doctor):
    live.payer("TAG-BOB", "bob", plan="other")
    live.lago.create_plan("free", metric_code=None)
    live.payer("TAG-CAROL", "carol", plan="free")
    live.map("TAG-DAVE", "nobody")
    live.payer("TAG-FRANK", "frank")
    live.lago.terminate("sub-frank")
    live.customer("eve.x")
    live.map("TAG-EVE", "eve.x")
    code, findings = doctor()
    assert code == 1
    contract = [each for each in findings if each["area"] == "contract" and each["level"] == "problem"]
    said = {each["code"]: each["says"] for each in contract}
    assert said.keys() == {"metric_not_charged", "no_subscription", "customer_missing", "dotted_customer"}
    assert "customer carol" in said["metric_not_charged"]
    assert "Lago has no customer nobody" in said["customer_missing"]
    assert "customer frank" in said["no_subscription"]
    assert "eve.x" in said["dotted_customer"]
    assert by_code(findings)["mappings"]["says"].startswith("Sessions of 3 payers")


def test_another_organisation_and_another_steve_are_recognised(live, doctor):
    live.session("TAG-ALICE")
    live.sync()
    DeliveryControl.objects.update(lago_organization_id="other", lago_organization_name="Staging")
    live.show_as(1, startTimestamp="2001-01-01T00:00:00.000Z")
    code, findings = doctor()
    assert code == 1
    found = by_code(findings, "problem")
    assert "Staging" in found["another_organization"]["says"]
    assert "0 are there as they were" in found["another_steve"]["says"]
    assert control.read_status(live.config()).mode == "live"  # told, not acted upon


def test_a_worker_that_is_gone_and_a_pause_are_problems_and_shadow_mode_is_not(world, doctor):
    world.payer("TAG-ALICE", "alice")
    _, findings = doctor()
    assert by_code(findings, "problem").keys() == {"worker_gone"}
    assert "shadow" in by_code(findings, "warning")
    world.go_live()
    world.pause()
    assert "we look into something" in by_code(doctor()[1], "problem")["paused"]["says"]


def test_a_clock_that_is_far_away_is_named(live, doctor):
    live.steve.now = lambda: live.clock.now() + timedelta(minutes=7)
    found = by_code(doctor()[1], "problem")
    assert found["clock"]["area"] == "StEvE"
    assert found["clock"]["says"] == "Its clock is 420 s ahead of ours."


@pytest.mark.parametrize(
    ("ahead_s", "took_s", "level"),
    [(0, 0.1, "ok"), (4, 0, "ok"), (-20, 0, "warning"), (20, 30, "ok"), (-500, 1, "problem")],
)
def test_a_difference_counts_as_far_as_it_is_proven(ahead_s, took_s, level):
    ours = datetime(2026, 3, 17, 12, tzinfo=UTC)
    (found,) = judge_clock("Lago", ours + timedelta(seconds=ahead_s), ours, timedelta(seconds=took_s))
    assert found.level == level
    assert judge_clock("Lago", None, ours, timedelta()) == []


def test_settings_that_cannot_be_read_are_findings_too(monkeypatch, capsys):
    monkeypatch.setenv("SYNC_CRON_SCHEDULE", "every quarter")
    assert main(["doctor", "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["code"] == "setting_malformed"
    assert "SYNC_CRON_SCHEDULE" in finding["says"]


def test_a_misspelled_setting_is_suspected():
    named = {"STEVE_APIURL": "x", "LAGO_API_KEYS": "x", "STEVE_DB_PASSWORD": "x", "SYNC_TIMEZONE": "UTC"}
    assert misspelled_settings(named) == [
        ("LAGO_API_KEYS", "LAGO_API_KEY"),
        ("STEVE_APIURL", "STEVE_API_URL"),
    ]


def test_it_is_readable_without_json(live, monkeypatch, capsys):
    for name, value in live.environment(lago_metric_code="other").items():
        monkeypatch.setenv(name, value)
    live.lago.add_fault(Fault("status", path="/health", status=404, times=-1))
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "  PROBLEM Lago has no billable metric other." in lines
    assert any(line.startswith("          Create it with ocpp-billing setup-lago") for line in lines)
    assert any(line.startswith("  look    Its version is unknown") for line in lines)
    assert lines[-1] == "1 problem."


@pytest.mark.parametrize(
    ("given", "faults"),
    [
        ({}, []),
        ({"aggregation_type": "count_agg", "field_name": None}, ["metric_not_sum"]),
        ({"field_name": None}, ["metric_without_field"]),
        ({"recurring": True}, ["metric_recurring"]),
        ({"expression": "event.properties.a * 2"}, ["metric_expression"]),
        ({"rounding_function": "round", "rounding_precision": 2}, ["metric_rounds"]),
    ],
)
def test_what_lago_would_not_bill_shows_in_the_metric(given, faults):
    metric = {"lago_id": "m", "code": "ev", "aggregation_type": "sum_agg", "field_name": "kwh"}
    found = metric_faults(BillableMetric(**{**metric, **given}))
    assert [fault.code for fault in found] == faults
    assert all(fault.breaks == (fault.code != "metric_rounds") and fault.do for fault in found)


# -- the proxy before us ---------------------------------------------------------------------------------


def test_a_proxy_that_opens_the_figures_to_everybody_is_found(world):
    public = world.config(auth_url="https://billing.example.org")

    def found(status):
        return [
            (one.level, one.code)
            for one in look_at_front_door(public, {f"{public.auth_url}/metrics": status}.get)
        ]

    assert found(200) == [("warning", "metrics_open")]
    assert found(401) == [("ok", "metrics_closed")]
    assert found(502) == found(None) == []


def test_the_front_door_is_asked_unless_it_is_on_this_machine(world, monkeypatch):
    door = world.config(auth_url=world.lago.url)
    assert look_at_front_door(door) == []
    assert world.lago.requests == []
    monkeypatch.setattr("ocpp_billing.doctor.ours.is_this_machine", lambda _host: False)
    assert look_at_front_door(door) == []  # Lago's simulator has no such page
    assert [(asked["method"], asked["path"]) for asked in world.lago.requests] == [("GET", "/metrics")]
    assert look_at_front_door(world.config(auth_url=NOBODY)) == []
