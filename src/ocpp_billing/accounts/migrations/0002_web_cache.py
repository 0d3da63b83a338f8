from django.apps.registry import Apps
from django.core.management import call_command
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


def create_cache_table(_apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    call_command("createcachetable", "web_cache", database=schema_editor.connection.alias, verbosity=0)


def drop_cache_table(_apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    schema_editor.execute("DROP TABLE IF EXISTS web_cache")


class Migration(migrations.Migration):
    """The cache that all web processes share: sign-in limits are counted in it."""

    dependencies = [("accounts", "0001_initial")]

    operations = [
        migrations.RunPython(create_cache_table, drop_cache_table),
    ]
