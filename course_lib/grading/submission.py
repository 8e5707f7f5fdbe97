"""One submission: bytes in, record out. Nothing is written, nothing is remembered, no submission meets another."""

import hashlib
import time

import nbformat

from course_lib.checks import Row, Verdict
from course_lib.checks.piece import find
from course_lib.grading import policy
from course_lib.grading.intake import Unreadable, choose, parse, rebuild
from course_lib.grading.judging import judge_notebook
from course_lib.grading.record import GRADED, PERSON, Record

__all__ = ["digest_of", "grade_submission"]


def grade_submission(files, *, assignment, skeleton, name, seed, timeout=30):
    """Grade what one student handed in.

    Args:
        files: {file name: bytes} of the submission's folder.
        assignment: the problem set.
        skeleton: its released notebook.
        name: the released notebook's file name.
        seed: this student's seed.
        timeout: seconds a cell may take; all together may take ten times as long.

    Returns:
        A `Record`; its notebook is there in every case. Never raises for what a student handed in.

    Raises:
        FileNotFoundError: there is no student edition to run it with.
        ValueError: it, or the skeleton, is of another release than the checks.
    """
    from course_lib.grading.kernel import CourseExecute, expect_current

    expect_current(assignment, skeleton.metadata.course.release)
    started = time.monotonic()
    release = skeleton.metadata.course.release
    record = Record(assignment, release, GRADED, "", {}, [], digest=digest_of(files, release, seed))
    try:
        data, record.repairs = choose(files, name)
        submitted = parse(data, skeleton)
    except Unreadable as unreadable:
        return _by_a_person(record, skeleton, str(unreadable), started)
    try:
        notebook, repairs = rebuild(submitted, skeleton)
        record.repairs += repairs
        CourseExecute(seed=seed, timeout=timeout).preprocess(notebook, {"metadata": {}})
        findings = policy.read(notebook)
        record.verdicts = judge_notebook(notebook, seed, findings)
    except Exception as error:  # whatever a student's code did to its kernel, the next one is graded
        reason = f"grading the notebook failed ({type(error).__name__}: {str(error)[:200]}): run it by hand"
        return _by_a_person(record, skeleton, reason, started)
    if reason := policy.for_a_person(findings):
        record.status, record.reason = PERSON, reason
    record.notebook = notebook
    record.seconds = round(time.monotonic() - started, 1)
    return record


def digest_of(files, release, seed):
    """Digest of everything a record depends on: files, release and seed."""
    digest = hashlib.sha256(f"{release}/{seed}".encode())
    for name, data in sorted(files.items()):
        digest.update(f"\0{name}\0{len(data)}\0".encode(errors="backslashreplace") + data)
    return digest.hexdigest()[:16]


def _by_a_person(record, skeleton, reason, started):
    """No points and a reason, on the notebook that was handed out, so that there is feedback in every case."""
    notebook = nbformat.from_dict(nbformat.reads(nbformat.writes(skeleton), as_version=4))
    record.status, record.reason, record.notebook = PERSON, reason, notebook
    for cell in notebook.cells:
        marked = cell.metadata.get("nbgrader", {})
        if marked.get("grade"):
            piece = find(cell.metadata.course.piece)
            rows = tuple(Row(group.title, 0, group.points, reason) for group in piece.groups)
            record.verdicts[marked.grade_id] = verdict = Verdict(piece.name, rows)
            data = {"text/plain": str(verdict.points), "text/html": verdict.to_html()}
            cell.outputs = [nbformat.v4.new_output("execute_result", data)]
    record.seconds = round(time.monotonic() - started, 1)
    return record
