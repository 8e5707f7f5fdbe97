"""Judging: from a notebook that has run in its kernel to rows of points, in the grader's process."""

import json
import re

from nbformat.v4 import new_output

from course_lib.authoring.student import book_url
from course_lib.checks import OBSERVATIONS, Row, Verdict
from course_lib.checks.judge import judge
from course_lib.checks.piece import find
from course_lib.checks.text import plain, whole
from course_lib.grading.policy import for_a_person

__all__ = ["judge_notebook"]

_STREAM = 5000  # characters of one output of a student's own that reach the feedback
_ROOM = 10 * _STREAM  # of all outputs of a cell
_LINES = 100  # of a traceback
_PICTURE = 2**21  # characters of an encoded picture: two megapixels
_CELL_FILE = re.compile(r"\S*ipykernel_\d+[/\\](?=\d+\.py)")  # its number is another at every regrade
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]*")


def judge_notebook(notebook, seed, findings=()):
    """Judge every check cell of an executed notebook and replace its outputs by the verdict.

    Args:
        notebook: rebuilt by intake, so that its check cells are the release's; changed in place.
        seed: the student's seed.
        findings: of the source policy. A forbidden call costs its piece, tampering everything.

    Returns:
        {grade id: Verdict}, in the notebook's order.
    """
    verdicts, trouble = {}, {}
    tampering, forbidden = for_a_person(findings), {finding.piece: finding.message for finding in findings}
    for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        cell.execution_count = number
        marked = cell.metadata.get("nbgrader", {})
        piece = cell.metadata.get("course", {}).get("piece")
        if marked.get("solution"):
            trouble[piece] = _error_of(cell)
        if marked.get("grade"):
            refused = tampering or forbidden.get(piece)
            verdict = _verdict(find(piece), cell, seed, trouble.get(piece), notebook.metadata.course)
            verdict = _nothing_for(find(piece), refused) if refused else verdict
            verdicts[marked.grade_id] = verdict
            data = {"text/plain": str(verdict.points), "text/html": verdict.to_html(book_url())}
            cell.outputs = [new_output("execute_result", data, execution_count=cell.execution_count)]
        else:
            cell.outputs = _harmless(cell.outputs)
    return verdicts


def _verdict(piece, cell, seed, answer_error, course):
    bundles = [
        output.data[OBSERVATIONS]
        for output in cell.outputs
        if output.output_type == "execute_result" and OBSERVATIONS in output.get("data", {})
    ]
    if len(bundles) == 1:
        return judge(piece, bundles[0], seed)
    if answer_error:
        reason = f"the answer cell did not run: {answer_error}"
    elif course.get("stopped"):
        reason = course["stopped"]
    elif _error_of(cell):
        reason = f"the check did not run: {_error_of(cell)}"
    else:
        reason = "the check gave no observations back: was `check` replaced by something else?"
    return _nothing_for(piece, reason)


def _nothing_for(piece, reason):
    return Verdict(piece.name, tuple(Row(group.title, 0, group.points, reason) for group in piece.groups))


def _error_of(cell):
    """The error an executed cell ended with, as one line."""
    for output in cell.outputs:
        if output.output_type == "error":
            return f"{plain(output.ename, 100)}: {plain(output.evalue, 200)}".strip().rstrip(":")
    return ""


def _harmless(outputs):
    """A student's own outputs as plain text and pictures, and cut to a readable length.

    Nothing of their form is taken for granted: the code that made them could write to the kernel's channel.
    """
    kept, room = [], _ROOM
    for output in outputs:
        if room <= 0:
            kept.append(new_output("stream", text="… (cut)\n"))
            break
        if output.output_type == "stream":
            most = min(room, _STREAM)
            cut = "\n… (cut)\n" if isinstance(output.text, str) and len(output.text) > most else ""
            name = "stderr" if output.name == "stderr" else "stdout"
            clean = new_output("stream", name=name, text=_text(output.text, most) + cut)
        elif output.output_type == "error":
            lines = output.traceback if isinstance(output.traceback, list) else []
            trace = [_text(line, _STREAM) for line in lines[:_LINES]]
            name, value = _text(output.ename, 100), _text(output.evalue, 200)
            clean = new_output("error", ename=name, evalue=value, traceback=trace)
        else:
            data = {}
            if text := _text(output.data.get("text/plain"), min(room, _STREAM)):
                data["text/plain"] = text
            picture = output.data.get("image/png")
            if isinstance(picture, str) and len(picture) <= _PICTURE and _BASE64.fullmatch(picture):
                data["image/png"] = picture
            clean = new_output("display_data", data)
            if not data:
                continue
        room -= len(json.dumps(clean)) if "image/png" not in clean.get("data", {}) else _STREAM
        kept.append(clean)
    return kept


def _text(value, length):
    """A text, cut; its colours are kept. Empty for anything else."""
    return _CELL_FILE.sub("cell ", whole(value[:length])) if isinstance(value, str) else ""
