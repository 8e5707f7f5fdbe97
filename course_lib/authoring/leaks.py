"""`course check-release`: what is handed out is current, complete, and gives nothing away."""

import ast
import html
import json
import re
import tempfile
import zipfile
from pathlib import Path

from course_lib.authoring.paths import BOOK, BUILD, EXERCISES, ROOT, ZIP, problem_sets
from course_lib.authoring.release import release
from course_lib.authoring.source import bodies, exercised, faulty
from course_lib.checks.piece import find

__all__ = ["bodies_in", "check_release", "fingerprints", "leaks"]

#: A body is recognised by any run of this many of its statements, or by all of them if it has fewer.
_RUN = 3


def check_release():
    """Everything wrong with what is handed out, as sentences; an empty list when all is right.

    Regenerates exercises and zip and compares every byte, looks for files that do not belong there, and
    searches notebooks, zip, wheel and book for the reference's code.
    """
    problems = []
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch)
        zipped = release(again / "exercises", again / "build", fresh=True)
        problems += _differences(EXERCISES, again / "exercises")
        if not ZIP.is_file():
            problems.append(f"{ZIP.relative_to(BUILD.parent)} is missing: run `course release`")
        elif ZIP.read_bytes() != zipped.read_bytes():
            problems.append("the zip is not what the sources give now: run `course release`")
    forbidden = fingerprints()
    for name, codes in _handed_out():
        problems += [f"{name} holds the solution of {piece}" for piece in leaks(codes, forbidden)]
    return problems


def fingerprints():
    """{piece: runs of its reference's statements}, with names and docstrings taken out.

    Of a piece that is handed out to be repaired, those runs that are in what is handed out give nothing away.
    """
    found = {}
    for problem_set in problem_sets():
        handed_out = faulty(problem_set)
        for name in exercised(problem_set):
            piece = find(name)
            whole = (ROOT / "course_lib" / f"{piece.topic}.py").read_text(encoding="utf-8")
            found[name] = _runs_of(whole, piece) - _runs_of(handed_out.get(name, ""), piece, all_lengths=True)
    return found


def _runs_of(code, piece, **options):
    """Runs of the statements that a student writes of a piece, where the code has it."""
    nodes = (node for node in ast.parse(code).body if getattr(node, "name", None) == piece.attribute)
    return {run for node in nodes for body in bodies(node) for run in _runs(body, **options)}


def leaks(codes, forbidden):
    """Pieces of which any of the code texts holds a run of statements."""
    runs = set()
    for code in codes:
        for body in bodies_in(code):
            runs |= _runs(body, all_lengths=True)
    return sorted(piece for piece, theirs in forbidden.items() if theirs & runs)


def bodies_in(code):
    """Every list of statements in a piece of Python, nested ones too; none if it does not parse."""
    code = re.sub(r"^\s*[%!].*$", "", code, flags=re.M)
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if isinstance(body, list) and body:
                yield body


def _runs(body, *, all_lengths=False):
    body = [statement for statement in body if not _is_docstring(statement)]
    lengths = range(1, _RUN + 1) if all_lengths else [min(_RUN, len(body))]
    return {_normal(body[i : i + n]) for n in lengths if n for i in range(len(body) - n + 1)}


def _normal(statements):
    """Statements as text in which every name is replaced by the order of its first appearance."""
    names = {}
    parts = []
    for statement in statements:
        dump = ast.dump(statement)
        parts.append(re.sub(r"(id|arg)='(\w+)'", lambda m: f"{m[1]}={names.setdefault(m[2], len(names))}", dump))
    return "\n".join(parts)


def _is_docstring(statement):
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _differences(committed, generated):
    ours = {path.relative_to(committed): path for path in committed.rglob("*") if path.is_file()}
    theirs = {path.relative_to(generated): path for path in generated.rglob("*") if path.is_file()}
    problems = [f"exercises/{name} does not belong there" for name in sorted(set(ours) - set(theirs))]
    problems += [f"exercises/{name} is missing: run `course release`" for name in sorted(set(theirs) - set(ours))]
    changed = (name for name in sorted(set(ours) & set(theirs)) if ours[name].read_bytes() != theirs[name].read_bytes())
    return problems + [f"exercises/{name} is not what its solution gives now: run `course release`" for name in changed]


def _handed_out():
    """(name, code texts) of everything a student or reader can get."""
    for path in sorted(EXERCISES.rglob("*.ipynb")):
        yield f"exercises/{path.relative_to(EXERCISES)}", _code_cells(path.read_text(encoding="utf-8"))
    if ZIP.is_file():
        with zipfile.ZipFile(ZIP) as archive:
            yield from _in_zip(archive)
    for path in sorted(BOOK.rglob("*.html")):
        yield f"book/{path.relative_to(BOOK)}", code_blocks(path.read_text(encoding="utf-8"))


def _in_zip(archive):
    for name in archive.namelist():
        data = archive.read(name)
        if name.endswith(".ipynb"):
            yield f"zip/{name}", _code_cells(data.decode())
        elif name.endswith(".py"):
            yield f"zip/{name}", [data.decode()]
        elif name.endswith(".whl"):
            with tempfile.TemporaryFile() as file:
                file.write(data)
                with zipfile.ZipFile(file) as wheel:
                    yield from _in_zip(wheel)


def _code_cells(text):
    cells = json.loads(text)["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def code_blocks(page):
    """The text of every <pre> of an HTML page."""
    blocks = re.findall(r"<pre[^>]*>(.*?)</pre>", page, flags=re.S)
    return [html.unescape(re.sub(r"<[^>]+>", "", block)) for block in blocks]
