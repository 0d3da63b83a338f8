"""Sessions pass through several states soon after they are read: leave room for that beside them."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("charging", "0004_order_of_lists")]

    operations = [
        # Without it each state of a session lies on another page, which has to be made first.
        migrations.RunSQL(
            "ALTER TABLE charging_session SET (fillfactor = 60)",
            "ALTER TABLE charging_session RESET (fillfactor)",
        ),
    ]
