"""Solutions (MyST Markdown) → source notebooks, as nbgrader reads them.

A solution is written with as little as possible; the rest is known:

* a code cell with `:source: course_lib.algorithm:batch_stats` is the answer cell of that piece: the reference
  is inserted, its body between nbgrader's solution markers;
* with `:faulty: name` besides, students get no stub but code to repair: the reference with the mistake of that name;
* a code cell with `:check: algorithm.batch_stats` is that piece's check cell, worth the piece's points;
* every other code cell needs an `:id:` and is locked.
"""

import ast
import hashlib
import importlib
from itertools import chain

import jupytext

from course_lib.authoring.paths import SOLUTIONS
from course_lib.checks.piece import PROTOCOL, find
from course_lib.misconceptions import catalogue, edited

__all__ = ["bodies", "exercised", "faulty", "release_id", "source_notebook", "topic_of"]

_RELEASE = "RELEASE_ID"  # stands in solutions where the release id comes in
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def source_notebook(problem_set):
    """The source notebook of a problem set, solutions included.

    Args:
        problem_set: for example `"ps1-algorithm"`.

    Returns:
        An nbformat notebook with nbgrader's metadata, reproducible to the byte.

    Raises:
        ValueError: a cell of the solution says something that cannot be; the message names the cell.
    """
    notebook = _read(problem_set)
    identifier = release_id(problem_set)
    asked = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            cell.metadata.clear()
            cell.id = f"text-{number}"
            continue
        told = dict(cell.metadata)
        cell.metadata.clear()
        if "source" in told:
            piece = _piece_of(told.pop("source"))
            cell.source = _with_markers(piece)
            _describe(cell, piece.attribute, solution=True, piece=piece.name)
            if "faulty" in told:
                cell.metadata["course"]["handed_out"] = _with_mistake(piece, told.pop("faulty"))
        elif "check" in told:
            piece = find(told.pop("check"))
            asked.append(piece.name)
            cell.source = f'check("{piece.name}", {piece.argument})'
            _describe(cell, f"check_{piece.attribute}", grade=True, points=piece.max_points, piece=piece.name)
        elif "id" in told:
            cell.source = cell.source.replace(_RELEASE, identifier)
            _describe(cell, told.pop("id"))
        else:
            raise ValueError(
                f"{problem_set}, cell {number}: expected :source:, :check: or :id:, got {cell.source[:60]!r}"
            )
        if told:
            raise ValueError(f"{problem_set}, cell {number}: unknown option {', '.join(told)}")
    _same_pieces(problem_set, asked)
    notebook.metadata.clear()
    notebook.metadata.update(
        kernelspec=_KERNEL,
        language_info={"name": "python"},
        course={"problem_set": problem_set, "release": identifier},
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def exercised(problem_set):
    """Names of the pieces a problem set has answer cells for."""
    cells = _read(problem_set).cells
    return [_piece_of(cell.metadata["source"]).name for cell in cells if "source" in cell.metadata]


def faulty(problem_set):
    """{piece name: source} of the pieces that are handed out to be repaired."""
    told = [cell.metadata for cell in _read(problem_set).cells if "faulty" in cell.metadata]
    found = {_piece_of(metadata["source"]): metadata["faulty"] for metadata in told}
    return {piece.name: _with_mistake(piece, mistake) for piece, mistake in found.items()}


def topic_of(problem_set):
    """The topic of a problem set, as its modules are called.

    Example:
        >>> topic_of("ps2-running-stats")
        'running_stats'
    """
    return problem_set.partition("-")[2].replace("-", "_")


def release_id(problem_set):
    """Eight hex digits that change when a problem set, its checks or its hints change.

    The notebook, the student's library and the grader compare them.
    """
    digest = hashlib.sha256(str(PROTOCOL).encode())
    for path in _sources(problem_set, topic_of(problem_set)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def _sources(problem_set, topic):
    package = SOLUTIONS.parent / "course_lib"
    # A topic may have more than one module on a floor: `checks/modes_layers.py`.
    modules = (sorted((package / floor).glob(f"{topic}*.py")) for floor in ("", "checks", "misconceptions"))
    return [*sorted((SOLUTIONS / problem_set).glob("*.md")), *chain(*modules)]


def _read(problem_set):
    files = sorted((SOLUTIONS / problem_set).glob("*.md"))
    if len(files) != 1:
        raise ValueError(f"expected one solution *.md in {SOLUTIONS / problem_set}, found {len(files)}")
    return jupytext.read(files[0], fmt="md:myst")


def _piece_of(source):
    module, _, attribute = source.partition(":")
    return find(f"{module.rpartition('.')[2]}.{attribute}")


def _same_pieces(problem_set, asked):
    wanted = exercised(problem_set)
    if asked != wanted:
        raise ValueError(f"{problem_set}: expected one check per answer cell, {wanted}, got {asked}")


def _describe(cell, identifier, *, piece=None, grade=False, solution=False, points=None):
    """Every key nbgrader's schema 3 wants; our own stand beside it, because it allows none inside."""
    cell.id = cell_id = identifier.replace("_", "-")
    cell.metadata["nbgrader"] = {
        "grade": grade,
        "grade_id": cell_id,
        "locked": not solution,
        "schema_version": 3,
        "solution": solution,
        "task": False,
    }
    if grade:
        cell.metadata["nbgrader"]["points"] = points
    if piece:
        cell.metadata["course"] = {"piece": piece}
    cell.outputs, cell.execution_count = [], None


def _with_markers(piece):
    """The reference of a piece with every body between nbgrader's solution markers."""
    module = importlib.import_module(f"course_lib.{piece.topic}")
    with open(module.__file__, encoding="utf-8") as file:
        whole = file.read()
    node = next(node for node in ast.parse(whole).body if getattr(node, "name", None) == piece.attribute)
    lines = whole.splitlines()
    for body in reversed(list(bodies(node))):
        first, last = body[0].lineno, body[-1].end_lineno
        indent = " " * body[0].col_offset
        # A comment above the first statement is part of the body.
        while lines[first - 2].strip().startswith("#"):
            first -= 1
        lines.insert(last, f"{indent}### END SOLUTION")
        lines.insert(first - 1, f"{indent}### BEGIN SOLUTION")
    end = node.end_lineno + 2 * len(list(bodies(node)))
    start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return "\n".join(lines[start - 1 : end])


def _with_mistake(piece, name):
    """The reference of a piece with a known mistake in it. Signature and docstring stay."""
    known = {mistake.name: mistake.change for mistake in catalogue(piece.topic) if mistake.piece == piece.name}
    if not isinstance(known.get(name), tuple):
        edits = ", ".join(key for key, change in known.items() if isinstance(change, tuple))
        raise ValueError(f"expected :faulty: to name a mistake of {piece.name} that is an edit, {edits}, got {name!r}")
    return edited(piece.name, known[name])


def bodies(node):
    """The statements a student writes: of a function without its docstring, of a class those of every method."""
    if isinstance(node, ast.ClassDef):
        for child in node.body:
            if isinstance(child, ast.FunctionDef):
                yield from bodies(child)
    else:
        has_docstring = ast.get_docstring(node, clean=False) is not None
        yield node.body[1:] if has_docstring else node.body
