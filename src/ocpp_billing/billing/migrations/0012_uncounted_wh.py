"""What Lago counts too little or too much, and when that was last told."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("billing", "0011_uncounted")]

    operations = [
        migrations.AddField(
            model_name="usageevent", name="uncounted_told_at", field=models.DateTimeField(null=True)
        ),
        migrations.AddField(
            model_name="usageevent", name="uncounted_wh", field=models.BigIntegerField(null=True)
        ),
    ]
