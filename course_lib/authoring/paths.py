"""Where things stand in the repository."""

from pathlib import Path

__all__ = ["BOOK", "BUILD", "EXERCISES", "ROOT", "SOLUTIONS", "SOURCE", "STUDENT", "ZIP", "problem_sets"]

#: The checkout this library is part of.
ROOT = Path(__file__).resolve().parents[2]
#: Everything disposable.
BUILD = ROOT / "_build"
SOLUTIONS = ROOT / "solutions"
EXERCISES = ROOT / "exercises"
#: Source notebooks, as nbgrader's generate_assignment reads them.
SOURCE = BUILD / "source"
#: The student edition: staged tree, wheel and unpacked library.
STUDENT = BUILD / "student"
#: What a student downloads.
ZIP = BUILD / "release" / "batchnorm-course-student.zip"
BOOK = BUILD / "html"


def problem_sets():
    """Names of all problem sets that have a solution, in order."""
    return sorted(folder.name for folder in SOLUTIONS.iterdir() if folder.is_dir())
