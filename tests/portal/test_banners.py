"""What is said when money is not flowing."""

from datetime import UTC, datetime

from ocpp_billing.alerts.conditions import TITLES
from ocpp_billing.portal.banners import alert_lines, banners
from ocpp_billing.portal.queries import Status
from ocpp_billing.sync.models import Alert

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
WELL = {
    "known_since": NOW,
    "synced_at": NOW,
    "running_since": None,
    "next_run_at": NOW,
    "worker_seen_at": NOW,
    "worker_alive": True,
    "live_from": NOW,
    "paused_at": None,
    "paused_by": "",
    "pause_reason": "",
}


def titles(**changes):
    return [banner.title for banner in banners(Status(**WELL | changes))]


def test_nothing_is_said_while_money_flows():
    assert titles() == []


def test_shadow_mode_is_said_until_billing_begins():
    assert titles(live_from=None) == ["Shadow mode"]


def test_a_pause_says_who_why_and_since_when():
    (banner,) = banners(
        Status(**WELL | {"paused_at": NOW, "paused_by": "Ada", "pause_reason": "wrong organisation."})
    )
    assert banner.since == NOW
    assert banner.says.startswith("Paused by Ada: wrong organisation. ")
    assert banner.act == "portal:resume"


def test_a_pause_that_ends_by_itself_asks_nobody_to_resume():
    refused, adopting = (
        banners(Status(**WELL | {"paused_at": NOW, "paused_by": "delivery", "pause_reason": reason}))[0]
        for reason in ("Lago refuses LAGO_API_KEY (401).", "ocpp-billing adopt is running")
    )
    assert (refused.do, refused.act) == (
        "With a valid key it goes on by itself, in the next run.",
        "portal:setup",
    )
    assert (adopting.command, adopting.act) == ("ocpp-billing adopt", "")
    by_person = {"paused_at": NOW, "paused_by": "Ada", "pause_reason": "Lago refuses LAGO_API_KEY, I heard"}
    assert banners(Status(**WELL | by_person))[0].act == "portal:resume"


def test_a_worker_that_fell_silent_is_told_from_one_that_never_was():
    assert titles(worker_alive=False) == ["The worker is silent"]
    assert titles(worker_alive=False, worker_seen_at=None) == ["No worker is running"]


def test_the_gravest_comes_first():
    assert titles(paused_at=NOW, worker_alive=False, live_from=None) == [
        "Delivery is paused",
        "The worker is silent",
        "Shadow mode",
    ]


def alerts(*conditions):
    return tuple(
        Alert(condition=each, says=f"says {each}.", do="Do it.", opened_at=NOW) for each in conditions
    )


def test_what_people_are_alerted_of_and_stops_money_is_said():
    (banner,) = banners(Status(**WELL, alerts=alerts("steve_failing")))
    assert (banner.title, banner.since, banner.says, banner.do) == (
        "StEvE cannot be read",
        NOW,
        "says steve_failing.",
        "Do it.",
    )
    assert (banner.act, str(banner.act_says)) == ("portal:setup", "Check StEvE")


def test_every_alert_is_in_a_banner_or_in_the_list_and_in_one_alone():
    everything = alerts(*TITLES)
    said = [banner.title for banner in banners(Status(**WELL, alerts=everything))]
    said += [line.title for line in alert_lines(everything, "portal:runs")]
    elsewhere = {TITLES[each] for each in ("contract_broken", "delivery_paused", "worker_gone")}
    assert sorted([*said, *elsewhere]) == sorted(TITLES.values())


def test_no_cause_has_two_banners():
    refused = {"paused_at": NOW, "paused_by": "delivery", "pause_reason": "Lago refuses LAGO_API_KEY (401)."}
    assert titles(**refused, alerts=alerts("lago_unauthorised", "delivery_paused")) == ["Delivery is paused"]
    assert titles(alerts=alerts("lago_unauthorised")) == ["Lago refuses our key"]


def test_what_runs_found_is_not_said_while_nobody_runs():
    assert titles(worker_alive=False, alerts=alerts("steve_failing", "worker_gone", "disk_low")) == [
        "The worker is silent",
        "The disk of the database is nearly full",
    ]
