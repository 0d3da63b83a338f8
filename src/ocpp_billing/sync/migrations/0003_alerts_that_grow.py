"""An alert that is about a number of sessions is told again when there are twice as many."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("sync", "0002_worker_and_alerts")]

    operations = [
        migrations.AddField(
            model_name="alert",
            name="told_size",
            field=models.IntegerField(null=True),
        ),
        migrations.AddField(
            model_name="alertmessage",
            name="grown",
            field=models.BooleanField(db_default=False),
        ),
        migrations.RemoveConstraint(model_name="alertmessage", name="alert_message_once"),
        migrations.AddConstraint(
            model_name="alertmessage",
            constraint=models.UniqueConstraint(
                condition=models.Q(("grown", False)),
                fields=("alert", "channel", "resolved"),
                name="alert_message_once",
            ),
        ),
    ]
