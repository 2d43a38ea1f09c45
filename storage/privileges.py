"""Run a program without root's rights: Postgres refuses to run with them.

Decision. Root first tries a user namespace of its own (`unshare(CLONE_NEWUSER)`): inside it the
process is not root, so Postgres is content, while the kernel still counts files as root's, so
data and binaries may lie anywhere that root may go, such as a 0700 home. No user is made, no
directory's mode changes. Where namespaces are forbidden (Docker's default seccomp profile, some
hardened kernels, macOS) the server runs as `nobody`, with its data in a place that `nobody` can
reach. Refused: `useradd`, which changes the machine, and making parents world-readable.

The same namespace helps a plain user without an entry in the password file (`docker run --user
12345`), for which `initdb` fails otherwise.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.errors import EmbeddedError

ENTER_NAMESPACE = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).unshare(0x10000000) != 0:
    sys.exit(97)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Enters a user namespace and becomes the program. A process of its own, because `unshare` needs
a single thread and running Python between fork and exec is unsafe beside other threads."""

KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""What a server inherits: no PG* setting of the user, and no variable that may hold a secret."""


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs programs as an identity that Postgres accepts."""

    uid: int
    """Owner of the files that programs write, as seen from outside."""
    gid: int
    namespace: bool = False

    @property
    def switches(self) -> bool:
        """Whether programs run as another user, who may not reach what we reach."""
        return self.uid != os.geteuid()

    def run(
        self, command: Sequence[str], *, cwd: Path, timeout: float, pass_fds: Sequence[int] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; stdout and stderr together in `stdout`. Raises `EmbeddedError` on a time-out."""
        if self.namespace:
            command = [sys.executable, "-I", "-S", "-c", ENTER_NAMESPACE, *command]
        try:
            return subprocess.run(  # noqa: S603 (a list of our own making, no shell)
                command,
                cwd=cwd,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
                pass_fds=pass_fds,
                user=self.uid if self.switches else None,
                group=self.gid if self.switches else None,
                extra_groups=[] if self.switches else None,
            )
        except subprocess.TimeoutExpired:
            message = f"{Path(command[0]).name} gave no answer in {timeout:.0f} s"
        raise EmbeddedError(message, retryable=True)

    def own(self, path: Path) -> None:
        """Give a path that we made to the identity."""
        if self.switches:
            os.chown(path, self.uid, self.gid)


def choose_runner(owner: int | None) -> Runner:
    """The identity for a server whose data belong to `owner` (None: there are no data yet).

    Raises `EmbeddedError` if the data belong to somebody whom we can't be.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid != 0:
        if owner not in (None, uid):
            raise EmbeddedError(
                f"the embedded database belongs to {_name(owner)}, and this is {_name(uid)}: "
                "set SHOAL_HOME to a folder of your own"
            )
        return Runner(uid, gid, namespace=not _in_password_file(uid) and namespaces_work())
    if owner in (None, 0):
        if namespaces_work():
            return Runner(uid, gid, namespace=True)
        if owner == 0:
            raise EmbeddedError(
                "the embedded database was made by root inside a user namespace, which this system "
                "no longer allows: allow it, set SHOAL_HOME to another folder, or use a server of your own"
            )
    return unprivileged_user() if owner is None else _runner_of(owner)


def unprivileged_user() -> Runner:
    """The identity of `nobody`. Raises `EmbeddedError` where there is none."""
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedError("Postgres can't run as root, and this system has no user `nobody`") from None
    return Runner(entry.pw_uid, entry.pw_gid)


def namespaces_work() -> bool:
    """Whether this process may make a user namespace in which it isn't root."""
    if not sys.platform.startswith("linux"):
        return False
    shows_uid = "import os, sys; sys.exit(os.geteuid() == 0)"
    command = [sys.executable, "-I", "-S", "-c", ENTER_NAMESPACE, sys.executable, "-I", "-S", "-c", shows_uid]
    finished = subprocess.run(  # noqa: S603 (likewise)
        command, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return finished.returncode == 0


def reachable(path: Path) -> bool:
    """Whether any user may pass through every parent of `path` (access lists are not looked at)."""
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def _runner_of(uid: int) -> Runner:
    try:
        return Runner(uid, pwd.getpwuid(uid).pw_gid)
    except KeyError:
        return Runner(uid, uid)


def _name(uid: int | None) -> str:
    try:
        return pwd.getpwuid(uid).pw_name if uid is not None else "nobody"
    except KeyError:
        return f"uid {uid}"


def _in_password_file(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _environment() -> Mapping[str, str]:
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return {"PATH": os.defpath, **kept, "LC_ALL": "C"}
