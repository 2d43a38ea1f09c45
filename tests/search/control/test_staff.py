"""The books of a crew: who waits for room, who died where, who is hired for what nobody took."""

from __future__ import annotations

import pytest

from search.control.crew import Departure
from search.control.events import Event, Trouble
from search.control.staff import Staff
from search.control.supervision import MAX_DEATHS, NODE_SECONDS, PENDING_SECONDS


class Crew:
    """Workers that wait, leave and die as the test says."""

    size = 3

    def __init__(self) -> None:
        self.hired: list[str] = []
        self.waiting: set[str] = set()
        self.leaving: list[Departure] = []
        self.lost: set[str] = set()
        self.asked_for_nodes = 0

    def hire(self, worker: str) -> None:
        self.hired.append(worker)

    def departures(self, timeout: float) -> list[Departure]:
        left, self.leaving = self.leaving, []
        return left

    def pending(self) -> frozenset[str]:
        return frozenset(self.waiting)

    def lost_nodes(self) -> frozenset[str]:
        self.asked_for_nodes += 1
        return frozenset(self.lost)

    def dismiss(self) -> None:
        self.hired.clear()

    def close(self) -> None:
        pass


class Office:
    """A staff, its crew, its clock and what it said."""

    def __init__(self, width: int = 9) -> None:
        self.now = 0.0
        self.crew = Crew()
        self.events: list[Event] = []
        self.staff = Staff(self.crew, "x", width, self.events.append, clock=lambda: self.now)

    def look(self, *left: Departure, seconds: float = 1.0) -> list[Departure]:
        self.crew.leaving = list(left)
        self.now += seconds
        return self.staff.departures(0.0 if not left else 0.001, lambda: True)


@pytest.fixture
def office() -> Office:
    made = Office()
    made.staff.hire(made.staff.target)
    return made


def test_no_more_than_there_is_room_or_work_for() -> None:
    assert Office(width=2).staff.target == 2
    assert Office(width=9).staff.target == 3


def test_who_left_is_no_longer_there(office: Office) -> None:
    first, second, third = office.crew.hired
    assert office.look(Departure(second, "idle")) == [Departure(second, "idle")]
    assert office.staff.names == {first, third}
    office.staff.hire(1)
    assert len({first, second, third, *office.staff.names}) == 4, "names are not used again"


def test_those_that_wait_for_room_are_not_at_work(office: Office) -> None:
    office.crew.waiting = set(office.crew.hired)
    office.look()
    assert not office.staff.at_work
    for _ in range(3):
        office.look(seconds=PENDING_SECONDS)
    assert office.events == [Trouble("3 of 3 workers wait for room on the cluster")], "said once"
    office.crew.waiting.clear()
    office.look()
    assert office.staff.at_work
    office.crew.waiting = {office.crew.hired[0]}
    office.look()
    office.look(seconds=PENDING_SECONDS)
    assert office.events[1:] == [Trouble("1 of 3 workers wait for room on the cluster")]


def test_hired_for_what_two_looks_saw_open(office: Office) -> None:
    for worker in list(office.crew.hired):
        office.look(Departure(worker, "idle"))
    office.staff.hire_for(2)
    assert len(office.staff.names) == 0
    office.staff.hire_for(5)
    assert len(office.staff.names) == 2
    office.staff.hire_for(5)
    assert len(office.staff.names) == 3


def test_machines_that_vanish_are_not_held_against_the_run(office: Office) -> None:
    for number in range(2 * MAX_DEATHS):
        office.staff.bury([Departure("w", None, "its process died", node=f"n{number}")])
        office.now += NODE_SECONDS / 2
        assert office.staff.deaths() < MAX_DEATHS
        office.crew.lost.add(f"n{number}")
    office.now += NODE_SECONDS
    assert office.staff.deaths() == 0


def test_workers_that_die_on_machines_that_live_are(office: Office) -> None:
    for _ in range(MAX_DEATHS):
        office.staff.bury([Departure("w", None, "it is broken", node="n")])
    assert office.staff.deaths() == 0
    office.now += NODE_SECONDS
    assert office.staff.deaths() == MAX_DEATHS
    assert office.staff.last_death == "it is broken"
    office.staff.note_progress()
    assert office.staff.deaths() == 0


def test_on_one_machine_nobody_is_asked_about_machines(office: Office) -> None:
    office.staff.bury([Departure("w", None, "killed")])
    office.staff.bury([Departure("v", "stopped"), Departure("u", "idle")])
    office.staff.note_in_vain()
    assert (office.staff.deaths(), office.crew.asked_for_nodes) == (2, 0)
    assert [event for event in office.events if isinstance(event, Trouble)] == [
        Trouble("worker w died: killed")
    ]


def test_dismissed_all_are_gone(office: Office) -> None:
    names = sorted(office.crew.hired)
    assert list(office.staff.dismiss()) == names
    assert (office.staff.names, office.staff.at_work) == (set(), False)
