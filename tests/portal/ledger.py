"""A small ledger with a session in every state, to draw pages from."""

from __future__ import annotations

import hashlib
from datetime import timedelta

from django.db.models import Max

from ocpp_billing.billing.models import Decision, UsageEvent
from ocpp_billing.charging.models import ChargingSession, IdTag, Source
from ocpp_billing.mappings.models import TagMapping
from ocpp_billing.sync.models import SyncRun, WorkerHeartbeat


def add_source(name="main"):
    return Source.objects.get_or_create(name=name)[0]


def add_tag(text="TAG-1"):
    return IdTag.objects.get_or_create(source=add_source(), folded=text.lower(), defaults={"text": text})[0]


def add_session(
    now,
    *,
    stopped_ago=timedelta(hours=1),
    energy_wh=10_000,
    state="held",
    reason=None,
    tag="TAG-1",
    evidence=None,
    steve_id=None,
):
    """One session; ``stopped_ago=None`` = not stopped. Its energy lies in the rest unless Lago has it.

    Without a ``steve_id`` it is the next one.
    """
    if state == "held" and reason is None:
        reason = "undecided"
    source = add_source()
    number = steve_id or 1 + (ChargingSession.objects.aggregate(Max("steve_id"))["steve_id__max"] or 0)
    in_event = state in {"queued", "accepted", "confirmed", "rejected"}
    stopped_at = None if stopped_ago is None else now - stopped_ago
    session = ChargingSession.objects.create(
        source=source,
        steve_id=number,
        fingerprint=hashlib.sha256(str(number).encode()).digest(),
        charge_box_id=f"CP-{number % 7}",
        connector_id=1,
        id_tag=add_tag(tag),
        id_tag_text=tag,
        started_at=(stopped_at or now) - timedelta(hours=1),
        start_wh=1000,
        stopped_at=stopped_at,
        stop_wh=None if stopped_at is None else 1000 + energy_wh,
        raw={},
        first_seen_at=(stopped_at or now) - timedelta(hours=1),
        stop_seen_at=stopped_at,
        changed_at=now,
        state=state,
        reason=reason,
        rest_state=None if in_event else state,
        rest_reason=None if in_event else reason,
        rest_wh=0 if in_event or stopped_at is None else max(energy_wh, 0),
        stuck_since=now - timedelta(days=3) if state == "stuck" else None,
        evidence=evidence,
    )
    if in_event:
        add_event(session, now, energy_wh=energy_wh, state=state, reason=reason)
    return session


def add_decision(session, now, outcome, reason=None, *, says="", customer=None):
    return Decision.objects.create(
        session=session,
        revision=session.revision,
        outcome=outcome,
        reason=reason,
        says=says,
        energy_wh=session.stop_wh - session.start_wh,
        external_customer_id=customer,
        decided_at=now,
    )


def add_event(session, now, *, energy_wh, state, reason=None):
    n = session.events.count() + 1
    decision = Decision.objects.create(
        session=session, revision=1, outcome="bill", energy_wh=energy_wh, decided_at=now
    )
    return UsageEvent.objects.create(
        source=session.source,
        session=session,
        decision=decision,
        n=n,
        transaction_id=f"steve:main:{session.steve_id}-00000000:{n}",
        kind="original" if n == 1 else "correction",
        external_customer_id="customer",
        external_subscription_id="subscription",
        lago_subscription_id="lago",
        metric_code="ev_charging_kwh",
        energy_wh=energy_wh,
        timestamp=session.stopped_at,
        payload="{}",
        state=state,
        reason=reason,
        attempts=0 if state in {"queued", "void"} else 1,
    )


def add_run(now, *, ago, status="completed", trigger="schedule", took=timedelta(seconds=0.4), **fields):
    started_at = now - ago
    ended = status not in {"requested", "running"}
    return SyncRun.objects.create(
        source=add_source(),
        status=status,
        trigger=trigger,
        requested_at=started_at,
        started_at=None if status == "requested" else started_at,
        ended_at=started_at + took if ended else None,
        **fields,
    )


def add_worker(now, *, seen_ago=timedelta(seconds=3)):
    return WorkerHeartbeat.objects.create(
        worker="sync-worker-1",
        source=add_source(),
        leader=True,
        started_at=now - timedelta(days=1),
        seen_at=now - seen_ago,
        next_run_at=now + timedelta(minutes=12),
    )


def add_mapping(now, *, tag, active=True, since=timedelta(days=30), until=None):
    return TagMapping.objects.create(
        id_tag=add_tag(tag),
        customer_external_id="customer",
        valid_from=now - since,
        valid_to=None if until is None else now - until,
        active=active,
    )


def fill(now):
    """Every state, four weeks of charging, runs of every status, a living worker."""
    for day in range(29):
        for number in range(1 + (day * 7) % 5):
            add_session(
                now,
                stopped_ago=timedelta(days=day, hours=2 * number + 1),
                energy_wh=7_313 + 4_111 * ((day * 3 + number * 5) % 9),
                state="confirmed" if day > 1 else ("accepted" if day else "queued"),
            )
    add_session(now, energy_wh=18_042, reason="unmapped_tag", tag="TAG-7")
    add_session(now, stopped_ago=timedelta(days=2), energy_wh=6_500, reason="unmapped_tag", tag="TAG-7")
    add_session(now, stopped_ago=timedelta(days=4), energy_wh=22_310, reason="late_period")
    add_session(now, stopped_ago=timedelta(days=6), energy_wh=-812, reason="negative_energy")
    add_session(
        now, stopped_ago=timedelta(days=3), energy_wh=12_004, state="rejected", reason="value_is_invalid"
    )
    add_session(
        now, stopped_ago=timedelta(days=5), energy_wh=31_900, state="excluded", reason="before_go_live"
    )
    add_session(now, stopped_ago=timedelta(days=1), energy_wh=0, state="excluded", reason="zero_energy")
    seen = {"at": (now - timedelta(hours=2)).isoformat(), "read_at": now.isoformat()}
    add_session(
        now, stopped_ago=None, state="stuck", evidence={"source": "meter_value", "stop_wh": 41_500, **seen}
    )
    add_session(
        now, stopped_ago=None, state="stuck", evidence={"source": "none", "stop_wh": None, **seen, "at": None}
    )
    add_session(now, stopped_ago=None, state="open")
    for tag in ("TAG-1", "TAG-2", "TAG-3"):
        add_mapping(now, tag=tag)
    add_mapping(now, tag="TAG-4", active=False)
    add_run(now, ago=timedelta(hours=20), status="interrupted", trigger="schedule")
    add_run(
        now,
        ago=timedelta(hours=3),
        status="failed",
        trigger="startup",
        took=timedelta(seconds=30),
        errors=[{"step": "discover", "error": "StEvE did not answer within 10 s. Check STEVE_API_URL."}],
    )
    add_run(
        now,
        ago=timedelta(minutes=42),
        status="partial",
        counts={"discovered": 4, "accepted": 3, "rejected": 1},
    )
    add_run(now, ago=timedelta(minutes=27))
    add_run(
        now,
        ago=timedelta(seconds=40),
        trigger="manual",
        requested_by="ada@example.org",
        counts={"discovered": 3, "changed": 2, "held": 1, "accepted": 2},
        took=timedelta(seconds=3.2),
    )
    add_worker(now)
