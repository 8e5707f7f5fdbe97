"""Judging a notebook that has run: from observations to points, and a student's outputs to harmless ones."""

import copy
import json

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat import NotebookNode

from course_lib.authoring.paths import EXERCISES
from course_lib.checks import OBSERVATIONS
from course_lib.checks.observe import observe
from course_lib.checks.piece import find, pieces
from course_lib.grading.intake import skeleton_of
from course_lib.grading.judging import judge_notebook
from course_lib.misconceptions import reference

SEED = 4321
SKELETON = skeleton_of(EXERCISES / "ps1-algorithm")
BUNDLES = {piece.name: observe(piece, reference(piece.name), SEED) for piece in pieces("algorithm")}
EVIL = "<script>alert(1)</script>"


def answer(bundle, kind="execute_result", text="10.0"):
    """The output of a check cell."""
    output = {"output_type": kind, "data": {"text/plain": text, OBSERVATIONS: bundle}, "metadata": {}}
    return NotebookNode(output)


def executed(outputs=None, **course):
    """The release after it ran with right answers; `outputs` replaces those of single cells, by id."""
    notebook = nbformat.from_dict(json.loads(json.dumps(SKELETON)))
    notebook.metadata.course.update(course)
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("grade"):
            cell.outputs = [answer(copy.deepcopy(BUNDLES[cell.metadata.course.piece]))]
        if cell.id in (outputs or {}):
            cell.outputs = [NotebookNode(output) for output in outputs[cell.id]]
    return notebook


def points(outputs=None, seed=SEED, **course):
    return {key: verdict.points for key, verdict in judge_notebook(executed(outputs, **course), seed).items()}


def messages(outputs, check="check-batch-stats", **course):
    return judge_notebook(executed(outputs, **course), SEED)[check].messages


def shown(*outputs):
    """What is left of outputs of the setup cell, which is no check."""
    notebook = executed({"setup": outputs})
    judge_notebook(notebook, SEED)
    nbformat.validate(notebook)
    nbformat.writes(notebook).encode()
    return next(cell for cell in notebook.cells if cell.id == "setup").outputs


def stream(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


def display(**data):
    return {"output_type": "display_data", "data": {k.replace("_", "/"): v for k, v in data.items()}, "metadata": {}}


# --- points


def test_right_observations_score_everything_in_the_notebooks_order():
    expected = {"check-batch-stats": 3, "check-batch-norm-forward": 3}
    expected |= {"check-batch-norm-backward": 3, "check-recover-identity": 1}
    assert list(points().items()) == list(expected.items())


def test_observations_of_another_seed_score_nothing():
    assert set(points(seed=SEED + 1).values()) == {0}


def test_observations_of_another_piece_score_nothing():
    assert points({"check-batch-stats": [answer(BUNDLES["algorithm.recover_identity"])]})["check-batch-stats"] == 0


@pytest.mark.parametrize(
    "outputs",
    [
        [],
        [answer(BUNDLES["algorithm.batch_stats"])] * 2,
        [answer(BUNDLES["algorithm.batch_stats"], kind="display_data")],
        [{"output_type": "execute_result", "data": {"text/plain": "3.0"}, "metadata": {}}],
        [stream("3.0")],
    ],
    ids=["nothing", "two bundles", "a display", "a number", "a printed number"],
)
def test_a_check_needs_one_bundle_as_its_value(outputs):
    assert points({"check-batch-stats": outputs})["check-batch-stats"] == 0
    assert messages({"check-batch-stats": outputs}) == [
        "the check gave no observations back: was `check` replaced by something else?"
    ]


def test_the_displayed_number_counts_for_nothing():
    wrong = copy.deepcopy(BUNDLES["algorithm.batch_stats"])
    wrong["scenarios"] = {}
    assert points({"check-batch-stats": [answer(wrong, text="3.0")]})["check-batch-stats"] == 0


def test_the_check_cell_says_the_points_and_shows_the_table_and_nothing_of_what_was_there():
    notebook = executed({"check-batch-stats": [stream(EVIL), answer(BUNDLES["algorithm.batch_stats"], text=EVIL)]})
    judge_notebook(notebook, SEED)
    [output] = next(cell for cell in notebook.cells if cell.id == "check-batch-stats").outputs
    assert output.data["text/plain"] == "3.0"
    assert "all right" in output.data["text/html"]
    assert set(output.data) == {"text/plain", "text/html"}


def test_an_answer_that_did_not_run_is_the_reason():
    error = {"output_type": "error", "ename": "SyntaxError", "evalue": "'(' was never closed", "traceback": []}
    assert messages({"batch-stats": [error], "check-batch-stats": []}) == [
        "the answer cell did not run: SyntaxError: '(' was never closed"
    ]


def test_a_check_that_did_not_run_is_the_reason():
    error = {"output_type": "error", "ename": "NameError", "evalue": "check", "traceback": []}
    assert messages({"check-batch-stats": [error]}) == ["the check did not run: NameError: check"]


def test_a_kernel_that_was_stopped_is_the_reason():
    assert messages({"check-batch-stats": []}, stopped="the kernel died") == ["the kernel died"]


def test_what_a_kernel_answered_before_it_was_stopped_counts():
    scored = points({"check-recover-identity": []}, stopped="the kernel died")
    assert scored["check-batch-stats"] == 3
    assert scored["check-recover-identity"] == 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
values = json_values | st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("array", "dtype", "shape", "fact", "other"), json_values)
)
STATS = find("algorithm.batch_stats")
entries = json_values | st.fixed_dictionaries(
    {"seen": st.dictionaries(st.sampled_from(["mean", "var", "inputs changed"]), values)},
    optional={
        "error": json_values
        | st.fixed_dictionaries({}, optional={k: json_values for k in ("kind", "message", "line")}),
        "printed": json_values,
        "digest": st.just(BUNDLES[STATS.name]["scenarios"][STATS.scenarios[0].name]["digest"]) | json_values,
    },
)
bundles = json_values | st.fixed_dictionaries(
    {"scenarios": st.dictionaries(st.sampled_from([s.name for s in STATS.scenarios]), entries)}
)


@settings(max_examples=150, deadline=None)
@given(bundles)
def test_no_bundle_stops_the_judge_and_none_that_is_made_up_scores(bundle):
    notebook = executed({"check-batch-stats": [answer(bundle)]})
    verdict = judge_notebook(notebook, SEED)["check-batch-stats"]
    assert verdict.points == 0
    nbformat.validate(notebook)
    nbformat.writes(notebook).encode()


OBSERVED = [(name, seen) for name, entry in BUNDLES[STATS.name]["scenarios"].items() for seen in entry["seen"]]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(OBSERVED), values.filter(lambda value: not isinstance(value, dict) or "fact" not in value))
def test_one_odd_observation_among_right_ones_costs_its_group(place, value):
    bundle = copy.deepcopy(BUNDLES[STATS.name])
    bundle["scenarios"][place[0]]["seen"][place[1]] = value
    group = next(group for group in STATS.groups if place[0] in [scenario.name for scenario in group.scenarios])
    assert points({"check-batch-stats": [answer(bundle)]})["check-batch-stats"] == 3 - group.points


@pytest.mark.parametrize("key", ["kind", "message", "line"])
def test_what_a_terminal_would_obey_does_not_get_into_a_verdict(key):
    bundle = copy.deepcopy(BUNDLES[STATS.name])
    entry = bundle["scenarios"][STATS.scenarios[0].name]
    entry["error"] = {"kind": "ValueError", "message": "", key: "\x1b]0;title\x07"}
    entry["printed"] = "\x1b[2J"
    text = str(judge_notebook(executed({"check-batch-stats": [answer(bundle)]}), SEED)["check-batch-stats"])
    assert "title" in text
    assert "note: ?[2J" in text
    assert "\x1b" not in text and "\x07" not in text


# --- a student's own outputs


def test_text_and_pictures_are_kept():
    assert shown(stream("hello")) == [nbformat.v4.new_output("stream", text="hello")]
    [output] = shown(display(text_plain="array([1])", image_png="iVBORw0KGgo=\n"))
    assert output.data == {"text/plain": "array([1])", "image/png": "iVBORw0KGgo=\n"}


@pytest.mark.parametrize(
    "kind", ["text/html", "text/markdown", "application/javascript", "image/svg+xml", "text/latex"]
)
def test_what_a_browser_would_run_is_dropped(kind):
    output = {"output_type": "display_data", "data": {kind: EVIL, "text/plain": "text"}, "metadata": {kind: EVIL}}
    [kept] = shown(output)
    assert (kept.data, kept.metadata) == ({"text/plain": "text"}, {})
    assert shown({**output, "data": {kind: EVIL}}) == []


@pytest.mark.parametrize("picture", ['">' + EVIL, ["a"], 5, {"a": 1}, None, "A" * 3_000_000])
def test_a_picture_that_is_none_is_dropped(picture):
    assert shown(display(image_png=picture)) == []


@pytest.mark.parametrize("value", [None, 3, ["a"], {"a": "b"}])
def test_outputs_of_odd_types_do_no_harm(value):
    assert shown(display(text_plain=value)) == []
    assert shown(stream(value))[0].text == ""
    [output] = shown({"output_type": "error", "ename": value, "evalue": value, "traceback": value})
    assert (output.ename, output.evalue) == ("", "")


def test_observations_outside_of_checks_are_dropped():
    [kept] = shown(answer(BUNDLES["algorithm.batch_stats"], text="observed"))
    assert set(kept.data) == {"text/plain"}


def test_half_a_character_is_replaced():
    assert shown(stream("a\ud800b"))[0].text == "a?b"


def test_the_name_of_a_cells_file_is_the_same_at_every_regrade():
    [first] = shown(stream("/tmp/ipykernel_4711/679981650.py:3: UserWarning: slow"))
    [second] = shown(stream("/tmp/ipykernel_42/679981650.py:3: UserWarning: slow"))
    assert first.text == second.text == "cell 679981650.py:3: UserWarning: slow"


def test_long_output_is_cut_and_says_so():
    [output] = shown(stream("x" * 100_000))
    assert len(output.text) < 6000
    assert output.text.endswith("… (cut)\n")


@pytest.mark.parametrize(
    "output",
    [
        stream("x" * 900),
        display(text_plain="x" * 900),
        display(image_png="A" * 900),
        {"output_type": "error", "ename": "E", "evalue": "", "traceback": ["x" * 900] * 50},
    ],
)
def test_many_outputs_are_cut_and_say_so(output):
    kept = shown(*[output] * 500)
    assert len(json.dumps(kept)) < 200_000
    assert kept[-1].text == "… (cut)\n"


def test_cells_are_numbered_as_they_stand_whatever_the_kernel_said():
    notebook = executed()
    for cell in notebook.cells:
        cell.execution_count = EVIL
    judge_notebook(notebook, SEED)
    code = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert code == list(range(1, len(code) + 1))
