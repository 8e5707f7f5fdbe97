"""Stock nbgrader on the same class: `nbgrader` as an instructor types it, with the repository's configuration."""

import csv
import html.parser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from course_lib.authoring.paths import ROOT
from tests.sample_class import expected, hand_ins

PROBLEM_SET = "ps1-algorithm"
STUDENTS = ("right_einsum", "unbiased_variance", "prints_and_warns", "duplicated_check", "scripts", "ends_process")
TABLE = expected(PROBLEM_SET)


def nbgrader(folder, *arguments):
    """Run an nbgrader command from the repository on a class somewhere else."""
    beside = Path(sys.executable).parent  # nbgrader calls `alembic` by its name
    where = f"--db=sqlite:///{folder}/gradebook.db" if arguments[0] == "export" else f"--course-dir={folder}"
    command = [sys.executable, "-m", "nbgrader", *arguments, where]
    environment = {**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A class graded, given feedback and exported by four commands."""
    folder = tmp_path_factory.mktemp("course")
    everybody = hand_ins(PROBLEM_SET)
    for student in STUDENTS:
        for name, data in everybody[student].items():
            path = folder / "submitted" / student / PROBLEM_SET / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    elsewhere = f"--CourseDirectory.release_directory={folder / 'release'}"
    nbgrader(folder, "generate_assignment", PROBLEM_SET, "--create", "--force", elsewhere)
    log = nbgrader(folder, "autograde", PROBLEM_SET)
    nbgrader(folder, "generate_feedback", PROBLEM_SET)
    nbgrader(folder, "export", f"--to={folder / 'grades.csv'}")
    return folder, log


def page(course, student):
    return (course[0] / "feedback" / student / PROBLEM_SET / "algorithm.html").read_text()


def test_the_released_notebook_is_the_committed_one(course):
    [released] = (course[0] / "release" / PROBLEM_SET).iterdir()
    assert released.read_bytes() == (ROOT / "exercises" / PROBLEM_SET / "algorithm.ipynb").read_bytes()


def test_the_exported_scores_are_those_of_the_table(course):
    with (course[0] / "grades.csv").open() as file:
        scores = {row["student_id"]: (float(row["score"]), float(row["max_score"])) for row in csv.DictReader(file)}
    assert scores == {student: (TABLE[student]["points"], 10.0) for student in STUDENTS}


def test_nobodys_grading_failed(course):
    assert "There was an error" not in course[1]
    assert "Traceback" not in course[1]


@pytest.mark.parametrize("student", STUDENTS)
def test_feedback_shows_score_and_hint(course, student):
    text = re.sub(r"<[^>]+>", "", page(course, student))
    assert f"Score: {TABLE[student]['points']} / 10.0" in text
    if TABLE[student]["message"] != "all right":
        assert TABLE[student]["message"] in text


def test_feedback_is_a_table_and_not_its_source(course):
    assert '<th scope="row"' in page(course, "unbiased_variance")
    assert "✗ not yet" in page(course, "unbiased_variance")


def test_a_record_is_beside_the_graded_notebook_and_not_in_the_feedback(course):
    assert (course[0] / "autograded" / "scripts" / PROBLEM_SET / "algorithm.record.json").is_file()
    assert [path.name for path in (course[0] / "feedback" / "scripts" / PROBLEM_SET).iterdir()] == ["algorithm.html"]


class Live(html.parser.HTMLParser):
    """What a browser would run or load."""

    def __init__(self):
        super().__init__()
        self.found, self.tags = [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag in ("script", "iframe", "object", "embed", "form", "base", "svg"):
            self.found.append(tag)
        for name, value in attrs:
            link = name in ("href", "src", "action", "formaction", "data", "srcdoc")
            harmless = re.match(r"#|https?://|[\w-]+\.ipynb|data:image/png;base64,[A-Za-z0-9+/=\s]*$", value or "")
            if name.startswith("on") or (link and not harmless):
                self.found.append(f"{tag} {name}={value}"[:200])


def live(text):
    parser = Live()
    parser.feed(text)
    return parser


@pytest.mark.parametrize(
    "text",
    [
        "<script>1</script>",
        "<img src=x onerror=a>",
        '<a href="javascript:a">',
        "<svg/onload=a>",
        '<a href="data:text/html">',
    ],
)
def test_what_is_live_is_recognised(text):
    assert live(text).found


@pytest.mark.parametrize("student", STUDENTS)
def test_nothing_in_feedback_is_live(course, student):
    found = live(page(course, student))
    assert {"table", "pre", "h1"} <= found.tags
    assert found.found == []


def test_scripts_are_shown_as_text(course):
    assert "&lt;script&gt;alert('output')" in page(course, "scripts")
