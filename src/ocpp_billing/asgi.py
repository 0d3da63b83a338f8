"""The web application as an ASGI callable, for uvicorn."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ocpp_billing.settings")
application = get_asgi_application()
