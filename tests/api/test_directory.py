"""Customers and subscriptions: asked from Lago, remembered while it is away."""

from __future__ import annotations

import pytest

from ocpp_billing.accounts.models import Role
from ocpp_billing.billing import customers
from ocpp_billing.billing.models import LagoSubscription
from ocpp_billing.mappings.models import LagoCustomer
from ocpp_billing.remembered import remembered


def names(answer):
    return [item["id"] for item in answer[1]["items"]]


def lago_goes_away(settings, world):
    settings.CONFIG = world.config(lago_api_url="http://127.0.0.1:9")


def test_customers_are_found_by_a_part_of_their_name(world, call):
    for name in ("alice", "bob"):
        world.customer(name)

    assert names(call("GET", "/customers?search=ali")) == ["alice"]
    assert names(call("GET", "/customers")) == ["alice", "bob"]


def test_the_same_search_asks_lago_once_a_minute(world, call):
    world.customer("alice")
    call("GET", "/customers?search=ali")
    asked = len(world.lago.requests)

    call("GET", "/customers?search=ALI")

    assert len(world.lago.requests) == asked


def test_while_lago_is_away_the_remembered_customers_are_offered_and_said_to_be_old(world, call, settings):
    world.customer("alice")
    call("GET", "/customers")
    lago_goes_away(settings, world)

    status, body = call("GET", "/customers?search=alice")

    assert status == 200
    assert body["unreachable"] is True
    assert "Lago" in body["message"]
    assert [item["id"] for item in body["items"]] == ["alice"]


def test_a_lago_that_is_away_is_not_asked_at_every_keystroke(world, call, settings, monkeypatch):
    lago_goes_away(settings, world)
    tried = []
    monkeypatch.setattr(
        customers, "LagoClient", lambda given: tried.append(given) or pytest.fail("asked again")
    )
    remembered.set("lago-away", "Lago does not answer.", 15)

    assert call("GET", "/customers?search=a")[1]["message"] == "Lago does not answer."
    assert tried == []


def test_a_complete_read_forgets_customers_that_are_gone(world, call):
    for number in range(3):
        world.customer(f"customer-{number}")
    customers.LagoCustomer.objects.create(external_id="gone", name="gone", read_at=world.clock.now())
    world.clock.advance(minutes=5)

    assert call("POST", "/customers/refresh") == (200, {"customers": 3})
    assert names(call("GET", "/customers")) == ["customer-0", "customer-1", "customer-2"]


def test_a_complete_read_of_a_lago_that_is_away_says_so(world, call, settings):
    lago_goes_away(settings, world)

    status, body = call("POST", "/customers/refresh")

    assert (status, body["error"]["code"]) == (503, "lago_unreachable")


def test_the_subscriptions_of_a_customer_are_read_when_they_are_old(world, call):
    world.customer("alice")
    assert names(call("GET", "/subscriptions?customer=alice")) == ["sub-alice"]

    world.customer("alice", "second")
    assert names(call("GET", "/subscriptions?customer=alice")) == ["sub-alice"]
    assert sorted(names(call("POST", "/subscriptions/refresh?customer=alice"))) == ["second", "sub-alice"]

    world.customer("alice", "third")
    world.clock.advance(minutes=6)
    assert len(names(call("GET", "/subscriptions?customer=alice"))) == 3


def test_subscriptions_are_remembered_while_lago_is_away(world, call, settings):
    world.customer("alice")
    call("GET", "/subscriptions?customer=alice")
    lago_goes_away(settings, world)
    world.clock.advance(minutes=6)

    _, body = call("GET", "/subscriptions?customer=alice")

    assert ([item["id"] for item in body["items"]], body["unreachable"]) == (["sub-alice"], True)


def test_a_viewer_reads_what_is_remembered_and_asks_lago_nothing(world, call, as_token):
    world.customer("alice")
    viewer = as_token(Role.VIEWER)
    asked = len(world.lago.requests)

    for path in ("/customers?search=ali", "/customers", "/subscriptions?customer=alice"):
        assert viewer("GET", path)[1] == {"items": [], "unreachable": False, "message": None}
    assert len(world.lago.requests) == asked
    assert not LagoCustomer.objects.exists()
    assert not LagoSubscription.objects.exists()

    call("GET", "/customers")
    call("GET", "/subscriptions?customer=alice")
    assert names(viewer("GET", "/customers?search=ali")) == ["alice"]
    assert names(viewer("GET", "/subscriptions?customer=alice")) == ["sub-alice"]


def test_the_key_of_lago_is_in_no_answer(world, call, settings):
    lago_goes_away(settings, world)

    for path in ("/customers", "/subscriptions?customer=alice"):
        assert world.lago.api_key not in call.raw("GET", path).content.decode()
