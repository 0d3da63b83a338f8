"""Lago's own id of a customer, by which Lago's pages are addressed."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("billing", "0006_list_indexes")]

    operations = [
        migrations.AddField(
            model_name="lagosubscription",
            name="lago_customer_id",
            field=models.TextField(null=True),
        ),
    ]
