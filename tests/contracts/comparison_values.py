"""Comparisons written by hand, for tests of the report: no database, no training."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from search.compare.base import Comparison, Direction, EpochPoint, Reading, State, StudyOutcome, TrialOutcome

START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)


def trial(
    number: int,
    value: float | None,
    *,
    state: State = "complete",
    epochs: int = 5,
    seconds: float = 1.0,
    ended: float | None = None,
    diverged: bool = False,
    attempts: int = 1,
    reason: str | None = None,
    params: dict[str, object] | None = None,
    sampler_seconds: float = 0.0,
    lasted: float | None = None,
    shared_with: str | None = None,
) -> TrialOutcome:
    """A trial that ended `ended` minutes after the start (its number, unless told) and `lasted` seconds."""
    finished = state in {"complete", "pruned", "failed"}
    minutes = number if ended is None else ended
    return TrialOutcome(
        number=number,
        state=state,
        value=value,
        params=params
        if params is not None
        else {"learning_rate": 0.1 * (number + 1), "loss": "cross_entropy"},
        epochs=epochs,
        seconds=seconds,
        attempts=attempts,
        reason=reason,
        diverged=diverged,
        sampler_seconds=sampler_seconds,
        shared_with=shared_with,
        started_at=None if lasted is None else START + timedelta(minutes=minutes, seconds=-lasted),
        ended_at=START + timedelta(minutes=minutes) if finished else None,
        curve=tuple(
            EpochPoint(epoch=e, value=value, train_loss=0.5, validation_loss=0.6, seconds=seconds / epochs)
            for e in range(1, epochs + 1)
        ),
    )


def study(
    method: str, replicate: int, trials: Sequence[TrialOutcome], experiment: str = "digits"
) -> StudyOutcome:
    return StudyOutcome(
        method=method, replicate=replicate, name=f"{experiment}/{method}/{replicate}", trials=tuple(trials)
    )


def comparison(
    studies: Sequence[StudyOutcome],
    *,
    experiment: str = "digits",
    metric: str = "accuracy",
    direction: Direction = "maximize",
    state: str = "finished",
    spec: dict[str, object] | None = None,
    environment: dict[str, object] | None = None,
    readings: Sequence[Reading] = (),
) -> Comparison:
    default_spec: dict[str, object] = {
        "experiment": experiment,
        "seed": 7,
        "data": {"name": "digits", "validation": 0.2},
        "model": {"name": "cnn"},
        "metric": metric,
        "replicates": len({s.replicate for s in studies}),
        "budget": {"trials": 20, "epochs": None},
        "pruner": {"name": "asha", "rungs": [1, 3]},
        "methods": {
            "grid": {"order": "shuffled"},
            "random": {},
            "tpe": {"n_startup_trials": 10, "in_flight": 2},
        },
        "space": {
            "learning_rate": {"low": 1e-4, "high": 1.0, "log": True},
            "loss": {"values": ["cross_entropy", "hinge", "mse"]},
        },
    }
    return Comparison(
        experiment=experiment,
        state=state,
        metric=metric,
        direction=direction,
        spec=default_spec | (spec or {}),
        environment=environment
        if environment is not None
        else {
            "versions": {"python": "3.11.2", "torch": "2.13.0", "optuna": "5.0.0"},
            "revision": "0123abc",
            "cpu": 2,
        },
        created_at=START,
        collected_at=START + timedelta(hours=1),
        studies=tuple(studies),
        readings=tuple(readings),
    )


def retraining(
    of: StudyOutcome,
    number: int,
    test: Sequence[float],
    validation: Sequence[float] | None = None,
    *,
    metric: str = "accuracy",
) -> list[Reading]:
    """The declared readings of a study's trial: one per value, with seeds from 1000 on."""
    pairs = zip(test, validation or test, strict=True)
    return [
        Reading(
            method=of.method,
            replicate=of.replicate,
            trial=number,
            seed=1000 + place,
            metrics={metric: on_test},
            validation={metric: on_validation},
            epochs=5,
            images=360,
            read_at=START + timedelta(minutes=50, seconds=place),
            purpose="retraining",
        )
        for place, (on_test, on_validation) in enumerate(pairs)
    ]


def drawn(
    methods: Sequence[str] = ("random", "tpe"),
    replicates: int = 12,
    trials: int = 10,
    *,
    seed: int = 0,
    pruner: str = "none",
    shift: dict[str, float] | None = None,
    **settings: object,
) -> Comparison:
    """Finished studies of normal values, all trained to the end; `shift` adds to a method's values."""
    rng = random.Random(seed)
    studies = [
        study(
            method,
            replicate,
            [trial(n, rng.gauss(0.9, 0.02) + (shift or {}).get(method, 0.0)) for n in range(trials)],
        )
        for method in methods
        for replicate in range(replicates)
    ]
    return comparison(studies, spec={"pruner": {"name": pruner}, "comparison": settings})


def lifelike(
    methods: Sequence[str] = ("grid", "random", "tpe"), replicates: int = 5, trials: int = 20, seed: int = 1
) -> Comparison:
    """Studies with pruned, diverged and failed trials, whose values look like those of real ones."""
    rng = random.Random(seed)
    studies = []
    for skill, method in enumerate(methods):
        for replicate in range(replicates):
            outcomes = []
            for number in range(trials):
                rate = 10 ** rng.uniform(-4, 0)
                quality = 0.97 - 0.05 * (math.log10(rate) + 1.2) ** 2 + rng.gauss(0, 0.006) + 0.002 * skill
                params: dict[str, object] = {
                    "learning_rate": rate,
                    "loss": rng.choice(["cross_entropy", "hinge", "mse"]),
                    "optimizer": rng.choice(["sgd", "momentum", "adam"]),
                    "batch_size": rng.choice([16, 64, "full"]),
                    "lambda": 10 ** rng.uniform(-6, -2),
                }
                seconds = rng.uniform(0.3, 1.5)
                chance = rng.random()
                if chance < 0.04 and number > 0:
                    outcomes.append(
                        trial(number, 0.1, diverged=True, epochs=1, seconds=seconds / 5, params=params)
                    )
                elif chance < 0.4 and number > 2:
                    value = max(0.1, quality - 0.2)
                    outcomes.append(
                        trial(
                            number,
                            value,
                            state="pruned",
                            epochs=rng.choice([1, 3]),
                            seconds=seconds / 2,
                            params=params,
                        )
                    )
                elif chance < 0.41:
                    outcomes.append(
                        trial(
                            number,
                            None,
                            state="failed",
                            epochs=1,
                            seconds=0.1,
                            reason="it broke",
                            params=params,
                        )
                    )
                else:
                    outcomes.append(trial(number, max(0.1, quality), seconds=seconds, params=params))
            studies.append(study(method, replicate, outcomes))
    return comparison(
        studies,
        readings=[
            Reading(
                method=methods[-1],
                replicate=0,
                trial=4,
                seed=99,
                metrics={"accuracy": 0.958, "log_loss": 0.2},
                validation={"accuracy": 0.961},
                epochs=5,
                images=360,
                read_at=START + timedelta(minutes=55),
            )
        ],
    )
