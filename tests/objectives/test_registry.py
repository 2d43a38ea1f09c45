"""The registry: what may be chosen, what each choice takes, and what is said of values that can't be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Interval
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives import registry
from objectives.base import CHOICES, FIELDS, Choice, TrialConfig, TrialError
from objectives.imports import resolve_import
from objectives.losses import resolve_loss
from objectives.optimizers import OPTIMIZERS
from objectives.registry import (
    PLAIN,
    Option,
    keys,
    names,
    option_applies,
    option_of,
    options,
    problem_of_name,
    problem_of_value,
    problems_of,
)

GROUPS = (*CHOICES, "augment", "data", "metric")

ENTRIES = [(group, name) for group in GROUPS for name in names(group)]


def test_importing_the_registry_does_not_import_torch() -> None:
    code = "import sys, objectives.registry; sys.exit('torch' in sys.modules)"
    root = Path(registry.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_names_are_those_of_the_registries() -> None:
    assert names("optimizer") == tuple(OPTIMIZERS)
    assert {"digits", "cifar10", "image_folder"} <= set(names("data"))
    assert {"cnn", "resnet"} <= set(names("model"))
    assert names("metric") == ("accuracy", "error", "macro_f1", "log_loss")


@pytest.mark.parametrize(("group", "name"), ENTRIES)
def test_every_default_is_within_its_own_range(group: str, name: str) -> None:
    for option in options(group, name).values():
        assert option.default is not None, f"{option.name} has no default"
        assert problem_of_value(option.name, option, option.default) is None


@pytest.mark.parametrize(("group", "name"), ENTRIES)
def test_every_number_has_a_range(group: str, name: str) -> None:
    for option in options(group, name).values():
        if option.kind in ("int", "float"):
            assert option.low is not None, option.name


def test_every_default_config_is_without_problems() -> None:
    assert problems_of({}) == []
    for group in CHOICES:
        for name in names(group):
            defaults = {f"{group}.{option.name}": option.default for option in options(group, name).values()}
            assert problems_of({group: name, **defaults}) == []


def test_plain_parts_are_those_of_a_config() -> None:
    assert PLAIN.keys() == FIELDS.keys()


def test_the_strength_of_a_regulariser_is_not_its_option() -> None:
    assert options("regulariser", "l2") == {}
    assert list(options("regulariser", "elastic_net")) == ["l1_ratio"]


def example(
    first: int,
    *,
    on: bool = True,
    count: Annotated[int, Interval(ge=1, le=9)] = 3,
    share: Annotated[float, Interval(gt=0, lt=1)] = 0.5,
    word: Literal["a", "b"] = "a",
    text: str = "x",
    needed: float,
) -> None:
    """A function with an option of every sort."""


EXAMPLE = {
    "on": Option("on", "bool", True),
    "count": Option("count", "int", 3, low=1, high=9),
    "share": Option("share", "float", 0.5, low=0, high=1, low_open=True, high_open=True),
    "word": Option("word", "str", "a", choices=("a", "b")),
    "text": Option("text", "str", "x"),
    "needed": Option("needed", "float", None),
}


def test_options_are_keyword_only_parameters() -> None:
    assert options("loss", f"{__name__}:example", [__name__]) == EXAMPLE


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("on", "true or false"),
        ("count", "a whole number, at least 1 and at most 9"),
        ("share", "a finite number, above 0 and below 1"),
        ("word", "one of a, b"),
        ("text", "a text"),
        ("needed", "a finite number"),
    ],
)
def test_what_is_allowed_is_said_in_words(name: str, allowed: str) -> None:
    assert EXAMPLE[name].allowed == allowed


def test_what_is_allowed_for_a_batch_size() -> None:
    assert PLAIN["batch_size"].allowed == "a whole number, at least 1, or full"


BIG = 10**5000
"""Python refuses to write it in decimals."""


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("on", [True, False], [0, 1, "true", None]),
        ("count", [1, 9], [0, 10, True, 2.0, "3", None, [3], BIG, -BIG]),
        ("share", [0.1, 0.999], [0, 1, 0.0, 1.0, -0.1, True, "0.5", float("nan"), float("inf"), BIG]),
        ("word", ["a", "b"], ["c", "", 1, None]),
        ("text", ["", "anything"], [1, True, None]),
        ("needed", [0, -1.5, 7], [float("inf"), False, "x", {}, BIG]),
    ],
)
def test_types_and_ranges(name: str, good: list[object], bad: list[object]) -> None:
    for value in good:
        assert problem_of_value("key", EXAMPLE[name], value) is None
    for value in bad:
        problem = problem_of_value("key", EXAMPLE[name], value)
        assert problem is not None, value
        assert problem.key == "key"
        assert problem.message
        assert problem.remedy


@pytest.mark.parametrize(
    ("values", "message", "remedy"),
    [
        ({"loss": "cross_entropie"}, "there is no loss 'cross_entropie'", "did you mean 'cross_entropy'?"),
        ({"optimizer": "lion"}, "there is no optimizer 'lion'", "known: gradient_descent, sgd"),
        ({"regulariser": "l3"}, "there is no regulariser 'l3'", "known: none, l1, l2"),
        ({"schedule": 3}, "3 is not a name", "write one of constant"),
        ({"schedule": None}, "None is not a name", "write one of constant"),
        ({"model": "cnm"}, "there is no model 'cnm'", "did you mean 'cnn'?"),
        ({"learning_rat": 0.1}, "is not part of a config", "did you mean 'learning_rate'?"),
        ({"lr": 0.1}, "is not part of a config", "did you mean 'learning_rate'?"),
        ({"model.widht": 8}, "is not part of a config", "did you mean 'model.width'?"),
        ({"augment.flipp": 0.5}, "is not part of a config", "did you mean 'augment.flip'?"),
        ({"augment": 0.5}, "is not part of a config", ""),
        ({"metric": "accuracy"}, "is not part of a config", ""),
        ({"zzz": 1}, "is not part of a config", "known: lambda, learning_rate"),
        ({3: 1}, "3 is not a key", "keys are texts"),
        ({"loss.gamma": 2.0}, "loss 'cross_entropy' does not take 'gamma'", "when: {loss: [focal]}"),
        (
            {"optimizer": "adam", "optimizer.momentum": 0.9},
            "optimizer 'adam' does not take 'momentum'",
            "when: {optimizer: [momentum, nesterov]}",
        ),
        ({"learning_rate": 0}, "0 is out of range", "above 0"),
        ({"learning_rate": "1e-3"}, "'1e-3' is a text", "with a point, 0.001"),
        ({"learning_rate": float("nan")}, "nan is not a finite number", "above 0"),
        ({"lambda": -0.1}, "-0.1 is out of range", "at least 0"),
        ({"epochs": 0}, "0 is out of range", "at least 1"),
        ({"epochs": 2.5}, "2.5 is a number with a fraction", "a whole number"),
        ({"epochs": None}, "None is empty", "a whole number"),
        ({"epochs": BIG}, "too large", "a whole number"),
        ({"batch_size": 0}, "0 is out of range", "at least 1, or full"),
        ({"batch_size": "ful"}, "'ful' is a text", "at least 1, or full"),
        ({"batch_size": True}, "True is true or false", "at least 1, or full"),
        ({"class_weights": "equal"}, "'equal' is not allowed", "known: none, balanced"),
        ({"augment.flip": 1.5}, "1.5 is out of range", "at most 1"),
        ({"model": "cnn", "model.batch_norm": 1}, "1 is a whole number", "true or false"),
        ({"optimizer": "os:system"}, "only a loss or a model", "write one of"),
        ({"loss": "os:system"}, "'os' is not in allow_imports", "list its module in allow_imports"),
        ({"loss": "no function:"}, "module:function", ""),
    ],
)
def test_one_problem_is_found_and_its_remedy_said(
    values: Mapping[str, object], message: str, remedy: str
) -> None:
    (problem,) = problems_of(values)
    assert problem.key == str(next(reversed(list(values))))
    assert message in problem.message
    assert remedy in problem.remedy


def test_all_problems_are_listed_at_once_in_the_order_of_the_values() -> None:
    values = {"epochs": 0, "loss": "nil", "loss.gamma": 1.0, "batch_size": "huge", "nonsense": 1}
    assert [problem.key for problem in problems_of(values)] == ["epochs", "loss", "batch_size", "nonsense"]


@pytest.mark.parametrize(
    "values",
    [
        {"loss": "focal", "loss.gamma": 0, "batch_size": "full"},
        {"optimizer": "adam", "optimizer.beta1": 0.5, "learning_rate": 1, "lambda": 0},
        {"regulariser": "elastic_net", "regulariser.l1_ratio": 1.0},
        {"schedule": "step", "schedule.every": 3, "schedule.warmup": 0.5, "epochs": 12},
        {"augment.flip": 0.5, "augment.crop": 4, "class_weights": "balanced"},
    ],
)
def test_good_values_have_no_problems_and_make_a_config(values: dict[str, bool | int | float | str]) -> None:
    assert problems_of(values) == []
    assert isinstance(TrialConfig.from_values(values), TrialConfig)


@settings(derandomize=True, max_examples=300)
@given(
    st.dictionaries(
        st.one_of(
            st.sampled_from(sorted(keys())),
            st.text(max_size=12),
            st.integers(),
            st.sampled_from(["loss.", ".", "augment.", "a.b.c", "model.width.x"]),
        ),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            st.text(max_size=12),
            st.sampled_from(["focal", "full", "os:system", "a:b:c", ":", "elastic_net"]),
            st.lists(st.integers(), max_size=2),
        ),
        max_size=6,
    )
)
def test_anything_is_answered_with_problems_and_the_rest_makes_a_config(values: dict[object, object]) -> None:
    problems = problems_of(values)  # type: ignore[arg-type]
    for problem in problems:
        assert all(isinstance(part, str) and part for part in (problem.message, problem.remedy))
        assert len(problem.message) < 300
    if not problems:
        assert isinstance(TrialConfig.from_values(values), TrialConfig)  # type: ignore[arg-type]


def test_keys_name_everything_or_what_the_chosen_take() -> None:
    every = keys()
    assert {"lambda", "loss", "loss.gamma", "augment.flip", "model.width", "schedule.warmup"} <= set(every)
    assert len(every) == len(set(every))
    assert "loss.gamma" not in keys({"loss": "mse"})
    assert "loss.gamma" in keys({"loss": "focal"})
    assert "schedule.final" in keys({"loss": "mse"})


def test_option_of_a_key() -> None:
    assert option_of("epochs") == PLAIN["epochs"]
    assert option_of("loss.gamma", "focal") == options("loss", "focal")["gamma"]
    assert option_of("loss.gamma", "mse") is None
    assert option_of("loss.label_smoothing") == options("loss", "cross_entropy")["label_smoothing"]
    assert option_of("augment.flip") == options("augment", "flip")["amount"]
    assert option_of("augment.nothing") is None
    assert option_of("loss") == Option("loss", "str", "cross_entropy")
    assert option_of("nothing") is None


def test_option_applies() -> None:
    assert option_applies("loss.gamma", "focal")
    assert not option_applies("loss.gamma", "mse")
    assert option_applies("optimizer.beta1", "adamw")
    assert option_applies("epochs", "whatever")
    assert option_applies("augment.flip", "whatever")
    with pytest.raises(TrialError, match="no loss 'nothing'"):
        option_applies("loss.gamma", "nothing")


def test_a_name_is_checked_for_data_and_metric_too() -> None:
    assert problem_of_name("data", "digits") is None
    problem = problem_of_name("data", "mnst", key="data.name")
    assert problem is not None
    assert problem.key == "data.name"
    assert problem.remedy == "did you mean 'mnist'?"
    assert problem_of_name("metric", "accuracy") is None
    assert problem_of_name("metric", "m:accuracy") is not None


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module on the path; its name."""
    (tmp_path / "own_entries.py").write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from nowhere import Tensor\n"
        "def loss(logits: Tensor, labels: Tensor, *, power=2.0): ...\n"
        "def factory(input_shape, classes, *, width: int, **options): ...\n"
        "def strange(input_shape, classes, *, sizes: list = ()): ...\n"
        "class Net:\n"
        "    def __init__(self, input_shape, classes, *, depth: int = 3): ...\n"
        "constant = 3\n"
    )
    (tmp_path / "own_broken.py").write_text("raise RuntimeError('half written')\n")
    (tmp_path / "own_script.py").write_text("import sys\nsys.exit(2)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("own_entries", "own_broken", "own_script"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "own_entries"


def test_a_users_own_entries_have_options(own: str) -> None:
    assert options("loss", f"{own}:loss", [own]) == {"power": Option("power", "float", 2.0)}
    assert options("model", f"{own}:factory", [own]) == {"width": Option("width", "int", None)}
    assert options("model", f"{own}:Net", [own]) == {"depth": Option("depth", "int", 3)}


def test_a_users_own_entries_are_checked_as_ours(own: str) -> None:
    good = {"loss": f"{own}:loss", "loss.power": 3, "model": f"{own}:factory", "model.width": 8}
    assert problems_of(good, allow_imports=[own]) == []
    (missing,) = problems_of({"model": f"{own}:factory"}, allow_imports=[own])
    assert missing.key == "model.width"
    assert missing.remedy == "write a whole number"
    (unknown,) = problems_of({"model": f"{own}:Net", "model.width": 8}, allow_imports=[own])
    assert "keyword-only" in unknown.remedy


@pytest.mark.parametrize(
    ("reference", "allowed", "message"),
    [
        ("own_entries:loss", (), "not in allow_imports"),
        ("own_entries:loss", ("own",), "not in allow_imports"),
        ("own_entries:missing", ("own_entries",), "has no function 'missing'"),
        ("own_entries:constant", ("own_entries",), "has no function 'constant'"),
        ("own_broken:loss", ("own_broken",), "RuntimeError: half written"),
        ("own_script:loss", ("own_script",), "SystemExit: 2"),
        ("own_absent:loss", ("own_absent",), "ModuleNotFoundError"),
        ("own_entries:Net.__init__", ("own_entries",), "form module:function"),
        ("own_entries:", ("own_entries",), "form module:function"),
        (":loss", ("",), "form module:function"),
        ("..own_entries:loss", ("..own_entries",), "form module:function"),
        ("/tmp/own_entries.py:loss", ("/tmp/own_entries.py",), "form module:function"),
    ],
)
def test_a_reference_that_cannot_be_resolved(
    own: str, reference: str, allowed: tuple[str, ...], message: str
) -> None:
    with pytest.raises(TrialError, match=message):
        resolve_import(reference, allowed)
    problem = problem_of_name("loss", reference, allowed)
    assert problem is not None
    assert message in problem.message


def test_nothing_is_imported_that_is_not_allowed(own: str) -> None:
    problems_of({"loss": f"{own}:loss", "model": f"{own}:Net"})
    with pytest.raises(TrialError):
        resolve_loss(Choice(f"{own}:loss"))
    assert own not in sys.modules


def test_an_option_of_an_unknown_type_is_refused(own: str) -> None:
    with pytest.raises(TrialError, match="option 'sizes' of 'own_entries:strange' must be annotated"):
        options("model", f"{own}:strange", [own])
