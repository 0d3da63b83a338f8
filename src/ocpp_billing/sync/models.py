"""Runs: the row is the queue, the history and the fence."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from ocpp_billing.charging.models import Source


class RunStatus(models.TextChoices):
    """Requested runs wait for a worker; running ones have one; the others are history."""

    REQUESTED = "requested"
    RUNNING = "running"
    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class RunTrigger(models.TextChoices):
    """Why a run was asked for."""

    SCHEDULE = "schedule"
    STARTUP = "startup"
    MANUAL = "manual"
    API = "api"
    COMMAND = "command"
    RECOVERY = "recovery"
    # Between two full runs: a session stopped or began, ...
    WATCH = "watch"
    # ... usage events became due for another attempt, ...
    DELIVERY = "delivery"
    # ... or accepted ones may be counted by Lago now.
    CONFIRM = "confirm"


# Short runs that only take up what has become due; all others read StEvE and go through everything.
LANES = (RunTrigger.WATCH, RunTrigger.DELIVERY, RunTrigger.CONFIRM)


class SyncRun(models.Model):
    """One synchronization. At most one requested and one running per source, by the database's word."""

    source = models.ForeignKey(Source, on_delete=models.PROTECT, related_name="+")
    status = models.CharField(max_length=11, choices=RunStatus.choices)
    trigger = models.CharField(max_length=8, choices=RunTrigger.choices)
    requested_by = models.TextField(db_default="")
    requested_at = models.DateTimeField(db_default=Now())
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    worker = models.TextField(null=True)
    # "live", "shadow" or "paused" when it ended.
    delivery = models.CharField(max_length=6, null=True)
    # {"discovered": n, "changed": n, "malformed": n, "held": n, ...}: of this run alone.
    counts = models.JSONField(db_default={})
    # [{"step": ..., "error": what happened and what to do}, ...]
    errors = models.JSONField(db_default=[])

    class Meta:
        db_table = "sync_run"
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["source"], condition=Q(status="requested"), name="sync_run_one_requested"
            ),
            models.UniqueConstraint(
                fields=["source"], condition=Q(status="running"), name="sync_run_one_running"
            ),
            models.CheckConstraint(condition=Q(status__in=RunStatus.values), name="sync_run_status_known"),
        ]

    def __str__(self) -> str:
        return f"run {self.pk} ({self.status})"


class SyncStep(models.Model):
    """One of the five steps within a run."""

    run = models.ForeignKey(SyncRun, on_delete=models.CASCADE, related_name="steps")
    name = models.CharField(max_length=10)
    started_at = models.DateTimeField(db_default=Now())
    ended_at = models.DateTimeField(null=True)
    counts = models.JSONField(db_default={})
    error = models.TextField(null=True)

    class Meta:
        db_table = "sync_step"
        ordering = ["id"]
        constraints = [models.UniqueConstraint(fields=["run", "name"], name="sync_step_unique")]

    def __str__(self) -> str:
        return f"{self.run_id} {self.name}"


class SyncLog(models.Model):
    """What a run said, as it happened: survives a crash of the run."""

    run = models.ForeignKey(SyncRun, on_delete=models.CASCADE, related_name="log")
    at = models.DateTimeField(db_default=Now())
    level = models.CharField(max_length=7)
    action = models.CharField(max_length=40)
    message = models.TextField()

    class Meta:
        db_table = "sync_log"
        ordering = ["id"]
        indexes = [models.Index(fields=["run", "id"], name="sync_log_run")]

    def __str__(self) -> str:
        return f"{self.run_id} {self.action}"


class WorkerKind(models.TextChoices):
    """A worker serves schedule and triggers; a command leads for one run only."""

    WORKER = "worker"
    COMMAND = "command"


class WorkerHeartbeat(models.Model):
    """One row per process that leads or stands by. At most one leads per source, by the database's word."""

    worker = models.TextField(primary_key=True)
    source = models.ForeignKey(Source, on_delete=models.PROTECT, related_name="+")
    kind = models.CharField(max_length=7, choices=WorkerKind.choices, db_default=WorkerKind.WORKER)
    leader = models.BooleanField(db_default=False)
    # Backend process of the leader's lock connection.
    lock_pid = models.IntegerField(null=True)
    started_at = models.DateTimeField(db_default=Now())
    seen_at = models.DateTimeField(db_default=Now())
    # It said good-bye; a process that died is only silent.
    stopped_at = models.DateTimeField(null=True)
    next_run_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "worker_heartbeat"
        constraints = [
            models.UniqueConstraint(
                fields=["source"], condition=Q(leader=True), name="worker_heartbeat_one_leader"
            ),
        ]

    def __str__(self) -> str:
        return self.worker


class Alert(models.Model):
    """Something that a person should know: opened when it begins, resolved when it is over."""

    source = models.ForeignKey(Source, on_delete=models.PROTECT, related_name="+")
    condition = models.CharField(max_length=40)
    # What happened and what to do, as last seen.
    says = models.TextField()
    do = models.TextField()
    # How many sessions it was about when it was last told; null where it is not about a number.
    told_size = models.IntegerField(null=True)
    opened_at = models.DateTimeField()
    resolved_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "alert"
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["source", "condition"], condition=Q(resolved_at=None), name="alert_one_open"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.source_id}: {self.condition}"


class AlertMessage(models.Model):
    """The outbox of alerts: one word of one alert (opened, grown or resolved) for one channel."""

    alert = models.ForeignKey(Alert, on_delete=models.CASCADE, related_name="messages")
    channel = models.CharField(max_length=7)
    resolved = models.BooleanField()
    grown = models.BooleanField(db_default=False)
    attempts = models.IntegerField(db_default=0)
    # When it is (next) sent; null = sent or given up.
    due_at = models.DateTimeField(null=True)
    sent_at = models.DateTimeField(null=True)
    # Why the last attempt failed.
    error = models.TextField(null=True)

    class Meta:
        db_table = "alert_message"
        constraints = [
            models.UniqueConstraint(
                fields=["alert", "channel", "resolved"], condition=Q(grown=False), name="alert_message_once"
            ),
        ]
        indexes = [
            models.Index(fields=["due_at"], condition=Q(due_at__isnull=False), name="alert_message_due"),
        ]

    def __str__(self) -> str:
        return f"{self.alert_id} {self.channel}"
