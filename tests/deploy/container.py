"""A container without an engine: an image's files, read-only, and a process in them without rights.

`buildah` keeps the image; the kernel's own means do the rest, as an engine would with `--read-only`,
`--user 10001:10001`, `--cap-drop ALL` and `--security-opt no-new-privileges`. Only /tmp and
/var/lib/shoal can be written. The network is the machine's, so that a test's Postgres can be reached.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ENTER = """
set -eu
root=$1; shift
mount --make-rprivate /
mount --bind "$root" "$root"
mount -o remount,ro,bind "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777,size=1g,noexec,nosuid,nodev tmpfs "$root/tmp"
mount -t tmpfs -o mode=0750,uid=10001,gid=10001,size=1g,noexec,nosuid,nodev tmpfs "$root/var/lib/shoal"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mount --bind "$FOLDER" "$root/data"
exec env -i $VARIABLES chroot --userspec=10001:10001 "$root" setpriv --bounding-set=-all --no-new-privs "$@"
"""
"""Enters the image, in namespaces of its own, and becomes the command."""


@dataclass(frozen=True)
class Image:
    """A mounted image."""

    root: Path
    config: Mapping[str, Any]
    folder: Path
    """Of this machine, to be seen as /data in the container; its user can write there."""

    @property
    def entrypoint(self) -> list[str]:
        return list(self.config["Entrypoint"])

    def _command(self, words: tuple[str, ...]) -> list[str]:
        unshare = ["unshare", "--mount", "--pid", "--fork"]
        return [*unshare, "bash", "-c", ENTER, "bash", str(self.root), *words]

    def _environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        own = dict(variable.split("=", 1) for variable in self.config["Env"])
        variables = " ".join(f"{name}={value}" for name, value in {**own, **environment}.items())
        return {"PATH": os.environ["PATH"], "VARIABLES": variables, "FOLDER": str(self.folder)}

    def run(self, *words: str, code: int = 0, **environment: str) -> str:
        """Run a command to its end, which must be this exit code; what it printed."""
        done = subprocess.run(
            self._command(words),
            env=self._environment(environment),
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def shoal(self, *words: str, code: int = 0, **environment: str) -> str:
        """Run a command of shoal's by the image's own entry point."""
        return self.run(*self.entrypoint, *words, code=code, **environment)

    @contextmanager
    def running(self, *words: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command that runs meanwhile, and is killed with all that it started."""
        log = self.folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._command(words), env=self._environment(environment), stdout=output, stderr=output
            )
        try:
            yield process
        finally:
            # Its first process takes all others with it. Killing `unshare` would not do: the kernel forgets
            # that a process dies with its parent when it changes its user.
            if process.poll() is None:
                for child in psutil.Process(process.pid).children():
                    child.kill()
            process.wait(timeout=60)


@contextmanager
def mounted(name: str, folder: Path) -> Iterator[Image]:
    """The image of that name in buildah's storage. Raises `CalledProcessError` if there is none."""

    def buildah(*words: str) -> str:
        command = ["buildah", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip()

    container = buildah("from", "--pull-never", name)
    try:
        inspected = json.loads(buildah("inspect", "--type", "image", name))
        shutil.chown(folder, 10001, 10001)
        yield Image(Path(buildah("mount", container)), inspected["Docker"]["config"], folder)
    finally:
        buildah("umount", container)
        buildah("rm", container)
