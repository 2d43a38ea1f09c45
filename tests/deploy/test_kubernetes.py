"""The Kubernetes objects: valid to the letter, and no pod with more rights than it needs."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from search.schedules import rendering
from tests.contracts import schedules
from tests.deploy.manifests import Document, Pod, at, is_ours, pods

SCHEMAS = Path(__file__).parents[3] / "shared" / "schemas"
VERSION = "1.31"
RAY_GROUP = "ray.io/"


def validate(document: Document) -> None:
    """Raises what the validators raise, for unknown keys too."""
    if document["apiVersion"].startswith(RAY_GROUP):
        ray_validator(document["kind"]).validate(document)
    else:
        kubernetes_validate.validate(document, VERSION, strict=True)


def ray_validator(kind: str) -> Any:
    schema = json.loads((SCHEMAS / f"{kind}.v1.schema.json").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="session")
def ray_schemas() -> None:
    if not SCHEMAS.is_dir():
        pytest.skip(f"no {SCHEMAS}: the schemas of KubeRay's resources")


def test_every_overlay_is_rendered(rendered: dict[str, list[Document]]) -> None:
    assert sorted(rendered) == ["dev", "external-database", "kueue", "prod", "raycronjob"]
    assert all(documents for documents in rendered.values())


def test_core_objects_are_valid(overlay: list[Document]) -> None:
    core = [document for document in overlay if not document["apiVersion"].startswith(RAY_GROUP)]
    assert len(core) > 10
    for document in core:
        validate(document)


@pytest.mark.usefixtures("ray_schemas")
def test_ray_objects_are_valid(overlay: list[Document]) -> None:
    of_ray = [document for document in overlay if document["apiVersion"].startswith(RAY_GROUP)]
    assert len(of_ray) == 1
    for document in of_ray:
        validate(document)


@pytest.mark.parametrize(
    ("kind", "path", "right", "wrong"),
    [
        ("Deployment", "spec.template.spec.containers", "readinessProbe", "readynessProbe"),
        ("Deployment", "spec.template.spec", "automountServiceAccountToken", "autoMountServiceAccountToken"),
        ("CronJob", "spec", "concurrencyPolicy", "concurencyPolicy"),
        ("NetworkPolicy", "spec", "policyTypes", "policyType"),
        ("PodDisruptionBudget", "spec", "selector", "selektor"),
    ],
)
def test_a_misspelling_is_noticed(
    kind: str, path: str, right: str, wrong: str, rendered: dict[str, list[Document]]
) -> None:
    document = misspelt(next(one for one in rendered["prod"] if one["kind"] == kind), path, right, wrong)
    with pytest.raises(kubernetes_validate.ValidationError, match=wrong):
        validate(document)


@pytest.mark.parametrize(
    ("kind", "overlay_name", "path", "right", "wrong"),
    [
        ("RayCluster", "prod", "spec.headGroupSpec", "rayStartParams", "rayStartParam"),
        ("RayCluster", "prod", "spec", "authOptions", "authOption"),
        ("RayJob", "kueue", "spec", "shutdownAfterJobFinishes", "shutDownAfterJobFinishes"),
        ("RayCronJob", "raycronjob", "spec", "timeZone", "timezone"),
        ("RayCronJob", "raycronjob", "spec.jobTemplate", "backoffLimit", "concurrencyPolicy"),
    ],
)
@pytest.mark.usefixtures("ray_schemas")
def test_a_misspelling_in_rays_objects_is_noticed(
    kind: str, overlay_name: str, path: str, right: str, wrong: str, rendered: dict[str, list[Document]]
) -> None:
    document = misspelt(
        next(one for one in rendered[overlay_name] if one["kind"] == kind), path, right, wrong
    )
    with pytest.raises(jsonschema.ValidationError, match=wrong):
        validate(document)


def misspelt(document: Document, path: str, right: str, wrong: str) -> Document:
    changed = copy.deepcopy(document)
    place = next(one for one in at(changed, path.split(".")) if right in one)
    place[wrong] = place.pop(right)
    return changed


def test_everything_is_in_one_namespace(overlay: list[Document]) -> None:
    outside = [one for one in overlay if one["metadata"].get("namespace") != "shoal"]
    assert [(one["kind"], one["metadata"]["name"]) for one in outside] == [("Namespace", "shoal")]
    labels = outside[0]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


# Pods


def each_container(documents: list[Document]) -> list[tuple[Pod, Document]]:
    found = [(pod, container) for pod in pods(documents) for container in pod.containers()]
    assert len(found) > 8
    return found


def test_no_container_runs_as_root_or_can_become_it(overlay: list[Document]) -> None:
    for pod, container in each_container(overlay):
        where = f"{pod.of}: {container['name']}"
        context = {**pod.spec.get("securityContext", {}), **container.get("securityContext", {})}
        assert context.get("runAsNonRoot") is True, where
        assert context.get("runAsUser", 0) > 0, where
        assert context.get("runAsGroup", 0) > 0, where
        assert context.get("allowPrivilegeEscalation") is False, where
        # Caddy's program has the right in its file, and can't be started where nothing may have it.
        added = {"add": ["NET_BIND_SERVICE"]} if container["name"] == "proxy" else {}
        assert context.get("capabilities") == {"drop": ["ALL"], **added}, where
        assert context.get("seccompProfile") == {"type": "RuntimeDefault"}, where
        assert not context.get("privileged"), where


def test_our_image_runs_as_the_user_that_it_was_made_for(overlay: list[Document]) -> None:
    for pod, container in each_container(overlay):
        if is_ours(container["image"]):
            assert pod.spec["securityContext"]["runAsUser"] == 10001, pod.of


def test_every_root_file_system_is_read_only_and_tmp_is_not(overlay: list[Document]) -> None:
    for pod, container in each_container(overlay):
        where = f"{pod.of}: {container['name']}"
        assert container["securityContext"]["readOnlyRootFilesystem"] is True, where
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}, where


def test_no_pod_sees_the_host_or_the_api_server(overlay: list[Document]) -> None:
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
    for pod in pods(overlay):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys(), pod.of
        autoscaled = "headGroupSpec" in pod.of and autoscales(overlay)
        assert pod.spec["automountServiceAccountToken"] is autoscaled, pod.of
        for volume in pod.spec.get("volumes", []):
            assert volume.keys() - {"name"} <= allowed, f"{pod.of}: {volume['name']}"


def autoscales(documents: list[Document]) -> bool:
    return any(
        one["spec"].get("enableInTreeAutoscaling", False) for one in documents if one["kind"] == "RayCluster"
    )


def test_every_volume_is_bounded_and_every_mount_has_its_volume(overlay: list[Document]) -> None:
    for pod in pods(overlay):
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        claimed = {"data"} if pod.kind == "StatefulSet" else set()
        mounted = {mount["name"] for one in pod.containers() for mount in one.get("volumeMounts", [])}
        assert mounted == volumes.keys() | claimed, pod.of
        for volume in volumes.values():
            if "emptyDir" in volume:
                assert volume["emptyDir"].get("sizeLimit"), f"{pod.of}: {volume['name']}"


def test_every_container_has_limits(overlay: list[Document]) -> None:
    for pod, container in each_container(overlay):
        resources = container["resources"]
        for kind in ("requests", "limits"):
            assert resources[kind].keys() >= {"cpu", "memory"}, f"{pod.of}: {container['name']}"


def test_containers_with_a_gpu_get_what_they_ask_for(rendered: dict[str, list[Document]]) -> None:
    resources = [container["resources"] for _, container in each_container(rendered["prod"])]
    with_gpu = [one for one in resources if "nvidia.com/gpu" in one["limits"]]
    assert len(with_gpu) == 2, "the worker without Ray, and Ray's"
    assert all(one["requests"] == one["limits"] for one in with_gpu)


def test_whatever_runs_all_day_is_asked_whether_it_does(overlay: list[Document]) -> None:
    for pod in pods(overlay):
        for container in [] if pod.runs_once else pod.containers(init=False):
            assert container.keys() >= {"livenessProbe", "readinessProbe"}, f"{pod.of}: {container['name']}"


def test_probes_ask_ports_that_are_open(overlay: list[Document]) -> None:
    agent = 52365  # of Ray's node, which KubeRay's own probes ask as well
    for pod in pods(overlay):
        for container in pod.containers(init=False):
            ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            for name in ("startupProbe", "livenessProbe", "readinessProbe"):
                probe = container.get(name, {})
                asked = (probe.get("httpGet") or probe.get("tcpSocket") or {}).get("port")
                known = {None, *ports, *ports.values(), *([agent] if "ray" in container["name"] else [])}
                assert asked in known, f"{pod.of}: {container['name']}: {name}"


def test_a_worker_has_time_to_save_its_trials(overlay: list[Document]) -> None:
    graces = []
    for pod, container in each_container(overlay):
        arguments = container.get("args", [])
        if "--grace-seconds" in arguments:
            grace = float(arguments[arguments.index("--grace-seconds") + 1])
            assert pod.spec["terminationGracePeriodSeconds"] > grace + 10, pod.of
            graces.append(grace)
    assert graces


def test_images_are_said_exactly(overlay: list[Document]) -> None:
    for pod, container in each_container(overlay):
        image = container["image"]
        if is_ours(image):
            assert re.search(r":[\w.-]+$", image), f"{pod.of}: {image}"
        else:
            assert re.search(r"@sha256:[0-9a-f]{64}$", image), f"{pod.of}: {image}"


def test_no_image_has_a_tag_that_moves(overlay: list[Document]) -> None:
    """Kubernetes would ask a registry for `latest` at each start, and each pod might get another one."""
    assert not [one["image"] for _, one in each_container(overlay) if one["image"].endswith(":latest")]


# Secrets and names


def secrets_used(documents: list[Document]) -> set[str]:
    found = set()
    for pod in pods(documents):
        found |= {one["secret"]["secretName"] for one in pod.spec.get("volumes", []) if "secret" in one}
        for container in pod.containers():
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                found |= {reference["name"]} if reference else set()
    found |= {options["secretName"] for options in ray_options(documents)}
    return found


def ray_options(documents: list[Document]) -> list[Document]:
    places = {
        "RayCluster": "spec",
        "RayJob": "spec.rayClusterSpec",
        "RayCronJob": "spec.jobTemplate.rayClusterSpec",
    }
    clusters = [
        cluster
        for one in documents
        if one["kind"] in places
        for cluster in at(one, places[one["kind"]].split("."))
    ]
    return [cluster["authOptions"] for cluster in clusters]


def test_only_the_overlay_dev_makes_secrets(rendered: dict[str, list[Document]]) -> None:
    made = {
        name: [one for one in documents if one["kind"] == "Secret"] for name, documents in rendered.items()
    }
    assert [name for name, secrets in made.items() if secrets] == ["dev"]
    names = {one["metadata"]["name"] for one in made["dev"]}
    assert secrets_used(rendered["dev"]) <= names


def test_no_secret_is_in_the_environment(overlay: list[Document]) -> None:
    for pod, container in each_container(overlay):
        for variable in container.get("env", []):
            where = f"{pod.of}: {container['name']}: {variable['name']}"
            assert "valueFrom" not in variable, where
            if re.search("PASSWORD|SECRET|TOKEN|DATABASE_URL", variable["name"]):
                assert variable["name"].endswith(("_FILE", "_PATH")), where


def test_rays_clusters_want_a_token(overlay: list[Document]) -> None:
    options = ray_options(overlay)
    assert options == [{"mode": "token", "secretName": "shoal-ray-token"}]
    settings = [one for one in overlay if one["metadata"]["name"].startswith("shoal-settings")]
    assert settings[0]["data"]["RAY_AUTH_MODE"] == "token"


def test_config_maps_and_claims_that_are_named_are_there(overlay: list[Document]) -> None:
    there = {(one["kind"], one["metadata"]["name"]) for one in overlay}
    for pod in pods(overlay):
        wanted = {
            ("ConfigMap", source["configMapRef"]["name"])
            for one in pod.containers() for source in one.get("envFrom", [])
        }  # fmt: skip
        for volume in pod.spec.get("volumes", []):
            if "configMap" in volume:
                wanted.add(("ConfigMap", volume["configMap"]["name"]))
            if "persistentVolumeClaim" in volume:
                wanted.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
        assert wanted <= there, pod.of


def test_budgets_and_services_select_pods(overlay: list[Document]) -> None:
    labels = [pod.labels for pod in pods(overlay)]
    for document in overlay:
        name = f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] == "Service":
            selected = document["spec"]["selector"]
        elif document["kind"] == "PodDisruptionBudget":
            selected = document["spec"]["selector"]["matchLabels"]
        else:
            continue
        assert any(selected.items() <= one.items() for one in labels), name


def test_a_database_role_is_given_no_more_than_it_needs(overlay: list[Document]) -> None:
    """Migrations alone own the tables; pages, metrics and backups only read."""
    role = {
        "migrate": "shoal-database-owner",
        "roles": "shoal-database-admin", "database": "shoal-database-admin",
        "web": "shoal-database-reader", "metrics": "shoal-database-reader", "backup": "shoal-database-reader",
        "worker": "shoal-database", "ray-head": "shoal-database", "ray-worker": "shoal-database",
    }  # fmt: skip
    for pod in pods(overlay):
        component = pod.labels["app.kubernetes.io/component"]
        names = {one["secret"]["secretName"] for one in pod.spec.get("volumes", []) if "secret" in one}
        urls = {name for name in names if name.startswith("shoal-database")}
        assert urls == ({role[component]} if component in role else set()), pod.of


def test_a_rendered_schedule_finds_what_it_names(rendered: dict[str, list[Document]]) -> None:
    """`shoal schedule render` and these files agree on the names of settings, claims and secrets."""
    made = schedules.record(webhook="https://example.org/notes", options={"in_process": True})
    [text] = rendering.rendered(made, "kubernetes").values()
    [pod] = pods(list(yaml.safe_load_all(text)))
    there = {(one["kind"], one["metadata"]["name"]) for one in rendered["dev"]}
    wanted = {("ServiceAccount", pod.spec["serviceAccountName"])}
    for container in pod.containers():
        wanted |= {("ConfigMap", source["configMapRef"]["name"]) for source in container["envFrom"]}
    for volume in pod.spec["volumes"]:
        if "persistentVolumeClaim" in volume:
            wanted.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
        if "secret" in volume:
            wanted.add(("Secret", volume["secret"]["secretName"]))
    assert len(wanted) >= 6
    assert wanted <= there
