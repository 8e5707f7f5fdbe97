"""Judging: from a notebook that has run in its kernel to rows of points, in the grader's process."""

from nbformat.v4 import new_output

from course_lib.checks import OBSERVATIONS, Row, Verdict
from course_lib.checks.judge import judge
from course_lib.checks.piece import find

__all__ = ["judge_notebook"]

_STREAM = 5000  # characters of a student's own printing that reach the feedback
_SAFE = {"text/plain", "image/png"}


def judge_notebook(notebook, seed):
    """Judge every check cell of an executed notebook and replace its outputs by the verdict.

    Args:
        notebook: rebuilt by intake, so that its check cells are the release's; changed in place.
        seed: the student's seed.

    Returns:
        {grade id: Verdict}, in the notebook's order.
    """
    verdicts, trouble = {}, {}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        marked = cell.metadata.get("nbgrader", {})
        piece = cell.metadata.get("course", {}).get("piece")
        if marked.get("solution"):
            trouble[piece] = _error_of(cell)
        if marked.get("grade"):
            verdict = _verdict(find(piece), cell, seed, trouble.get(piece), notebook.metadata.course)
            verdicts[marked.grade_id] = verdict
            data = {"text/plain": str(verdict.points), "text/html": verdict.to_html()}
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
    return Verdict(piece.name, tuple(Row(group.title, 0, group.points, reason) for group in piece.groups))


def _error_of(cell):
    """The error an executed cell ended with, as one line."""
    for output in cell.outputs:
        if output.output_type == "error":
            return f"{output.ename}: {output.evalue}".strip().rstrip(":")[:300]
    return ""


def _harmless(outputs):
    """A student's own outputs without scripts, pages and observations, and cut to a readable length."""
    kept = []
    for output in outputs:
        if output.output_type == "stream":
            if len(output.text) > _STREAM:
                output.text = output.text[:_STREAM] + "\n… (cut)\n"
            kept.append(output)
        elif output.output_type == "error":
            kept.append(output)
        else:
            output.data = {mime: value for mime, value in output.data.items() if mime in _SAFE}
            output.metadata = {}
            if output.data:
                kept.append(output)
    return kept
