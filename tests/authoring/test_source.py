"""Solutions → source notebooks."""

import ast

import jupytext
import pytest

from course_lib.authoring import source
from course_lib.authoring.source import bodies, exercised, faulty, release_id, source_notebook


@pytest.fixture
def solution(tmp_path, monkeypatch):
    """Writes a solution with the given cells and returns its problem set."""

    def write(*cells):
        folder = tmp_path / "solutions" / "ps1-algorithm"
        folder.mkdir(parents=True)
        text = "\n\n".join(f"```{{code-cell}} ipython3\n{cell}\n```" for cell in cells)
        (folder / "algorithm.md").write_text(f"# Title\n\n{text}\n")
        monkeypatch.setattr(source, "SOLUTIONS", folder.parent)
        monkeypatch.setattr(source, "release_id", lambda _: "0123abcd")
        return "ps1-algorithm"

    return write


def test_the_reference_is_inserted_between_markers():
    [cell] = [c for c in source_notebook("ps1-algorithm").cells if c.id == "recover-identity"]
    assert cell.source.startswith("def recover_identity(mean, var, eps=1e-5):")
    lines = [line.strip() for line in cell.source.splitlines()]
    assert lines.index("### BEGIN SOLUTION") == lines.index('"""', 1) + 1
    assert lines[-1] == "### END SOLUTION"
    compile(cell.source, "cell", "exec")


def test_every_method_of_a_class_is_a_body():
    code = (
        "class A:\n    x = 1\n    def f(self):\n        return 1\n"
        "    def g(self):\n        'Its docstring.'\n        return 2\n"
    )
    [node] = ast.parse(code).body
    assert [ast.unparse(body) for body in bodies(node)] == ["return 1", "return 2"]


def test_cell_ids_are_the_grade_ids():
    code = [cell for cell in source_notebook("ps1-algorithm").cells if cell.cell_type == "code"]
    assert all(cell.id == cell.metadata.nbgrader.grade_id for cell in code)


def test_the_release_id_stands_in_notebook_and_metadata():
    notebook = source_notebook("ps1-algorithm")
    identifier = release_id("ps1-algorithm")
    assert notebook.metadata.course.release == identifier
    assert f'"{identifier}"' in notebook.cells[1].source


def test_exercised_are_the_pieces_of_the_contract():
    names = ["batch_stats", "batch_norm_forward", "batch_norm_backward", "recover_identity"]
    assert exercised("ps1-algorithm") == [f"algorithm.{name}" for name in names]


def test_a_cell_without_a_role_is_refused(solution):
    with pytest.raises(ValueError, match=r"cell 1: expected :source:, :check: or :id:"):
        source_notebook(solution("1 + 1"))


def test_an_unknown_option_is_refused(solution):
    with pytest.raises(ValueError, match="unknown option points"):
        source_notebook(solution(":id: setup\n:points: 3\n1 + 1"))


def test_code_to_repair_is_handed_out_instead_of_a_stub(solution):
    told = ":source: course_lib.algorithm:recover_identity\n:faulty: negative_shift"
    problem_set = solution(told, ":check: algorithm.recover_identity")
    [cell] = [cell for cell in source_notebook(problem_set).cells if cell.id == "recover-identity"]
    assert "return gamma, mean.copy()" in cell.source and "### BEGIN SOLUTION" in cell.source
    code = cell.metadata.course.handed_out
    assert code.startswith("def recover_identity(mean, var, eps=1e-5):") and ast.get_docstring(ast.parse(code).body[0])
    assert "return gamma, -mean" in code and "SOLUTION" not in code
    assert faulty(problem_set) == {"algorithm.recover_identity": code}


@pytest.mark.parametrize("name", ["nothing", "welford_misread"])
def test_code_to_repair_is_a_mistake_that_is_known_as_an_edit(solution, name):
    told = f":source: course_lib.algorithm:recover_identity\n:faulty: {name}"
    with pytest.raises(ValueError, match=r"expected :faulty: to name a mistake .*negative_shift.*, got '\w+'"):
        source_notebook(solution(told, ":check: algorithm.recover_identity"))


def test_an_answer_without_a_check_is_refused(solution):
    with pytest.raises(ValueError, match="expected one check per answer cell"):
        source_notebook(solution(":source: course_lib.algorithm:batch_stats"))


def test_an_unknown_piece_is_refused(solution):
    with pytest.raises(ValueError, match=r"expected the name of a piece, got 'algorithm\.nothing'"):
        source_notebook(solution(":source: course_lib.algorithm:nothing"))


def test_the_markdown_survives_a_round_trip():
    text = (source.SOLUTIONS / "ps1-algorithm" / "algorithm.md").read_text()
    notebook = jupytext.reads(text, fmt="md:myst")
    written = jupytext.writes(notebook, fmt="md:myst")
    assert [c.source for c in jupytext.reads(written, fmt="md:myst").cells] == [c.source for c in notebook.cells]
