"""Shell scripts, YAML, systemd's units and Slurm's: what their own checkers say, and what the scripts do."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.deploy.commands import SCRIPTS, UNITS
from tests.deploy.manifests import DEPLOY, call, compose

BIN = Path(sys.executable).parent
SBATCH = sorted((DEPLOY / "slurm").glob("*.sbatch"))
TIMERS = sorted((DEPLOY / "systemd").glob("*.timer"))


def test_shellcheck_has_nothing_to_say() -> None:
    assert len(SCRIPTS) >= 6
    done = call(BIN / "shellcheck", *SCRIPTS)
    assert (done.returncode, done.stdout) == (0, "")


def test_yamllint_has_nothing_to_say() -> None:
    files = [path for path in DEPLOY.rglob("*.y*ml") if "secrets" not in path.parts]
    assert len(files) > 20
    done = call(BIN / "yamllint", "--strict", "--config-file", DEPLOY / ".yamllint", *files)
    assert (done.returncode, done.stdout) == (0, "")


def test_scripts_can_be_run() -> None:
    assert all(path.stat().st_mode & stat.S_IXUSR for path in SCRIPTS if path.suffix != ".sbatch")


# Secrets


def secrets(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SECRETS": str(folder), "DATABASE_HOST": "db.example.org"}
    return call(DEPLOY / "secrets.sh", *names, env=environment)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_secrets_are_what_compose_wants(tmp_path: Path) -> None:
    done = secrets(tmp_path / "secrets")
    assert done.returncode == 0
    made = contents(tmp_path / "secrets")
    wanted = {entry["file"].removeprefix("./secrets/") for entry in compose()["secrets"].values()}
    assert wanted <= made.keys()
    assert made.pop("webhook-url") == ""  # for its owner to write
    assert not any(text in done.stdout + done.stderr for text in made.values())


def test_urls_hold_the_roles_passwords_and_files_no_newline(tmp_path: Path) -> None:
    secrets(tmp_path)
    made = contents(tmp_path)
    for role in ("owner", "worker", "reader"):
        url = urlsplit(made[f"{role}-url"])
        assert (url.username, url.password) == (f"shoal_{role}", made[f"roles/shoal_{role}"])
        assert (url.hostname, url.port, url.path) == ("db.example.org", 5432, "/shoal")
    assert urlsplit(made["admin-url"]).password == made["postgres-password"]
    passwords = [made[name] for name in made if not name.endswith(("-url", "-users"))]
    assert len(set(passwords)) == len(passwords)
    assert all(re.fullmatch("[A-Za-z0-9]{40}", one) for one in passwords)


def test_secrets_are_behind_a_folder_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    secrets(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    # A container's user is another one: it gets the file, and can't get at the folder.
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()} == {0o444}


def test_secrets_that_are_there_are_kept_and_named_ones_made_anew(tmp_path: Path) -> None:
    secrets(tmp_path)
    before = contents(tmp_path)
    secrets(tmp_path)
    assert contents(tmp_path) == before
    secrets(tmp_path, "worker", "ray")
    after = contents(tmp_path)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"roles/shoal_worker", "worker-url", "ray-token"}


def test_an_unknown_secret_is_refused(tmp_path: Path) -> None:
    secrets(tmp_path)
    before = contents(tmp_path)
    assert secrets(tmp_path, "wroker").returncode == 2
    assert contents(tmp_path) == before


# systemd

HARDENING = (
    "User=shoal",
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "RestrictSUIDSGID=yes",
    "SystemCallFilter=@system-service",
    "UMask=0077",
)


@pytest.mark.parametrize("unit", [*UNITS, *TIMERS], ids=lambda path: path.name)
def test_systemd_takes_the_unit(unit: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = call("systemd-analyze", "verify", unit)
    # That the image's programs aren't installed here is no fault of the unit's.
    said = [line for line in done.stderr.splitlines() if "is not executable" not in line]
    assert said == []


def test_systemd_notices_a_misspelling(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = (DEPLOY / "systemd" / "shoal-serve.service").read_text()
    unit = tmp_path / "shoal-serve.service"
    unit.write_text(text.replace("ProtectHome=", "ProtectHouse="))
    done = call("systemd-analyze", "verify", unit)
    assert "ProtectHouse" in done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_has_no_rights_to_speak_of(unit: Path) -> None:
    text = unit.read_text()
    for setting in HARDENING:
        assert f"\n{setting}\n" in text, setting
    assert re.search(r"\nMemoryMax=\d", text)
    assert "\nPrivateDevices=yes\n" in text or "\nDevicePolicy=closed\n" in text or "schedule" in unit.name


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_gets_its_url_as_a_credential_of_the_right_role(unit: Path) -> None:
    roles = {"worker": "worker", "schedule": "worker", "migrate": "owner", "restore": None}
    kind = unit.name.split("-")[1].split(".")[0]
    role = roles.get(kind, "reader")
    loaded = re.findall(r"\nLoadCredential=database-url:/etc/shoal/(\w+)-url\n", unit.read_text())
    assert loaded == ([role] if role else [])
    assert "postgresql://" not in unit.read_text()


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_credential_that_no_file_holds_stops_no_unit(unit: Path, tmp_path: Path) -> None:
    """systemd starts no unit whose credential is missing; one that not everybody has gets an empty one."""
    secrets(tmp_path)
    text = unit.read_text()
    for name, path in re.findall(r"\nLoadCredential=([\w-]+):/etc/shoal/([\w-]+)\n", text):
        assert (tmp_path / path).is_file(), path
        assert f"%d/{name}\n" in text, "nothing is told where it is"
        assert name == "database-url" or f"\nSetCredential={name}:\\n\n" in text, f"{name} is not everybody's"


def test_a_worker_is_given_longer_than_its_grace() -> None:
    for unit in UNITS:
        grace = re.search(r"--grace-seconds (\d+)", unit.read_text())
        if grace:
            stop = re.search(r"\nTimeoutStopSec=(\d+)\n", unit.read_text())
            assert stop is not None
            assert int(stop[1]) > int(grace[1]) + 10


def test_every_timer_has_its_service() -> None:
    assert TIMERS
    for timer in TIMERS:
        assert timer.with_suffix(".service") in UNITS
        calendar = re.search(r"\nOnCalendar=(.*)\n", timer.read_text())
        assert calendar is not None
        if shutil.which("systemd-analyze"):
            assert call("systemd-analyze", "calendar", calendar[1]).returncode == 0


# Slurm


@pytest.mark.parametrize("script", SBATCH, ids=lambda path: path.name)
def test_slurm_tells_a_job_in_time_and_queues_it_again(script: Path) -> None:
    text = script.read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE))
    assert options.keys() >= {"requeue", "open-mode", "signal", "time"}
    assert options["open-mode"] == "append", "a job that is queued again must not lose its log"
    seconds = int(options["signal"].rpartition("@")[2])
    grace = re.search(r"--grace-seconds (\d+)", text)
    assert seconds == 120
    assert grace is None or int(grace[1]) < seconds
    assert 'scontrol requeue "$SLURM_JOB_ID"' in text


def stand_ins(folder: Path, **scripts: str) -> dict[str, str]:
    """Programs of the cluster's, put before all others: each notes how it was called."""
    folder.mkdir()
    for name, body in scripts.items():
        program = folder / name
        program.write_text(f'#!/bin/bash\necho "{name} $*" >> "$CALLS"\n{body}\n')
        program.chmod(0o755)
    return {
        "PATH": f"{folder}:/usr/bin:/bin", "CALLS": str(folder / "calls"), "HOME": str(folder),
        "SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "4", "SHOAL_HOME": str(folder),
    }  # fmt: skip


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (143, True), (1, False)])
def test_a_worker_that_was_told_to_leave_is_queued_again(code: int, requeued: bool, tmp_path: Path) -> None:
    environment = stand_ins(tmp_path / "bin", srun=f"exit {code}", scontrol="")
    done = call("bash", DEPLOY / "slurm" / "shoal-workers.sbatch", "mine", env=environment)
    assert done.returncode == code, done.stderr
    calls = Path(environment["CALLS"]).read_text().splitlines()
    assert calls[0].startswith("srun shoal worker mine --device cuda")
    assert calls[1:] == (["scontrol requeue 41"] if requeued else [])


def test_a_ray_job_that_was_told_asks_its_workers_and_is_queued_again(tmp_path: Path) -> None:
    """The signal comes while the step runs: the script asks for a stop, awaits the end, requeues."""
    file = tmp_path / "mine.yaml"
    file.write_text('experiment: "mine-1"  # so\nseed: 0\n')
    environment = stand_ins(
        tmp_path / "bin",
        srun='mkfifo "$HOME/stopped"; echo ready > "$HOME/step"; read -r _ < "$HOME/stopped"; exit 1',
        scontrol='if [ "$1" = show ]; then echo n1; echo n2; fi',
        shoal='echo go > "$HOME/stopped"',
    )
    process = subprocess.Popen(["bash", DEPLOY / "slurm" / "shoal-ray.sbatch", file], env=environment)
    try:
        step = tmp_path / "bin" / "step"
        while not (step.exists() and step.read_text()):
            assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=60) == 1
    finally:
        process.kill()
    calls = Path(environment["CALLS"]).read_text().splitlines()
    assert calls[0] == "scontrol show hostnames n[1-2]"
    assert calls[1].startswith("srun ray symmetric-run --address n1:20041 --min-nodes 2")
    assert calls[1].endswith(f"-- shoal run {file} --ray-address auto --report {tmp_path}/bin/reports/mine-1")
    assert calls[2:] == ["shoal stop mine-1", "scontrol requeue 41"]
    assert not list((tmp_path / "bin").glob("ray-token-*")), "the token is gone with its job"


def test_a_file_without_an_experiment_starts_no_ray_job(tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text("seed: 0\n")
    environment = stand_ins(tmp_path / "bin", srun="", scontrol="")
    done = call("bash", DEPLOY / "slurm" / "shoal-ray.sbatch", file, env=environment)
    assert done.returncode == 2
    assert not Path(environment["CALLS"]).exists()
