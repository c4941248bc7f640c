"""One rule says what a label is, and labels that look alike are no two classes."""

import json

import numpy as np
import pytest

from llmft.data.read.labels import (
    MULTI,
    REGRESSION,
    SINGLE,
    LabelNames,
    LabelRule,
)
from llmft.data.read.similar import similar
from llmft.errors import LabelError


def decided(values, **given):
    """The spellings of ``values``, and the problem type that they make."""
    rule = LabelRule(**given)
    spelled = [rule.spell(v, f"a.jsonl:{i}") for i, v in enumerate(values, 1)]
    return spelled, rule.decide("a.jsonl")


@pytest.mark.parametrize(
    ("values", "given", "spelled", "problem_type"),
    [
        (["pos", " neg"], {}, ["pos", " neg"], SINGLE),
        ([1, 0, -3], {}, ["1", "0", "-3"], SINGLE),
        ([True, False], {}, ["true", "false"], SINGLE),
        (["1", "2"], {}, ["1", "2"], SINGLE),
        (["007", "7x"], {}, ["007", "7x"], SINGLE),
        (["1.5", "x"], {}, ["1.5", "x"], SINGLE),  # one is no number: names
        (["9" * 400, "1"], {}, ["9" * 400, "1"], SINGLE),
        ([["a", "b"], []], {}, ['["a", "b"]', "[]"], MULTI),
        ([[1], [True]], {}, ['["1"]', '["true"]'], MULTI),
        ([0.5, 2, 3.0], {}, ["0.5", "2", "3"], REGRESSION),
        (["0.5", "2", "-1e3"], {}, ["0.5", "2", "-1e3"], REGRESSION),
        ([0.1 + 0.2], {}, ["0.30000000000000004"], REGRESSION),
        ([1.0, 2.0], {"problem_type": SINGLE}, ["1", "2"], SINGLE),
        ([1.0, 0.0], {}, ["1", "0"], SINGLE),  # as pandas has them beside gaps
        ([1, 1.0], {}, ["1", "1"], SINGLE),
        (["1.0", "0"], {}, ["1", "0"], SINGLE),
        (["2,5", "3"], {}, ["2.5", "3"], REGRESSION),
        (["2,5"], {"problem_type": SINGLE}, ["2,5"], SINGLE),
        (["3,5"], {"problem_type": REGRESSION}, ["3.5"], REGRESSION),
        (["True", "true", "false"], {}, ["True", "True", "false"], SINGLE),
        (["['a', \"b's\"]", "[]"], {}, ['["a", "b\'s"]', "[]"], MULTI),
        (['["a", "\\u00e9"]', "['a' 'b']"], {}, ['["a", "é"]', '["a", "b"]'], MULTI),
        (["[0]", "[1 2]", "[007]"], {}, ['["0"]', '["1", "2"]', '["007"]'], MULTI),
        (["[UNK]", "x"], {}, ["[UNK]", "x"], SINGLE),
        (["['a']"], {"problem_type": SINGLE}, ["['a']"], SINGLE),
        (["1", 2, 0.5], {"problem_type": REGRESSION},
         ["1.0", "2.0", "0.5"], REGRESSION),
        (["a|b", " c | a", ""], {"delimiter": "|"},
         ['["a", "b"]', '["c", "a"]', "[]"], MULTI),
        ([["a"]], {"problem_type": MULTI}, ['["a"]'], MULTI),
    ],
)  # fmt: skip
def test_what_labels_are(values, given, spelled, problem_type):
    assert decided(values, **given) == (spelled, problem_type)


@pytest.mark.parametrize(
    ("value", "given"),
    [
        *((v, {}) for v in (None, "", " ", {}, [None], ["a", ""], 2**70)),
        *((float(v), {}) for v in ("nan", "inf")),
        *((v, {"problem_type": REGRESSION}) for v in ("x", "3,5,1", "", None, "nan")),
        (True, {"problem_type": REGRESSION}),
        *((v, {"problem_type": SINGLE}) for v in (["a"], 0.5, None)),
        *((v, {"problem_type": MULTI}) for v in ("a", 1, None)),
        (None, {"delimiter": "|"}),
    ],
)  # fmt: skip
def test_what_is_no_label(value, given):
    assert LabelRule(**given).spell(value, "a:1") is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1, "1"], "labels of different kinds: 1 at a.jsonl:1, '1' at a.jsonl:2"),
        ([1, True], "labels of different kinds: 1 at a.jsonl:1, true at a.jsonl:2"),
        ([["a"], "a"], "labels of different kinds: ['a'] at a.jsonl:1, 'a' at a.js"),
        ([0.5, "x"], "labels of different kinds: 0.5 at a.jsonl:1, 'x' at a.jsonl:2"),
        (["2,5", "a"], "'a' at a.jsonl:2 among 1 numbers; expected numbers with a fra"),
        (["['a']", "a"], "labels of different kinds: \"['a']\" at a.jsonl:1, 'a' at a"),
    ],
)
def test_labels_that_do_not_go_together(values, said):
    with pytest.raises(LabelError) as caught:
        decided(values)
    assert str(caught.value).startswith(f"LabelError a.jsonl: {said}")
    assert "--problem_type" in str(caught.value)


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["pos", "neg", "posneg"], []),
        (["pos", " pos"], [("pos", " pos")]),
        (["Pos", "neg", "POS"], [("Pos", "POS")]),
        (["7", "007", "70"], [("7", "007")]),
        (["1", "1.0", "1e0"], [("1", "1.0"), ("1", "1e0")]),
        (["a b", "a  b"], [("a b", "a  b")]),
        (["9" * 400, "9" * 401], []),
        (["9007199254740993", "9007199254740992"], []),
        (["caf\u00e9", "cafe\u0301"], [("caf\u00e9", "cafe\u0301")]),
        (["bar", "bar\u200b"], [("bar", "bar\u200b")]),
    ],
)
def test_similar(names, pairs):
    assert similar(dict.fromkeys(names, 1)) == pairs


def test_similar_labels_are_refused_with_their_counts():
    with pytest.raises(LabelError) as caught:
        LabelNames.of(["Yes", "yes", "yes", "no", "No"])
    assert str(caught.value) == (
        "LabelError: the labels 'Yes' (1 row) and 'yes' (2 rows) look like one class;"
        " 1 more such pairs; expected each class in one spelling; write them alike; if"
        " they differ, --allow similar_labels"
    )


@pytest.mark.parametrize(
    ("labels", "kind", "row"),
    [
        (["no", "Yes", "yes", "yes"], SINGLE, 1),
        (["no", "yes", "yes", "Yes"], SINGLE, 3),
        (["no", "yes", "Yes"], SINGLE, 2),
        (['["yes"]', '["no"]', '["yes", "no"]', '["no", "Yes"]'], MULTI, 3),
    ],
)
def test_the_rarer_of_similar_labels_is_named(labels, kind, row):
    with pytest.raises(LabelError) as caught:
        LabelNames.of(labels, (), kind, "a.csv", lambda i: f"a.csv:{i}")
    assert str(caught.value).startswith(f"LabelError a.csv:{row}: the labels ")


def test_names_of_several_labels():
    rows = [json.dumps(names) for names in (["b", "a"], [], ["10", "b", "b"])]
    found = LabelNames.of(rows, (), MULTI)
    assert found == LabelNames(("10", "a", "b"), MULTI)
    targets = found.targets(rows, "train")
    assert targets.dtype == np.float32
    assert targets.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 1]]


def test_a_number_has_one_output_without_a_name():
    found = LabelNames.of(["0.5", "2"], (), REGRESSION)
    assert found == LabelNames(("LABEL_0",), REGRESSION)
    targets = found.targets(["0.5", "-1e3", "0.1"], "test")
    assert targets.dtype == np.float32
    assert targets.tolist() == [0.5, -1000, np.float32(0.1)]


@pytest.mark.parametrize(
    ("labels", "kind", "said"),
    [
        (["[]", "[]"], MULTI, "none of 2 training rows has a label"),
        (['["a", "b"]', '["b", "a"]'], MULTI, "all 2 training rows have the label"),
        (["0.5", "0.50"], REGRESSION, "all 2 training rows have the label '0.5'; expec"
         "ted at least two numbers; give rows of another number; --allow one_class"),
        (['["Yes"]', '["yes"]'], MULTI, "the labels 'Yes' (1 row) and 'yes' (1 row)"),
    ],
)  # fmt: skip
def test_labels_that_teach_nothing(labels, kind, said):
    with pytest.raises(LabelError) as caught:
        LabelNames.of(labels, (), kind)
    assert said in str(caught.value)


def test_one_label_for_some_rows_is_a_question_of_its_own():
    assert LabelNames.of(['["spam"]', "[]"], (), MULTI).names == ("spam",)


@pytest.mark.parametrize(
    ("names", "labels", "said"),
    [
        (LabelNames(("a", "b"), MULTI), ["[]", '["a", "x"]', '["x", "y"]'],
         "LabelError f.csv:3: test has labels that train has not: 'x' (2 rows), 'y' ("),
        (LabelNames(("LABEL_0",), REGRESSION), ["1", "1e39"],
         "LabelError f.csv:3: the label 1e39 is too large; expected a number of less"),
    ],
)  # fmt: skip
def test_targets_that_cannot_be(names, labels, said):
    with pytest.raises(LabelError) as caught:
        names.targets(labels, "test", lambda row: f"f.csv:{row + 2}")
    assert str(caught.value).startswith(said)


def test_one_name_among_scores_is_named():
    with pytest.raises(LabelError) as caught:
        decided([f"{i / 7:.2f}" for i in range(50)] + ["NA", "none"])
    assert str(caught.value) == (
        "LabelError a.jsonl: 'NA' at a.jsonl:51 among 50 numbers; expected numbers with"
        " a fraction in all rows, or names; mend it, or say what they are:"
        " --problem_type single_label_classification"
    )


@pytest.mark.parametrize("problem_type", [None, "single_label_classification"])
@pytest.mark.parametrize("values", [["1.0", "beta"], ["3", "1.0"], [2.0, 1.0]])
def test_what_is_stored_as_a_whole_number_is_told(values, problem_type):
    rule = LabelRule(problem_type)
    spelled = [rule.spell(value, f"a.csv:{i}") for i, value in enumerate(values)]
    assert "1" in spelled
    assert rule.decide("a.csv") == "single_label_classification"
    first = next(i for i, value in enumerate(values) if str(value).endswith(".0"))
    (note,) = rule.notes.said()
    assert note.endswith(
        f"taken for the class 1, no number, the first at a.csv:{first}"
    )


def test_a_number_that_no_float_holds():
    assert LabelRule(REGRESSION).spell(10**400, "a:1") is None


@pytest.mark.parametrize(
    "values",
    [
        [[1, 0], [0, 0]],
        [[1.0, 0.0], [0.0, 1.0]],
        [[True, False], [True, True]],
        ["[1, 0]", "[0 0]"],
    ],
)
@pytest.mark.parametrize("kind", [None, MULTI])
def test_rows_of_bits(values, kind):
    with pytest.raises(LabelError) as caught:
        decided(values, problem_type=kind)
    assert str(caught.value) == (
        "LabelError a.jsonl: each label is a list of 2 values that are 0 or 1; expected"
        " the names of the classes that a text has; write the names for which the value"
        " is 1"
    )


@pytest.mark.parametrize("values", [[[1, 0], [1]], [[0], [1]], [[0, 1], [0, 2]]])
def test_lists_that_are_no_rows_of_bits(values):
    assert decided(values)[1] == MULTI


def test_delimiters_have_names():
    rule = LabelRule(delimiter="tab")
    assert rule.spell("b\tstable", "a:1") == '["b", "stable"]'
    assert not rule.undelimited
    rule = LabelRule(delimiter="comma")
    assert rule.spell("a|b", "a:1") == '["a|b"]'
    assert rule.undelimited


def test_classes_of_hardly_a_row_each_are_ids():
    labels = [f"id{i}" for i in range(1990)] + ["id0"] * 10
    with pytest.raises(LabelError, match="have 1,990 classes, nearly one each: it"):
        LabelNames.of(labels)
    assert len(LabelNames.of([f"class {i % 900}" for i in range(2000)]).names) == 900
