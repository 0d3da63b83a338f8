from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    """Events that were attempted in vain may be given up, once Lago could not bill them any more."""

    dependencies = [("billing", "0003_history_checked")]

    operations = [
        migrations.AddField("usageevent", "missing_since", models.DateTimeField(null=True)),
        migrations.AddField("usageevent", "given_up_at", models.DateTimeField(null=True)),
        migrations.AddField("usageevent", "turned_up_at", models.DateTimeField(null=True)),
        migrations.RemoveConstraint("usageevent", "usage_event_void_never_sent"),
        migrations.AddConstraint(
            "usageevent",
            models.CheckConstraint(
                condition=~Q(state="void") | Q(attempts=0) | Q(given_up_at__isnull=False),
                name="usage_event_void_never_billed",
            ),
        ),
        migrations.AddIndex(
            "usageevent", models.Index(fields=["source", "timestamp"], name="usage_event_dated")
        ),
        migrations.AddIndex(
            "usageevent",
            models.Index(
                fields=["source", "next_attempt_at", "id"], condition=Q(state="held"), name="usage_event_held"
            ),
        ),
        migrations.AddIndex(
            "usageevent",
            models.Index(
                fields=["source", "next_attempt_at"],
                condition=Q(given_up_at__isnull=False),
                name="usage_event_given_up",
            ),
        ),
    ]
