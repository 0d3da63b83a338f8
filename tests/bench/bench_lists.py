"""How fast a list of sessions is at a big ledger: ``python -m tests.bench.bench_lists [SESSIONS]``.

A ledger of 300,000 sessions over three years (one in a thousand corrected, one in fifty held or excluded)
is written directly; then the first page and the totals of what people ask for, each with the median of five
(aim: 300 ms at most together). ``--plans`` prints PostgreSQL's plans.
"""

import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from tests.bench.pages import AIM_MS, fill, measure_from_arguments, medians_ms, print_plans
from tests.bench.systems import in_own_process

SESSIONS = 300_000

_FILL = [
    "INSERT INTO source (name) VALUES ('main')",
    """INSERT INTO id_tag (source_id, folded, text) SELECT 'main', 'tag-' || n, 'TAG-' || n
    FROM generate_series(1, 500) n""",
    # Kinds: 0..9 held, 10..19 excluded, else an event carries it; the newest 200 are still accepted.
    """INSERT INTO charging_session (source_id, steve_id, fingerprint, charge_box_id, connector_id, id_tag_id,
        id_tag_text, started_at, start_wh, stopped_at, stop_wh, raw, first_seen_at, stop_seen_at, changed_at,
        needs_decision, state, reason, rest_state, rest_reason, rest_wh)
    SELECT 'main', n, sha256(n::text::bytea), 'CP-' || mod(n, 50), 1 + mod(n, 2), 1 + mod(n, 500), 'TAG-' || 1 + mod(n, 500),
        at - interval '1 hour', 0, at, 10000 + mod(n, 9000), '{}', at, at, at, false,
        CASE WHEN mod(n, 1000) < 10 THEN 'held' WHEN mod(n, 1000) < 20 THEN 'excluded'
            WHEN n > %(newest)s THEN 'accepted' ELSE 'confirmed' END,
        CASE WHEN mod(n, 1000) < 10 THEN 'unmapped_tag' WHEN mod(n, 1000) < 20 THEN 'before_go_live' END,
        CASE WHEN mod(n, 1000) < 10 THEN 'held' WHEN mod(n, 1000) < 20 THEN 'excluded' END,
        CASE WHEN mod(n, 1000) < 10 THEN 'unmapped_tag' WHEN mod(n, 1000) < 20 THEN 'before_go_live' END,
        CASE WHEN mod(n, 1000) < 20 THEN 10000 + mod(n, 9000) ELSE 0 END
    FROM (SELECT n, now() - (%(sessions)s - n) * interval '1095 days' / %(sessions)s AS at
          FROM generate_series(1, %(sessions)s) n) numbered""",
    """INSERT INTO decision (session_id, revision, outcome, reason, energy_wh, external_customer_id,
        external_subscription_id, decided_at)
    SELECT id, 1, CASE state WHEN 'held' THEN 'hold' WHEN 'excluded' THEN 'exclude' ELSE 'bill' END, reason,
        energy_wh, 'c-' || mod(id_tag_id, 100), 'sub-' || mod(id_tag_id, 100), stopped_at FROM charging_session""",
    """INSERT INTO usage_event (source_id, session_id, decision_id, n, transaction_id, kind,
        external_customer_id, external_subscription_id, lago_subscription_id, metric_code, field_name,
        energy_wh, timestamp, payload, state, attempts, lago_event_id)
    SELECT 'main', s.id, d.id, n, 'steve:main:' || s.steve_id || '-00000000:' || n,
        CASE n WHEN 1 THEN 'original' ELSE 'correction' END, 'c-' || mod(s.id_tag_id, 100),
        'sub-' || mod(s.id_tag_id, 100), 'row', 'ev_charging_kwh', 'kwh', CASE n WHEN 1 THEN energy END,
        s.stopped_at, '{}', s.state, 1, gen_random_uuid()
    FROM (SELECT *, energy_wh AS energy FROM charging_session) s JOIN decision d ON d.session_id = s.id,
        generate_series(1, 1) n
    WHERE s.rest_state IS NULL""",
    # A correction of every thousandth: it waits in the queue, and so does its session.
    """WITH corrected AS (
        UPDATE charging_session SET state = 'queued', stop_wh = stop_wh + 500
        WHERE mod(steve_id, 1000) = 500 RETURNING id)
    INSERT INTO usage_event (source_id, session_id, decision_id, n, transaction_id, kind,
        external_customer_id, external_subscription_id, lago_subscription_id, metric_code, field_name,
        energy_wh, timestamp, payload, state)
    SELECT source_id, session_id, decision_id, 2, transaction_id || '2', 'correction', external_customer_id,
        external_subscription_id, lago_subscription_id, metric_code, field_name, 500, timestamp, payload,
        'queued'
    FROM usage_event WHERE session_id IN (SELECT id FROM corrected)""",
    "ANALYZE",
]


def filters() -> dict[str, dict[str, Any]]:
    """What people ask for."""
    now = datetime.now(UTC)
    month = {"since": now - timedelta(days=60), "until": now - timedelta(days=30)}
    long_ago = {"since": now - timedelta(days=1000), "until": now - timedelta(days=970)}
    return {
        "everything": {},
        "confirmed": {"states": ["confirmed"]},
        "held": {"states": ["held"]},
        "queued": {"states": ["queued"]},
        "rejected (none)": {"states": ["rejected"]},
        "reason": {"reason": "before_go_live"},
        "last month": month,
        "a month long ago": long_ago,
        "a month long ago, confirmed": {**long_ago, "states": ["confirmed"]},
        "a customer": {"customer": "c-7"},
        "a customer last month": {**month, "customer": "c-7"},
        "a subscription": {"subscription": "sub-7"},
        "a tag": {"id_tag": "tag-7"},
        "a charge box": {"charge_box": "CP-7"},
        "a charge box, held": {"charge_box": "CP-7", "states": ["held"]},
    }


def main() -> int:
    return in_own_process(__name__)


def measure(sessions: int, *, plans: bool) -> int:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    from ocpp_billing.billing.listing import LedgerFilter
    from ocpp_billing.billing.parts import list_parted, total_parts

    fill(_FILL, {"sessions": sessions, "newest": sessions - 200})
    missed = 0
    for name, asked in filters().items():
        chosen = LedgerFilter(source="main", **asked)
        page, totals = medians_ms(partial(list_parted, chosen), partial(total_parts, chosen))
        missed += page + totals > AIM_MS
        sys.stdout.write(f"{name}: page {page:.0f} ms, totals {totals:.0f} ms (aim {AIM_MS} ms together)\n")
        if plans:
            with CaptureQueriesContext(connection) as queries:
                list_parted(chosen)
                total_parts(chosen)
            print_plans(queries)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(measure_from_arguments(measure, SESSIONS))
