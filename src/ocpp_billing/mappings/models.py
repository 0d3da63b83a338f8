"""Who pays: which Lago customer (and subscription) a tag belonged to, and when."""

from __future__ import annotations

from django.contrib.postgres.constraints import ExclusionConstraint
from django.contrib.postgres.fields import DateTimeRangeField, RangeOperators
from django.db import models
from django.db.models import F, Func, Q
from django.db.models.functions import Now

from ocpp_billing.accounts.models import User
from ocpp_billing.charging.models import IdTag


class TagMapping(models.Model):
    """One interval in which a tag belonged to a customer (or, inactive, to nobody).

    History is a chain of intervals per tag that never overlap: switching a mapping off ends the active
    interval and begins an inactive one; switching it on again ends that. An inactive interval means
    *hold* and hides the parent's mapping; no interval means *look at the parent*.
    """

    id_tag = models.ForeignKey(IdTag, on_delete=models.PROTECT, related_name="mappings")
    customer_external_id = models.TextField()
    # Null: exactly one subscription of the customer must charge the metric at the event's time.
    subscription_external_id = models.TextField(null=True)
    valid_from = models.DateTimeField()
    valid_to = models.DateTimeField(null=True)
    active = models.BooleanField(db_default=True)
    note = models.TextField(blank=True)
    # False: Lago was not asked when it was saved, nor since: it was down, or a file or command line made it.
    verified = models.BooleanField(db_default=True)
    created_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(db_default=Now())
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        db_table = "tag_mapping"
        constraints = [
            models.CheckConstraint(
                condition=Q(valid_to__isnull=True) | Q(valid_to__gt=F("valid_from")),
                name="tag_mapping_interval",
            ),
            # btree_gist is not in the embedded server: a tag's id becomes a range of one number.
            ExclusionConstraint(
                name="tag_mapping_no_overlap",
                expressions=[
                    (
                        Func(F("id_tag_id"), F("id_tag_id"), models.Value("[]"), function="int8range"),
                        RangeOperators.OVERLAPS,
                    ),
                    (
                        Func(
                            F("valid_from"),
                            F("valid_to"),
                            function="tstzrange",
                            output_field=DateTimeRangeField(),
                        ),
                        RangeOperators.OVERLAPS,
                    ),
                ],
            ),
        ]
        indexes = [models.Index(fields=["customer_external_id"], name="tag_mapping_customer")]

    def __str__(self) -> str:
        return f"{self.id_tag_id} -> {self.customer_external_id} from {self.valid_from}"


class LagoCustomer(models.Model):
    """A customer of Lago as last read: to choose from, also while Lago is away."""

    external_id = models.TextField(primary_key=True)
    name = models.TextField()
    email = models.TextField(null=True)
    currency = models.TextField(null=True)
    timezone = models.TextField(null=True)
    read_at = models.DateTimeField()

    class Meta:
        db_table = "lago_customer"

    def __str__(self) -> str:
        return f"{self.name} ({self.external_id})"
