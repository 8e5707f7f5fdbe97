"""`course release`: solutions → source notebooks → exercises (nbgrader) → student edition → zip."""

import io
import os
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing, contextmanager, redirect_stderr
from pathlib import Path

import nbformat
from traitlets.config import PyFileConfigLoader

from course_lib.authoring import student
from course_lib.authoring.paths import BUILD, EXERCISES, ROOT, SOURCE, STUDENT, ZIP, problem_sets
from course_lib.authoring.source import source_notebook

__all__ = ["generate_exercises", "nbgrader_api", "quietly", "release", "write_sources"]


def release(exercises=EXERCISES, build=BUILD, *, fresh=False):
    """Everything that is handed out, from the solutions and the library.

    Args:
        exercises: where the notebooks go that students get; each problem set's folder is replaced.
        build: where source notebooks, the release database, the student edition and the zip go.
        fresh: take nothing over from an earlier release, also where nothing has changed.

    Returns:
        Path of the zip.

    Raises:
        RuntimeError: nbgrader could not generate an assignment; with its log.
    """
    write_sources(build / SOURCE.relative_to(BUILD))
    generate_exercises(exercises, build)
    folder = build / STUDENT.relative_to(BUILD)
    wheel = student.build_wheel(student.stage(folder / "tree", fresh=fresh), folder / "dist")
    student.unpack(wheel, folder / "lib")
    path = build / ZIP.relative_to(BUILD)
    student.write_zip(path, wheel, exercises)
    return path


def write_sources(folder):
    """Source notebooks of all problem sets, solutions included, for `nbgrader generate_assignment`."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in problem_sets():
        path = folder / name / f"{name.partition('-')[2]}.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(source_notebook(name), path)


def generate_exercises(exercises, build=BUILD, database=None, names=None):
    """The notebooks students get, by nbgrader, from the source notebooks under `build`.

    Args:
        exercises: where they go.
        build: where the source notebooks are.
        database: gradebook to register the assignments in; None takes a fresh one that is thrown away.
        names: of the problem sets; None takes all.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if database is None:
            # nbgrader writes the version of its own tables into an empty one, and starts a program, for seconds, to
            # learn it: of use in years to come, and this gradebook is thrown away.
            with closing(sqlite3.connect(Path(scratch) / "release.db")) as gradebook:
                gradebook.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
            database = f"sqlite:///{scratch}/release.db"
        api = nbgrader_api(
            database=database,
            source_directory=str(build / SOURCE.relative_to(BUILD)),
            release_directory=str(Path(scratch) / "release"),
        )
        for name in names or problem_sets():
            with quietly() as log:
                result = api.generate_assignment(name, force=True, create=True)
            if not result["success"]:
                raise RuntimeError(f"nbgrader could not generate {name}:\n{result.get('log') or log.getvalue()}")
            # Only what the solution names is released, whatever else may lie beside it.
            notebooks = sorted((Path(scratch) / "release" / name).glob("*.ipynb"))
            shutil.rmtree(Path(exercises) / name, ignore_errors=True)
            (Path(exercises) / name).mkdir(parents=True)
            for notebook in notebooks:
                shutil.copyfile(notebook, Path(exercises) / name / notebook.name)


def nbgrader_api(*, root=ROOT, database=None, **directories):
    """nbgrader with this repository's configuration.

    Args:
        root: folder of the class: submitted, autograded, feedback, gradebook.
        database: its gradebook; None takes `gradebook.db` in `root`.
        directories: other traits of nbgrader's `CourseDirectory`.
    """
    from nbgrader.apps import NbGraderAPI

    # nbgrader creates a gradebook by calling the program `alembic`, which lies beside this Python.
    beside = str(Path(sys.executable).parent)
    if beside not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = beside + os.pathsep + os.environ["PATH"]
    config = PyFileConfigLoader("nbgrader_config.py", path=str(ROOT)).load_config()
    config.CourseDirectory.root = str(root)
    config.CourseDirectory.db_url = database or f"sqlite:///{Path(root).resolve() / 'gradebook.db'}"
    config.CourseDirectory.update(directories)
    with quietly():
        return NbGraderAPI(config=config)


@contextmanager
def quietly():
    """nbgrader logs to stderr what is of interest only when something fails."""
    log = io.StringIO()
    with redirect_stderr(log):
        yield log
