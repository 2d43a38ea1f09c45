"""What so many replicates can show, before the run: the promise that `shoal plan` prints.

Noether's (1987) formula in the form of Bouthillier et al. (2021): a rank test with R replicates
per method finds P(A > B) = γ with the wanted power if

    R ≥ ((z_{1−α} + z_{power}) / (√6 (γ − ½)))²

with α/2 in place of α for a two-sided test. (One-sided α = 0.05 and power 0.95 give R = 29 for
γ = 0.75, 46 for 0.70, 81 for 0.65, 181 for 0.60.) It was made for Mann and Whitney's test of
independent arms. For paired arms, with γ = P(d > 0), it holds for the signed-rank test too: for
normal differences both have the same efficiency to first order.

At 10 to 15 replicates the formula can ask for more than certainty. There another bound, which is exact
and needs no distribution, promises more: if A wins in all R replicates, the test gives 2 / 2^R, and
that happens with the chance γ^R. So where 2 / 2^R is small enough, γ = power^(1/R) is found with the
power. The promise is the smaller of both.

In points: normal differences with standard deviation s have P(d > 0) = Φ(δ / s), so δ = s Φ⁻¹(γ).

With several declared pairs α is divided by their number: Holm's first step, so the promise holds
whatever the other pairs turn out to be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import special, stats

from search.compare.statistics.base import number
from search.evidence import REPLICATES_FOR_A_CLAIM

ALPHA = 0.05
POWER = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What the replicates can detect; None: no difference whatever."""

    replicates: int
    alpha: float
    power: float
    pairs: int
    superiority: float | None
    """The P(A > B) that is found with the stated power, or more surely if larger."""
    sd: float | None
    """The standard deviation of paired differences that was assumed."""
    difference: float | None
    """The mean difference that is found, in the unit of `sd`; None without one."""

    @property
    def text(self) -> str:
        """One sentence for a reader of the plan."""
        if self.replicates < REPLICATES_FOR_A_CLAIM:
            return (
                f"{self.replicates} replicates are too few for a claim: {REPLICATES_FOR_A_CLAIM} are needed."
            )
        pairs = "1 pair" if self.pairs == 1 else f"{self.pairs} pairs"
        tested = f"power {self.power:g} at two-sided alpha {self.alpha:g} over {pairs}"
        if self.superiority is None:
            return f"{self.replicates} replicates find no difference, however large, with {tested}."
        found = f"P(A > B) = {self.superiority:.2f}"
        if self.difference is not None:
            found += (
                f" (a mean difference of {self.difference:.3g} if paired differences have sd {self.sd:.3g})"
            )
        return f"{self.replicates} replicates find {found} or more with {tested}."


def promise(
    replicates: int,
    *,
    alpha: float = ALPHA,
    power: float = POWER,
    pairs: int = 1,
    sd: float | None = None,
) -> Promise:
    """What R replicates detect in a two-sided test at alpha, corrected for the declared pairs.

    Nothing with fewer than `REPLICATES_FOR_A_CLAIM` replicates, and where the smallest p that R
    differences can have is above alpha / pairs.
    """
    _check(alpha, power, pairs)
    found: float | None = None
    if replicates >= REPLICATES_FOR_A_CLAIM and smallest_p_value(replicates) <= alpha / pairs:
        by_noether = detectable_superiority(replicates, alpha=alpha / pairs, power=power)
        found = min(by_noether, power ** (1 / replicates))
    difference = None if found is None or sd is None else sd * number(special.ndtri(found))
    return Promise(
        replicates=replicates,
        alpha=alpha,
        power=power,
        pairs=pairs,
        superiority=found,
        sd=sd,
        difference=difference,
    )


def smallest_p_value(replicates: int) -> float:
    """The smallest two-sided p of a signed-rank test: all differences on one side, 2 / 2^R."""
    return min(1.0, 2.0 ** (1 - replicates))


def detectable_superiority(
    replicates: int, *, alpha: float = ALPHA, power: float = POWER, two_sided: bool = True
) -> float:
    """γ = ½ + (z_{1−α} + z_{power}) / √(6 R), from Noether's formula; 1 or more: can't be detected."""
    _check(alpha, power, 1)
    if replicates < 1:
        raise ValueError(f"At least one replicate is needed, not {replicates}.")
    return 0.5 + _quantiles(alpha, power, two_sided) / math.sqrt(6 * replicates)


def replicates_needed(
    superiority: float,
    *,
    alpha: float = ALPHA,
    power: float = POWER,
    pairs: int = 1,
    two_sided: bool = True,
) -> int:
    """The smallest R that finds P(A > B) = γ by Noether's formula, and never fewer than a claim takes.

    Also enough for the signed-rank test to reach alpha / pairs at all. γ below ½ counts as 1 − γ.
    Raises ValueError for γ = ½, which no number of replicates can tell from itself.
    """
    _check(alpha, power, pairs)
    if not 0 <= superiority <= 1:
        raise ValueError(f"P(A > B) lies between 0 and 1, not at {superiority}.")
    away = abs(superiority - 0.5)
    if away == 0:
        raise ValueError("P(A > B) = 0.5 is no difference.")
    ratio = _quantiles(alpha / pairs, power, two_sided) / away
    reachable = math.ceil(1 - math.log2(alpha / pairs))
    return max(math.ceil(ratio**2 / 6 - 1e-9), reachable, REPLICATES_FOR_A_CLAIM)


def _quantiles(alpha: float, power: float, two_sided: bool) -> float:
    return number(stats.norm.ppf(1 - alpha / (2 if two_sided else 1)) + stats.norm.ppf(power))


def _check(alpha: float, power: float, pairs: int) -> None:
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha lies between 0 and 0.5, not at {alpha}.")
    if not 0.5 <= power < 1:
        raise ValueError(f"Power lies between 0.5 and 1, not at {power}.")
    if pairs < 1:
        raise ValueError(f"At least one pair is tested, not {pairs}.")
