"""The whole report on simulated experiments: what it claims, and how often it should have.

Each simulated experiment goes through `analyse`, as a real one does: trials, incumbents, equal budget,
pairs, Holm's correction, words. Bounds are three standard errors of a share of n experiments.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from search.compare.analysis import Analysis, analyse
from search.compare.base import Comparison
from search.compare.statistics.power import promise
from tests.contracts.comparison_values import comparison, study, trial

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
"""About 25 seconds of CPU each; on a busy machine that is minutes."""

RESAMPLES = 100
"""The fewest that rules allow: claims rest on exact tests, which no resampling moves."""


def error(rate: float, n: int) -> float:
    """Three standard errors of a share."""
    return 3 * math.sqrt(rate * (1 - rate) / n)


def finished(values: dict[str, np.ndarray[tuple[int, int], np.dtype[np.float64]]]) -> Comparison:
    """Method → values by replicate and trial; nothing pruned, and trial 0 of every study diverged."""
    studies = [
        study(
            method,
            replicate,
            [
                trial(0, 0.0, diverged=True, epochs=1),
                *(trial(n, float(value), epochs=1) for n, value in enumerate(row, start=1)),
            ],
        )
        for method, rows in values.items()
        for replicate, row in enumerate(rows)
    ]
    return comparison(studies, spec={"pruner": {"name": "none"}})


def consistent(found: Analysis) -> bool:
    """Whether any difference is claimed, after checking that numbers and words agree on it."""
    verdicts = [pair.result.found for pair in found.pairs if pair.declared]
    claims = any(verdicts)
    assert found.conclusion.claims is claims
    assert ("is better than" in found.conclusion.verdict) is claims
    for pair in found.pairs:
        assert ("is better than" in pair.text) is pair.result.found
    return claims


def test_identical_methods_are_told_apart_at_most_at_alpha() -> None:
    """Three methods, three pairs, 10 replicates, n = 500: any claim in at most 5 %, bound 0.079.

    The replicate moves all methods alike, as common splits do, and values are shares of 360 images,
    with many ties.
    """
    n = 500
    rng = np.random.default_rng(31)
    claims = 0
    for _ in range(n):
        ease = rng.normal(0.95, 0.01, size=(10, 1)).clip(0.5, 0.99)
        values = {m: rng.binomial(360, ease, size=(10, 3)) / 360 for m in ("grid", "random", "tpe")}
        claims += consistent(analyse(finished(values), resamples=RESAMPLES))
    assert claims / n <= 0.05 + error(0.05, n)


def test_a_planted_difference_is_found_at_the_power_that_plan_promises() -> None:
    """One pair, 20 replicates, n = 300: found at least at the promised 0.8 (less 0.07), and not above 0.9.

    Noether's formula is cautious by some points at 20 replicates. Winners differ by a normal amount of
    standard deviation 0.01; every study's other trials are worse.
    """
    n, replicates, sd = 300, 20, 0.01
    planted = promise(replicates, power=0.8, sd=sd)
    assert planted.difference is not None
    rng = np.random.default_rng(32)
    found = 0
    for _ in range(n):
        common = rng.normal(0.8, 0.02, size=replicates)
        random = common + rng.normal(0, sd / math.sqrt(2), size=replicates)
        tpe = common + rng.normal(0, sd / math.sqrt(2), size=replicates) + planted.difference
        values = {m: np.stack([best - 0.2, best], axis=1) for m, best in (("random", random), ("tpe", tpe))}
        analysis = analyse(finished(values), resamples=RESAMPLES)
        found += consistent(analysis) and analysis.pairs[0].result.better == "tpe"
    assert 0.8 - error(0.8, n) <= found / n <= 0.9 + error(0.9, n)
