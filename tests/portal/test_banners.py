"""What is said when money is not flowing."""

from datetime import UTC, datetime

from ocpp_billing.portal.banners import banners
from ocpp_billing.portal.queries import Status

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


def test_a_worker_that_fell_silent_is_told_from_one_that_never_was():
    assert titles(worker_alive=False) == ["The worker is silent"]
    assert titles(worker_alive=False, worker_seen_at=None) == ["No worker is running"]


def test_the_gravest_comes_first():
    assert titles(paused_at=NOW, worker_alive=False, live_from=None) == [
        "Delivery is paused",
        "The worker is silent",
        "Shadow mode",
    ]
