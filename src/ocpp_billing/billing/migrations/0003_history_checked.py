from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("billing", "0002_balance_counters")]

    operations = [
        migrations.AddField(
            model_name="deliverycontrol",
            name="history_checked_at",
            field=models.DateTimeField(null=True),
        ),
    ]
