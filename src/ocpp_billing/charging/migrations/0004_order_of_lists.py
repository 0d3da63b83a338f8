"""Lists of one state or reason go by StEvE's number, as all lists of sessions do."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("charging", "0003_lean_indexes"),
    ]

    operations = [
        migrations.RemoveIndex(model_name="chargingsession", name="charging_session_state"),
        migrations.RemoveIndex(model_name="chargingsession", name="charging_session_reason"),
        migrations.AddIndex(
            model_name="chargingsession",
            index=models.Index(fields=["source", "state", "steve_id"], name="charging_session_state"),
        ),
        migrations.AddIndex(
            model_name="chargingsession",
            index=models.Index(
                condition=models.Q(("reason__isnull", False)),
                fields=["source", "reason", "steve_id"],
                name="charging_session_reason",
            ),
        ),
    ]
