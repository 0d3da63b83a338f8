"""``ocpp-billing setup-lago``: creates what is missing, changes nothing that is there."""

from __future__ import annotations

import pytest

from ocpp_billing.accounts.models import AuditEntry
from ocpp_billing.billing.control import pin_organization
from ocpp_billing.cli import main
from ocpp_billing.lago.wire import Organization
from ocpp_billing.simulators.server import Fault


@pytest.fixture
def setup(world, monkeypatch, capsys):
    """Run it in this process: (exit code, lines of standard output, standard error)."""

    def run(*arguments, **settings):
        for name, value in world.environment(**settings).items():
            monkeypatch.setenv(name, value)
        code = main(["setup-lago", *arguments])
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err

    return run


def posted(world):
    return [request["path"] for request in world.lago.requests if request["method"] != "GET"]


def test_without_consent_nothing_is_created(world, setup):
    code, out, err = setup()
    assert code == 1
    assert "  missing  billable metric ev_charging_kwh: sums the property kwh, not rounded" in out
    assert "repeat with --yes" in err
    assert posted(world) == []
    assert not AuditEntry.objects.exists()


def test_what_is_missing_is_created_once_and_then_bills(world, setup):
    code, out, _ = setup("--plan", "ev_demo", "--price", "0.45", "--currency", "CHF", "--yes")
    assert code == 0
    assert (
        "  missing  plan ev_demo: monthly, no base fee, 0.45 CHF per kWh of ev_charging_kwh, in arrears"
        in out
    )
    assert out[-2] == "Created."
    assert AuditEntry.objects.get(action="lago.set_up").actor.startswith("command line (")
    assert posted(world) == ["/api/v1/billable_metrics", "/api/v1/plans"]

    code, out, _ = setup("--plan", "ev_demo", "--yes")  # safe to repeat
    assert (code, out[-1]) == (0, "Nothing is missing.")
    assert len(posted(world)) == 2

    world.payer("TAG-ALICE", "alice", plan="ev_demo")
    world.go_live()
    session = world.session("TAG-ALICE", energy_wh=6_000)
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    world.assert_conserved()


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ({"aggregation_type": "count_agg", "field_name": None}, "does not sum: its aggregation is count_agg"),
        ({"recurring": True}, "is recurring"),
    ],
)
def test_a_metric_that_does_not_fit_is_explained_and_left_alone(world, setup, metric, says):
    world.lago.create_metric(**metric)
    code, out, _ = setup("--plan", "ev_demo", "--yes")
    assert code == 1
    assert any(line.startswith("  PROBLEM  Metric ev_charging_kwh") and says in line for line in out)
    assert posted(world) == []


def test_a_plan_that_does_not_charge_the_metric_is_explained_and_left_alone(world, setup):
    world.plan()
    world.lago.create_plan("flat", metric_code=None)
    code, out, _ = setup("--plan", "flat", "--yes")
    assert code == 1
    assert any("Plan flat is there and has no charge on ev_charging_kwh." in line for line in out)
    assert posted(world) == []


def test_somebody_else_who_creates_the_same_meanwhile_does_no_harm(world, setup):
    # The answer is lost: the metric is there, and nobody was told.
    world.lago.add_fault(Fault("drop_after", method="POST", path="/billable_metrics"))
    code, _, err = setup("--yes")
    assert code == 1
    assert "the connection was lost" in err
    code, out, _ = setup("--yes")
    assert (code, out[-1]) == (0, "Nothing is missing.")
    assert posted(world) == ["/api/v1/billable_metrics"]


def test_another_organisation_than_the_one_that_is_billed_is_refused(world, setup):
    pin_organization(world.config(), Organization(lago_id="other", name="Production"))
    code, _, err = setup("--yes")
    assert code == 1
    assert "this ledger bills into Production" in err
    assert posted(world) == []


@pytest.mark.parametrize("option", [("--price", "-1"), ("--price", "NaN"), ("--currency", "euro")])
def test_a_price_that_is_none_is_refused(option):
    with pytest.raises(SystemExit) as ended:
        main(["setup-lago", "--plan", "p", *option])
    assert ended.value.code == 2
