"""How long the history of runs is kept. The ledger itself is never pruned."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.db import connection

from ocpp_billing.effects import effect
from ocpp_billing.log import get_logger
from ocpp_billing.sync.heartbeat import leader_transaction
from ocpp_billing.sync.models import LANES

if TYPE_CHECKING:
    from datetime import datetime

    from ocpp_billing.config import Config

log = get_logger(__name__)

# So many of the newest runs stay, however old they are.
ALWAYS_KEPT = 100
# One transaction prunes so many runs at most, so that nobody waits for it.
PORTION = 500


def prune(config: Config, worker: str, now: datetime) -> int:
    """Delete ended runs with their steps and logs, resolved alerts and rows of workers that are long gone.

    Args:
        config: how long they are kept.
        worker: who prunes; the leader.
        now: the present instant.

    Returns:
        How many runs were deleted.

    Raises:
        LeadershipLostError: when another worker leads.
    """
    bound: dict[str, Any] = {
        "source": config.steve_source,
        "full_before": now - timedelta(days=config.run_retention_days),
        "short_before": now - timedelta(days=min(config.run_watch_retention_days, config.run_retention_days)),
        "short": [str(trigger) for trigger in LANES],
        "kept": ALWAYS_KEPT,
        "portion": PORTION,
    }
    deleted = 0
    while portion := _execute(_PRUNE_RUNS, bound, worker):
        deleted += portion
    _execute(_PRUNE_ALERTS, bound, worker)
    _execute(_PRUNE_HEARTBEATS, bound | {"silent_before": now - timedelta(days=7)}, worker)
    if deleted:
        log.info("old runs deleted", action="retention.pruned", runs=deleted)
    return deleted


def _execute(statement: str, bound: dict[str, Any], worker: str) -> int:
    with effect("db commit prune"), leader_transaction(worker), connection.cursor() as cursor:
        cursor.execute(statement, bound)
        return int(cursor.rowcount)


_PRUNE_RUNS = """
WITH old AS (
    SELECT id FROM sync_run
    WHERE source_id = %(source)s AND status NOT IN ('requested', 'running')
      AND ended_at < CASE WHEN trigger = ANY(%(short)s) THEN %(short_before)s ELSE %(full_before)s END
      AND id < coalesce((SELECT id FROM sync_run WHERE source_id = %(source)s
                         ORDER BY id DESC OFFSET %(kept)s - 1 LIMIT 1), 0)
    ORDER BY id LIMIT %(portion)s
), steps AS (DELETE FROM sync_step WHERE run_id IN (SELECT id FROM old)),
logs AS (DELETE FROM sync_log WHERE run_id IN (SELECT id FROM old))
DELETE FROM sync_run WHERE id IN (SELECT id FROM old)
"""

_PRUNE_ALERTS = """
WITH old AS (
    SELECT id FROM alert WHERE source_id = %(source)s AND resolved_at < %(full_before)s
), messages AS (DELETE FROM alert_message WHERE alert_id IN (SELECT id FROM old))
DELETE FROM alert WHERE id IN (SELECT id FROM old)
"""

# The one that was heard of last tells since when nobody is there.
_PRUNE_HEARTBEATS = """
DELETE FROM worker_heartbeat WHERE source_id = %(source)s AND NOT leader AND seen_at < %(silent_before)s
  AND worker <> (SELECT worker FROM worker_heartbeat WHERE source_id = %(source)s
                 ORDER BY seen_at DESC LIMIT 1)
"""
