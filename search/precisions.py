"""In which precision an experiment's trials are computed: the first worker on a kind of device decides.

A precision shows in every curve, so that trials of one experiment on one kind of device have the same,
whoever trains them, before and after a resume. It is kept with the choices of programs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.programs import PRECISION

if TYPE_CHECKING:
    from objectives.base import Precision
    from objectives.choices import Choices

ANY_BATCH = 1


def held_precision(choices: Choices | None, device: str, asked: str = "auto") -> Precision:
    """What trials on this device are computed in; what is asked for, if nobody has asked before.

    `auto` takes what holds, and else its default. Raises `ObjectiveError` where another precision holds than
    was asked for, or it isn't to be had on the device, and `ChoicesError`.
    """
    # Late: commands that only look at experiments do without torch.
    from objectives.base import ObjectiveError
    from objectives.choices import ProgramChoice, ProgramKey
    from objectives.devices import kind_of_device, resolve_device
    from objectives.precision import resolve_precision

    place = resolve_device(device)
    wanted = resolve_precision(asked, place)
    if choices is None:
        return wanted
    key = ProgramKey(PRECISION, ANY_BATCH, kind_of_device(place))
    # No put where something holds already: workers that only come back write nothing.
    held = choices.get(key) or choices.put(key, ProgramChoice(fused=False, reason=wanted))
    found = resolve_precision(held.reason or "auto", place)
    if asked != "auto" and found != wanted:
        raise ObjectiveError(
            f"trials of this experiment on {key.device} are computed in {found}, as the first were; leave "
            f"out --precision, or begin another experiment for {wanted}"
        )
    return found
