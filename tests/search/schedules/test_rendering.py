"""What clusters are given: valid by their own schemas and tools, and safe."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from search.schedules.rendering import LONGEST_OBJECT, MARK, Place, RenderError, object_name, rendered
from storage.schedule_records import ScheduleRecord
from tests.contracts.processes import PATIENCE, until
from tests.contracts.schedules import record

SCHEMAS = Path(__file__).parents[4] / "shared" / "schemas"
BIN = Path(sys.executable).parent
KUBERNETES = "1.31"

NIGHTLY: dict[str, Any] = {"cron": "0 4 * * *", "timezone": "Europe/Berlin", "budget_seconds": 21600.0}
KINDS: dict[str, dict[str, Any]] = {
    "rayjob": {},
    "submits": {"options": {"address": "http://head:8265"}},
    "trains": {"options": {"in_process": True}},
    "queue": {"overlap": "queue", "webhook": "https://example.org/s3cret"},
    "slack": {"webhook": "file:/run/secrets/shoal-webhook/url", "webhook_format": "slack"},
}


def schedule(**changes: Any) -> ScheduleRecord:
    return record(**NIGHTLY | changes)


def documents(target: Any, place: Place | None = None, **changes: Any) -> list[dict[str, Any]]:
    """The objects of a rendered manifest."""
    [text] = rendered(schedule(**changes), target, place).values()
    return list(yaml.safe_load_all(text))


def cronjob(**changes: Any) -> dict[str, Any]:
    [found] = [one for one in documents("kubernetes", **changes) if one["kind"] == "CronJob"]
    return found


def pods(found: Any) -> Iterator[dict[str, Any]]:
    """All pod specs in an object, those in a ConfigMap's manifest too."""
    if isinstance(found, dict):
        if "containers" in found:
            yield found
        for value in found.values():
            yield from pods(value)
    elif isinstance(found, list):
        for value in found:
            yield from pods(value)
    elif isinstance(found, str) and found.startswith("apiVersion:"):
        yield from pods(yaml.safe_load(found))


def rayjob_of(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The RayJob that a CronJob creates."""
    [text] = [one["data"]["rayjob.yaml"] for one in found if one["kind"] == "ConfigMap"]
    made: dict[str, Any] = yaml.safe_load(text)
    return made


def schema(kind: str) -> dict[str, Any]:
    path = SCHEMAS / f"{kind}.v1.schema.json"
    if not path.exists():
        pytest.skip(f"no schema of {kind} in {SCHEMAS}")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


# Kubernetes


@pytest.mark.parametrize("kind", KINDS)
def test_manifests_are_valid_to_kubernetes(kind: str) -> None:
    for one in documents("kubernetes", **KINDS[kind]):
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_a_misspelling_would_be_noticed() -> None:
    found = cronjob()
    found["spec"]["startingDeadlineSecond"] = found["spec"].pop("startingDeadlineSeconds")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found, KUBERNETES, strict=True)


@pytest.mark.parametrize(("kind", "target"), [("RayJob", "kubernetes"), ("RayCronJob", "raycronjob")])
@pytest.mark.parametrize("changes", [{}, {"webhook": "https://example.org/x"}, {"overlap": "queue"}])
def test_ray_objects_are_valid_to_kuberay(kind: str, target: str, changes: dict[str, Any]) -> None:
    found = documents(target, Place(gpus=2, nodes=3), **changes)
    one = found[0] if kind == "RayCronJob" else rayjob_of(found)
    assert one["kind"] == kind
    checker = jsonschema.Draft202012Validator(schema(kind))
    assert list(checker.iter_errors(one)) == []
    wrong = copy.deepcopy(one)
    spec = wrong["spec"] if kind == "RayJob" else wrong["spec"]["jobTemplate"]
    spec["shutdownAfterJobFinish"] = spec.pop("shutdownAfterJobFinishes")
    assert list(checker.iter_errors(wrong)) != [], "a misspelling passes"


@pytest.mark.parametrize(("overlap", "policy"), [("skip", "Forbid"), ("queue", "Allow")])
def test_overlap_is_kubernetes_own_word_or_ours(overlap: str, policy: str) -> None:
    assert cronjob(overlap=overlap)["spec"]["concurrencyPolicy"] == policy


def test_times_are_taken_over() -> None:
    spec = cronjob(cron="*/30 4 * * MON-FRI")["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("0,30 4 * * 1,2,3,4,5", "Europe/Berlin")


@pytest.mark.parametrize(("late", "seconds"), [(600.0, 600), (0.0, 30), (None, 86400)])
def test_how_late_it_may_be_is_taken_over(late: float | None, seconds: int) -> None:
    found = cronjob(late_seconds=late, timezone="UTC")
    assert found["spec"]["startingDeadlineSeconds"] == seconds


@pytest.mark.parametrize(("overlap", "deadline"), [("skip", 22500), ("queue", None)])
def test_a_cluster_outlives_the_budget_but_not_by_much(overlap: str, deadline: int | None) -> None:
    [found] = documents("raycronjob", overlap=overlap)
    assert found["spec"]["jobTemplate"].get("activeDeadlineSeconds") == deadline


@pytest.mark.parametrize(
    ("target", "kind"),
    [(target, kind) for target in ("kubernetes", "raycronjob") for kind in KINDS if kind != "submits"]
    + [("kubernetes", "submits")],
)
def test_every_container_is_confined(target: str, kind: str) -> None:
    found = [pod for one in documents(target, **KINDS[kind]) for pod in pods(one)]
    assert found
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        names = {volume["name"] for volume in pod["volumes"]}
        mounted = {mount["name"] for one in pod["containers"] for mount in one["volumeMounts"]}
        assert mounted == names


@pytest.mark.parametrize("target", ["kubernetes", "raycronjob"])
def test_a_head_that_tells_a_webhook_may_reach_it(target: str) -> None:
    assert [one for one in documents(target) if one["kind"] == "NetworkPolicy"] == []
    found = documents(target, webhook="https://example.org/x")
    [policy] = [one for one in found if one["kind"] == "NetworkPolicy"]
    kubernetes_validate.validate(policy, KUBERNETES, strict=True)
    job = found[0]["spec"]["jobTemplate"] if target == "raycronjob" else rayjob_of(found)["spec"]
    cluster = job["rayClusterSpec"]
    labels = cluster["headGroupSpec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    [workers] = cluster["workerGroupSpecs"]
    assert "shoal.dev/notes" not in workers["template"]["metadata"]["labels"]


def test_only_the_pod_that_creates_has_a_token_and_one_right() -> None:
    found = documents("kubernetes")
    [role] = [one for one in found if one["kind"] == "Role"]
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    tokens = [pod["automountServiceAccountToken"] for one in found for pod in pods(one)]
    assert tokens == [False, False, True]


def test_gpus_are_asked_for_and_guaranteed() -> None:
    [found] = documents("raycronjob", Place(gpus=2, nodes=3))
    [group] = found["spec"]["jobTemplate"]["rayClusterSpec"]["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert group["replicas"] == 3


@pytest.mark.parametrize("target", ["kubernetes", "raycronjob", "slurm", "systemd"])
def test_nothing_that_is_rendered_holds_a_secret(target: Any) -> None:
    for text in rendered(schedule(webhook="https://example.org/s3cret"), target).values():
        assert "s3cret" not in text
        assert "example.org" not in text
        assert MARK in text.splitlines()[0] + text.splitlines()[1]


def test_a_submission_needs_a_cluster_that_stands() -> None:
    with pytest.raises(RenderError, match="standing cluster"):
        rendered(schedule(options={"address": "http://head:8265"}), "raycronjob")


@pytest.mark.parametrize("target", ["kubernetes", "raycronjob", "slurm", "systemd"])
def test_precision_is_the_schedules_and_stays_in_the_database(target: Any) -> None:
    """What is rendered only says which schedule fires, so a changed precision needs no new manifest."""
    texts = rendered(schedule(options={"precision": "bf16"}), target)
    assert texts == rendered(schedule(), target)
    [fires] = [text for text in texts.values() if "--if-due" in text]
    assert re.search(r"schedule,? fire,? nightly", fires)


@pytest.mark.parametrize(("target", "refused"), [("kubernetes", True), ("slurm", True), ("systemd", False)])
def test_tf32_wants_machines_with_gpus(target: Any, refused: bool) -> None:
    tf32 = {"precision": "tf32"}
    assert rendered(schedule(options=tf32), target, Place(gpus=1))
    if not refused:
        assert rendered(schedule(options=tf32), target, Place(gpus=0))
        return
    with pytest.raises(RenderError, match="tf32 needs one"):
        rendered(schedule(options=tf32), target, Place(gpus=0))
    away = tf32 | {"address": "http://head:8265"}
    if target == "kubernetes":
        assert rendered(schedule(options=away), target, Place(gpus=0)), "it trains elsewhere"


def test_names_fit_kubernetes_and_stay_apart() -> None:
    names = ["nightly", "Nightly", "night.ly", "night_ly", "n" * 60, "n" * 61, "a" * 47, "A-"]
    made = [object_name(name) for name in names]
    assert made[0] == "shoal-nightly"
    assert len(set(made)) == len(names)
    for one in made:
        assert len(one) <= LONGEST_OBJECT
        assert one == one.lower()
        assert one[-1].isalnum()
        assert all(character.isalnum() or character == "-" for character in one)


@pytest.mark.parametrize(
    "place",
    [
        Place(image="x\n  privileged: true"),
        Place(image=""),
        Place(namespace="Shoal; rm"),
        Place(gpus=-1),
        Place(nodes=0),
    ],
)
@pytest.mark.parametrize("target", ["kubernetes", "slurm"])
def test_places_are_checked(place: Place, target: Any) -> None:
    with pytest.raises(RenderError) as refused:
        rendered(schedule(), target, place)
    assert len(refused.value.problems) == 1


# Slurm


def script(tmp_path: Path, place: Place, **changes: Any) -> Path:
    files = rendered(schedule(**changes), "slurm", place)
    path = tmp_path / "nightly.sbatch"
    path.write_text(files["nightly.sbatch"], encoding="utf-8")
    return path


@pytest.mark.parametrize("place", [Place(gpus=0), Place(gpus=4), Place(nodes=3)])
@pytest.mark.parametrize("changes", [{}, {"webhook": "https://example.org/x", "budget_seconds": None}])
def test_shellcheck_finds_nothing(tmp_path: Path, place: Place, changes: dict[str, Any]) -> None:
    path = script(tmp_path, place, **changes)
    done = subprocess.run([BIN / "shellcheck", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_slurm_is_asked_for_what_the_schedule_wants(tmp_path: Path) -> None:
    text = script(tmp_path, Place(gpus=4, nodes=3)).read_text(encoding="utf-8")
    asked = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=3", "--gpus-per-node=4", "--requeue", "--signal=B:TERM@120", "--time=06:15:00"} <= set(
        asked
    )
    assert "ray symmetric-run" in text
    timer = rendered(schedule(), "slurm")["nightly.scrontab"]
    assert "\n0 4 * * * sbatch --parsable nightly.sbatch\n" in timer
    assert "Europe/Berlin" in timer


FIRING = """#!{python}
import pathlib, signal, sys, time

def leave(*_):
    time.sleep(1)  # ending in order takes time, and has to be waited for
    (folder / "signal").touch()
    sys.exit(143)

folder = pathlib.Path("{folder}")
signal.signal(signal.SIGTERM, leave)
(folder / "arguments").write_text(" ".join(sys.argv[1:]))
(folder / "began").touch()
{then}
"""
"""Not a shell script: a shell can't catch a signal that was ignored when it began."""


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize(
    ("then", "term", "code", "requeued"),
    [("", False, 0, False), ("sys.exit(1)", False, 1, False), ("time.sleep(600)", True, 143, True)],
)
def test_a_job_that_is_taken_away_comes_again(
    tmp_path: Path, nodes: int, then: str, term: bool, code: int, requeued: bool
) -> None:
    """The script itself, with stand-ins for Slurm's commands, for ray and for shoal."""
    stand_ins = {
        "shoal": FIRING.format(python=sys.executable, folder=tmp_path, then=then),
        "scontrol": f'#!/bin/bash\n[ "$1" = show ] && echo node1 || echo "$@" >> {tmp_path}/scontrol\n',
        "srun": '#!/bin/bash\nshift\nexec "$@"\n',
        "ray": '#!/bin/bash\nwhile [ "$1" != -- ]; do shift; done\nshift\n"$@"\n',
        # To all of the step's processes.
        "scancel": f"#!/bin/bash\npkill -TERM --full '{tmp_path}/bin/(ray|shoal)'\n",
    }
    (tmp_path / "bin").mkdir()
    for name, text in stand_ins.items():
        path = tmp_path / "bin" / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }
    path = script(tmp_path, Place(nodes=nodes))
    job = subprocess.Popen(["bash", path], env=environment, start_new_session=True)
    try:
        until((tmp_path / "began").exists)
        if term:
            job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=PATIENCE) == code
    finally:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    assert (tmp_path / "signal").exists() is term
    asked = tmp_path / "scontrol"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 77\n" if requeued else "")
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[:4] == ["schedule", "fire", "nightly", "--if-due"]


# systemd


def test_systemd_verifies_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    place = Place(program="/bin/true")
    for changes in (KINDS["queue"], KINDS["submits"]):
        files = rendered(schedule(**changes), "systemd", place)
        for name, text in files.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        done = verify_units(tmp_path, files)
        assert (done.returncode, complaints(done)) == (0, [])
    wrong = (tmp_path / "shoal-nightly.service").read_text(encoding="utf-8").replace("KillMode", "KilMode")
    (tmp_path / "shoal-nightly.service").write_text(wrong, encoding="utf-8")
    assert any("KilMode" in line for line in complaints(verify_units(tmp_path, files)))


def verify_units(folder: Path, files: Any) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "verify", "--man=no", *(str(folder / name) for name in files)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What it says of our units; it looks at others of the machine as well."""
    return [line for line in done.stderr.splitlines() if "shoal-nightly" in line]


def test_units_say_when_and_end_in_order() -> None:
    files = rendered(schedule(cron="0 4 13 * FRI"), "systemd")
    timer, service = files["shoal-nightly.timer"], files["shoal-nightly.service"]
    assert timer.count("OnCalendar=") == 2
    assert "Persistent=true" in timer
    assert "fire nightly --if-due" in service
    for line in ("KillSignal=SIGTERM", "KillMode=mixed", "TimeoutStopSec=180", "SuccessExitStatus=143"):
        assert line in service.splitlines()


def test_what_systemd_can_not_say_is_refused() -> None:
    with pytest.raises(RenderError, match="systemd fires at other times"):
        rendered(schedule(cron="30 2 * * *"), "systemd")
    with pytest.raises(RenderError, match="must both hold"):
        rendered(schedule(cron="0 4 */2 * 1"), "slurm")
