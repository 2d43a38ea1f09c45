"""Images are split, counted and kept apart from the test set; what makes no sense is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from objectives import datasets
from objectives.base import DataSpec, ObjectiveError
from objectives.datasets import DATASETS, describe, load, load_test, problems_of_data
from objectives.sources import DataError, Source
from objectives.splits import hold_out, subset

pytestmark = pytest.mark.usefixtures("forget_data")

CPU = torch.device("cpu")
DIGITS = DataSpec(name="digits")


# Digits


def test_digits_are_split_by_class() -> None:
    data = load(DIGITS, 1, CPU)
    assert data.images.shape == (1438, 1, 8, 8)
    assert data.images.dtype == torch.uint8
    assert (len(data.training_indices), len(data.validation_indices)) == (1150, 288)
    assert data.input_shape == (1, 8, 8)
    counts = torch.bincount(data.labels[data.validation_indices])
    assert counts.min() >= 27
    assert counts.max() <= 30
    assert data.class_counts == tuple(torch.bincount(data.labels[data.training_indices]).tolist())


@pytest.mark.parametrize("seed", [0, 1, 2**62 + 3])
def test_training_and_validation_share_nothing(seed: int) -> None:
    data = load(DIGITS, seed, CPU)
    both = torch.cat([data.training_indices, data.validation_indices])
    assert torch.equal(both.sort().values, torch.arange(1438))


def test_the_split_depends_on_its_seed_alone(forget_data: Callable[[], None]) -> None:
    first = load(DIGITS, 1, CPU)
    forget_data()
    torch.manual_seed(5)
    again, other = load(DIGITS, 1, CPU), load(DIGITS, 2, CPU)
    assert torch.equal(first.validation_indices, again.validation_indices)
    assert not torch.equal(first.validation_indices, other.validation_indices)


def test_images_are_kept_once_for_all_splits() -> None:
    one, two = load(DIGITS, 1, CPU), load(replace(DIGITS, validation=0.3), 2, CPU)
    assert one is load(DIGITS, 1, CPU)
    assert one.images.data_ptr() == two.images.data_ptr()


def test_normalised_training_images_have_mean_0_and_deviation_1() -> None:
    data = load(DIGITS, 1, CPU)
    pixels_BCHW = data.normalise(data.images[data.training_indices])
    assert pixels_BCHW.dtype == torch.float32
    assert pixels_BCHW.double().mean().item() == pytest.approx(0, abs=1e-5)
    assert pixels_BCHW.double().std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert data.images.dtype == torch.uint8


def test_a_limit_is_the_same_stratified_subset_for_every_split() -> None:
    one, two = (load(replace(DIGITS, limit=200), seed, CPU) for seed in (1, 2))
    assert torch.equal(one.images, two.images)
    assert len(one.images) == 200
    assert torch.bincount(one.labels).tolist() == pytest.approx([20] * 10, abs=1)
    assert len(load(replace(DIGITS, limit=10**6), 1, CPU).images) == 1438


def test_images_are_resized_on_request() -> None:
    data = load(replace(DIGITS, image_size=16), 1, CPU)
    assert data.input_shape == (1, 16, 16)
    assert data.images.float().mean().item() == pytest.approx(
        load(DIGITS, 1, CPU).images.float().mean().item(), rel=0.02
    )
    assert load_test(replace(DIGITS, image_size=16), CPU).images.shape[-2:] == (16, 16)


# The sealed test set


def test_the_test_set_of_digits_is_fixed_and_disjoint() -> None:
    test, again = load_test(DIGITS, CPU), load_test(replace(DIGITS, validation=0.4, limit=300), CPU)
    assert len(test.images) == 359
    assert torch.equal(test.images, again.images)
    assert torch.bincount(test.labels).min() >= 34
    searched = {image.numpy().tobytes() for image in load(DIGITS, 1, CPU).images}
    assert len(searched) == 1438
    assert not searched & {image.numpy().tobytes() for image in test.images}


def test_searching_asks_no_source_for_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every function but `load_test` works on a source that refuses to hand out its test part."""

    class Sealed:
        def __init__(self, source: Source) -> None:
            self._source = source

        def __getattr__(self, name: str) -> Callable[..., object]:
            def guarded(spec: DataSpec, part: str = "search") -> object:
                assert part == "search", "the test part was asked for"
                return getattr(self._source, name)(*((spec, part) if name != "summary" else (spec,)))

            return guarded

    monkeypatch.setattr(datasets, "DATASETS", {"digits": Sealed(DATASETS["digits"])})
    assert problems_of_data(DIGITS, batch_sizes=[32]) == []
    describe(DIGITS)
    load(DIGITS, 1, CPU)
    with pytest.raises(AssertionError, match="was asked for"):
        load_test(DIGITS, CPU)


# Problems


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"name": "mnits"}, "data.name"),
        ({"validation": 0.0}, "data.validation"),
        ({"validation": 1.0}, "data.validation"),
        ({"validation": 0.999}, "data.validation"),
        ({"limit": 0}, "data.limit"),
        ({"limit": 15}, "data.limit"),
        ({"limit": 1433}, "data.limit"),
        ({"image_size": 0}, "data.image_size"),
    ],
)
def test_numbers_that_make_no_sense_are_problems(change: dict[str, object], key: str) -> None:
    (problem,) = problems_of_data(replace(DIGITS, **change))
    assert problem.key == key
    assert problem.remedy


def test_all_problems_are_listed_at_once() -> None:
    spec = DataSpec(name="image_folder", validation=2, limit=-1)
    assert [problem.key for problem in problems_of_data(spec)] == [
        *("data.validation", "data.limit", "data.image_size", "data.root"),
    ]


def test_an_unknown_name_gets_the_nearest_one() -> None:
    (problem,) = problems_of_data(DataSpec(name="mnits"))
    assert "'mnist'" in problem.remedy
    with pytest.raises(DataError, match=r"data\.name"):
        describe(DataSpec(name="mnits"))


def test_batches_larger_than_the_data_are_problems() -> None:
    problems = problems_of_data(DIGITS, batch_sizes=[32, 2000, 1150, 1151])
    assert [problem.message.split()[0] for problem in problems] == ["1151", "2000"]
    assert all("1150" in problem.remedy for problem in problems)


@pytest.mark.parametrize("limit", [None, 20, 57, 500, 1428, 2000])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.333, 0.5])
def test_what_is_described_is_what_is_loaded(limit: int | None, share: float) -> None:
    spec = replace(DIGITS, limit=limit, validation=share)
    assert problems_of_data(spec) == []
    data, summary = load(spec, 1, CPU), describe(spec)
    assert summary.non_test_images == len(data.images)
    assert summary.train_images == len(data.training_indices)
    assert summary.validation_images == len(data.validation_indices)


# Splits


def test_a_class_of_one_image_can_not_be_on_both_sides() -> None:
    labels = np.array([0] * 20 + [1] * 20 + [2])
    with pytest.raises(ObjectiveError, match="can't be split"):
        hold_out(labels, 0.2, 1)


def test_a_subset_keeps_the_shares_of_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    assert np.bincount(labels[subset(labels, 100)]).tolist() == [60, 30, 10]
    assert subset(labels, 1000).tolist() == list(range(1000))
