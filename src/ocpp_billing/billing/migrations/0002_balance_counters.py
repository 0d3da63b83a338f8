import django.db.models.deletion
from django.db import migrations, models

# A statement-level trigger sees all rows that its statement wrote. Their sum by key is appended, new rows
# counting up and old rows counting down, so what did not change cancels out: an UPDATE of a lease, or the
# same state again, appends nothing.
APPEND_SESSIONS = """
    INSERT INTO balance_delta (source_id, kind, state, reason, sessions, energy_wh)
    SELECT line.source_id, counter.kind, counter.state, counter.reason,
        sum(counter.sessions), sum(counter.energy_wh)
    FROM (
        SELECT source_id, state, reason, rest_state, rest_reason,
            sum(sign) AS sessions,
            sum(sign * greatest(energy_wh, 0)) AS read_wh,
            sum(sign) FILTER (WHERE energy_wh < 0) AS negative,
            sum(sign * energy_wh) FILTER (WHERE energy_wh < 0) AS negative_wh,
            sum(sign * rest_wh) FILTER (WHERE rest_state IS NOT NULL) AS rest_wh
        FROM ({rows}) written
        GROUP BY source_id, state, reason, rest_state, rest_reason
    ) line
    CROSS JOIN LATERAL (VALUES
        ('read', NULL, NULL, line.sessions, line.read_wh),
        ('negative', NULL, NULL, coalesce(line.negative, 0), coalesce(line.negative_wh, 0)),
        ('stated', line.state, line.reason, line.sessions, 0),
        ('rest', line.rest_state, line.rest_reason, 0, coalesce(line.rest_wh, 0))
    ) counter(kind, state, reason, sessions, energy_wh)
    GROUP BY line.source_id, counter.kind, counter.state, counter.reason
    HAVING sum(counter.sessions) <> 0 OR sum(counter.energy_wh) <> 0;
"""
SESSION_COLUMNS = "source_id, state, reason, rest_state, rest_reason, energy_wh, rest_wh"

APPEND_EVENTS = """
    INSERT INTO balance_delta (source_id, kind, state, reason, sessions, energy_wh)
    SELECT source_id, 'event', state, reason, 0, sum(sign * energy_wh)
    FROM ({rows}) written
    WHERE state <> 'void'
    GROUP BY source_id, state, reason
    HAVING sum(sign * energy_wh) <> 0;
"""
EVENT_COLUMNS = "source_id, state, reason, energy_wh"

APPEND_MALFORMED = """
    INSERT INTO balance_delta (source_id, kind, state, reason, sessions, energy_wh)
    SELECT source_id, 'malformed', NULL, NULL, sum(sign), 0
    FROM ({rows}) written
    WHERE resolved_at IS NULL
    GROUP BY source_id
    HAVING sum(sign) <> 0;
"""
MALFORMED_COLUMNS = "source_id, resolved_at"

COUNTED = (
    ("charging_session", APPEND_SESSIONS, SESSION_COLUMNS, ("read", "negative", "stated", "rest")),
    ("usage_event", APPEND_EVENTS, EVENT_COLUMNS, ("event",)),
    ("malformed_row", APPEND_MALFORMED, MALFORMED_COLUMNS, ("malformed",)),
)

# TRUNCATE shows no rows: what was counted of the table is forgotten. The lock keeps a fold of the same
# rows (compact_counters) from being half seen.
FORGET = """
CREATE FUNCTION balance_forget() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE balance_delta IN SHARE UPDATE EXCLUSIVE MODE;
    DELETE FROM balance_delta WHERE kind = ANY (TG_ARGV);
    RETURN NULL;
END $$;
"""


def written(columns: str, *, gained: bool, lost: bool) -> str:
    """The rows of a statement: those it made count up, those it took away count down."""
    rows = [f"SELECT 1 AS sign, {columns} FROM gained"] if gained else []
    rows += [f"SELECT -1 AS sign, {columns} FROM lost"] if lost else []
    return " UNION ALL ".join(rows)


def create_triggers(table: str, append: str, columns: str, kinds: tuple[str, ...]) -> str:
    """Functions and triggers of one table, and what its rows count now."""
    statements = []
    for operation, referencing, gained, lost in (
        ("insert", "NEW TABLE AS gained", True, False),
        ("update", "OLD TABLE AS lost NEW TABLE AS gained", True, True),
        ("delete", "OLD TABLE AS lost", False, True),
    ):
        body = append.format(rows=written(columns, gained=gained, lost=lost))
        statements.append(f"""
CREATE FUNCTION balance_count_{table}_{operation}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
{body}
    RETURN NULL;
END $$;
CREATE TRIGGER balance_count_{operation} AFTER {operation.upper()} ON {table}
REFERENCING {referencing} FOR EACH STATEMENT EXECUTE FUNCTION balance_count_{table}_{operation}();
""")
    arguments = ", ".join(f"'{kind}'" for kind in kinds)
    statements.append(f"""
CREATE TRIGGER balance_forget AFTER TRUNCATE ON {table}
FOR EACH STATEMENT EXECUTE FUNCTION balance_forget({arguments});
""")
    # Creating the triggers has locked out writers until this transaction ends: nothing is counted twice.
    statements.append(append.format(rows=f"SELECT 1 AS sign, {columns} FROM {table}"))
    return "".join(statements)


def drop_triggers(table: str) -> str:
    """Undo :func:`create_triggers`."""
    return f"DROP TRIGGER balance_forget ON {table};" + "".join(
        f"DROP TRIGGER balance_count_{operation} ON {table};"
        f"DROP FUNCTION balance_count_{table}_{operation}();"
        for operation in ("insert", "update", "delete")
    )


class Migration(migrations.Migration):
    """Counters of the balance, kept by triggers in the transactions that write what they count."""

    dependencies = [
        ("billing", "0001_initial"),
        ("charging", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="BalanceDelta",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("read", "Read"),
                            ("negative", "Negative"),
                            ("stated", "Stated"),
                            ("rest", "Rest"),
                            ("event", "Event"),
                            ("malformed", "Malformed"),
                        ],
                        max_length=9,
                    ),
                ),
                ("state", models.CharField(max_length=9, null=True)),
                ("reason", models.CharField(max_length=40, null=True)),
                ("sessions", models.BigIntegerField()),
                ("energy_wh", models.BigIntegerField()),
                (
                    "source",
                    models.ForeignKey(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="+",
                        to="charging.source",
                    ),
                ),
            ],
            options={
                "db_table": "balance_delta",
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("kind__in", ["read", "negative", "stated", "rest", "event", "malformed"])
                        ),
                        name="balance_delta_kind_known",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("state__isnull", True),
                            (
                                "state__in",
                                [
                                    "open",
                                    "stuck",
                                    "held",
                                    "rejected",
                                    "queued",
                                    "accepted",
                                    "confirmed",
                                    "excluded",
                                ],
                            ),
                            _connector="OR",
                        ),
                        name="balance_delta_state_known",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="BalanceProof",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("proved_at", models.DateTimeField()),
                ("balance", models.JSONField()),
                ("drift", models.JSONField()),
                (
                    "source",
                    models.ForeignKey(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="+",
                        to="charging.source",
                    ),
                ),
            ],
            options={
                "db_table": "balance_proof",
                "indexes": [models.Index(fields=["source", "-id"], name="balance_proof_latest")],
            },
        ),
        migrations.RunSQL(FORGET, "DROP FUNCTION balance_forget()"),
        *(
            migrations.RunSQL(create_triggers(table, append, columns, kinds), drop_triggers(table))
            for table, append, columns, kinds in COUNTED
        ),
    ]
