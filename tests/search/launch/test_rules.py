"""What a submission does: the table of cases, and the names that follow from it."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.launch.rules import (
    Decision,
    Job,
    Step,
    decide,
    entrypoint,
    log_rest,
    submission_name,
)
from storage.records import LaunchRecord, LaunchState

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def launch(state: LaunchState, generation: int = 3) -> LaunchRecord:
    over = state not in ("submitted", "running")
    return LaunchRecord(
        id=1,
        experiment_id=1,
        generation=generation,
        submission=f"shoal-x-{generation}",
        address="http://head:8265",
        options={},
        state=state,
        reason=None,
        exit_code=None,
        submitted_at=NOW,
        started_at=None,
        ended_at=NOW if over else None,
    )


@pytest.mark.parametrize(
    ("state", "job", "controlled", "same_place", "step", "generation"),
    [
        # It lives, by the cluster's word or by the lock: the same submission.
        ("submitted", Job.ALIVE, False, True, Step.FOLLOW, 3),
        ("running", Job.ALIVE, True, True, Step.FOLLOW, 3),
        ("running", Job.UNREACHABLE, True, False, Step.FOLLOW, 3),
        ("running", Job.ENDED, True, True, Step.FOLLOW, 3),
        # The run has ended, and its driver is about to.
        ("finished", Job.ALIVE, False, True, Step.FOLLOW, 3),
        # Noted, and the submitter died before the cluster heard of it.
        ("submitted", Job.UNKNOWN, False, True, Step.REPEAT, 3),
        # Gone, wherever it was.
        ("submitted", Job.UNKNOWN, False, False, Step.NEXT, 4),
        ("submitted", Job.ENDED, False, True, Step.NEXT, 4),
        ("submitted", Job.UNREACHABLE, False, False, Step.NEXT, 4),
        ("running", Job.UNKNOWN, False, True, Step.NEXT, 4),
        ("running", Job.ENDED, False, True, Step.NEXT, 4),
        ("running", Job.UNREACHABLE, False, False, Step.NEXT, 4),
        ("finished", Job.ENDED, False, True, Step.NEXT, 4),
        ("stopped", Job.UNKNOWN, False, True, Step.NEXT, 4),
        ("lost", Job.ENDED, False, True, Step.NEXT, 4),
        # `shoal run` on somebody's laptop, after the last launch has ended.
        ("finished", Job.ENDED, True, True, Step.REFUSE, 3),
        ("lost", Job.UNKNOWN, True, True, Step.REFUSE, 3),
    ],
)
def test_what_lives_is_found_and_what_is_gone_has_a_successor(
    state: LaunchState, job: Job, controlled: bool, same_place: bool, step: Step, generation: int
) -> None:
    decided = decide(launch(state), job, controlled=controlled, same_place=same_place)
    assert decided == Decision(step, generation)


def test_the_first_launch() -> None:
    assert decide(None, Job.UNKNOWN, controlled=False, same_place=True) == Decision(Step.NEXT, 1)
    assert decide(None, Job.UNKNOWN, controlled=True, same_place=True).step is Step.REFUSE


@given(st.text(min_size=1, max_size=200), st.integers(1, 10**6))
def test_any_name_makes_a_submission_that_fits_a_path(name: str, generation: int) -> None:
    made = submission_name(name, generation)
    assert re.fullmatch(r"shoal-[A-Za-z0-9._-]+-[0-9]+", made)
    assert len(made) <= 150


@given(
    st.tuples(st.text("ab/ -.", min_size=1), st.text("ab/ -.", min_size=1)).filter(
        lambda two: two[0] != two[1]
    )
)
def test_two_experiments_never_share_a_submission(two: tuple[str, str]) -> None:
    assert submission_name(two[0], 1) != submission_name(two[1], 1)


def test_an_ordinary_name_can_be_read() -> None:
    assert submission_name("fashion_mnist.v2", 12) == "shoal-fashion_mnist.v2-12"


def test_the_driver_is_told_the_experiment_and_nothing_is_left_to_a_shell() -> None:
    command = entrypoint("-x; rm", 2, ["--workers", "4"])
    assert shlex.split(command) == ["shoal", "resume", "--launch", "2", "--workers", "4", "--", "-x; rm"]


def test_of_a_log_only_what_is_new_is_shown() -> None:
    assert log_rest("", "a\n") == "a\n"
    assert log_rest("a\n", "a\nb\n") == "b\n"
    assert log_rest("a\n", "other\n") == "other\n", "another log: the job was submitted anew"
