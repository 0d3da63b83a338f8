"""Why Lago does not count what it took."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("billing", "0010_sent_at")]

    operations = [
        migrations.AddField(
            model_name="usageevent", name="uncounted_since", field=models.DateTimeField(null=True)
        ),
        migrations.AddField(
            model_name="usageevent", name="uncounted_says", field=models.TextField(null=True)
        ),
        migrations.AddIndex(
            model_name="usageevent",
            index=models.Index(
                condition=models.Q(("state", "accepted"), ("uncounted_since__isnull", False)),
                fields=["source", "external_subscription_id"],
                name="usage_event_uncounted",
            ),
        ),
    ]
