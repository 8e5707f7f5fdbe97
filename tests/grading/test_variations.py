"""A right answer never fails, however the notebook around it looks: twenty honest ways to hand in the same."""

import json
import textwrap

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output, writes

from course_lib.authoring.paths import problem_sets
from course_lib.grading.intake import skeleton_of
from course_lib.grading.record import GRADED
from course_lib.grading.submission import grade_submission
from tests.conftest import ROOT

VARIATIONS = {}


def variation(make):
    """Files a function that changes a solved notebook in place, or returns the bytes to hand in."""
    VARIATIONS[make.__name__] = make
    return make


def answers(notebook):
    return [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("solution")]


def insert(notebook, before, *cells):
    at = notebook.cells.index(before)
    notebook.cells[at:at] = cells


def name_of(cell):
    """The piece that an answer cell defines."""
    return cell.metadata["course"]["piece"].split(".")[1]


def first_function(notebook):
    """The first answer that is a function."""
    return next(cell for cell in answers(notebook) if cell.source.lstrip().startswith("def "))


@variation
def cells_of_their_own(notebook):
    for cell in answers(notebook):
        insert(notebook, cell, new_markdown_cell("My notes: $x$ first"), new_code_cell("print('trying', 1 + 1)"))


@variation
def prints_while_it_works(notebook):
    for cell in answers(notebook):
        cell.source = f"print('defining')\n{cell.source}\nprint('defined', {name_of(cell)})"


@variation
def warnings_all_over(notebook):
    cell = first_function(notebook)
    name = name_of(cell)
    cell.source += textwrap.dedent(f"""
        import warnings, sys
        warnings.warn("careful")
        print("to stderr", file=sys.stderr)
        _{name} = {name}
        def {name}(*args, **kwargs):
            warnings.warn("slow", RuntimeWarning)
            return _{name}(*args, **kwargs)
    """)


@variation
def progress_bars(notebook):
    cell = first_function(notebook)
    name = name_of(cell)
    cell.source += textwrap.dedent(f"""
        from tqdm.auto import tqdm
        _{name} = {name}
        def {name}(*args, **kwargs):
            for _ in tqdm(range(2), desc="working"):
                result = _{name}(*args, **kwargs) if _ else None
            return result
    """)


@variation
def type_hints(notebook):
    for cell in answers(notebook):
        cell.source = f"from __future__ import annotations\nfrom typing import Any\nhinted: Any = None\n{cell.source}"


@variation
def defined_in_another_cell(notebook):
    for cell in answers(notebook):
        insert(notebook, cell, new_code_cell(cell.source))
        cell.source = f"{name_of(cell)}  # see the cell above"


@variation
def all_in_the_first_cell(notebook):
    first, *rest = answers(notebook)
    first.source = "\n\n\n".join(cell.source for cell in [first, *rest])
    for cell in rest:
        cell.source = "# is in the first cell"


@variation
def a_split_answer(notebook):
    cell = first_function(notebook)
    other = new_code_cell(cell.source)
    other.metadata = json.loads(json.dumps(cell.metadata))
    cell.source = "helper = 1  # the second half is below"
    notebook.cells.insert(notebook.cells.index(cell) + 1, other)


@variation
def windows_line_endings(notebook):
    for cell in notebook.cells:
        cell.source = cell.source.replace("\n", "\r\n")


@variation
def metadata_of_other_editors(notebook):
    notebook.metadata["colab"] = {"provenance": [], "gpuType": "T4"}
    notebook.metadata["kernelspec"] = {"name": "venv", "display_name": "venv (Python 3.12)", "language": "python"}
    notebook.metadata["language_info"] = {"name": "python", "version": "3.12.1", "file_extension": ".py"}
    notebook.metadata["vscode"] = {"interpreter": {"hash": "0" * 64}}
    for number, cell in enumerate(notebook.cells):
        cell.metadata.update(colab={"base_uri": "https://localhost:8080/"}, id=f"aB{number}", tags=["mine"])
        cell.metadata["ExecuteTime"] = {"start_time": "2027-01-01T00:00:00"}


@variation
def the_format_before_cell_ids(notebook):
    data = json.loads(writes(notebook))
    data["nbformat_minor"] = 4
    for cell in data["cells"]:
        del cell["id"]
    return json.dumps(data).encode()


@variation
def outputs_of_the_last_run(notebook):
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.execution_count = number + 7
        cell.outputs = [new_output("stream", text="old\n"), new_output("execute_result", {"text/plain": "0.0"})]


@variation
def imported_again(notebook):
    for cell in answers(notebook):
        cell.source = f"import numpy as np\nimport torch\nfrom torch import nn\n{cell.source}"


@variation
def global_seeds(notebook):
    seeds = "import random\nimport numpy as np\nimport torch\nrandom.seed(0)\nnp.random.seed(0)\ntorch.manual_seed(0)"
    for cell in answers(notebook):
        insert(notebook, cell, new_code_cell(seeds))


@variation
def slow_but_right(notebook):
    cell = first_function(notebook)
    name = name_of(cell)
    cell.source += textwrap.dedent(f"""
        import time
        _{name} = {name}
        def {name}(*args, **kwargs):
            time.sleep(0.02)
            return _{name}(*args, **kwargs)
    """)


@variation
def magics(notebook):
    cell = first_function(notebook)
    insert(notebook, cell, new_code_cell("%%time\nsum(range(10))"), new_code_cell("%matplotlib inline\n!echo hello"))


@variation
def figures_in_between(notebook):
    plot = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    for cell in answers(notebook)[:2]:
        insert(notebook, cell, new_code_cell(plot))


@variation
def checks_of_their_own(notebook):
    for cell in answers(notebook):
        piece = cell.metadata["course"]["piece"]
        own = f"verdict = check('{piece}', {name_of(cell)})\nverdict"
        at = notebook.cells.index(cell) + 1
        if not piece.endswith("unfreeze_batchnorm"):  # checked together with its partner
            notebook.cells.insert(at, new_code_cell(own))


@variation
def other_alphabets(notebook):
    for cell in answers(notebook):
        cell.source = f"# Mittelwert μ, Varianz σ² 平均 😀\nσ = 'σ'\n{cell.source}"


@variation
def without_texts(notebook):
    locked = [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("locked")]
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code" or cell in locked]


@variation
def a_failed_experiment(notebook):
    for cell in answers(notebook):
        at = notebook.cells.index(cell) + 1
        notebook.cells.insert(at, new_code_cell("1 / 0"))


@variation
def indented_json_with_a_byte_order_mark(notebook):
    return b"\xef\xbb\xbf" + json.dumps(json.loads(writes(notebook)), indent=4, ensure_ascii=False).encode()


def test_there_are_twenty():
    assert len(VARIATIONS) >= 20


# Every problem set meets some of them, every one of them some problem set. Those of one problem set in a row: kernels
# are forked from a process that has imported its checks.
SETS = problem_sets()
PAIRS = sorted((SETS[i % len(SETS)], name) for i, name in enumerate(VARIATIONS))


@pytest.mark.parametrize(("problem_set", "name"), PAIRS, ids=[f"{name}-{which}" for which, name in PAIRS])
def test_a_right_notebook_has_full_marks(solved, problem_set, name):
    notebook = solved(problem_set)
    handed_in = VARIATIONS[name](notebook) or writes(notebook).encode()
    file = f"{problem_set.partition('-')[2]}.ipynb"
    skeleton = skeleton_of(ROOT / "exercises" / problem_set)
    record = grade_submission(
        {file: handed_in}, assignment=problem_set, skeleton=skeleton, name=file, seed=4711, timeout=60
    )
    assert (record.status, record.message) == (GRADED, "all right")
    assert record.points == record.max_points
    failed = [output for cell in answers(record.notebook) for output in cell.outputs if output.output_type == "error"]
    assert failed == []
