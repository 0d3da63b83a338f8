"""What we decided, what we owe or gave to Lago, and whether anything may be sent at all."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from ocpp_billing.accounts.models import User
from ocpp_billing.charging.models import ChargingSession, SessionState, Source
from ocpp_billing.mappings.models import TagMapping


class Outcome(models.TextChoices):
    """What a decision says."""

    BILL = "bill"
    HOLD = "hold"
    EXCLUDE = "exclude"


class EventState(models.TextChoices):
    """Where a usage event stands. A void event counts nowhere: it was never attempted, or was given up."""

    QUEUED = "queued"
    ACCEPTED = "accepted"
    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    HELD = "held"
    # Settled without Lago: a refund that was given by a credit note. It counts and is never sent.
    EXCLUDED = "excluded"
    VOID = "void"


class EventKind(models.TextChoices):
    """Why an event exists."""

    ORIGINAL = "original"
    CORRECTION = "correction"
    MOVE = "move"
    CREDIT = "credit"


class Decision(models.Model):
    """What was decided about one revision of a session, why, by which mapping, by whom."""

    # Where an index of Meta begins with a column, Django's own is left out: each costs with every change.
    session = models.ForeignKey(
        ChargingSession, on_delete=models.PROTECT, related_name="decisions", db_index=False
    )
    revision = models.IntegerField()
    outcome = models.CharField(max_length=7, choices=Outcome.choices)
    reason = models.CharField(max_length=40, null=True)
    # The numbers behind it, in words.
    says = models.TextField(db_default="")
    energy_wh = models.BigIntegerField()
    mapping = models.ForeignKey(TagMapping, null=True, on_delete=models.PROTECT, related_name="+")
    external_customer_id = models.TextField(null=True)
    external_subscription_id = models.TextField(null=True)
    decided_at = models.DateTimeField()
    # "rule", or the person's name.
    decided_by = models.TextField(db_default="rule")
    user = models.ForeignKey(User, null=True, on_delete=models.PROTECT, related_name="+", db_index=False)
    note = models.TextField(db_default="")

    class Meta:
        db_table = "decision"
        indexes = [
            models.Index(fields=["session", "-id"], name="decision_session"),
            # Whoever would pay for what no usage event carries; events say so themselves.
            models.Index(
                fields=["external_customer_id", "session"],
                condition=~Q(outcome="bill") & Q(external_customer_id__isnull=False),
                name="decision_unbilled_customer",
            ),
            models.Index(
                fields=["external_subscription_id", "session"],
                condition=~Q(outcome="bill") & Q(external_subscription_id__isnull=False),
                name="decision_unbilled_subscr",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.session_id} r{self.revision}: {self.outcome} {self.reason or ''}"


class RulingKind(models.TextChoices):
    """What a person ordered about a session."""

    ACCEPT = "accept"
    EXCLUDE = "exclude"
    ASSIGN = "assign"
    CREDIT = "credit"


class Ruling(models.Model):
    """A person's word about a session, which the next decision follows.

    *Accept* and *exclude* are about one revision: when StEvE shows other values, the rules judge anew.
    *Assign* says who pays and holds for every revision. A newer ruling of a kind replaces the older one.
    *Credit* says that a refund was given; what it amounts to is a usage event of kind ``credit``.
    """

    session = models.ForeignKey(ChargingSession, on_delete=models.PROTECT, related_name="rulings")
    kind = models.CharField(max_length=8, choices=RulingKind.choices)
    revision = models.IntegerField()
    # The reason that stood when it was ordered: an acceptance overrides that one and no other.
    reason = models.CharField(max_length=40, null=True)
    customer_external_id = models.TextField(null=True)
    subscription_external_id = models.TextField(null=True)
    note = models.TextField()
    at = models.DateTimeField()
    by = models.TextField()
    user = models.ForeignKey(User, null=True, on_delete=models.PROTECT, related_name="+")
    revoked_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "ruling"
        indexes = [
            models.Index(fields=["session"], condition=Q(revoked_at__isnull=True), name="ruling_in_force")
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.session_id} by {self.by}"


class UsageEvent(models.Model):
    """The outbox: one event for Lago, with its payload frozen when it was decided.

    ``attempts`` is raised and committed *before* the event is sent: 0 means Lago cannot know it. An event
    that was attempted in vain is *given up* once Lago could not bill it any more even if it got it now
    (:mod:`billing.late`); its energy is then decided anew.
    """

    source = models.ForeignKey(Source, on_delete=models.PROTECT, related_name="+", db_index=False)
    session = models.ForeignKey(
        ChargingSession, on_delete=models.PROTECT, related_name="events", db_index=False
    )
    # No index: events of a decision are found by its session.
    decision = models.ForeignKey(Decision, on_delete=models.PROTECT, related_name="events", db_index=False)
    n = models.IntegerField()
    # steve:<source>:<steve id>-<first 8 hex of the fingerprint>:<n>, unique in the Lago organisation.
    transaction_id = models.TextField()
    kind = models.CharField(max_length=10, choices=EventKind.choices)
    external_customer_id = models.TextField()
    external_subscription_id = models.TextField()
    # Lago's id of the subscription row whose open period contains the event, and that period.
    lago_subscription_id = models.TextField()
    period_from = models.DateTimeField(null=True)
    period_to = models.DateTimeField(null=True)
    metric_code = models.TextField()
    # The property that the metric sums.
    field_name = models.TextField()
    energy_wh = models.BigIntegerField()
    # The time Lago sees, to the millisecond.
    timestamp = models.DateTimeField()
    # Exactly the bytes that are sent, every time.
    payload = models.TextField()

    state = models.CharField(max_length=9, choices=EventState.choices)
    reason = models.CharField(max_length=40, null=True)
    attempts = models.IntegerField(db_default=0)
    first_attempt_at = models.DateTimeField(null=True)
    next_attempt_at = models.DateTimeField(db_default=Now())
    lease = models.UUIDField(null=True)
    lease_until = models.DateTimeField(null=True)
    # When Lago may last have got it, as long as that is open: while it is claimed, when the lease ends.
    sent_at = models.DateTimeField(null=True)
    # Since when Lago, whose invoice of the period is final, was seen not to hold it.
    missing_since = models.DateTimeField(null=True)
    given_up_at = models.DateTimeField(null=True)
    # When an event that was given up was seen in Lago after all.
    turned_up_at = models.DateTimeField(null=True)
    lago_event_id = models.TextField(null=True)
    # Lago's last words about this event.
    answer = models.JSONField(null=True)
    created_at = models.DateTimeField(db_default=Now())
    accepted_at = models.DateTimeField(null=True)
    confirmed_at = models.DateTimeField(null=True)
    # Since when it is told that Lago took it and does not count it, and why it seems so. It says nothing
    # about an acceptance that came later.
    uncounted_since = models.DateTimeField(null=True)
    uncounted_says = models.TextField(null=True)
    # When that was last written, and what Lago counts too little in the whole period; below 0 it counts too
    # much, null = not known.
    uncounted_told_at = models.DateTimeField(null=True)
    uncounted_wh = models.BigIntegerField(null=True)

    class Meta:
        db_table = "usage_event"
        constraints = [
            models.UniqueConstraint(fields=["session", "n"], name="usage_event_n_unique"),
            models.UniqueConstraint(fields=["transaction_id"], name="usage_event_transaction_unique"),
            models.CheckConstraint(condition=Q(state__in=EventState.values), name="usage_event_state_known"),
            # What Lago may bill is never void: it can only be corrected.
            models.CheckConstraint(
                condition=~Q(state="void") | Q(attempts=0) | Q(given_up_at__isnull=False),
                name="usage_event_void_never_billed",
            ),
        ]
        indexes = [
            models.Index(
                fields=["source", "next_attempt_at", "id"],
                condition=Q(state="queued"),
                name="usage_event_queue",
            ),
            models.Index(
                fields=["external_subscription_id", "timestamp"],
                condition=Q(state="accepted"),
                name="usage_event_unconfirmed",
            ),
            models.Index(
                fields=["source", "external_subscription_id"],
                condition=Q(state="accepted") & Q(uncounted_since__isnull=False),
                name="usage_event_uncounted",
            ),
            models.Index(
                fields=["external_subscription_id", "metric_code", "timestamp"],
                name="usage_event_subscription",
            ),
            # As the list of billing events asks: by a range of dates.
            models.Index(fields=["source", "timestamp"], name="usage_event_dated"),
            models.Index(
                fields=["source", "next_attempt_at", "id"], condition=Q(state="held"), name="usage_event_held"
            ),
            models.Index(
                fields=["source", "next_attempt_at"],
                condition=Q(given_up_at__isnull=False),
                name="usage_event_given_up",
            ),
            models.Index(fields=["external_customer_id", "session"], name="usage_event_customer"),
            # Corrections and moves: the sessions with parts in several states.
            models.Index(fields=["session"], condition=Q(n__gt=1), name="usage_event_further"),
            models.Index(
                fields=["lago_event_id"], condition=Q(lago_event_id__isnull=False), name="usage_event_lago_id"
            ),
        ]

    def __str__(self) -> str:
        return self.transaction_id


class DeliveryControl(models.Model):
    """Whether usage events of a source may be sent, and to which Lago organisation.

    Shadow mode until ``live_from`` is set (or ``BILLING_START`` is in the environment).
    """

    source = models.OneToOneField(Source, primary_key=True, on_delete=models.PROTECT)
    live_from = models.DateTimeField(null=True)
    live_set_at = models.DateTimeField(null=True)
    live_set_by = models.TextField(null=True)
    paused_at = models.DateTimeField(null=True)
    # A person's name, or "delivery" when it stopped by itself.
    paused_by = models.TextField(null=True)
    pause_reason = models.TextField(null=True)
    lago_organization_id = models.TextField(null=True)
    lago_organization_name = models.TextField(null=True)
    # When Lago last took an event that was sent to it.
    event_taken_at = models.DateTimeField(null=True)
    # When it was made sure that Lago holds no event of this source that the ledger does not know.
    history_checked_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "delivery_control"

    def __str__(self) -> str:
        return f"{self.source_id}: live from {self.live_from}, paused {self.paused_at}"


class LagoSubscription(models.Model):
    """One subscription row of Lago as last read; several rows may share an external id (upgrades)."""

    lago_id = models.TextField(primary_key=True)
    external_id = models.TextField()
    external_customer_id = models.TextField()
    # Lago's own id of the customer, by which its pages are addressed.
    lago_customer_id = models.TextField(null=True)
    plan_code = models.TextField()
    status = models.TextField()
    name = models.TextField(null=True)
    started_at = models.DateTimeField(null=True)
    terminated_at = models.DateTimeField(null=True)
    period_from = models.DateTimeField(null=True)
    period_to = models.DateTimeField(null=True)
    read_at = models.DateTimeField()

    class Meta:
        db_table = "lago_subscription"
        indexes = [
            models.Index(fields=["external_customer_id"], name="lago_subscription_customer"),
            models.Index(fields=["external_id"], name="lago_subscription_external"),
        ]

    def __str__(self) -> str:
        return f"{self.external_id} ({self.status})"


class LagoCustomerRead(models.Model):
    """When the subscriptions of a customer were last read from Lago; also of customers that have none."""

    external_id = models.TextField(primary_key=True)
    read_at = models.DateTimeField()

    class Meta:
        db_table = "lago_customer_read"

    def __str__(self) -> str:
        return self.external_id


class CounterKind(models.TextChoices):
    """What a counter of the balance counts.

    ``read`` and ``negative`` come from the registers alone, ``rest`` and ``event`` from the parts alone:
    a part that is lost or written twice does not change what was read.
    """

    # Sessions, and their energy by the registers, a negative one as 0.
    READ = "read"
    # Sessions whose stop register lies below the start register, and that (negative) energy.
    NEGATIVE = "negative"
    # Sessions by the state and reason that name them; no energy.
    STATED = "stated"
    # Energy that no usage event carries, by its state and reason.
    REST = "rest"
    # Energy of usage events by state and reason, void ones left out.
    EVENT = "event"
    # Malformed rows that are still set aside, counted as sessions.
    MALFORMED = "malformed"


class BalanceDelta(models.Model):
    """What one statement changed in the balance; the sum of the rows of a key is its counter.

    Written by triggers of ``charging_session``, ``usage_event`` and ``malformed_row`` in the transaction
    that changes those. Only ever inserted, and folded by :func:`billing.balance.compact_counters`, so
    writers never wait for one another. Without a foreign key in the database for the same reason:
    its check would wait for whoever holds the row of the source.
    """

    source = models.ForeignKey(Source, on_delete=models.DO_NOTHING, related_name="+", db_constraint=False)
    kind = models.CharField(max_length=9, choices=CounterKind.choices)
    state = models.CharField(max_length=9, null=True)
    reason = models.CharField(max_length=40, null=True)
    sessions = models.BigIntegerField()
    energy_wh = models.BigIntegerField()

    class Meta:
        db_table = "balance_delta"
        constraints = [
            models.CheckConstraint(condition=Q(kind__in=CounterKind.values), name="balance_delta_kind_known"),
            models.CheckConstraint(
                condition=Q(state__isnull=True) | Q(state__in=SessionState.values),
                name="balance_delta_state_known",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.source_id}: {self.kind} {self.state or ''} {self.reason or ''}"


class BalanceProof(models.Model):
    """A full recount of the ledger, and whether the counters said the same.

    Of a source that was never read, too: hence no foreign key in the database.
    """

    source = models.ForeignKey(Source, on_delete=models.DO_NOTHING, related_name="+", db_constraint=False)
    proved_at = models.DateTimeField()
    # The recount, as in ``ocpp-billing balance --json``.
    balance = models.JSONField()
    # What the counters lacked, and were given: [{"kind", "state", "reason", "sessions", "energy_wh"}, ...]
    drift = models.JSONField()

    class Meta:
        db_table = "balance_proof"
        indexes = [models.Index(fields=["source", "-id"], name="balance_proof_latest")]

    def __str__(self) -> str:
        return f"{self.source_id} at {self.proved_at}"
