"""Django app configuration."""

from django.apps import AppConfig


class MappingsConfig(AppConfig):
    """See the package's modules."""

    name = "ocpp_billing.mappings"
    label = "mappings"
