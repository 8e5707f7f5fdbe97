"""What is right: computed where the mistakes are installed, read from data in the student edition."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from course_lib import plug_in, unplug
from course_lib.checks import check, expect
from course_lib.checks.expect import PUBLIC_SEED, expectation, export
from course_lib.checks.judge import judge
from course_lib.checks.observe import decode, observe
from course_lib.checks.piece import find, pieces
from course_lib.misconceptions import catalogue, reference
from tests.right_answers.algorithm import RIGHT

STATS, FORWARD = find("algorithm.batch_stats"), find("algorithm.batch_norm_forward")
MISTAKES = catalogue("algorithm")


def test_the_truth_has_every_scenario_and_no_error():
    for piece in pieces():
        truth = expectation(piece, 0).truth
        assert list(truth) == list(dict.fromkeys(scenario.name for scenario in piece.scenarios))
        assert all(entry["error"] is None for entry in truth.values())


def test_every_mistake_of_the_catalogue_is_expected():
    for piece in pieces():
        names = [mistake.name for mistake in catalogue(piece.topic) if mistake.piece == piece.name]
        assert [mistake.name for mistake in expectation(piece, 0).mistakes] == names


def test_the_truth_has_the_values_of_exact_arithmetic_in_the_dtype_of_the_case():
    want = expectation(STATS, 0).truth["stats_far_from_zero"]["seen"]["var"]
    native = observe(STATS, reference(STATS.name), 0)["scenarios"]["stats_far_from_zero"]["seen"]["var"]
    lifted = observe(STATS, reference(STATS.name), 0, lift=True)["scenarios"]["stats_far_from_zero"]["seen"]["var"]
    assert want["dtype"] == native["dtype"] == "float32"
    assert want["array"] == lifted["array"] != native["array"]


def test_a_mistake_about_rounding_keeps_its_rounding():
    mistakes = {m.name: m for m in expectation(STATS, 0).mistakes}
    var = decode(mistakes["one_pass_variance"].truth["stats_far_from_zero"]["seen"]["var"])
    assert (np.abs(var - decode(expectation(STATS, 0).truth["stats_far_from_zero"]["seen"]["var"])) > 0.1).any()


def test_a_plugged_in_piece_does_not_change_what_is_right():
    def batch_stats(x):
        return x.mean(), x.var()

    plug_in(batch_stats)
    try:
        assert not check(STATS.name, batch_stats, seed=77).passed
        assert check(STATS.name, reference(STATS.name), seed=78).passed
        assert check(FORWARD.name, reference(FORWARD.name), seed=79).passed
    finally:
        unplug()


# --- the student edition ----------------------------------------------------------------------------------------


def test_the_export_is_the_same_bytes_every_time():
    assert export("algorithm") == export("algorithm")


def test_the_export_is_data_and_small():
    data = export("algorithm")
    assert len(data) < 2_000_000
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        assert {arrays[key].dtype.kind for key in arrays.files} == {"f", "u"}
        assert set(json.loads(arrays["index"].tobytes())) == {piece.name for piece in pieces("algorithm")}


def test_the_export_names_no_code():
    with np.load(io.BytesIO(export("algorithm"))) as arrays:
        text = arrays["index"].tobytes().decode()
    assert not any(old in text for mistake in MISTAKES if not callable(mistake.change) for old, _ in mistake.change)


@pytest.mark.parametrize("piece", pieces(), ids=lambda piece: piece.attribute)
def test_the_student_edition_gives_right_answers_full_marks(student_edition, piece):
    for style, impl in RIGHT[piece.name].items():
        assert check(piece.name, impl).passed, style


@pytest.mark.parametrize("piece", pieces(), ids=lambda piece: piece.attribute)
def test_the_student_edition_judges_a_mistake_as_the_grader_does(request, piece):
    answers = [m.implementation() for m in MISTAKES if m.piece == piece.name]
    bundles = [observe(piece, impl, PUBLIC_SEED) for impl in answers]
    graded = [judge(piece, bundle, PUBLIC_SEED) for bundle in bundles]
    request.getfixturevalue("student_edition")
    for bundle, verdict in zip(bundles, graded, strict=True):
        told = judge(piece, bundle, PUBLIC_SEED)
        assert [(row.points, row.misconception, row.hint, row.read) for row in told.rows] == [
            (row.points, row.misconception, row.hint, row.read) for row in verdict.rows
        ]


@pytest.mark.parametrize("seed", [1, 12345])
def test_the_student_edition_refuses_another_seed(student_edition, seed):
    with pytest.raises(ValueError, match=f"expected seed=0, got {seed}: the student edition knows"):
        check(STATS.name, RIGHT[STATS.name]["numpy_methods"], seed=seed)


def test_the_student_edition_has_no_unseen_layers(student_edition):
    with pytest.raises(ValueError, match="expected seed=0, got 3: the layers of other seeds are unseen"):
        expect.unseen_layers(3)


def test_where_there_are_facts_only_no_exact_arithmetic_is_needed(piece):
    lifted = []

    def facts(impl, case):
        lifted.append(case.torch_dtype)
        return {"fact": impl(1)}

    for group in piece.groups:
        group.scenarios[:] = [replace(scenario, run=facts, dtypes=("float32",)) for scenario in group.scenarios]
    truth = expect._lifted(piece, abs, 0, observe(piece, abs, 0)["scenarios"])
    assert [entry["seen"] for entry in truth.values()] == [{"fact": {"fact": 1}}] * 2
    assert lifted == [torch.float32] * 2


def test_where_a_mistake_does_what_the_reference_does_its_exact_values_are_not_made_again(piece):
    dtypes = []

    def wrong(x):
        dtypes.append(x.dtype.name)
        return 2 * x + (x.ndim == 1)

    native = observe(piece, lambda x: 2 * x, 0)["scenarios"]
    truth = expect._lifted(piece, lambda x: 2 * x, 0, native)
    right = expect._Observations(piece, lambda x: dtypes.append("right") or 2 * x, 0, native, truth)
    mistake = expect._Observations(piece, wrong, 0, native, truth)
    assert right["of_floats"] is truth["of_floats"] and dtypes == ["right"]
    assert mistake["of_floats"]["seen"]["y"] != truth["of_floats"]["seen"]["y"]
    assert dtypes[1:] == ["float32", "float64"]


def test_what_is_asked_in_float64_is_exact_as_it_is(piece):
    dtypes = []
    native = observe(piece, lambda x: 2 * x, 0)["scenarios"]
    assert {name: entry["exact"] for name, entry in native.items()} == {"of_table": True, "of_floats": False}
    expect._lifted(piece, lambda x: dtypes.append((x.ndim, x.dtype.name)) or 2 * x, 0, native)
    assert dtypes == [(1, "float64")]


@pytest.mark.parametrize("piece", pieces(), ids=lambda piece: piece.name)
def test_lifting_what_is_exact_would_change_nothing(piece):
    for name, entry in observe(piece, reference(piece.name), 1)["scenarios"].items():
        if entry["exact"] and any("array" in value for value in entry["seen"].values()):
            lifted = observe(piece, reference(piece.name), 1, lift=True, only=name)["scenarios"][name]
            assert lifted["seen"] == entry["seen"]


def test_other_inputs_than_the_expectations_were_made_for_are_said_to_be(monkeypatch):
    bundle = observe(STATS, reference(STATS.name), 0)
    for entry in bundle["scenarios"].values():
        entry["digest"] = "0123456789abcdef"
    messages = judge(STATS, bundle, 0).messages
    assert len(messages) == 1 and "inputs drawn where this ran" in messages[0] and "requirements.txt" in messages[0]


def test_the_student_edition_has_no_mistakes_in_code(student_edition):
    assert expect.expectation(STATS, 0).mistakes
    with pytest.raises(ImportError):
        from course_lib import misconceptions  # noqa: F401
