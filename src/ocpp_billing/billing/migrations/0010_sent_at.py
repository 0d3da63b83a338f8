"""When an event of unknown outcome was last sent: not every Lago takes it again without billing it twice."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("billing", "0009_room_for_claims")]

    operations = [
        migrations.AddField(model_name="usageevent", name="sent_at", field=models.DateTimeField(null=True)),
        migrations.AddField(
            model_name="deliverycontrol", name="event_taken_at", field=models.DateTimeField(null=True)
        ),
        # When what is open now was sent is not known any more: at the latest now.
        migrations.RunSQL(
            "UPDATE usage_event SET sent_at = now()"
            " WHERE attempts > 0 AND state IN ('queued', 'held', 'rejected')",
            migrations.RunSQL.noop,
        ),
    ]
