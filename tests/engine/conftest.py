"""Worlds that several files of this ring begin with."""

from __future__ import annotations

import pytest


@pytest.fixture
def live(world):
    """Alice and Bob pay for a tag each, and billing is live from the beginning of the world."""
    world.payer("TAG-ALICE", "alice")
    world.payer("TAG-BOB", "bob")
    world.go_live()
    return world


@pytest.fixture
def two_metrics(world):
    """Alice's plan charges two metrics, as while one takes the place of the other."""
    world.lago.create_metric()
    world.lago.create_metric("energy_kwh")
    charges = [
        {"billable_metric_code": code, "charge_model": "standard", "properties": {"amount": "0.39"}}
        for code in ("ev_charging_kwh", "energy_kwh")
    ]
    world.lago.create_plan("both", metric_code=None, charges=charges)
    world.payer("TAG-ALICE", "alice", plan="both")
    return world
