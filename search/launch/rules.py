"""What a submission does: pure functions of what the database and the cluster say.

An experiment has one run at a time, whoever starts it: the controller's lock sees to that. A launch has a
generation; submitting again what is alive finds it, and submitting what has ended, or is gone, makes the
next generation. So a submission may be repeated by anybody at any time.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.records import LaunchRecord

MAX_NAME = 100
"""Characters of an experiment's name in a submission's."""
REFUSED = re.compile(r"[^A-Za-z0-9._-]+")
"""What has no place in the path of a URL, where a cluster wants the submission's name."""


class Job(Enum):
    """What the cluster says of a submission."""

    UNKNOWN = "unknown"
    """It never heard of it, or has forgotten: a cluster forgets all when its head is started anew."""
    ALIVE = "alive"
    """It waits or runs."""
    ENDED = "ended"
    UNREACHABLE = "unreachable"
    """Where it was submitted nobody answers."""


class Step(Enum):
    """What to do with a submission."""

    FOLLOW = "follow"
    """It runs already: nothing is started."""
    REPEAT = "repeat"
    """It was noted and never reached the cluster: submit it, under the same name."""
    NEXT = "next"
    """Make the next generation."""
    REFUSE = "refuse"
    """A process that is no launch of ours runs the experiment."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, under which generation."""

    step: Step
    generation: int


def decide(newest: LaunchRecord | None, job: Job, *, controlled: bool, same_place: bool) -> Decision:
    """What a submission does, given the newest launch, what its cluster says, and the controller's lock.

    `controlled`: a living process holds the experiment's lock; `same_place`: the newest launch was made
    where this one is to go.
    """
    if newest is None:
        return Decision(Step.REFUSE if controlled else Step.NEXT, 1)
    if job is Job.ALIVE:
        return Decision(Step.FOLLOW, newest.generation)
    if controlled:
        # A driver that has said its last word gives the lock back within moments: another holds it.
        return Decision(Step.REFUSE if newest.is_over else Step.FOLLOW, newest.generation)
    if newest.state == "submitted" and job is Job.UNKNOWN and same_place:
        return Decision(Step.REPEAT, newest.generation)
    return Decision(Step.NEXT, newest.generation + 1)


def submission_name(experiment: str, generation: int) -> str:
    """The name of a submission, the same wherever it is made: `shoal-<experiment>-<generation>`.

    Characters that a URL's path has no room for are replaced; then a few letters of the name's hash keep
    two names apart that would become one.
    """
    plain = REFUSED.sub("-", experiment)[:MAX_NAME].strip("-")
    if plain != experiment:
        digest = hashlib.sha256(experiment.encode()).hexdigest()[:8]
        plain = f"{plain}-{digest}" if plain else digest
    return f"shoal-{plain}-{generation}"


def entrypoint(experiment: str, generation: int, options: Sequence[str]) -> str:
    """The shell command of the driver. It holds names and numbers alone, for everybody may read it."""
    return shlex.join(["shoal", "resume", "--launch", str(generation), *options, "--", experiment])


def log_rest(shown: str, whole: str) -> str:
    """What a log has beyond what was shown of it; all of it, if it is another log by now."""
    return whole.removeprefix(shown) if whole.startswith(shown) else whole
