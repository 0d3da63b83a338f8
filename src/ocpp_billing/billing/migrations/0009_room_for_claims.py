"""Claims of usage events touch no index, and events of a decision are found by their session."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("billing", "0008_lean_indexes")]

    operations = [
        migrations.AlterField(
            model_name="usageevent",
            name="decision",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="events",
                to="billing.decision",
            ),
        ),
        # A claim changes no indexed column. Where the page has room for the new version of the row,
        # PostgreSQL then leaves the indexes alone, and the later states of the event find room there, too.
        migrations.RunSQL(
            "ALTER TABLE usage_event SET (fillfactor = 50)", "ALTER TABLE usage_event RESET (fillfactor)"
        ),
    ]
