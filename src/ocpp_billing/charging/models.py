"""The sessions we know: StEvE's transactions as last seen, and the tags they were started with."""

from __future__ import annotations

from django.db import models
from django.db.models import Case, F, Q, When
from django.db.models.functions import Now


class SessionState(models.TextChoices):
    """Where the energy of a session stands; the least advanced part names the session.

    The order is that of the ledger: open, stuck, held, rejected, queued, accepted, confirmed, excluded.
    """

    OPEN = "open"
    STUCK = "stuck"
    HELD = "held"
    REJECTED = "rejected"
    QUEUED = "queued"
    ACCEPTED = "accepted"
    CONFIRMED = "confirmed"
    EXCLUDED = "excluded"


class Source(models.Model):
    """One StEvE, and how far it has been read."""

    name = models.CharField(primary_key=True, max_length=20)
    base_url = models.TextField(blank=True, db_default="")
    capabilities = models.JSONField(null=True)
    capabilities_at = models.DateTimeField(null=True)
    # Highest transaction id ever seen; StEvE gives ids in the order in which starts arrive.
    highest_id = models.BigIntegerField(db_default=0)
    # Latest credible start among all sessions seen: what a clock of 1970 is measured against.
    latest_start_at = models.DateTimeField(null=True)
    # Paced reads: what was read when, how long it took, where a long read stands.
    progress = models.JSONField(db_default={})
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "source"

    def __str__(self) -> str:
        return self.name


class IdTag(models.Model):
    """A tag, once, however it is spelled: unique by StEvE's collation.

    StEvE's primary key may change when it is migrated, so it is remembered, never used as identity. A tag
    that is gone and has none has a pseudonym in place of its text (:mod:`charging.pseudonyms`).
    """

    source = models.ForeignKey(Source, on_delete=models.PROTECT, related_name="+")
    # The text folded as utf8_unicode_ci compares: case, accents and trailing blanks do not count.
    folded = models.TextField()
    text = models.TextField()
    steve_pk = models.BigIntegerField(null=True)
    note = models.TextField(null=True)
    blocked = models.BooleanField(null=True)
    first_seen_at = models.DateTimeField(db_default=Now())
    vanished_at = models.DateTimeField(null=True)
    # Set when StEvE gives the same text another pk, or the same pk another text, in one installation.
    identity_conflict = models.TextField(null=True)

    class Meta:
        db_table = "id_tag"
        constraints = [models.UniqueConstraint(fields=["source", "folded"], name="id_tag_unique")]
        indexes = [models.Index(fields=["source", "steve_pk"], name="id_tag_steve_pk")]

    def __str__(self) -> str:
        return self.text


class IdTagParent(models.Model):
    """Which parent a tag had when it was read; ``parent`` null = it had none. One row per change."""

    id_tag = models.ForeignKey(IdTag, on_delete=models.CASCADE, related_name="parents")
    parent = models.ForeignKey(IdTag, null=True, on_delete=models.PROTECT, related_name="+")
    seen_from = models.DateTimeField()

    class Meta:
        db_table = "id_tag_parent"
        constraints = [models.UniqueConstraint(fields=["id_tag", "seen_from"], name="id_tag_parent_unique")]

    def __str__(self) -> str:
        return f"{self.id_tag_id} -> {self.parent_id} from {self.seen_from}"


class ChargingSession(models.Model):
    """One StEvE transaction as last seen, and where its energy stands.

    ``rest_*`` is the part of the energy that no usage event carries: held, excluded, or nothing yet.
    Energy read == rest_wh + the energy of all non-void usage events; :mod:`billing.balance` proves it.
    """

    # Where an index of Meta begins with a column, Django's own is left out: each costs with every change.
    source = models.ForeignKey(Source, on_delete=models.PROTECT, related_name="+", db_index=False)
    steve_id = models.BigIntegerField()
    # SHA-256 of who, where and when it began: tells two transactions of one id apart (restored StEvE).
    fingerprint = models.BinaryField(max_length=32)
    charge_box_id = models.TextField()
    connector_id = models.IntegerField()
    id_tag = models.ForeignKey(IdTag, on_delete=models.PROTECT, related_name="sessions", db_index=False)
    id_tag_text = models.TextField()
    started_at = models.DateTimeField(null=True)
    start_wh = models.BigIntegerField()
    stopped_at = models.DateTimeField(null=True)
    stop_wh = models.BigIntegerField(null=True)
    stop_reason = models.TextField(null=True)
    stop_actor = models.TextField(null=True)
    # What a person read off the meter where StEvE has no (usable) stop; a new stop of StEvE drops it.
    reading_stop_wh = models.BigIntegerField(null=True)
    reading_stopped_at = models.DateTimeField(null=True)
    energy_wh = models.GeneratedField(
        expression=Case(
            When(reading_stopped_at__isnull=False, then=F("reading_stop_wh") - F("start_wh")),
            When(stopped_at__isnull=False, then=F("stop_wh") - F("start_wh")),
        ),
        output_field=models.BigIntegerField(null=True),
        db_persist=True,
    )
    # StEvE's own names and values.
    raw = models.JSONField()

    revision = models.IntegerField(db_default=1)
    first_seen_at = models.DateTimeField()
    stop_seen_at = models.DateTimeField(null=True)
    changed_at = models.DateTimeField()
    # Latest credible start among lower ids when this one was first seen (rule clock_skew).
    latest_lower_start_at = models.DateTimeField(null=True)
    vanished_at = models.DateTimeField(null=True)
    # Set when a restored StEvE gave this id to another session; the row stays and is never re-read.
    superseded_at = models.DateTimeField(null=True)

    state = models.CharField(max_length=9, choices=SessionState.choices)
    reason = models.CharField(max_length=40, null=True)
    rest_state = models.CharField(max_length=9, null=True)
    rest_reason = models.CharField(max_length=40, null=True)
    rest_wh = models.BigIntegerField(db_default=0)
    needs_decision = models.BooleanField(db_default=True)
    # Raised whenever a new decision is asked for: one that was judged before does not count any more.
    asked = models.IntegerField(db_default=0)

    stuck_since = models.DateTimeField(null=True)
    # {"source": "meter_value"|"next_start"|"none", "stop_wh": int|null, "at": iso|null, "read_at": iso,
    # "heard_at": iso|null}; heard_at is the time of the last meter value, whatever that is worth
    evidence = models.JSONField(null=True)
    # What is worth saying and stops nothing: {"kind": "time_overlap"|"register_overlap", "with": a StEvE
    # id}. Written with the decision, so the one that is decided later names the other.
    flags = models.JSONField(db_default=[])

    class Meta:
        db_table = "charging_session"
        constraints = [
            models.UniqueConstraint(
                fields=["source", "steve_id", "fingerprint"], name="charging_session_unique"
            ),
            models.UniqueConstraint(
                fields=["source", "steve_id"],
                condition=Q(superseded_at__isnull=True),
                name="charging_session_current",
            ),
            models.CheckConstraint(
                condition=Q(stopped_at__isnull=True) | Q(stop_wh__isnull=False),
                name="charging_session_stop_whole",
            ),
            models.CheckConstraint(
                condition=Q(reading_stop_wh__isnull=True, reading_stopped_at__isnull=True)
                | Q(reading_stop_wh__isnull=False, reading_stopped_at__isnull=False),
                name="charging_session_reading_whole",
            ),
            models.CheckConstraint(
                condition=Q(state__in=SessionState.values), name="charging_session_state_known"
            ),
            models.CheckConstraint(
                condition=Q(rest_state__isnull=True, rest_reason__isnull=True, rest_wh=0)
                | Q(rest_state__isnull=False, rest_state__in=["open", "stuck"], rest_wh=0)
                | Q(
                    rest_state__isnull=False,
                    rest_state__in=["held", "excluded"],
                    rest_reason__isnull=False,
                ),
                name="charging_session_rest_whole",
            ),
        ]
        indexes = [
            models.Index(
                fields=["source", "id"],
                condition=Q(needs_decision=True),
                name="charging_session_undecided",
            ),
            models.Index(
                fields=["source", "steve_id"],
                condition=Q(stopped_at__isnull=True),
                name="charging_session_open",
            ),
            models.Index(
                fields=["state", "reason"],
                condition=Q(state__in=["open", "stuck", "held", "rejected", "queued"]),
                name="charging_session_attention",
            ),
            models.Index(
                fields=["source", "charge_box_id", "connector_id", "started_at"],
                name="charging_session_connector",
            ),
            # Who came next on the connector, in the order of arrival: what makes a session stuck.
            models.Index(
                fields=["source", "charge_box_id", "connector_id", "steve_id"],
                name="charging_session_neighbours",
            ),
            models.Index(fields=["id_tag", "started_at"], name="charging_session_tag"),
            models.Index(fields=["source", "stopped_at"], name="charging_session_stopped"),
            models.Index(
                fields=["source", "reading_stopped_at"],
                condition=Q(reading_stopped_at__isnull=False),
                name="charging_session_reading",
            ),
            # Lists of one state or reason, newest first.
            models.Index(fields=["source", "state", "steve_id"], name="charging_session_state"),
            models.Index(
                fields=["source", "reason", "steve_id"],
                condition=Q(reason__isnull=False),
                name="charging_session_reason",
            ),
            # What differs from what was billed.
            models.Index(
                fields=["source", "id"],
                condition=Q(
                    rest_reason__in=[
                        *("changed_after_billing", "refund_by_credit_note", "by_operator", "credited")
                    ]
                ),
                name="charging_session_differs",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.source_id}:{self.steve_id}"


class MalformedRow(models.Model):
    """A row of StEvE that could not be read: set aside, counted and shown until it reads well."""

    source = models.ForeignKey(Source, on_delete=models.PROTECT, related_name="+")
    steve_id = models.BigIntegerField(null=True)
    # SHA-256 of the row as received: the same row twice is one.
    digest = models.BinaryField(max_length=32)
    # As received: it may be no JSON at all.
    raw = models.TextField()
    reason = models.TextField()
    first_seen_at = models.DateTimeField(db_default=Now())
    last_seen_at = models.DateTimeField(db_default=Now())
    resolved_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "malformed_row"
        constraints = [models.UniqueConstraint(fields=["source", "digest"], name="malformed_row_unique")]

    def __str__(self) -> str:
        return f"{self.source_id}:{self.steve_id}: {self.reason}"
