"""Every command line of `shoal` and `ray` that stands anywhere in `deploy/`, as words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deploy.manifests import DEPLOY, Document, is_ours, pods, services, with_defaults

SCRIPTS = sorted(
    path
    for path in DEPLOY.rglob("*")
    if path.suffix in {".sh", ".sbatch"} or path.name in ("shoal-backup", "shoal-restore-drill")
)
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
RUNBOOK = DEPLOY / "README.md"
GUIDES = sorted(DEPLOY.rglob("README.md"))
COMMENTED = sorted(
    path
    for path in DEPLOY.rglob("*")
    if path.is_file() and path.suffix not in {".md", ".json", ".pyc"} and "secrets" not in path.parts
)
"""Files in which comments may tell of commands."""

PROGRAMS = ("shoal", "ray")
ENDS = {"|", "||", "&&", ";", "&", ">", ">>", "<", "2>", "2>&1", ")", "\\"}
"""Words of a shell that end a command."""


@dataclass(frozen=True, slots=True)
class Line:
    """A command line and where it stands."""

    where: str
    words: tuple[str, ...]
    whole: bool = True
    """Whether it could be typed so; a mention in a sentence may leave arguments out."""

    @property
    def program(self) -> str:
        return self.words[0]


def of_compose() -> Iterator[Line]:
    """What the services of compose run in our image."""
    for name, service in services().items():
        if is_ours(with_defaults(service["image"])):
            words = [*service.get("entrypoint", ["tini", "--", "shoal"]), *service["command"]]
            yield from started(f"compose.yaml: {name}", [with_defaults(str(word)) for word in words])


def of_objects(overlay: str, documents: list[Document]) -> Iterator[Line]:
    """What the containers of an overlay run in our image, and the entry points of Ray's jobs."""
    for pod in pods(documents):
        for container in pod.containers():
            if not is_ours(container["image"]) or container["name"] in ("ray-head", "ray-worker"):
                continue  # KubeRay writes the commands of those
            words = [*container.get("command", ["tini", "--", "shoal"]), *container.get("args", [])]
            yield from started(f"{overlay}: {pod.of}: {container['name']}", words)
    for document in documents:
        spec = document.get("spec", {})
        for entry in (spec.get("entrypoint"), spec.get("jobTemplate", {}).get("entrypoint")):
            if entry:
                yield from started(f"{overlay}: {document['kind']}", shlex.split(entry))
        for group in ray_groups(spec):
            head = ["--head"] if "headGroupSpec" in spec and group is spec["headGroupSpec"] else []
            options = [f"--{key}" for key in group["rayStartParams"]]
            yield Line(f"{overlay}: {document['kind']}", ("ray", "start", *head, *options))


def ray_groups(spec: Document) -> Iterator[Document]:
    """The groups of machines of a cluster of Ray's."""
    cluster: Any = spec.get("jobTemplate", spec).get("rayClusterSpec", spec)
    if "headGroupSpec" in cluster:
        yield cluster["headGroupSpec"]
        yield from cluster["workerGroupSpecs"]


def started(where: str, words: list[str]) -> Iterator[Line]:
    """A container's command without `tini --`; our scripts are read for themselves."""
    assert words[:2] == ["tini", "--"] or words[0] in PROGRAMS, f"{where}: {words}"
    rest = words[2:] if words[0] == "tini" else words
    if rest[0] == "shoal-ray-start":
        rest = ["ray", "start", *rest[2:]]
    if rest[0] in PROGRAMS:
        yield Line(where, tuple(rest))
    else:
        assert (DEPLOY / "image" / rest[0]).exists(), f"{where}: {rest[0]} is not in the image"


def of_scripts() -> Iterator[Line]:
    """What our shell scripts run."""
    for path in SCRIPTS:
        for number, line in logical_lines(path.read_text(encoding="utf-8")):
            if not line.lstrip().startswith("#"):
                yield from in_shell(f"{path.relative_to(DEPLOY)}:{number}", line)


def of_units() -> Iterator[Line]:
    """What systemd's services run."""
    for path in UNITS:
        for command in re.findall(r"^ExecStart\w*=(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            words = shlex.split(command.replace("%i", "0"))
            program = Path(words[0])
            assert program.parent == Path("/opt/shoal/bin"), f"{path.name}: {command}"
            if program.name in PROGRAMS:
                yield Line(path.name, (program.name, *words[1:]))
            else:
                assert (DEPLOY / "image" / program.name).exists(), f"{path.name}: {program.name}"


def of_runbook() -> Iterator[Line]:
    """What the runbook tells to type; `docker compose run --rm shoal …` runs shoal as well."""
    for number, line in console(RUNBOOK.read_text(encoding="utf-8")):
        yield from in_shell(f"README.md:{number}", without_compose(line))


def of_sentences() -> Iterator[Line]:
    """Commands that the runbook and the other guides mention."""
    for path in GUIDES:
        yield from mentioned(str(path.relative_to(DEPLOY)), path.read_text(encoding="utf-8"))


def of_comments() -> Iterator[Line]:
    """Commands that comments of all other files mention, or show on a line of their own, further in."""
    for path in COMMENTED:
        where = str(path.relative_to(DEPLOY))
        told = re.findall(r"^[ \t]*#(?!!)(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        yield from mentioned(where, "\n".join(told))
        for line in told:
            if line.startswith("   "):
                yield from in_shell(where, without_compose(line.strip()))


def mentioned(where: str, text: str) -> Iterator[Line]:
    """Commands between backticks; brackets say that an option may be left out."""
    for code in re.findall(r"(?<!`)`((?:shoal|ray) [a-z][^`]*)`(?!`)", text):
        words = shlex.split(re.sub(r"[…\[\]]", "", code))
        yield Line(f"{where}: `{' '.join(code.split())}`", tuple(words), whole=False)


def without_compose(line: str) -> str:
    """`docker compose run --rm shoal …` as what runs in the container."""
    return re.sub(r"run --rm (shoal|owner) ", "run --rm ; shoal ", line)


def console(text: str) -> Iterator[tuple[int, str]]:
    """The commands of all fenced console blocks, with the lines' numbers."""
    inside = False
    for number, line in logical_lines(text):
        if line.lstrip().startswith("```"):
            inside = line.strip() == "```console"
        elif inside and line.lstrip().startswith("$ "):
            yield number, line.lstrip()[2:]


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with those joined that end in a backslash."""
    held = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.endswith("\\"):
            held += line[:-1] + " "
            continue
        yield number, held + line
        held = ""


def in_shell(where: str, line: str) -> Iterator[Line]:
    """The calls of our programs in a line of a shell: each where a command may begin."""
    spaced = re.sub(r"(\|\||&&|[;|()`])", r" \1 ", line.replace("$(", " ( "))
    try:
        words = shlex.split(spaced, comments=True)
    except ValueError:
        assert not re.search(r"\b(shoal|ray) [a-z]", line), f"{where} can't be read: {line}"
        return
    for place, word in enumerate(words):
        label = words[place + 1 : place + 2] == [")"]  # of a `case`
        is_program = Path(word).name in PROGRAMS and "=" not in word
        if is_program and begins_a_command(words[:place]) and not label:
            call = []
            for other in words[place + 1 :]:
                if other in ENDS or re.match(r"\d?>", other):
                    break
                call.append(other)
            yield Line(where, (Path(word).name, *(one for one in call if one != "$@")))


def begins_a_command(before: list[str]) -> bool:
    """Whether what follows these words is a program: at the start, after an operator, or after a launcher."""
    if not before:
        return True
    last = before[-1]
    return (
        last in ENDS | {"(", "srun", "exec", "--", "then", "do", "sudo", "!"}
        or last.endswith(";")
        or (re.fullmatch(r"\w+=\S*", last) is not None and begins_a_command(before[:-1]))
    )
