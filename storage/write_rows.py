"""What holders of leases say, as rows for statements; what contradicts itself is refused."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from storage.errors import ValueRefused
from storage.ledger import Draw, Ending, EpochWrite, Lease, Scalar
from storage.values import finite, json_text, numbers, storable


def said_by_token(
    beats: Iterable[Lease], draws: Iterable[Draw], epochs: Iterable[EpochWrite], endings: Iterable[Ending]
) -> dict[int, dict[str, Any]]:
    """What the fence is asked, by token. Raises `ValueRefused` for what contradicts itself."""
    speaking: list[Draw | EpochWrite | Ending] = [*draws, *epochs, *endings]
    leases = [*beats, *(said.lease for said in speaking)]
    asked: dict[int, dict[str, Any]] = {lease.token: {"token": lease.token} for lease in leases}
    for draw in draws:
        asked[draw.lease.token]["sampler_seconds"] = finite(draw.sampler_seconds, "the sampler's seconds")
    steps: dict[int, list[int]] = defaultdict(list)
    for epoch in epochs:
        steps[epoch.lease.token].append(int(epoch.report.epoch))
    for token, of_trial in steps.items():
        if any(later <= earlier for earlier, later in pairwise(of_trial)):
            raise ValueRefused(f"epochs of one trial must increase, not go {of_trial}")
        asked[token] |= {"first_step": of_trial[0], "last_step": of_trial[-1]}
    ended = [ending.lease.token for ending in endings]
    if len(set(ended)) != len(ended):
        raise ValueRefused("a trial ends once")
    return asked


def draw_columns(draws: Iterable[Draw]) -> dict[str, Any]:
    """The parameters of draws, as arrays; a parameter and its distribution, which a pool shares, once."""
    from optuna.distributions import distribution_to_json

    kinds: dict[tuple[str, int], tuple[int, str]] = {}
    rows = []
    for draw in draws:
        for name in draw.values:
            distribution = draw.distributions[name]
            key = name, id(distribution)
            if (kind := kinds.get(key)) is None:
                kind = kinds[key] = len(kinds) + 1, distribution_to_json(distribution)
            rows.append((draw.lease.token, kind[0], stored_parameter(draw, name)))
    return {
        "draw_tokens": numbers(token for token, _, _ in rows),
        "draw_kinds": numbers(kind for _, kind, _ in rows),
        "draw_values": numbers(value for _, _, value in rows),
        "kind_names": [name for name, _ in kinds],
        "kind_distributions": [text for _, text in kinds.values()],
    }


def stored_parameter(draw: Draw, name: str) -> float:
    """A parameter as Optuna stores it. Raises `ValueRefused` for one outside of its distribution."""
    try:
        value = float(draw.distributions[name].to_internal_repr(draw.values[name]))
    except ValueError as error:
        message = f"{name} = {draw.values[name]!r} is none of its values: {error}"
    else:
        return finite(value, name)
    raise ValueRefused(message)


def note_rows(draws: Iterable[Draw], endings: Iterable[Ending]) -> list[dict[str, Any]]:
    """The attributes to set; of two for one key the later."""
    notes: dict[tuple[int, str], Scalar] = {}
    noting: list[Draw | Ending] = [*draws, *endings]
    for said in noting:
        notes |= {(said.lease.token, key): value for key, value in said.attributes.items()}
    return [{"token": token, "key": key, "value": json_text(value)} for (token, key), value in notes.items()]


def epoch_rows(epochs: Iterable[EpochWrite]) -> list[dict[str, Any]]:
    """Epochs for a statement. Raises `ValueRefused` for a number that is not finite."""
    return [_epoch(write) for write in epochs]


def _epoch(write: EpochWrite) -> dict[str, Any]:
    report = write.report
    row: dict[str, Any] = {
        "token": write.lease.token,
        "epoch": int(report.epoch),
        "value": finite(write.value, "the value of an epoch"),
        "diverged": bool(report.diverged),
        "metrics": {name: finite(value, name) for name, value in report.metrics.items()},
    }
    for name in ("learning_rate", "seconds", "images_per_second"):
        row[name] = finite(getattr(report, name), name)
    for name in ("train_loss", "validation_loss", "gradient_norm"):
        value = getattr(report, name)
        row[name] = None if value is None else finite(value, name)
    return row


def closing(ending: Ending) -> dict[str, Any]:
    """How an attempt ends, for the fence. Raises `ValueRefused` as `check_ending`."""
    check_ending(ending)
    return {
        "closes": "failed" if ending.state == "retry" else ending.state,
        "reason": storable(ending.reason),
        "traceback": storable(ending.traceback),
    }


def ending_row(ending: Ending) -> dict[str, Any]:
    """How a trial ends, for a statement. Raises `ValueRefused` as `check_ending`."""
    check_ending(ending)
    return {
        "token": ending.lease.token,
        "state": ending.state,
        "value": None if ending.value is None else float(ending.value),
        "reason": storable(ending.reason),
        "traceback": storable(ending.traceback),
    }


def reading_rows(endings: Iterable[Ending]) -> list[dict[str, Any]]:
    """Readings of the test set for a statement. Raises `ValueRefused` for a number that is not finite."""
    return [
        {
            "token": ending.lease.token,
            "study_name": read.study_name,
            "trial_id": read.trial_id,
            "trial_number": read.trial_number,
            "config": json.loads(json_text(dict(read.config))),
            "seed": read.seed,
            "metrics": {
                name: finite(value, f"{name} on the test set") for name, value in read.metrics.items()
            },
            "validation": {name: finite(value, name) for name, value in read.validation.items()},
            "epochs": int(read.epochs),
            "images": int(read.images),
            "seconds": finite(read.seconds, "the seconds of a reading"),
        }
        for ending in endings
        if (read := ending.reading) is not None
    ]


def check_ending(ending: Ending) -> None:
    """Raises `ValueRefused` for a complete trial without a finite value, or a failure without a reason."""
    if ending.reading is not None and ending.state != "complete":
        raise ValueRefused("only a complete trial reads the test set")
    if ending.state == "complete":
        if ending.value is None:
            raise ValueRefused("a complete trial has a value")
        finite(ending.value, "the value of a trial")
    elif ending.state in ("failed", "retry") and not ending.reason:
        raise ValueRefused(f"a trial that ends as {ending.state} has a reason")
