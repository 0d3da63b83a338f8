"""How long "Needs attention" takes with many held sessions: ``python -m tests.bench.bench_inbox [SESSIONS]``.

A ledger of 100,000 sessions that wait for a person, of every kind of cause, is written directly. Then the
pages that a person walks through are asked of the portal itself, each with the median of five (aim: 300 ms of
the server's time). ``--plans`` prints PostgreSQL's plans of what took longest on each page.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.bench.pages import AIM_MS, fill, measure_from_arguments, medians_ms, print_plans
from tests.bench.systems import in_own_process

if TYPE_CHECKING:
    from django.test import Client

SESSIONS = 100_000

# By the last two digits of StEvE's number: 40 of 100 have no mapping, and so on.
_STATE = "CASE WHEN mod(n, 100) = 98 THEN 'stuck' WHEN mod(n, 100) = 99 THEN 'rejected' ELSE 'held' END"
_REASON = """CASE WHEN mod(n, 100) < 40 THEN 'unmapped_tag' WHEN mod(n, 100) < 65 THEN 'no_subscription'
    WHEN mod(n, 100) < 85 THEN 'late_period' WHEN mod(n, 100) < 93 THEN 'clock_skew'
    WHEN mod(n, 100) < 98 THEN 'changed_after_billing' WHEN mod(n, 100) = 99 THEN 'value_is_invalid' END"""
_FILL = [
    "INSERT INTO source (name) VALUES ('main')",
    """INSERT INTO id_tag (source_id, folded, text) SELECT 'main', 'tag-' || n, 'TAG-' || n
    FROM generate_series(1, 500) n""",
    """INSERT INTO lago_customer (external_id, name, email, currency, read_at) SELECT 'c-' || n, 'Customer ' || n,
        '', 'EUR', now() FROM generate_series(0, 99) n""",
    f"""INSERT INTO charging_session (source_id, steve_id, fingerprint, charge_box_id, connector_id, id_tag_id,
        id_tag_text, started_at, start_wh, stopped_at, stop_wh, raw, first_seen_at, stop_seen_at, changed_at,
        needs_decision, state, reason, rest_state, rest_reason, rest_wh, stuck_since, evidence)
    SELECT 'main', n, sha256(n::text::bytea), 'CP-' || mod(n, 53), 1, 1 + mod(n, 499), 'TAG-' || 1 + mod(n, 499),
        at - interval '1 hour', 0, CASE WHEN NOT is_stuck THEN at END,
        CASE WHEN NOT is_stuck THEN 10000 + mod(n, 9000) END, '{{}}', at, at, at, false, state, reason,
        CASE WHEN state <> 'rejected' THEN state END, CASE WHEN state <> 'rejected' THEN reason END,
        CASE WHEN state = 'held' THEN 10000 + mod(n, 9000) ELSE 0 END, CASE WHEN is_stuck THEN at END,
        CASE WHEN is_stuck THEN '{{"source": "none", "stop_wh": null, "at": null, "read_at": "2026-01-01T00:00:00Z"}}'::jsonb END
    FROM (SELECT *, state = 'stuck' AS is_stuck FROM (
        SELECT n, now() - (%(sessions)s - n) * interval '365 days' / %(sessions)s AS at,
            {_STATE} AS state, {_REASON} AS reason
        FROM generate_series(1, %(sessions)s) n) numbered) each""",
    """INSERT INTO decision (session_id, revision, outcome, reason, energy_wh, external_customer_id,
        external_subscription_id, decided_at, says)
    SELECT id, 1, CASE state WHEN 'rejected' THEN 'bill' ELSE 'hold' END,
        CASE state WHEN 'rejected' THEN NULL ELSE reason END, coalesce(energy_wh, 0),
        'c-' || mod(id_tag_id, 100), 'sub-' || mod(id_tag_id, 100), changed_at, 'It waits for a person.'
    FROM charging_session WHERE state <> 'stuck'""",
    """INSERT INTO usage_event (source_id, session_id, decision_id, n, transaction_id, kind,
        external_customer_id, external_subscription_id, lago_subscription_id, metric_code, field_name,
        energy_wh, timestamp, payload, state, attempts, reason)
    SELECT 'main', s.id, d.id, 1, 'steve:main:' || s.steve_id || '-00000000:1', 'original',
        d.external_customer_id, d.external_subscription_id, 'row', 'ev_charging_kwh', 'kwh', s.energy_wh,
        s.stopped_at, '{}', 'rejected', 1, 'value_is_invalid'
    FROM charging_session s JOIN decision d ON d.session_id = s.id WHERE s.state = 'rejected'""",
    "ANALYZE",
]


def pages() -> list[str]:
    """The inbox, causes of each kind, clusters of them, an order about a thousand; then other pages."""
    no_subscription = "state=held&reason=no_subscription"
    return [
        "/attention",
        "/attention/held/unmapped_tag",
        "/attention/held/unmapped_tag?tag=7",
        "/attention/held/no_subscription",
        "/attention/held/no_subscription?customer=c-7",
        "/attention/held/late_period?customer=c-7",
        "/attention/held/clock_skew?charge_box=CP-7",
        "/attention/stuck/-",
        "/attention/rejected/value_is_invalid",
        f"/attention/act?act=exclude&{no_subscription}",
        f"/attention/act?act=accept&state=held&reason=late_period&customer={quote('c-7')}",
        "/",
        "/billing-events?state=held",
        "/mappings",
    ]


def main() -> int:
    return in_own_process(__name__)


def measure(sessions: int, *, plans: bool) -> int:
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    from ocpp_billing.accounts.models import User

    fill(_FILL, {"sessions": sessions})
    person = User.objects.create_user("bench@example.org", None, name="Bench", role="admin")
    client = Client(headers={"host": "localhost"})
    client.force_login(person, backend="allauth.account.auth_backends.AuthenticationBackend")
    missed = 0
    for path in pages():
        ask = partial(_ask, client, path)
        (took_ms,) = medians_ms(ask)
        with CaptureQueriesContext(connection) as queries:
            ask()
        missed += took_ms > AIM_MS
        sys.stdout.write(f"{path}: {took_ms:.0f} ms, {len(queries)} queries (aim {AIM_MS} ms)\n")
        if plans:
            print_plans([max(queries, key=lambda query: float(query["time"]))])
    return 1 if missed else 0


def _ask(client: Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200, (path, answer.status_code)


if __name__ == "__main__":
    sys.exit(measure_from_arguments(measure, SESSIONS))
