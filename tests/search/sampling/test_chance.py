"""Values that are functions of names: spread as Optuna's random sampler spreads them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase

from search.sampling.chance import NamedRandomSampler, spread, unit

KINDS: list[BaseDistribution] = [
    FloatDistribution(-1.0, 3.0),
    FloatDistribution(1e-7, 10.0, log=True),
    FloatDistribution(-10.2, 10.2, step=0.1),
    FloatDistribution(0.5, 0.5),
    IntDistribution(-10, 10),
    IntDistribution(-10, 10, step=4),
    IntDistribution(1, 100, log=True),
    IntDistribution(7, 7),
]

ALMOST_ONE = math.nextafter(1.0, 0.0)


class TestNamedRandom(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: NamedRandomSampler(0)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(share=st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 0.5, ALMOST_ONE])))
def test_optunas_sampler_gives_the_same_value_for_the_same_share(
    kind: BaseDistribution, share: float
) -> None:
    space = _SearchSpaceTransform({"x": kind})
    low, high = space.bounds[:, 0], space.bounds[:, 1]
    optunas = space.untransform(low + share * (high - low))["x"]
    ours = spread(share, kind)
    assert ours == optunas or (isinstance(ours, float) and math.isclose(ours, optunas, rel_tol=1e-12))
    assert type(ours) is type(kind.to_external_repr(kind.to_internal_repr(optunas)))
    assert kind._contains(kind.to_internal_repr(ours))


@given(share=st.floats(0, 1, exclude_max=True), count=st.integers(1, 9))
def test_choices_have_equal_shares(share: float, count: int) -> None:
    kind = CategoricalDistribution([f"c{number}" for number in range(count)])
    chosen = kind.choices.index(spread(share, kind))
    assert chosen <= share * count < chosen + 1 + 1e-12


@pytest.mark.parametrize(
    "kind", [CategoricalDistribution("abcd"), IntDistribution(1, 4), FloatDistribution(1, 4, step=1.0)]
)
def test_every_value_is_equally_likely(kind: BaseDistribution) -> None:
    """4,000 draws of the numbers 0, 1, …: each of four values 1,000 ± 5 standard deviations."""
    found = Counter(spread(unit(7, 0, number, "x"), kind) for number in range(4000))
    assert len(found) == 4
    assert all(abs(count - 1000) < 5 * math.sqrt(4000 * 0.25 * 0.75) for count in found.values()), found


def test_shares_are_uniform_and_belong_to_all_their_parts() -> None:
    shares = np.array([unit(7, 0, number, "x") for number in range(4000)])
    assert np.all((shares >= 0) & (shares < 1))
    heights = np.histogram(shares, bins=20, range=(0, 1))[0]
    chi_square = float(((heights - 200) ** 2 / 200).sum())
    assert chi_square < 49.6, "0.9999 of chi-square with 19 degrees of freedom"
    others = np.array([unit(7, 0, number, "y") for number in range(4000)])
    assert abs(np.corrcoef(shares, others)[0, 1]) < 5 / math.sqrt(4000)
    assert len({unit(7, 0, 1, "x"), unit(8, 0, 1, "x"), unit(7, 1, 1, "x"), unit(7, 0, 2, "x")}) == 4


def test_the_largest_share_is_below_one() -> None:
    """Else a draw in 2^53 would lie beyond the last choice."""
    assert spread(ALMOST_ONE, CategoricalDistribution("ab")) == "b"
    highest = math.ldexp((2**63 - 1) >> 10, -53)
    assert highest == ALMOST_ONE


def test_an_order_of_asking_changes_nothing() -> None:
    sampler = NamedRandomSampler(7, 0)
    study = optuna.create_study(sampler=sampler)
    kinds = {"x": FloatDistribution(0, 1), "y": IntDistribution(0, 9)}
    forth = study.ask(kinds).params
    trial = study.trials[0]
    back = {name: sampler.sample_independent(study, trial, name, kinds[name]) for name in ("y", "x")}
    assert back == forth
