"""A Gaussian process within the range where it is worth its cost, and TPE beyond.

Optuna's process is fitted anew to all complete trials at every question: 0.2 s of CPU at 100 of
them, 0.5 s at 300, 5 s at 1,000. Smooth models show their worth early; with hundreds of trials TPE
has enough to go by and costs milliseconds. So a study goes on with TPE from a given number of
complete trials on. Which of the two is asked depends on that number alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna.samplers import BaseSampler, GPSampler

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from search.sampling.tpe import FastTpeSampler


class GpThenTpeSampler(BaseSampler):
    """`gp` until a study has `model_trials` complete trials, `tpe` from then on.

    For one trial: from `infer_relative_search_space` on its joint draw stays with one of the two,
    even if other trials complete meanwhile. The process sees complete and running trials, as
    Optuna's does; pruned ones count for nothing with it, and TPE takes them up.
    """

    def __init__(self, gp: GPSampler, tpe: FastTpeSampler, model_trials: int) -> None:
        self._gp = gp
        self._tpe = tpe
        self._model_trials = model_trials
        self._joint: BaseSampler | None = None

    def _who(self, study: Study) -> BaseSampler:
        return self._gp if self._tpe.complete_trials(study) < self._model_trials else self._tpe

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The dimensions that are drawn together."""
        self._joint = self._who(study)
        return self._joint.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values of the dimensions in `search_space`, drawn together."""
        joint = self._who(study) if self._joint is None else self._joint
        return joint.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """One value on its own: the process draws it at random, TPE models it."""
        return self._who(study).sample_independent(study, trial, param_name, param_distribution)
