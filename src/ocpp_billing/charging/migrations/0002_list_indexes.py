"""Lists by state, reason and payer, newest first, and finding an event by Lago's id, in milliseconds."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("charging", "0001_initial"),
    ]

    operations = [
        migrations.AddIndex(
            model_name="chargingsession",
            index=models.Index(
                condition=models.Q(("reading_stopped_at__isnull", False)),
                fields=["source", "reading_stopped_at"],
                name="charging_session_reading",
            ),
        ),
        migrations.AddIndex(
            model_name="chargingsession",
            index=models.Index(fields=["source", "state", "id"], name="charging_session_state"),
        ),
        migrations.AddIndex(
            model_name="chargingsession",
            index=models.Index(
                condition=models.Q(("reason__isnull", False)),
                fields=["source", "reason", "id"],
                name="charging_session_reason",
            ),
        ),
        migrations.AddIndex(
            model_name="chargingsession",
            index=models.Index(
                condition=models.Q(
                    (
                        "rest_reason__in",
                        ["changed_after_billing", "refund_by_credit_note", "by_operator", "credited"],
                    )
                ),
                fields=["source", "id"],
                name="charging_session_differs",
            ),
        ),
    ]
