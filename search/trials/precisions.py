"""In which precision an experiment's trials are computed: the first worker on a kind of device decides.

A precision shows in every curve, so that trials of one experiment on one kind of device have the same,
whoever trains them, before and after a resume. It is kept with the choices of programs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from search.failures import bad_input
from storage.errors import ExperimentNotFound
from storage.experiments import Experiments
from storage.programs import PRECISION, Programs

if TYPE_CHECKING:
    from objectives.base import Precision
    from objectives.choices import Choices
    from storage.database import Database

ANY_BATCH = 1


def check_precision(database: Database, experiment: str, asked: str) -> None:
    """Refuse at once, in a command, what every worker of the experiment would refuse, as far as is known.

    Raises `CommandError`.
    """
    if asked == "auto":
        return
    try:
        found = Experiments(database).get(experiment)
    except ExperimentNotFound:
        return
    held = Programs(database).precisions(found.id)
    if held and asked not in held.values():
        on = "; ".join(f"{precision} on {device}" for device, precision in sorted(held.items()))
        raise bad_input(
            f"trials of {experiment} are computed in {on}: none of them in {asked}",
            next="leave out --precision, or give the experiment another name",
        )


def check_device(device: str, precision: str) -> None:
    """Refuse at once what no worker of this machine could do: train on a GPU that isn't there, or in TF32.

    Where workers find it out, each of them dies of it and the experiment has failed. Raises `CommandError`.
    """
    if device in {"auto", "cpu"} and precision != "tf32":
        return  # without the seconds that importing torch takes
    from objectives.base import ObjectiveError
    from objectives.devices import resolve_device
    from objectives.precision import resolve_precision

    try:
        resolve_precision(precision, resolve_device(device))
    except ObjectiveError as error:
        raise bad_input(str(error), next="shoal doctor shows what this machine has") from error


def other_precision(database: Database, experiment_id: int, device: str, asked: str) -> str | None:
    """In what an experiment's trials are computed on such a device, where that is not what is asked for.

    None where it is, where nobody has decided yet, and of a device that is not there.
    """
    if asked == "auto":
        return None
    from objectives.base import ObjectiveError
    from objectives.devices import kind_of_device, resolve_device

    try:
        kind = kind_of_device(resolve_device(device))
    except ObjectiveError:
        return None
    held = Programs(database).precisions(experiment_id).get(kind)
    return None if held == asked else held


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
