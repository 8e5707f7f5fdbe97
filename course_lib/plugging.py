"""Put a student's own pieces into their installed library, so that networks train on them."""

import contextlib
import importlib
import io
import json
import sys
from pathlib import Path

from course_lib.checks.piece import pieces

__all__ = ["plug_in", "plug_in_from", "unplug", "whose"]

_ORIGINALS = {}  # piece name -> what the library came with
_ORIGINS = {}  # piece name -> where the student's piece came from


def plug_in(*implementations, origin="this session"):
    """Use these functions or classes wherever `course_lib` uses the pieces of the same names.

    Args:
        implementations: pieces, recognised by their names.
        origin: what `whose` says about them.

    Raises:
        ValueError: a name that is none of the course's pieces, or a piece that is not written yet.

    Example:
        >>> from course_lib.algorithm import recover_identity
        >>> def mine(mean, var, eps=1e-5):
        ...     return recover_identity(mean, var, eps)
        >>> mine.__name__ = "recover_identity"
        >>> plug_in(mine)
        >>> whose()["algorithm.recover_identity"]
        'yours, from this session'
        >>> unplug()
    """
    known = {piece.attribute: piece for piece in pieces()}
    names = [getattr(implementation, "__name__", None) for implementation in implementations]
    for name, implementation in zip(names, implementations, strict=True):
        if name not in known:
            raise ValueError(f"expected one of the pieces {', '.join(known)}, got {name or implementation!r}")
        if _is_stub(implementation):
            raise ValueError(f"{name} is not written yet: finish its exercise in {known[name].problem_set} first")
    for name, implementation in zip(names, implementations, strict=True):
        _plug(known[name], implementation, origin)


def unplug():
    """Take every student's piece out again.

    Example:
        >>> unplug()
        >>> set(whose().values())
        {"the course's"}
    """
    for piece in pieces():
        if piece.name in _ORIGINS:
            _put(piece, _ORIGINALS[piece.name])
            del _ORIGINS[piece.name]


def plug_in_from(notebook):
    """Plug in the pieces of a finished notebook.

    Args:
        notebook: a problem set, `"ps1-algorithm"`, whose folder is looked for here and one folder up,
            or the path of a notebook.

    Raises:
        FileNotFoundError: no such notebook; the message says where was looked.
        ValueError: a notebook without finished pieces of the topic it is named after.
        RuntimeError: an answer cell that does not run; the message names it.

    Returns:
        Names of the pieces that were found and plugged in.

    Example:
        >>> plug_in_from("ps9-nothing")
        Traceback (most recent call last):
        ...
        FileNotFoundError: ...
    """
    path = _find(notebook)
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    checks = [i for i, cell in enumerate(cells) if cell["metadata"].get("nbgrader", {}).get("grade")]
    namespace = {"__name__": f"plugged_in.{path.stem}"}
    # Everything up to the last check, the checks left out: imports and helpers belong to the answers.
    with contextlib.redirect_stdout(io.StringIO()):
        for i, cell in enumerate(cells[: checks[-1]] if checks else cells):
            if i not in checks:
                _run(cell, path, namespace)
    topic = path.stem.replace("-", "_")
    mine = [piece for piece in pieces() if piece.topic == topic and piece.attribute in namespace]
    mine = [piece for piece in mine if not _is_stub(namespace[piece.attribute])]
    if not mine:
        raise ValueError(f"expected a notebook named after its topic, with finished pieces of it, got {path}")
    for piece in mine:
        _plug(piece, namespace[piece.attribute], str(path))
    return [piece.attribute for piece in mine]


def whose():
    """Which pieces of the library are the student's.

    Returns:
        A dict from the piece's name to "yours, from …", "the course's", or, in the student edition, "not written yet".

    Example:
        >>> whose()["algorithm.batch_stats"]
        "the course's"
    """
    return {piece.name: _owner(piece) for piece in pieces()}


def _owner(piece):
    if piece.name in _ORIGINS:
        return f"yours, from {_ORIGINS[piece.name]}"
    library = getattr(importlib.import_module(f"course_lib.{piece.topic}"), piece.attribute)
    return f"not written yet: yours to write, in {piece.problem_set}" if _is_stub(library) else "the course's"


def _is_stub(implementation):
    """Whether a function, or every method of a class, does nothing but raise NotImplementedError."""
    functions = [implementation]
    if isinstance(implementation, type):
        functions = [getattr(member, "__func__", member) for member in vars(implementation).values()]
    codes = [function.__code__ for function in functions if hasattr(function, "__code__")]
    return bool(codes) and all(code.co_names == ("NotImplementedError",) for code in codes)


def _run(cell, path, namespace):
    """Run a cell of a notebook. One of the student's own may fail: it is an experiment, not an answer."""
    marked = cell["metadata"].get("nbgrader", {})
    try:
        exec(compile(_python(cell), f"{path} {marked.get('grade_id', 'own cell')}", "exec"), namespace)
    except Exception as error:
        if marked:
            reason = f"the cell {marked.get('grade_id')} of {path} does not run: {type(error).__name__}: {error}"
            raise RuntimeError(reason) from error


def _plug(piece, implementation, origin):
    module = importlib.import_module(f"course_lib.{piece.topic}")
    _ORIGINALS.setdefault(piece.name, getattr(module, piece.attribute))
    _put(piece, implementation)
    _ORIGINS[piece.name] = origin


def _put(piece, implementation):
    before = getattr(importlib.import_module(f"course_lib.{piece.topic}"), piece.attribute)
    # Other modules may have imported the name: `from course_lib.algorithm import batch_stats`.
    for name, loaded in sys.modules.copy().items():  # a list of items would be made one by one
        if name.split(".")[0] == "course_lib" and getattr(loaded, piece.attribute, None) is before:
            setattr(loaded, piece.attribute, implementation)


def _python(cell):
    """A cell's source without Jupyter's magics: they mean nothing outside a notebook, and leave its lines in place."""
    lines = "".join(cell["source"]).splitlines()
    if lines and lines[0].startswith("%%"):
        return ""
    return "\n".join("" if line.startswith(("%", "!")) else line for line in lines)


def _find(notebook):
    given = Path(notebook)
    if given.suffix == ".ipynb":
        candidates = [given]
    else:
        stem = given.name.partition("-")[2]
        candidates = [folder / given / f"{stem}.ipynb" for folder in (Path(), Path(".."), Path("exercises"))]
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(f"expected a finished notebook at {' or '.join(map(str, candidates))}, found none")
