"""Every kind of bad experiment file is refused with exit 2, all its problems at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search.cli import run_command
from tests.contracts.shoal_command import Shoal, tiny

GOOD = tiny("tiny")

BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 8)}]"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

STRAY = "space:\n  optimizer.momentum: {low: 0.1, high: 0.9, grid: [0.5], when: {optimiser: [momentum]}}"

OPTIMIZER = "  optimizer: {values: [momentum, adam], grid: [momentum, adam]}"

CHANGED = {
    "unknown key": ("seed: 3", "sed: 3", ["sed", "`seed`"]),
    "wrong type": ("seed: 3", "seed: lots", ["seed", "lots"]),
    "low above high": ("low: 1e-3", "low: 0.9", ["learning_rate", "above"]),
    "log from zero": ("low: 1e-3", "low: 0", ["learning_rate", "log"]),
    "grid without points": (
        f", grid: [1e-2, 1e-1]}}\n{OPTIMIZER}\nmethods: {{grid: {{}}",
        f"}}\n{OPTIMIZER}\nmethods: {{grid: {{levels: given}}",
        ["learning_rate", "grid"],
    ),
    "grid larger than budget": ("trials: 4", "trials: 3", ["grid", "3"]),
    "unknown loss": ("epochs: 3", "epochs: 3, loss: hinj", ["hinj", "hinge"]),
    "unknown optimizer": ("adam]}", "adams]}", ["adams", "adam"]),
    "unknown dataset": ("name: digits", "name: digitz", ["digitz", "digits"]),
    "batch larger than the data": ("epochs: 3", "epochs: 3, batch_size: 5000", ["batch_size", "5000"]),
    "condition on nothing": ("space:", STRAY, ["optimizer.momentum", "optimiser"]),
    "empty name": ("experiment: tiny", 'experiment: ""', ["experiment"]),
    "long name": ("experiment: tiny", f"experiment: {'x' * 600}", ["experiment", "600"]),
    "path as name": ("experiment: tiny", "experiment: ../../etc", ["experiment", "../../etc"]),
    "missing data": ("name: digits, limit: 300", "name: mnist, root: nowhere", ["data", "nowhere"]),
    "pair of no methods": (
        "replicates: 2",
        "replicates: 2\ncomparison: {pairs: [[tpe, gird]], alfa: 0.1}",
        ["comparison.alfa", "`alpha`"],
    ),
    "neither data nor objective": ("data: {name: digits, limit: 300}\n", "", ["data", "objective"]),
    "function that may not be imported": (
        "data: {name: digits, limit: 300}\nmodel: {name: cnn, depth: 1, width: 4, dense: 8}",
        "objective: {function: 'os:getcwd', direction: minimize, worst: 1}\nmetric: loss",
        ["objective.function", "allow_imports: [os]"],
    ),
    "duplicate key": ("seed: 3", "seed: 3\nseed: 4", ["seed"]),
}
"""What is wrong → what of a good file is replaced by what, and words that must be said."""

WHOLE = {
    "yaml bomb": (BOMB, ["anchors"]),
    "no yaml": ("experiment: [", ["line"]),
    "nothing": ("", ["experiment"]),
    "a list": ("- experiment", ["mapping"]),
}


@pytest.mark.parametrize("name", [*CHANGED, *WHOLE])
def test_bad_files_are_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name in CHANGED:
        old, new, said = CHANGED[name]
        text = tiny("tiny", (old, new))
    else:
        text, said = WHOLE[name]
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    assert run_command(["plan", str(file), "--no-measure"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    for words in said:
        assert words.lower() in printed.err.lower()
    assert len(printed.err) < 20_000


def test_the_good_file_is_good(tmp_path: Path) -> None:
    file = tmp_path / "good.yaml"
    file.write_text(GOOD, encoding="utf-8")
    assert run_command(["plan", str(file), "--no-measure"]) == 0


@pytest.mark.slow
def test_all_problems_are_listed_at_once_and_nothing_is_stored(shoal: Shoal) -> None:
    text = tiny(
        "tiny",
        ("seed: 3", "sed: 3"),
        ("low: 1e-3", "low: 0.9"),
        ("adam]}", "adams]}"),
        ("epochs: 3", "epochs: -3"),
        ("replicates: 2", "replicates: 0"),
    )
    done = shoal("run", shoal.write("bad.yaml", text), "--in-process", "--json", code=2)
    error = json.loads(done.stdout)["error"]
    places = " ".join(problem["place"] for problem in error["problems"])
    for place in ("sed", "learning_rate", "optimizer", "epochs", "replicates"):
        assert place in places
    for problem in error["problems"]:
        assert problem["message"] in done.stderr
    assert json.loads(shoal("status", "--json").stdout)["experiments"] == []


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_file_that_is_not_there(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([command, "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err
