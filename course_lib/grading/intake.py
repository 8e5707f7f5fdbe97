"""Intake: a submitted notebook is never trusted. It is rebuilt from the notebook that was handed out.

Taken from the submission are the sources of known answer cells and the student's own cells, in order;
everything else (tags, outputs, metadata, locked cells, check cells) is the release's. Every repair is listed.
"""

import json
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell

from course_lib.checks.text import plain, whole

__all__ = ["EXCHANGE", "LARGEST", "Unreadable", "choose", "parse", "rebuild", "skeleton_of"]

LARGEST = 20 * 2**20  # bytes; a notebook full of figures has two
#: What nbgrader's exchange lays beside a submission: when it came, and the address of its feedback.
EXCHANGE = frozenset({"timestamp.txt", "submission_secret.txt"})


class Unreadable(Exception):
    """What was handed in is no notebook of this problem set; the message says why and what to do."""


def skeleton_of(folder):
    """The released notebook in a problem set's folder.

    Raises:
        FileNotFoundError: nothing is released there.
    """
    paths = sorted(Path(folder).glob("*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"expected a released notebook in {folder}, found none: run `course release` first")
    return nbformat.read(paths[0], as_version=4)


def choose(files, expected):
    """Which of the files in a submission's folder is graded, and why.

    Args:
        files: {name: bytes} of everything that was handed in.
        expected: the name of the released notebook.

    Returns:
        (bytes, repairs): repairs is a list of sentences.

    Raises:
        Unreadable: there is no notebook, or several and none under the expected name.
    """
    files = {plain(name, 200): data for name, data in files.items()}
    notebooks = {name: data for name, data in files.items() if name.endswith(".ipynb")}
    if expected in notebooks:
        extra = [f"ignored the file {name}" for name in sorted(set(files) - EXCHANGE - {expected})]
        return notebooks[expected], extra
    if len(notebooks) == 1:
        [(name, data)] = notebooks.items()
        return data, [f"took {name!r} for {expected!r}: it was the only notebook"]
    if notebooks:
        names = ", ".join(sorted(notebooks))
        raise Unreadable(f"expected {expected}, got {len(notebooks)} notebooks of other names: {names}. Keep one.")
    raise Unreadable(f"expected {expected}, got no notebook at all: ask the student to hand it in again")


def parse(data, skeleton):
    """The submitted bytes as a notebook of format 4.

    Raises:
        Unreadable: no JSON, no notebook, too large, or a notebook with none of the release's cells.
    """
    if len(data) > LARGEST:
        raise Unreadable(f"expected a notebook of at most {LARGEST >> 20} MiB, got {len(data) >> 20} MiB")
    try:
        raw = json.loads(data.decode("utf-8-sig"))
        notebook = nbformat.from_dict(nbformat.convert(nbformat.from_dict(raw), 4))
        cells = [_plain(cell) for cell in notebook.cells]
    except Exception as error:
        raise Unreadable(
            f"the file is no readable notebook ({type(error).__name__}: {str(error)[:120]}): "
            "ask the student to open it, save it and hand it in again"
        ) from None
    if not {_grade_id(cell) for cell in cells} & {_grade_id(cell) for cell in skeleton.cells if _is_answer(cell)}:
        raise Unreadable("the notebook has none of this problem set's answer cells: is it another notebook?")
    notebook.cells = cells
    return notebook


def rebuild(submitted, skeleton):
    """The submission as the release's notebook with the student's answers in it.

    Args:
        submitted: what `parse` returned.
        skeleton: the released notebook.

    Returns:
        (notebook, repairs): the notebook has the release's cells in the release's order, each followed by the
        student's own cells that followed it in the submission. A second cell with the id of an answer cell is
        kept as a cell of the student's own, in its place, so that the notebook runs as it ran for the student.
    """
    known = {key: cell for cell in skeleton.cells if (key := _grade_id(cell))}
    text = {cell.id for cell in skeleton.cells} | {cell.source for cell in skeleton.cells}
    answers, own, repairs = {}, {None: []}, []
    anchor, seen = None, set()
    for cell in submitted.cells:
        key = _grade_id(cell)
        if key in known:
            repeated, anchor = key in seen, key if key not in seen else anchor
            seen.add(key)
            if not _is_answer(known[key]):
                if repeated:
                    repairs.append(f"dropped a second copy of the locked cell {key}")
                elif cell.source != known[key].source:
                    repairs.append(f"restored the locked cell {key}, which had been changed")
            elif repeated:
                repairs.append(f"kept a second cell marked as {key} as a cell of the student's own")
                own.setdefault(anchor, []).append(cell)
            else:
                answers[key] = cell.source
        elif cell.get("id") not in text and cell.source not in text:
            own.setdefault(anchor, []).append(cell)
    missing = [key for key in known if key not in seen]
    repairs += [f"restored the missing cell {key}" for key in missing]

    cells = [_fresh(cell, f"own-{i}") for i, cell in enumerate(own[None])]
    for cell in skeleton.cells:
        key = _grade_id(cell)
        copy = nbformat.from_dict(json.loads(json.dumps(cell)))
        if key in answers:
            copy.source = answers[key]
        cells.append(copy)
        cells += [_fresh(mine, f"own-{key}-{i}") for i, mine in enumerate(own.get(key, []) if key else [])]
    notebook = nbformat.from_dict({**skeleton, "cells": cells})
    release = submitted.get("metadata")
    for key in ("course", "release"):
        release = release.get(key) if isinstance(release, dict) else None
    if release != skeleton.metadata.course.release:
        repairs.append(f"handed in on release {release}, graded on release {skeleton.metadata.course.release}")
    return notebook, repairs


def _plain(cell):
    """A cell of a submission with the few fields that are looked at, of the types they have to have."""
    source = cell.get("source", "")
    source = source if isinstance(source, str) else "".join(source)
    source = whole(source).replace("\r\n", "\n").replace("\r", "\n")
    plain = nbformat.from_dict({"cell_type": str(cell["cell_type"]), "source": source})
    plain.metadata = cell.get("metadata") if isinstance(cell.get("metadata"), dict) else {}
    plain.id = cell.get("id") if isinstance(cell.get("id"), str) else None
    return plain


def _grade_id(cell):
    marked = cell.metadata.get("nbgrader")
    key = marked.get("grade_id") if isinstance(marked, dict) else None
    return key if isinstance(key, str) else None


def _is_answer(cell):
    return cell.metadata.get("nbgrader", {}).get("solution", False)


def _fresh(cell, identifier):
    """A cell of the student's own, with nothing but its source."""
    make = new_code_cell if cell.cell_type == "code" else new_markdown_cell
    return make(cell.source, id=identifier[:64])
