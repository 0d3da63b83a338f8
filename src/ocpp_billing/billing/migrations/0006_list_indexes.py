"""Lists by state, reason and payer, newest first, and finding an event by Lago's id, in milliseconds."""

from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0005_settled_by_hand"),
        ("charging", "0002_list_indexes"),
        ("mappings", "0002_lago_customer"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddIndex(
            model_name="decision",
            index=models.Index(
                condition=models.Q(
                    models.Q(("outcome", "bill"), _negated=True), ("external_customer_id__isnull", False)
                ),
                fields=["external_customer_id", "session"],
                name="decision_unbilled_customer",
            ),
        ),
        migrations.AddIndex(
            model_name="decision",
            index=models.Index(
                condition=models.Q(
                    models.Q(("outcome", "bill"), _negated=True), ("external_subscription_id__isnull", False)
                ),
                fields=["external_subscription_id", "session"],
                name="decision_unbilled_subscr",
            ),
        ),
        migrations.AddIndex(
            model_name="usageevent",
            index=models.Index(fields=["external_customer_id", "session"], name="usage_event_customer"),
        ),
        migrations.AddIndex(
            model_name="usageevent",
            index=models.Index(
                condition=models.Q(("n__gt", 1)), fields=["session"], name="usage_event_further"
            ),
        ),
        migrations.AddIndex(
            model_name="usageevent",
            index=models.Index(
                condition=models.Q(("lago_event_id__isnull", False)),
                fields=["lago_event_id"],
                name="usage_event_lago_id",
            ),
        ),
    ]
