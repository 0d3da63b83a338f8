"""What decisions depend on besides the session, and which sessions are decided anew by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ocpp_billing import clock
from ocpp_billing.billing import control
from ocpp_billing.billing.decide import DecisionPolicy
from ocpp_billing.billing.rules import Limits
from ocpp_billing.charging.asking import ask_again
from ocpp_billing.charging.reasons import Reason
from ocpp_billing.database import fenced_transaction
from ocpp_billing.sync.reading import store_progress

if TYPE_CHECKING:
    from ocpp_billing.config import Config
    from ocpp_billing.steve.progress import ReadingProgress
    from ocpp_billing.sync.journal import RunJournal


# What Lago says decides: asked anew in every run.
WAITS_FOR_LAGO = (
    Reason.NO_SUBSCRIPTION,
    Reason.AMBIGUOUS_SUBSCRIPTION,
    Reason.METRIC_NOT_CHARGED,
    Reason.LATE_PERIOD,
    Reason.REFUND_BY_CREDIT_NOTE,
)


def policy_of(config: Config) -> DecisionPolicy:
    """What decisions depend on, from the settings and the go-live instant."""
    status = control.read_status(config)
    return DecisionPolicy(
        source=config.steve_source,
        metric_code=config.lago_metric_code,
        limits=_limits(config),
        late_policy=config.late_policy,
        max_auto_correction_wh=_max_auto_correction_wh(config),
        send_id_tag=config.lago_send_id_tag,
        go_live_at=status.live_from,
        go_live_is_given=status.from_environment,
    )


def _limits(config: Config) -> Limits:
    return Limits(
        max_session_kwh=config.max_session_kwh,
        max_power_kw=config.max_power_kw,
        max_session_hours=config.max_session_hours,
        min_session_kwh=config.min_session_kwh,
    )


def _max_auto_correction_wh(config: Config) -> int:
    return int(config.max_auto_correction_kwh * 1000)


def ask_again_where_causes_may_be_gone(config: Config, journal: RunJournal) -> None:
    """Held sessions are decided anew by themselves when their cause may have gone away.

    What waits for Lago: in every run. Everything held: once a night. What a threshold held or excluded:
    when the settings have changed. Mappings, rulings and evidence ask by themselves when they change.
    """
    today = clock.now().astimezone(config.timezone).date().isoformat()
    settings = repr(
        (_limits(config), config.late_policy, _max_auto_correction_wh(config), config.lago_metric_code)
    )
    with fenced_transaction("ask again", journal.fence) as cursor:
        # No key: whoever writes an event while holding its session refers to the source only at the end.
        cursor.execute("SELECT progress FROM source WHERE name = %s FOR NO KEY UPDATE", [config.steve_source])
        row = cursor.fetchone()
        progress: ReadingProgress = {} if row is None else msgspec.json.decode(row[0])
        no_matter_why: list[str] | None = None
        if progress.get("settings", settings) != settings:
            states, reasons = ["held", "excluded", "queued"], no_matter_why
        elif progress.get("asked_again_on") != today:
            states, reasons = ["held"], no_matter_why
        else:
            states, reasons = ["held"], list(map(str, WAITS_FOR_LAGO))
        bound = {"source": config.steve_source, "states": states, "reasons": reasons}
        ask_again(cursor, _IN_STATES, bound)
        progress |= {"settings": settings, "asked_again_on": today}
        store_progress(cursor, config.steve_source, progress)


_IN_STATES = """
s.source_id = %(source)s AND s.state = ANY(%(states)s) AND NOT s.needs_decision
AND (%(reasons)s::text[] IS NULL OR s.reason = ANY(%(reasons)s::text[]))
"""
