"""Every command in `deploy/` exists: its name, its flags and their values, as the program reads them."""

from __future__ import annotations

import re

import pytest
from cyclopts import CycloptsError, MissingArgumentError

from search.cli import DEBUG_FLAG, app
from tests.deploy import commands
from tests.deploy.commands import Line
from tests.deploy.manifests import DEPLOY, Document, services

STATIC = [
    *commands.of_compose(),
    *commands.of_scripts(),
    *commands.of_units(),
    *commands.of_runbook(),
    *commands.of_sentences(),
    *commands.of_comments(),
]


KINDS = "deployment|job|cronjob|statefulset|secret|raycluster|service"


def refuse(line: Line) -> str:
    """Why `shoal` would not take a command line; empty if it would. Runs nothing."""
    words = [word for word in line.words[1:] if word != DEBUG_FLAG]
    try:
        app.parse_args(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        if isinstance(error, MissingArgumentError) and not line.whole:
            return ""
        return f"{line.where}: shoal {' '.join(words)}: {error}"
    return ""


def ray_options(subcommand: str) -> set[str]:
    from ray.scripts.scripts import cli

    command = cli.commands[subcommand]
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def refused_by_ray(line: Line) -> list[str]:
    """Options of a `ray` command that it doesn't have."""
    own = list(line.words[1:])
    own = own[: own.index("--")] if "--" in own else own
    given = {word.partition("=")[0] for word in own[1:] if word.startswith("--")}
    known = ray_options(own[0])
    if own[0] == "symmetric-run":
        known |= ray_options("start")  # it hands them on
    return [f"{line.where}: ray {own[0]} {option}" for option in sorted(given - known)]


def test_commands_are_found_everywhere() -> None:
    places = {line.where.split(":")[0] for line in STATIC if line.program == "shoal"}
    assert places >= {
        "compose.yaml", "README.md", "slurm/shoal-ray.sbatch", "slurm/shoal-workers.sbatch",
        "image/shoal-backup", "image/shoal-restore-drill", "shoal-worker.service", "shoal-schedule.service",
    }  # fmt: skip
    assert len(list(commands.of_runbook())) > 20
    assert len(list(commands.of_sentences())) > 20
    told = {line.where.split(":")[0] for line in commands.of_comments()}
    assert told >= {
        "compose.yaml",
        "observability/prometheus.yml",
        "kustomize/overlays/kueue/experiment.yaml",
    }


@pytest.mark.parametrize("line", [one for one in STATIC if one.program == "shoal"], ids=lambda one: one.where)
def test_shoal_takes_every_command(line: Line) -> None:
    assert refuse(line) == ""


def test_shoal_takes_every_command_of_the_overlays(rendered: dict[str, list[Document]]) -> None:
    for name, documents in rendered.items():
        lines = [one for one in commands.of_objects(name, documents) if one.program == "shoal"]
        assert len(lines) > 5
        assert [why for line in lines if (why := refuse(line))] == []


def test_ray_takes_every_option(rendered: dict[str, list[Document]]) -> None:
    lines = [one for one in STATIC if one.program == "ray"]
    for name, documents in rendered.items():
        lines += [one for one in commands.of_objects(name, documents) if one.program == "ray"]
    assert len(lines) > 10
    assert [why for line in lines for why in refused_by_ray(line)] == []


@pytest.mark.parametrize(
    "words",
    [
        ("shoal", "wroker"),
        ("shoal", "worker", "--metrics-prot", "9096"),
        ("shoal", "worker", "--grace-seconds", "long"),
        ("shoal", "db", "migrat"),
        ("shoal", "serve", "--port"),
        ("shoal", "schedule", "fire"),
        ("shoal", "schedule", "x.yaml", "--cron", "0 2 * * *", "--precision", "fp8"),
    ],
)
def test_what_does_not_exist_is_noticed(words: tuple[str, ...]) -> None:
    assert refuse(Line("here", words))


def test_an_option_that_ray_does_not_have_is_noticed() -> None:
    assert refused_by_ray(Line("here", ("ray", "start", "--head", "--num-cpu=0"))) == [
        "here: ray start --num-cpu"
    ]


def test_the_runbook_names_services_objects_and_files_that_exist(rendered: dict[str, list[Document]]) -> None:
    lines = list(commands.console(commands.RUNBOOK.read_text(encoding="utf-8")))
    names = {
        (one["kind"].lower(), one["metadata"]["name"]) for documents in rendered.values() for one in documents
    }
    names.add(("service", "shoal-head-svc"))  # KubeRay makes that one
    for number, line in lines:
        if line.startswith("kubectl"):
            for kind, name in re.findall(rf"\b({KINDS})[ /](shoal[\w-]*)", line):
                assert (kind, name) in names, f"{number}: {line}"
        for unit in re.findall(r"\bshoal[\w@-]*\.(?:service|timer)\b", line):
            assert (DEPLOY / "systemd" / re.sub("@.*?[.]", "@.", unit)).exists(), f"{number}: {line}"
        for path in re.findall(r"\bdeploy/[\w./-]+", line):
            generated = path.startswith(("deploy/secrets/", "deploy/kustomize/overlays/dev/secrets"))
            assert generated or (DEPLOY.parent / path).exists(), f"{number}: {path}"
        for verb, rest in re.findall(r"docker compose \S* ?(up|restart|stop|logs|exec|rm) (.*)", line):
            for word in rest.split():
                if re.fullmatch(r"[a-z][a-z-]*", word) and verb != "exec":
                    assert word in services(), f"{number}: {line}"
