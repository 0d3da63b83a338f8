from django.apps.registry import Apps
from django.core.management import call_command
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


def create_cache_table(_apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    call_command("createcachetable", "web_remembered", database=schema_editor.connection.alias, verbosity=0)


def drop_cache_table(_apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    schema_editor.execute("DROP TABLE IF EXISTS web_remembered")


class Migration(migrations.Migration):
    """A second cache, so that nothing else pushes the counters of sign-in out of theirs."""

    dependencies = [("accounts", "0005_invitation")]

    operations = [
        migrations.RunPython(create_cache_table, drop_cache_table),
    ]
