"""The web application as an ASGI callable, for uvicorn."""

import os

from django.core.asgi import get_asgi_application

from ocpp_billing.request_size import limit_requests
from ocpp_billing.unix_socket import name_clients

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ocpp_billing.settings")
application = limit_requests(name_clients(get_asgi_application()))
