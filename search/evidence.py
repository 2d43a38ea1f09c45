"""How much a comparison of methods takes before it may claim anything: the numbers and their words.

The plan says it before an experiment runs, and the report after it.
"""

from __future__ import annotations

REPLICATES_FOR_A_CLAIM = 10
"""With fewer replicates no p-value is given and no method is named better.

The smallest two-sided p of a signed-rank test is 0.0625 at 5 replicates and 0.0156 at 7, and an
interval bootstrapped from fewer than 10 values is too narrow to be printed as evidence. Bouthillier
et al. 2021 ask for about 29.
"""

TRIALS_FOR_A_COMPARISON = 50
"""TPE and GP begin with 10 random trials; studies with fewer trials than this only demonstrate."""


def few_replicates(replicates: int) -> str:
    """What to say of so many replicates of each method; nothing if they are enough."""
    if replicates >= REPLICATES_FOR_A_CLAIM:
        return ""
    return (
        f"too few replicates for a claim: {replicates}, where {REPLICATES_FOR_A_CLAIM} are the least; "
        "no method is named the winner"
    )


def few_trials(trials: int) -> str:
    """What to say of studies of which the smallest has so many trials; nothing if they are enough."""
    if trials >= TRIALS_FOR_A_COMPARISON:
        return ""
    counted = f"{trials} trial{'' if trials == 1 else 's'} per study"
    return f"a demonstration: {counted}, where a comparison takes {TRIALS_FOR_A_COMPARISON} or more"
