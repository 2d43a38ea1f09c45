"""Names, seeds and files of generations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search.experiment.spec import NAME, load_spec
from search.schedules.naming import LONGEST_NAME, experiment_of, file_of, seed_of
from tests.contracts.experiments import small_spec

EXAMPLES = sorted((Path(__file__).parents[3] / "search" / "examples").glob("*.yaml"))


def test_each_generation_has_a_name_and_a_seed_of_its_own() -> None:
    spec = small_spec().to_json()
    files = [file_of("nightly", "new", generation, spec) for generation in range(1, 101)]
    assert files[0]["experiment"] == "nightly.g1"
    assert len({file["experiment"] for file in files}) == 100
    assert len({file["seed"] for file in files}) == 100
    assert all(0 <= file["seed"] < 2**32 for file in files)


def test_a_seed_is_the_same_everywhere_and_for_good() -> None:
    assert seed_of("nightly", 1, 0) == 0x88448E63
    assert len({seed_of("a", 1, 0), seed_of("b", 1, 0), seed_of("a", 2, 0), seed_of("a", 1, 1)}) == 4


def test_going_on_changes_neither_name_nor_seed() -> None:
    spec = small_spec(seed=5).to_json()
    file = file_of("another-name", "continue", 3, spec)
    assert (file["experiment"], file["seed"]) == ("small", 5)


def test_the_longest_name_leaves_room_for_generations() -> None:
    assert NAME.fullmatch(experiment_of("n" * LONGEST_NAME, "new", 999_999, {}))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_firing_runs_what_the_file_said(path: Path, tmp_path: Path) -> None:
    """The stored spec, written out as a file, is read as the same experiment."""
    spec = load_spec(path)
    written = tmp_path / "g.yaml"
    written.write_text(json.dumps(file_of("nightly", "new", 2, spec.to_json())), encoding="utf-8")
    again = load_spec(written)
    changed = {"experiment": "nightly.g2", "seed": seed_of("nightly", 2, spec.seed)}
    assert again == spec.model_copy(update=changed)
