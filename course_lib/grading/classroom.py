"""A class: many submissions, each graded by itself, merged by one writer.

DIR/submitted/<student>/<problem set>/…      what came in
DIR/autograded/<student>/<problem set>/…     the judged notebook and its record
DIR/feedback/<student>/<problem set>/…       what goes back, as HTML
DIR/gradebook.db, DIR/seed.key               nbgrader's gradebook, and the secret of the class
"""

import os
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import nbformat
from nbgrader.api import Gradebook
from nbgrader.preprocessors import SaveAutoGrades
from sqlalchemy.exc import SAWarning

from course_lib.authoring.paths import EXERCISES, SOURCE, problem_sets
from course_lib.authoring.release import generate_exercises, nbgrader_api, quietly, write_sources
from course_lib.grading.intake import EXCHANGE, LARGEST, skeleton_of
from course_lib.grading.record import PERSON, Record
from course_lib.grading.seeds import class_key, seed_of
from course_lib.grading.submission import digest_of, grade_submission

__all__ = ["Classroom", "Submission", "graders"]


def graders(jobs=None):
    """Processes to grade in: judging runs known mistakes with the output of its whole process turned away.

    Args:
        jobs: how many kernels work at a time; None for one more than there are processors, for some only wait.
    """
    return ProcessPoolExecutor(jobs or (os.cpu_count() or 1) + 1, mp_context=get_context("spawn"))


@dataclass(frozen=True)
class Submission:
    """What one student handed in: the files of a folder, by name."""

    student: str
    files: dict[str, bytes]


class Classroom:
    """One problem set of one class.

    Args:
        folder: the class's folder.
        assignment: the problem set, for example `"ps1-algorithm"`.

    Raises:
        FileNotFoundError: nothing was handed in, or the problem set is not released.
    """

    def __init__(self, folder, assignment):
        self.folder, self.assignment = Path(folder).resolve(), assignment
        released = EXERCISES / assignment
        if not released.is_dir():
            known = ", ".join(sorted(path.name for path in EXERCISES.glob("ps*"))) or "none"
            raise FileNotFoundError(f"expected a released problem set, got {assignment!r}: released are {known}")
        self.skeleton = skeleton_of(released)
        self.notebook = next(released.glob("*.ipynb")).name
        if not any(self.folder.glob(f"submitted/*/{assignment}")):
            raise FileNotFoundError(
                f"expected submissions in {self.folder}/submitted/<student>/{assignment}/, found none: "
                "collect them there, one folder per student"
            )

    def submissions(self):
        """Everybody who handed in, sorted by name."""
        folders = sorted(self.folder.glob(f"submitted/*/{self.assignment}"))
        real = (folder for folder in folders if folder.is_dir() and not folder.is_symlink())
        return [Submission(folder.parent.name, _files(folder)) for folder in real]

    def grade(self, *, again=False, timeout=30, pool=None) -> Iterator[tuple[str, Record, bool]]:
        """Grade every submission that is new or has changed.

        Args:
            again: grade those that have not changed as well.
            timeout: seconds a cell of a submission may take.
            pool: `graders` to work in, which other problem sets may share; None takes some for this call.

        Raises:
            RuntimeError: a grading process was killed; what is graded is kept.

        Yields:
            (student, record, fresh): fresh is False where an earlier record still holds. A record is on
            disk and in the gradebook before the next is yielded, so an interrupted run resumes.
        """
        if pool is None:
            with graders() as pool:
                yield from self.grade(again=again, timeout=timeout, pool=pool)
            return
        key = class_key(self.folder)
        writer = _Writer(self)
        waiting = []
        try:
            for submission in self.submissions():
                seed = seed_of(key, self.skeleton.metadata.course.release, submission.student)
                earlier = None if again else writer.earlier(submission.student)
                if earlier and earlier.digest == digest_of(submission.files, earlier.release, seed):
                    waiting.append((submission, earlier, None))
                else:
                    asked = {"assignment": self.assignment, "skeleton": self.skeleton, "name": self.notebook}
                    future = pool.submit(grade_submission, submission.files, **asked, seed=seed, timeout=timeout)
                    waiting.append((submission, None, future))
            while waiting:
                submission, record, future = waiting.pop(0)  # and with it the executed notebook
                student = submission.student
                if future:
                    try:
                        record = future.result()
                    except BrokenProcessPool:
                        raise RuntimeError(
                            f"a grading process ended while {student} or somebody after them was graded, perhaps for "
                            "want of memory. What is graded is kept: run the same command again, or with --jobs 1"
                        ) from None
                    writer.write(submission, record)
                yield student, record, future is not None
        finally:
            for *_, future in waiting:
                if future:
                    future.cancel()


class _Writer:
    """The only one who writes: graded notebooks, records, the gradebook and feedback."""

    def __init__(self, classroom):
        self._room = classroom
        self._stem = Path(classroom.notebook).stem
        self._api = None

    def earlier(self, student):
        """The record of an earlier run, if there is one that can be read."""
        try:
            return Record.from_json(self._place(student, ".record.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, submission, record):
        """Put one record everywhere it belongs; the record's own file last, so that half a write is none."""
        student = submission.student
        place = self._place(student, ".ipynb")
        place.parent.mkdir(parents=True, exist_ok=True)
        # Away with what was there: nbgrader makes its own files read-only.
        for name in (self._place(student, ".record.json").name, place.name, *EXCHANGE):
            place.with_name(name).unlink(missing_ok=True)
        nbformat.write(record.notebook, place)
        for name in EXCHANGE & submission.files.keys():
            place.with_name(name).write_bytes(submission.files[name])
        self._to_gradebook(student, record)
        with quietly() as log:
            result = self._gradebook_api().generate_feedback(self._room.assignment, student, force=True)
        if not result["success"]:
            raise RuntimeError(
                f"nbgrader could not write feedback for {student}:\n{result.get('log') or log.getvalue()}"
            )
        self._place(student, ".record.json").write_text(record.to_json(), encoding="utf-8")

    def _place(self, student, suffix):
        return self._room.folder / "autograded" / student / self._room.assignment / f"{self._stem}{suffix}"

    def _gradebook_api(self):
        """nbgrader on this class, its gradebook brought to the current release before the first use."""
        if self._api is None:
            self._api = nbgrader_api(root=self._room.folder)
            write_sources(SOURCE)
            with tempfile.TemporaryDirectory() as scratch:
                database = self._api.coursedir.db_url
                with Gradebook(database) as gradebook:
                    known = {assignment.name for assignment in gradebook.assignments}
                names = [self._room.assignment] if known >= set(problem_sets()) else None
                generate_exercises(scratch, database=database, names=names)
        return self._api

    def _to_gradebook(self, student, record):
        assignment, database = self._room.assignment, self._gradebook_api().coursedir.db_url
        about = {"notebook": self._stem, "assignment": assignment, "student": student, "db_url": database}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SAWarning)  # nbgrader's handling of its own sessions
            with Gradebook(database) as gradebook:
                gradebook.update_or_create_student(student)
                gradebook.update_or_create_submission(assignment, student)
            # nbgrader reads the points from the check cells, where the judge has put them: a regrade replaces the old.
            SaveAutoGrades().preprocess(record.notebook, {"nbgrader": about})
            with Gradebook(database) as gradebook:
                for grade in gradebook.find_submission_notebook(self._stem, assignment, student).grades:
                    # Else it is as nbgrader has just set it: to be looked at again where somebody gave points by hand.
                    grade.needs_manual_grade |= record.status == PERSON
                gradebook.db.commit()


def _files(folder):
    """What a student's folder holds. Links are not followed, and only what is used is opened."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_file() or ".ipynb_checkpoints" in name:
            continue
        files[name] = b""
        if path.suffix == ".ipynb" or name in EXCHANGE:
            with path.open("rb") as file:
                files[name] = file.read(LARGEST + 1)
    return files
