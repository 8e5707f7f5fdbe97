"""The student edition, used as a student does: only the zip, in an environment of its own."""

import json
import subprocess
import sys

import nbformat
import pytest

from course_lib.authoring.paths import problem_sets
from course_lib.checks.piece import pieces


def _ask(student, code):
    result = subprocess.run([student.python, "-c", code], cwd=student.folder, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else result.stderr


def _notebook(student, problem_set):
    [path] = (student.folder / problem_set).glob("*.ipynb")
    return nbformat.read(path, as_version=4)


def _cells(notebook, kind):
    return [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get(kind)]


def _shown(cell):
    """(points, html) of a check cell's value."""
    [output] = [output for output in cell.outputs if output.output_type == "execute_result"]
    return float(output.data["text/plain"]), output.data["text/html"]


def test_the_library_is_the_wheel_and_not_the_tree(student):
    assert _ask(student, "import course_lib; print(course_lib.__file__)").startswith(str(student.packages))
    assert "No module named 'course_lib.misconceptions'" in _ask(student, "import course_lib.misconceptions")


@pytest.fixture(scope="session")
def said(student):
    """{piece name: what calling the student edition's stub raises}."""
    code = f"""
import importlib, inspect, json
said = {{}}
for name in {[piece.name for piece in pieces()]!r}:
    topic, attribute = name.split(".")
    piece = getattr(importlib.import_module("course_lib." + topic), attribute)
    members = [getattr(member, "__func__", member) for member in vars(piece).values()]
    own = [member for member in members if getattr(member, "__qualname__", "").startswith(attribute + ".")]
    function = own[0] if isinstance(piece, type) else inspect.unwrap(piece)
    try:
        function(*[None] * function.__code__.co_argcount)
    except Exception as error:
        said[name] = f"{{type(error).__name__}}: {{error}}"
print(json.dumps(said))
"""
    return json.loads(_ask(student, code))


@pytest.mark.parametrize("piece", pieces(), ids=lambda piece: piece.name)
def test_a_piece_says_whose_it_is(said, piece):
    assert f"NotImplementedError: {piece.attribute} is yours to write, in {piece.problem_set}" in said[piece.name]


@pytest.mark.parametrize("problem_set", problem_sets())
def test_untouched_checks_say_not_implemented_yet_or_name_the_fault(student, run_as_student, problem_set):
    notebook = run_as_student(_notebook(student, problem_set))
    for answer, cell in zip(_cells(notebook, "solution"), _cells(notebook, "grade"), strict=True):
        points, table = _shown(cell)
        assert points == 0
        # A patient of the bug clinic is handed out with its fault, and the check names it.
        assert ("not implemented yet" if "raise NotImplementedError" in answer.source else "Read: ") in table


@pytest.mark.parametrize("problem_set", problem_sets())
def test_the_solved_notebook_runs_to_the_end_with_full_marks(student, run_as_student, solved, problem_set):
    notebook = run_as_student(solved(problem_set))
    errors = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
    assert errors == []
    for cell in _cells(notebook, "grade"):
        points, table = _shown(cell)
        assert points == cell.metadata.nbgrader.points
        assert "all right" in table
    finale = notebook.cells[-2]
    assert finale.id == "finale"
    assert any("image/png" in output.get("data", {}) for output in finale.outputs)
    assert "yours, from this session" in finale.outputs[0].text


def test_a_wrong_answer_gets_its_hint(student, run_as_student, solved):
    notebook = solved("ps1-algorithm")
    [answer] = [cell for cell in notebook.cells if cell.id == "batch-stats"]
    answer.source = (
        "def batch_stats(x):\n"
        "    axes = (0, *range(2, x.ndim))\n"
        "    if x.size // x.shape[1] < 2:\n"
        "        raise ValueError('too few values')\n"
        "    return x.mean(axis=axes), x.var(axis=axes, ddof=1)\n"
    )
    notebook.cells = notebook.cells[:5]
    points, table = _shown(_cells(run_as_student(notebook), "grade")[0])
    assert 0 < points < 3
    assert "unbiased variance" in table and "chapter 1, «Biased or unbiased»" in table


def test_another_seed_is_refused_with_the_reason(student):
    said = _ask(student, "from course_lib.checks import check; check('algorithm.batch_stats', len, seed=1)")
    assert "ValueError: expected seed=0, got 1" in said


def test_a_notebook_of_another_release_is_told_so(student):
    said = _ask(student, "from course_lib.checks import expect_release; expect_release('ps1-algorithm', '00000000')")
    assert "ImportError: this notebook belongs to release 00000000" in said and "pip install --force-reinstall" in said


def test_the_tree_judges_like_the_student_edition(student):
    """Expectations that were shipped and expectations that are computed say the same, word for word."""
    code = (
        "from course_lib.checks import check\n"
        "import numpy as np\n"
        "def f(x):\n"
        "    return x.mean(axis=0), x.var(axis=0, ddof=1)\n"
        "print(check('algorithm.batch_stats', f))"
    )
    here = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert _ask(student, code) == here
