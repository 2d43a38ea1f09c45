"""What random search of another length would have found, from one sample of random trials.

Only for independent draws from the space: random search's trials. TPE's, GP's and a grid's trials
depend on each other, and these formulas say nothing about them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from search.compare.base import Direction
from search.compare.statistics.base import FloatArray, finite, larger_is_better


def expected_best(values_N: ArrayLike, direction: Direction, *, unbiased: bool = True) -> FloatArray:
    """E[best of n] for n = 1 … N from N random trials' values: element n − 1.

    Unbiased (Tang et al. 2020; n trials drawn without replacement), with y_(i) sorted from the worst:

        E_n = Σ_i y_(i) · C(i − 1, n − 1) / C(N, n)

    so E_1 is the mean and E_N the best value. Otherwise the plug-in form of Dodge et al. (2019),
    drawn with replacement, which is too low for n near N:

        E_n = Σ_i y_(i) · ((i / N)ⁿ − ((i − 1) / N)ⁿ)
    """
    y = np.sort(larger_is_better(finite(values_N, "values"), direction))
    i = np.arange(1, y.size + 1)
    # In logarithms: C(2000, 1000) is more than a float holds.
    log_factorial = special.gammaln(np.arange(y.size + 2) + 1.0)
    best = np.empty(y.size)
    for n in range(1, y.size + 1):
        if unbiased:
            possible = i[n - 1 :]  # the best of n different trials is at least the n-th from the worst
            log_chance = log_factorial[possible - 1] - log_factorial[n - 1] - log_factorial[possible - n]
            chance = np.exp(log_chance - log_factorial[y.size] + log_factorial[n] + log_factorial[y.size - n])
            # Rounding in the logarithms would move a sample of equal values.
            best[n - 1] = y[n - 1 :] @ (chance / chance.sum())
        else:
            best[n - 1] = y @ ((i / y.size) ** n - ((i - 1) / y.size) ** n)
    return larger_is_better(best, direction)


def coverage(trials: int, fraction: float) -> float:
    """The chance that n random trials include one of the best `fraction` of the space: 1 − (1 − q)ⁿ."""
    if trials < 0 or not 0 < fraction < 1:
        raise ValueError(f"{trials} trials and a fraction {fraction}: none below 0, and between 0 and 1.")
    return -math.expm1(trials * math.log1p(-fraction))
