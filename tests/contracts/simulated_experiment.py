"""A whole experiment out of a seeded simulation: studies that learn, prune, diverge and are retrained.

The response surface is made up, and what a report should find in it is known: the learning rate
matters most and its best place depends on the optimizer, `mse` is the worst loss, batch size and λ
matter a little, and high rates diverge. The adaptive method samples near its best trials, so it
beats random search at equal trials.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from datetime import timedelta

from search.compare.base import Comparison, EpochPoint, Reading, StudyOutcome, TrialOutcome
from tests.contracts.comparison_values import START, comparison, study

LOSSES = {"cross_entropy": 0.0, "hinge": -0.006, "mse": -0.02}
OPTIMIZERS = {"sgd": -0.9, "momentum": -1.6, "adam": -2.7}
"""Optimizer → the decimal logarithm of its best learning rate."""
BATCHES = (32, 64, 128)
EPOCHS = 10
CHANCE = 0.1

SPACE: dict[str, object] = {
    "learning_rate": {"low": 1e-4, "high": 1.0, "log": True},
    "loss": {"values": list(LOSSES)},
    "optimizer": {"values": list(OPTIMIZERS)},
    "batch_size": {"values": list(BATCHES)},
    "lambda": {"low": 1e-6, "high": 1e-2, "log": True},
}


def simulated(
    methods: Sequence[str] = ("grid", "random", "tpe"),
    *,
    replicates: int = 30,
    trials: int = 60,
    seed: int = 0,
    pruned: bool = False,
    retrained: int = 10,
) -> Comparison:
    """An experiment that ended: `retrained` fresh seeds per incumbent, none for 0."""
    rng = random.Random(seed)
    studies = [
        _study(method, replicate, trials, random.Random(f"{seed}/{method}/{replicate}"), pruned)
        for method in methods
        for replicate in range(replicates)
    ]
    readings = [reading for one in studies for reading in _retrained(one, retrained, rng)]
    spec: dict[str, object] = {
        "space": SPACE,
        "replicates": replicates,
        "budget": {"trials": trials, "epochs": None},
        "pruner": {"name": "asha" if pruned else "none"},
        "methods": {method: {} for method in methods},
        "comparison": {"axis": "epochs", "smallest_difference": 0.002, "retrain": {"seeds": retrained}},
        "fixed": {"epochs": EPOCHS},
    }
    return comparison(studies, experiment="simulated", spec=spec, readings=readings)


def _study(method: str, replicate: int, trials: int, rng: random.Random, pruned: bool) -> StudyOutcome:
    grid = _grid(trials, rng) if method == "grid" else []
    done: list[TrialOutcome] = []
    clock = 0.0
    for number in range(len(grid) or trials):
        if method == "grid":
            params = grid[number]
        elif method == "random" or number < 10:
            params = _drawn(rng)
        else:
            params = _near_the_best(done, rng)
        sampler = {"grid": 0.0, "random": 0.001}.get(method, 0.02)
        trial = _trial(number, params, rng, clock, sampler, done if pruned else [])
        clock += trial.seconds * (1 + rng.random() * 0.2) + sampler
        done.append(trial)
    return study(method, replicate, done, experiment="simulated")


def _drawn(rng: random.Random) -> dict[str, object]:
    return {
        "learning_rate": 10 ** rng.uniform(-4, 0),
        "loss": rng.choice(list(LOSSES)),
        "optimizer": rng.choice(list(OPTIMIZERS)),
        "batch_size": rng.choice(BATCHES),
        "lambda": 10 ** rng.uniform(-6, -2),
    }


def _near_the_best(done: Sequence[TrialOutcome], rng: random.Random) -> dict[str, object]:
    """One of the best five configs with its numbers moved and now and then a level changed."""
    best = sorted(done, key=lambda trial: -(trial.value or 0.0))[:5]
    params = dict(rng.choice(best).params)
    for name, low, high in (("learning_rate", -4.0, 0.0), ("lambda", -6.0, -2.0)):
        centre = math.log10(float(str(params[name])))
        params[name] = 10 ** min(high, max(low, rng.gauss(centre, 0.35)))
    fresh = _drawn(rng)
    for name in ("loss", "optimizer", "batch_size"):
        if rng.random() < 0.25:
            params[name] = fresh[name]
    return params


def _grid(trials: int, rng: random.Random) -> list[dict[str, object]]:
    """Two losses, two optimizers, and as many rates as the budget has room for, at a random offset."""
    rates = max(1, trials // 4)
    offset = rng.random()
    points = [
        {"learning_rate": 10 ** (-4 + 4 * (k + offset) / rates), "loss": loss, "optimizer": optimizer}
        | {"batch_size": 32, "lambda": 1e-5}
        for k, loss, optimizer in itertools.product(
            range(rates), ("cross_entropy", "hinge"), ("momentum", "adam")
        )
    ]
    rng.shuffle(points)
    return points


def quality(params: Mapping[str, object]) -> float:
    """What a config is worth without noise: accuracy after all epochs."""
    rate = math.log10(float(str(params["learning_rate"])))
    strength = math.log10(float(str(params["lambda"])))
    away = rate - OPTIMIZERS[str(params["optimizer"])]
    return (
        0.915
        + LOSSES[str(params["loss"])]
        - 0.09 * away**2 / (1 + 0.25 * abs(away))
        - 0.002 * (strength + 4) ** 2
        - 0.004 * abs(math.log2(int(str(params["batch_size"])) / 64))
    )


def diverges(params: Mapping[str, object]) -> bool:
    """Rates more than 1.7 decades above the optimizer's best don't train."""
    return math.log10(float(str(params["learning_rate"]))) > OPTIMIZERS[str(params["optimizer"])] + 1.7


def _trial(
    number: int,
    params: Mapping[str, object],
    rng: random.Random,
    clock: float,
    sampler: float,
    rivals: Sequence[TrialOutcome],
) -> TrialOutcome:
    lost = diverges(params)
    final = CHANCE if lost else max(CHANCE, quality(params) + rng.gauss(0, 0.004))
    speed = rng.uniform(1.2, 2.5)
    strength = math.log10(float(str(params["lambda"])))
    epochs = 1 if lost else EPOCHS
    curve: list[EpochPoint] = []
    for epoch in range(1, epochs + 1):
        progress = 1 - math.exp(-epoch / speed)
        value = CHANCE + (final - CHANCE) * progress + (0 if epoch == epochs else rng.gauss(0, 0.003))
        train = 2.3 * (1 - 0.96 * progress * (final - CHANCE) / 0.8)
        gap = 0.03 * progress * max(0.2, -3 - strength) * epoch / epochs
        curve.append(
            EpochPoint(
                epoch=epoch,
                value=value,
                train_loss=max(0.01, train),
                validation_loss=max(0.01, train) + gap + abs(rng.gauss(0, 0.004)),
                seconds=rng.uniform(0.8, 1.2),
            )
        )
        at = [r.curve[epoch - 1].value or 0.0 for r in rivals if len(r.curve) >= epoch]
        if epoch in {1, 3} and len(at) >= 8 and value < sorted(at)[len(at) // 2]:
            break
    state = "complete" if len(curve) == epochs else "pruned"
    seconds = sum(point.seconds for point in curve)
    started = START + timedelta(seconds=clock)
    return TrialOutcome(
        number=number,
        state=state,
        value=final if state == "complete" else curve[-1].value,
        params=params,
        epochs=len(curve),
        seconds=seconds,
        sampler_seconds=sampler,
        diverged=lost,
        started_at=started,
        ended_at=started + timedelta(seconds=seconds),
        curve=tuple(curve),
    )


def _retrained(one: StudyOutcome, seeds: int, rng: random.Random) -> list[Reading]:
    eligible = [trial for trial in one.trials if trial.eligible]
    if not eligible:
        return []
    best = max(eligible, key=lambda trial: (trial.value or 0.0, -trial.number))
    true = quality(best.params)
    return [
        Reading(
            method=one.method,
            replicate=one.replicate,
            trial=best.number,
            seed=1000 * one.replicate + seed,
            metrics={"accuracy": true - 0.005 + rng.gauss(0, 0.003)},
            validation={"accuracy": true + rng.gauss(0, 0.003)},
            epochs=EPOCHS,
            images=10_000,
            read_at=START + timedelta(hours=2, seconds=seed),
            purpose="retraining",
        )
        for seed in range(seeds)
    ]
