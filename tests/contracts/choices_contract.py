"""What every `Choices` keeps: inherit `ChoicesContract` and give it a `choices` fixture.

What the engine does with them is tested with the one in memory.
"""

from __future__ import annotations

import dataclasses

import pytest

from objectives.choices import ANY_BATCH, CONVOLUTIONS, Choices, ProgramChoice, ProgramKey

KEY = ProgramKey('["cnn", [["width", 8]], [1, 8, 8], 10]', 32, "a processor")
OTHERS = [
    dataclasses.replace(KEY, program='["resnet", [], [1, 8, 8], 10]'),
    dataclasses.replace(KEY, batch=64),
    dataclasses.replace(KEY, device="another processor"),
]
FUSED = ProgramChoice(True, None, 9000.5, 4000.25)
ALONE = ProgramChoice(False, "fusing gains 0.90×", 3600.0, 4000.0)


class ChoicesContract:
    @pytest.fixture
    def choices(self) -> Choices:
        raise NotImplementedError

    def test_nothing_is_chosen_before_somebody_chooses(self, choices: Choices) -> None:
        assert choices.get(KEY) is None

    def test_what_is_put_is_there(self, choices: Choices) -> None:
        assert choices.put(KEY, ALONE) == ALONE
        assert choices.get(KEY) == ALONE

    @pytest.mark.parametrize("other", OTHERS)
    def test_a_choice_is_for_its_key_alone(self, choices: Choices, other: ProgramKey) -> None:
        choices.put(KEY, FUSED)
        assert choices.get(other) is None
        assert choices.put(other, ALONE) == ALONE
        assert choices.get(KEY) == FUSED

    def test_the_first_decides(self, choices: Choices) -> None:
        choices.put(KEY, FUSED)
        assert choices.put(KEY, ALONE) == FUSED
        assert choices.get(KEY) == FUSED

    def test_of_slots_and_rows_the_fewest_hold(self, choices: Choices) -> None:
        choices.put(KEY, FUSED)
        assert choices.put(KEY, dataclasses.replace(FUSED, slots=8)).slots == 8
        held = choices.put(KEY, dataclasses.replace(FUSED, slots=16, rows=4))
        assert (held.slots, held.rows) == (8, 4)
        assert choices.put(KEY, FUSED) == held
        assert choices.get(KEY) == held
        assert held == dataclasses.replace(FUSED, slots=8, rows=4)

    @pytest.mark.parametrize("names", [("grouped", "im2col"), ("hybrid",), ()])
    def test_backends_of_convolutions_are_kept_beside_the_ways(
        self, choices: Choices, names: tuple[str, ...]
    ) -> None:
        key = dataclasses.replace(KEY, program=CONVOLUTIONS + KEY.program, batch=ANY_BATCH)
        choice = ProgramChoice(fused=True, convolutions=names)
        choices.put(KEY, ALONE)
        assert choices.put(key, choice) == choice
        assert choices.put(key, dataclasses.replace(choice, convolutions=("others",))) == choice
        assert choices.get(key) == choice
        assert choices.get(KEY) == ALONE
