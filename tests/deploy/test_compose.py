"""compose.yaml: valid to the letter, and no service with more rights than it needs."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import DEPLOY, Document, call, compose, is_ours, services, with_defaults

SERVICES = services()
NAMES = sorted(SERVICES)
OURS = [name for name in NAMES if is_ours(with_defaults(SERVICES[name]["image"]))]
ALL_DAY = [name for name in NAMES if SERVICES[name]["restart"] != "no"]


def check(document: Document, folder: Path) -> subprocess.CompletedProcess[str]:
    """Ask the validator that knows the specification of compose files."""
    file = folder / "compose.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    return call(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", file)


def resolved(value: Any) -> Any:
    """The document with each variable's default in its place."""
    if isinstance(value, dict):
        return {key: resolved(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [resolved(entry) for entry in value]
    return yaml.safe_load(with_defaults(value)) if isinstance(value, str) and "${" in value else value


def test_it_is_valid(tmp_path: Path) -> None:
    for document in (compose(), resolved(compose())):
        done = check(document, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("right", "wrong"), [("healthcheck", "healthchek"), ("cap_drop", "cap-drop"), ("read_only", "readonly")]
)
def test_a_misspelling_is_noticed(right: str, wrong: str, tmp_path: Path) -> None:
    document = copy.deepcopy(compose())
    document["services"]["postgres"][wrong] = document["services"]["postgres"].pop(right)
    done = check(document, tmp_path)
    assert done.returncode == 1
    assert wrong in done.stdout


def test_a_misspelt_condition_is_noticed(tmp_path: Path) -> None:
    document = copy.deepcopy(compose())
    document["services"]["migrate"]["depends_on"]["roles"]["condition"] = "service_completed"
    assert check(document, tmp_path).returncode == 1


def test_every_variable_has_a_default() -> None:
    assert with_defaults((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_a_service_has_no_rights_to_speak_of(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    # Caddy's program has the right in its file, and can't be started where nothing may have it.
    assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "proxy" else [])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    user, group = service["user"].split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert not {"privileged", "pid", "ipc", "devices"} & service.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_service_is_bounded(name: str) -> None:
    limits = SERVICES[name]["deploy"]["resources"]["limits"]
    assert limits.keys() == {"cpus", "memory", "pids"}
    assert SERVICES[name]["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.parametrize("name", NAMES)
def test_ports_are_open_to_this_machine_alone(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:"), port
    assert SERVICES[name].get("network_mode") in (None, "none", "service:web")


def test_only_these_ports_are_open() -> None:
    assert {name for name in NAMES if SERVICES[name].get("ports")} <= {
        "web",
        "ray-head",
        "prometheus",
        "grafana",
    }


@pytest.mark.parametrize("name", ALL_DAY)
def test_whatever_runs_all_day_is_asked_whether_it_does(name: str) -> None:
    if name in OURS:
        # Its own, or the image's: whether the database can be reached.
        test = SERVICES[name].get("healthcheck", {"test": ["CMD", "python3", "-I", "/opt/shoal/healthy.py"]})[
            "test"
        ]
        assert test[:4] == ["CMD", "python3", "-I", "/opt/shoal/healthy.py"]
    else:
        assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", NAMES)
def test_images_are_said_exactly(name: str) -> None:
    image = with_defaults(SERVICES[name]["image"])
    # Ours is looked for on this machine only: nobody's registry has a `localhost/`.
    assert re.search(r"@sha256:[0-9a-f]{64}$", image) or image == "localhost/shoal:latest"


def test_whatever_is_named_is_there() -> None:
    document = compose()
    for name, service in SERVICES.items():
        secrets = {one if isinstance(one, str) else one["source"] for one in service.get("secrets", [])}
        assert secrets <= document["secrets"].keys(), name
        assert set(service.get("networks", [])) <= document["networks"].keys(), name
        assert service.get("depends_on", {}).keys() <= SERVICES.keys(), name
        for volume in service.get("volumes", []):
            source = with_defaults(volume).split(":")[0]
            assert (DEPLOY / source).exists() or source in document["volumes"], f"{name}: {source}"
    used = {one for service in SERVICES.values() for one in service.get("networks", [])}
    assert used == document["networks"].keys()


def test_volumes_belong_to_who_writes_them() -> None:
    """A new volume is its folder in the first image that mounts it, and root's where the image has none."""
    prepared = re.search(r"install --directory --owner 10001 .*", (DEPLOY / "Dockerfile").read_text("utf-8"))
    assert prepared is not None
    for name in OURS:
        for volume in SERVICES[name].get("volumes", []):
            source, target = with_defaults(volume).split(":")[:2]
            if source in compose()["volumes"]:
                assert target in prepared[0].split(), f"{name}: {target}"
    assert SERVICES["proxy-data"]["user"] == SERVICES["proxy"]["user"]
    assert "proxy:/data" in SERVICES["proxy-data"]["volumes"]
    assert SERVICES["proxy"]["depends_on"] == {"proxy-data": {"condition": "service_completed_successfully"}}


def test_nothing_starts_before_the_tables_are_there() -> None:
    assert SERVICES["roles"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert SERVICES["migrate"]["depends_on"] == {"roles": {"condition": "service_completed_successfully"}}
    migrated = {"migrate": {"condition": "service_completed_successfully"}}
    after_head = {"ray-head": {"condition": "service_healthy"}}
    without = {"backup", "owner", "restore-drill", "proxy-data"}
    for name in set(OURS) - {"roles", "migrate"} - without:
        assert SERVICES[name]["depends_on"] in (migrated, after_head), name


def test_passwords_are_files_and_not_variables() -> None:
    for name, service in SERVICES.items():
        for variable, text in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|DATABASE_URL", variable):
                assert variable.endswith(("_FILE", "_PATH")), f"{name}: {variable}"
                assert str(text).startswith("/run/secrets/"), f"{name}: {variable}"


def test_a_file_that_a_variable_names_is_mounted() -> None:
    for name, service in SERVICES.items():
        mounted = {
            f"/run/secrets/{one}" if isinstance(one, str) else one["target"]
            for one in service.get("secrets", [])
        }
        named = {
            text
            for variable, text in service.get("environment", {}).items()
            if variable.endswith(("_FILE", "_PATH"))
        }
        assert named <= mounted, name


def test_a_database_role_is_given_no_more_than_it_needs() -> None:
    """Migrations alone own the tables; pages and metrics only read."""
    role = {"roles": "admin-url", "migrate": "owner-url", "serve": "reader-url", "dashboard": "reader-url",
            "metrics": "reader-url", "backup": "reader-url", "owner": "owner-url"}  # fmt: skip
    for name in OURS:
        mounted = [one["source"] for one in SERVICES[name].get("secrets", [])]
        given = [source for source in mounted if source.endswith("-url") and source != "webhook-url"]
        without = name in ("restore-drill", "proxy-data")
        assert given == ([] if without else [role.get(name, "worker-url")]), name


def test_rays_mode_of_authentication_is_said_wherever_our_image_runs() -> None:
    assert all(SERVICES[name]["environment"]["RAY_AUTH_MODE"] == "token" for name in OURS)


def test_networks_lead_nowhere_but_the_front() -> None:
    networks = compose()["networks"]
    assert [name for name, network in networks.items() if not network.get("internal")] == ["front"]
    outside = {name for name in NAMES if "front" in SERVICES[name].get("networks", [])}
    assert outside <= {"web", "ray-head", "schedule", "prometheus", "grafana"}


def test_the_head_trains_nothing() -> None:
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(SERVICES["ray-head"]["command"])


def test_rays_machines_meet_in_their_own_network() -> None:
    """The name that they are given belongs to an address in that network, and to no other."""
    head = SERVICES["ray-head"]["networks"]
    assert head["ray"] == {"aliases": ["head.ray"]}
    assert not any(entry for name, entry in head.items() if name != "ray")
    for name in ("ray-head", "ray-worker", "ray-worker-gpu"):
        assert SERVICES[name]["entrypoint"][2:] == ["shoal-ray-start", "head.ray"]
        assert ("--head" in SERVICES[name]["command"]) == (name == "ray-head")
        assert ("--address=head.ray:6379" in SERVICES[name]["command"]) == (name != "ray-head")


def test_ray_and_postgres_get_shared_memory() -> None:
    for name in ("ray-head", "ray-worker", "ray-worker-gpu", "schedule", "postgres"):
        assert SERVICES[name]["shm_size"], name


def test_the_pages_are_behind_the_proxy() -> None:
    """They listen where the proxy does, and on its loopback alone."""
    for name in ("proxy", "serve", "dashboard"):
        assert SERVICES[name]["network_mode"] == "service:web"
        assert "ports" not in SERVICES[name]
    for name in ("serve", "dashboard"):
        command = SERVICES[name]["command"]
        assert command[command.index("--host") + 1] == "127.0.0.1"


def test_there_is_time_to_end_in_peace() -> None:
    for name in OURS:
        assert SERVICES[name]["stop_grace_period"] in ("60s", "300s"), name


def test_profiles() -> None:
    profiles = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    assert {name for name, found in profiles.items() if found == ["gpu"]} == {"ray-worker-gpu", "worker-gpu"}
    for name in ("ray-worker-gpu", "worker-gpu"):
        devices = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
        assert devices[0]["capabilities"] == ["gpu"]
    assert {found[0] for found in profiles.values() if found} == {"gpu", "observability", "tools"}


# The other login


def test_the_login_by_a_provider_is_valid_and_has_no_rights(tmp_path: Path) -> None:
    document = yaml.safe_load((DEPLOY / "compose.oidc.yaml").read_text(encoding="utf-8"))
    assert check(document, tmp_path).returncode == 0
    assert document["services"]["proxy"] == {"environment": {"SHOAL_PROXY_LOGIN": "login/oidc.caddy"}}
    assert (DEPLOY / "proxy" / "login" / "oidc.caddy").exists()
    service = document["services"]["oauth2-proxy"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["network_mode"] == "service:web"
    assert re.search(r"@sha256:[0-9a-f]{64}$", service["image"])
    settings = (DEPLOY / "proxy" / "oidc" / "oauth2-proxy.cfg").read_text(encoding="utf-8")
    for secret in service["secrets"]:
        assert f'"{secret["target"]}"' in settings, "where the program looks for it"
