"""The page for instructors: every command on it is run, in its order, on a class of two. README's are among them.

The commands run in a copy of the repository that is cut down, so that they take seconds: one problem set, and a book
of one page. Where something stands in for a command, `Step.instead` does it and `Step.why` says why. A command that
is on the page and not in `STEPS` makes the first test fail.
"""

import csv
import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from nbgrader.api import Gradebook

from course_lib.authoring.paths import ROOT
from tests.sample_class import hand_ins

PAGE = ROOT / "chapters" / "teaching.md"
README = ROOT / "README.md"
PROBLEM_SET = "ps1-algorithm"
CLASS = {"ada": "right_numpy", "grace": "patched_judge"}  # grace needs a person
SCRIPT = "<script>alert('from a cell')</script>"  # in a text of hers
BOOK = "https://example.org/batchnorm/"  # as on the page
TAKES_MINUTES = "it takes minutes, and what it runs is run elsewhere: here `make` says what it would do"

#: Runs the programs of this environment, one after the other, each in a process that has imported already what all of
#: them import: that is most of the time that they take. What was imported is kept out of the garbage collector's way,
#: which would write to all of it when a process ends.
WARM = """
import course_lib.authoring
import gc, json, os, runpy, shlex, shutil, sys
import torch, nbgrader.apps, course_lib.cli, course_lib.grading.classroom
gc.freeze()
for line in sys.stdin:
    command, folder, log = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        sys.argv = shlex.split(command)
        runpy.run_path(shutil.which(sys.argv[0]), run_name="__main__")
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def fences(page, *languages):
    """(language, text) of the fenced blocks in these languages, in the page's order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M)
    return [(language, text) for language, text in found if language in languages]


def commands_of(page):
    """Every command of a page; of a block of Python its first line, with the language before it."""
    found = []
    for language, text in fences(page, "bash", "console", "sh", "shell", "python"):
        if language == "python":
            found.append(f"python: {text.splitlines()[0]}")
        else:
            joined = re.sub(r"[ \t]+", " ", text.replace("\\\n", ""))  # as a shell joins lines
            found += [line.strip() for line in joined.splitlines() if line.strip()]
    return found


class Term:
    """A copy of the course, a class, an exchange and a student's home, and what the commands have said."""

    def __init__(self, folder):
        self.course, self.home, self.exchange = folder / "course", folder / "home", folder / "exchange"
        self.room, self.stock, self._folder, self._warm = folder / "class", folder / "stock", folder, None
        self.home.mkdir()
        shutil.copytree(ROOT, self.course, ignore=shutil.ignore_patterns(".*", "_build", "__pycache__", "*.egg-info"))
        self._cut_down()
        for student, source in CLASS.items():
            files = hand_ins(PROBLEM_SET)[source]
            notebook = json.loads(files["algorithm.ipynb"])
            notebook["cells"].append({"cell_type": "markdown", "metadata": {}, "source": f"A text. {SCRIPT}"})
            self.hand_in(student, {**files, "algorithm.ipynb": json.dumps(notebook).encode()})

    def _cut_down(self):
        for path in (*self.course.glob("solutions/ps*"), *self.course.glob("exercises/ps*")):
            if path.name != PROBLEM_SET:
                shutil.rmtree(path)
        for solution in ROOT.glob("solutions/ps[2-9]-*"):  # a topic is graded as soon as there are checks for it
            topic = solution.name.partition("-")[2].replace("-", "_")
            for path in self.course.glob(f"course_lib/checks/{topic}*.py"):
                path.unlink()
        (self.course / "chapters" / "page.md").write_text("# A page\n\nIts only sentence.\n")
        (self.course / "_toc.yml").write_text("format: jb-book\nroot: chapters/page\n")
        # The address of the book, as the page says to set it.
        [(_, said)] = fences(PAGE, "toml")
        project = self.course / "pyproject.toml"
        header, setting = said.splitlines()
        text = project.read_text(encoding="utf-8")
        assert header in text and 'book-url = ""' in text and setting == f'book-url = "{BOOK}"'
        project.write_text(text.replace('book-url = ""', setting))

    def hand_in(self, student, files):
        for name, data in files.items():
            path = self.room / "submitted" / student / PROBLEM_SET / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    @functools.cached_property
    def user(self):
        """Who hands in through the exchange: whoever runs this test."""
        [folder] = {path.name for path in (self.room / "submitted").iterdir()} - set(CLASS)
        return folder

    @property
    def environment(self):
        beside = str(Path(sys.executable).parent)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "JUPYTER"))}
        own = {"PATH": f"{beside}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(self.course)}
        return {**kept, **own, "HOME": str(self.home), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}

    def filled_in(self, text, room):
        """A text of the page with our folders in the place of its words."""
        ours = {"DIR": lambda: room, "EXCHANGE": lambda: self.exchange, "STUDENT": lambda: self.user}
        return re.sub(r"\b(DIR|EXCHANGE|STUDENT)\b", lambda found: str(ours[found[1]]()), text)

    def run(self, command, room, folder):
        """(exit code, what was said) of a command."""
        if command.startswith(("course ", "nbgrader ")):
            return self._run_warm(command, folder)
        return self.say(["bash", "-c", command], folder)

    def say(self, arguments, folder=None):
        done = subprocess.run(
            arguments, cwd=folder or self.course, env=self.environment, capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr

    def _run_warm(self, command, folder):
        if self._warm is None:
            self._warm = subprocess.Popen(
                [sys.executable, "-c", WARM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=self.course,
                env=self.environment,
            )
        log = self._folder / "said.log"
        log.unlink(missing_ok=True)
        self._warm.stdin.write(json.dumps([command, str(folder), str(log)]) + "\n")
        self._warm.stdin.flush()
        code = int(self._warm.stdout.readline())
        return code, log.read_text(errors="replace") if log.exists() else ""

    def close(self):
        if self._warm:
            self._warm.stdin.close()
            self._warm.wait()
            self._warm.stdout.close()


@dataclass
class Step:
    """One command of the page.

    Attributes:
        command: as on the page; of a block of Python its first line.
        after: (term, what was said) → nothing; asserts that what the page promises is there.
        before: prepares what the page says is there.
        instead: (term, command) → (exit code, what was said), where something stands in for the command,
        why: and for what reason.
        student: the command is a student's, in their own folder.
        stock: the class is the one that stock nbgrader works on.
    """

    command: str
    after: Callable
    before: Callable = lambda term: None
    instead: Callable | None = None
    why: str = ""
    student: bool = False
    stock: bool = False


# --- what the page promises


def dry_run(target):
    return lambda term, command: term.say(["make", "-n", target])


def says(*parts):
    def after(term, said):
        assert [part for part in parts if part not in said] == [], said

    return after


def a_release(term, said):
    zipped = term.course / "_build" / "release" / "batchnorm-course-student.zip"
    with zipfile.ZipFile(zipped) as archive:
        texts = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    assert BOOK in texts["README.md"].decode() and "tutor, do not solve" in texts["AGENTS.md"].decode()
    assert f"{PROBLEM_SET}/algorithm.ipynb" in texts
    assert (term.course / "exercises" / PROBLEM_SET / "algorithm.ipynb").is_file()
    release = json.loads(texts[f"{PROBLEM_SET}/algorithm.ipynb"])["metadata"]["course"]["release"]
    assert re.fullmatch("[0-9a-f]{8}", release) and release in texts["README.md"].decode()


def in_the_exchange(term, said):
    [released] = term.exchange.glob(f"batchnorm-by-building-it/outbound/{PROBLEM_SET}/*")
    assert released.read_bytes() == (term.course / "exercises" / PROBLEM_SET / "algorithm.ipynb").read_bytes()


def fetched(term, said):
    assert (term.home / PROBLEM_SET / "algorithm.ipynb").is_file()


def answers():
    return hand_ins(PROBLEM_SET)[CLASS["ada"]]["algorithm.ipynb"]


def _downloaded(term, name, members):
    archive = term.room / "downloaded" / PROBLEM_SET / "archive"
    shutil.rmtree(archive, ignore_errors=True)
    archive.mkdir(parents=True)
    with zipfile.ZipFile(archive / name, "w") as zipped:
        for member in members:
            zipped.writestr(member, b"?" if "MACOSX" in member else answers())


def a_zip_of_a_student(term):
    _downloaded(term, "zoe.zip", [f"{PROBLEM_SET}/algorithm.ipynb", f"__MACOSX/{PROBLEM_SET}/._algorithm.ipynb"])


def a_zip_of_the_lms(term):
    _downloaded(term, "all of them.zip", ["xena/algorithm.ipynb", "will/my answers.ipynb"])


def collected(**students):
    """These have come in as the layout says. They are taken away again, to keep the class small."""

    def after(term, said):
        for student, name in students.items():
            folder = term.room / "submitted" / student
            assert [path.name for path in (folder / PROBLEM_SET).iterdir()] == [name]
            assert (folder / PROBLEM_SET / name).read_bytes() == answers()
            shutil.rmtree(folder)
        assert {path.name for path in (term.room / "submitted").iterdir()} == set(CLASS)

    return after


def the_student_has_solved_it(term):
    (term.home / PROBLEM_SET / "algorithm.ipynb").write_bytes(answers())


def submitted(term, said):
    assert list(term.exchange.glob(f"*/inbound/*+{PROBLEM_SET}+*/algorithm.ipynb"))


def collected_from_the_exchange(term, said):
    files = {path.name for path in (term.room / "submitted" / term.user / PROBLEM_SET).iterdir()}
    assert files == {"algorithm.ipynb", "timestamp.txt", "submission_secret.txt"}


def graded(now):
    def after(term, said):
        assert f"{len(CLASS) + 1} submissions, {now} graded now" in said
        assert "Needs a person: grace" in said and "reaches for the grader" in said
        for student in (*CLASS, term.user):
            folder = term.room / "autograded" / student / PROBLEM_SET
            assert (folder / "algorithm.ipynb").is_file()
            status = json.loads((folder / "algorithm.record.json").read_text())["status"]
            assert status == ("needs a person" if student == "grace" else "graded")
            page = (term.room / "feedback" / student / PROBLEM_SET / "algorithm.html").read_text()
            assert f"Score: {0.0 if student == 'grace' else 10.0} / 10.0" in page
        assert {"gradebook.db", "seed.key"} <= {path.name for path in term.room.iterdir()}
        with Gradebook(f"sqlite:///{term.room}/gradebook.db") as gradebook:
            assert gradebook.find_submission(PROBLEM_SET, "grace").needs_manual_grade
            assert not gradebook.find_submission(PROBLEM_SET, "ada").needs_manual_grade

    return after


def _port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _until_it_answers(term, arguments, ask):
    """(0, the answer) of a server that is started, asked and ended again."""
    with open(term.home / "server.log", "w") as log:
        server = subprocess.Popen(arguments, cwd=term.course, env=term.environment, stdout=log, stderr=log)
    try:
        for _ in range(600):
            if server.poll() is not None:
                return server.returncode, (term.home / "server.log").read_text()
            try:
                return 0, ask()
            except OSError:
                time.sleep(0.1)
        return 1, "no answer in a minute"
    finally:
        server.terminate()
        server.wait()


def _page_at(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}") as answer:
        return answer.read().decode()


def formgrader(term, command):
    """Its list of submissions, and its page for grace."""
    port = _port()
    quiet = ["--no-browser", "--allow-root", f"--port={port}", "--ServerApp.token=test"]

    def ask():
        listed = _page_at(port, f"formgrader/api/submitted_notebooks/{PROBLEM_SET}/algorithm?token=test")
        [grace] = [row["id"] for row in json.loads(listed) if row["student"] == "grace"]
        return json.dumps([json.loads(listed), _page_at(port, f"formgrader/submissions/{grace}?token=test")])

    return _until_it_answers(term, [*command.split(), *quiet], ask)


def shown_by_formgrader(term, said):
    listed, page = json.loads(said)
    marks = {row["student"]: row["needs_manual_grade"] for row in listed}
    assert marks == {"ada": False, "grace": True, term.user: False}
    assert "A text." in page and "✗ not yet" in page and 'id="check-batch-stats"' in page
    assert SCRIPT not in page


def points_by_hand(term, said):
    with Gradebook(f"sqlite:///{term.room}/gradebook.db") as gradebook:
        submission = gradebook.find_submission(PROBLEM_SET, "grace")
        assert submission.score == 2 and not submission.needs_manual_grade


def feedback_with_points_by_hand(term, said):
    page = (term.room / "feedback" / "grace" / PROBLEM_SET / "algorithm.html").read_text()
    assert "Score: 2.0 / 10.0" in page


def a_class_for_nbgrader(term):
    """Who came through the exchange, late, and who needs a person."""
    shutil.copytree(term.room / "submitted", term.stock / "submitted")
    shutil.rmtree(term.stock / "submitted" / "ada")
    (term.stock / "submitted" / term.user / PROBLEM_SET / "timestamp.txt").write_text("2027-03-02 00:00:00 UTC")


def as_it_was_released(term, said):
    committed = ROOT / "exercises" / PROBLEM_SET / "algorithm.ipynb"
    assert (term.course / "exercises" / PROBLEM_SET / "algorithm.ipynb").read_bytes() == committed.read_bytes()


def autograded(term, said):
    folder = term.stock / "autograded" / "grace" / PROBLEM_SET
    assert json.loads((folder / "algorithm.record.json").read_text())["status"] == "needs a person"
    with Gradebook(f"sqlite:///{term.stock}/gradebook.db") as gradebook:
        assert gradebook.find_submission(PROBLEM_SET, term.user).score == 10
        # As the page says: nbgrader does not mark whoever needs a person.
        grace = gradebook.find_submission(PROBLEM_SET, "grace")
        assert grace.score == 0 and not grace.needs_manual_grade


def feedback_by_nbgrader(term, said):
    assert (term.stock / "feedback" / term.user / PROBLEM_SET / "algorithm.html").is_file()


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def exported_beside(term, said):
    scores = {row["student_id"]: float(row["score"]) for row in rows_of(term.course / "grades.csv")}
    assert scores == {"grace": 0, term.user: 10}


def exported(term, said):
    rows = rows_of(term.room / "grades.csv")
    assert {row["assignment"] for row in rows} == {PROBLEM_SET}
    assert {row["student_id"]: float(row["score"]) for row in rows} == {"ada": 10, "grace": 2, term.user: 10}
    names = "assignment duedate timestamp student_id last_name first_name email"
    assert list(rows[0]) == [*names.split(), "raw_score", "late_submission_penalty", "score", "max_score"]


def points_of_pieces(term, said):
    rows = rows_of(term.room / "points.csv")
    points = {(row["student"], row["piece"]): (float(row["points"]), float(row["of"])) for row in rows}
    assert points[("ada", "algorithm.batch_stats")] == (3, 3)
    assert points[("grace", "algorithm.recover_identity")] == (0, 1)
    assert len(points) == 4 * (len(CLASS) + 1)
    assert {row["status"] for row in rows if row["student"] == "grace"} == {"needs a person"}


def zip_of_feedback(term, said):
    with zipfile.ZipFile(term.room / "feedback.zip") as archive:
        pages = [name for name in archive.namelist() if name.endswith(".html")]
    assert len(pages) == len(CLASS) + 1


def feedback_released(term, said):
    assert list(term.exchange.glob("*/feedback/*.html"))


def feedback_fetched(term, said):
    [page] = (term.home / PROBLEM_SET / "feedback").glob("*/algorithm.html")
    page = page.read_text()
    assert "Score: 10.0 / 10.0" in page and BOOK not in page  # all right: no hint, so no link


def due(term, said):
    with Gradebook(f"sqlite:///{term.stock}/gradebook.db") as gradebook:
        assert gradebook.find_assignment(PROBLEM_SET).duedate.year == 2027


def penalised(term, said):
    with Gradebook(f"sqlite:///{term.stock}/gradebook.db") as gradebook:
        late = gradebook.find_submission(PROBLEM_SET, term.user)
        assert (late.score, late.late_submission_penalty) == (10, 10)
        assert not gradebook.find_submission(PROBLEM_SET, "grace").late_submission_penalty


def a_book(term, said):
    assert (term.course / "_build" / "html" / "chapters" / "page.html").is_file()


def served(term, command):
    port = _port()
    return _until_it_answers(term, [*command.split(), f"--port={port}"], lambda: _page_at(port, "chapters/page.html"))


ZIP_COLLECT = "nbgrader zip_collect ps1-algorithm{} --FileNameCollectorPlugin.named_regexp='.*/extracted/{}'"
OF_A_STUDENT = r"(?P<student_id>[^/]+)/(?:.*/)?(?P<file_id>[^/.][^/]*)$"
STEPS = [
    Step(
        "make demo",
        says("course build", "tests.sample_class", "course grade"),
        instead=dry_run("demo"),
        why=TAKES_MINUTES,
    ),
    Step(
        "make test",
        says("course build", "pytest"),
        instead=dry_run("test"),
        why="it would run itself: here `make` says what it would do",
    ),
    Step(
        "source .venv/bin/activate",
        says("-m venv .venv"),
        instead=dry_run(".venv/ready"),
        why="the tests run in that environment; here `make` says that it would make one of that name",
    ),
    Step("course --help", says("build", "release", "check-release", "grade", "serve")),
    Step("course release", a_release),
    Step("course check-release", says("reproducible to the byte and gives nothing away")),
    Step(
        "nbgrader release_assignment ps1-algorithm --course-dir DIR --Exchange.root=EXCHANGE",
        in_the_exchange,
    ),
    Step(
        "nbgrader fetch_assignment ps1-algorithm --course batchnorm-by-building-it --Exchange.root=EXCHANGE",
        fetched,
        student=True,
    ),
    Step(
        ZIP_COLLECT.format(" --CourseDirectory.root=DIR", OF_A_STUDENT),
        collected(zoe="algorithm.ipynb"),
        before=a_zip_of_a_student,
    ),
    Step(
        ZIP_COLLECT.format(" --force --CourseDirectory.root=DIR", "[^/]+/" + OF_A_STUDENT),
        collected(xena="algorithm.ipynb", will="my answers.ipynb"),
        before=a_zip_of_the_lms,
    ),
    Step(
        "nbgrader submit ps1-algorithm --course batchnorm-by-building-it --Exchange.root=EXCHANGE",
        submitted,
        before=the_student_has_solved_it,
        student=True,
    ),
    Step(
        "nbgrader collect ps1-algorithm --update --course-dir DIR --Exchange.root=EXCHANGE",
        collected_from_the_exchange,
    ),
    Step("course grade ps1-algorithm --class DIR", graded(3)),
    Step("course grade ps1-algorithm --class DIR --again --jobs 1", graded(3)),
    Step(
        "jupyter lab --ServerApp.root_dir=DIR --CourseDirectory.root=DIR",
        shown_by_formgrader,
        instead=formgrader,
        why="the same without a browser and on a free port, until formgrader has shown its list",
    ),
    Step("python: from nbgrader.api import Gradebook", points_by_hand),
    Step(
        "nbgrader generate_feedback ps1-algorithm --student grace --force --course-dir DIR",
        feedback_with_points_by_hand,
    ),
    Step(
        "nbgrader generate_assignment ps1-algorithm --force --course-dir DIR",
        as_it_was_released,
        before=a_class_for_nbgrader,
        stock=True,
    ),
    Step("nbgrader autograde ps1-algorithm --course-dir DIR", autograded, stock=True),
    Step("nbgrader generate_feedback ps1-algorithm --course-dir DIR", feedback_by_nbgrader, stock=True),
    Step("nbgrader export --db sqlite:///DIR/gradebook.db", exported_beside, stock=True),
    Step("python -m zipfile -c DIR/feedback.zip DIR/feedback", zip_of_feedback),
    Step(
        "nbgrader release_feedback ps1-algorithm --course-dir DIR --student=STUDENT --Exchange.root=EXCHANGE",
        feedback_released,
    ),
    Step(
        "nbgrader fetch_feedback ps1-algorithm --course batchnorm-by-building-it --Exchange.root=EXCHANGE",
        feedback_fetched,
        student=True,
    ),
    Step(
        'nbgrader db assignment add ps1-algorithm --duedate="2027-03-01 23:59:00 UTC" --course-dir DIR',
        due,
        stock=True,
    ),
    Step(
        "nbgrader autograde ps1-algorithm --force --course-dir DIR --LateSubmissionPlugin.penalty_method=zero",
        penalised,
        stock=True,
    ),
    Step(
        "nbgrader export --db sqlite:///DIR/gradebook.db --to DIR/grades.csv --assignment ps1-algorithm",
        exported,
    ),
    Step("python: import csv", points_of_pieces),
    Step("course build", a_book),
    Step("course check-release", says("gives nothing away")),
    Step(
        "course serve",
        says("Its only sentence"),
        instead=served,
        why="the same on a free port, until the first page has come",
    ),
    Step(
        "course release",
        a_release,
        instead=lambda term, command: (0, ""),
        why="nothing has changed since it was run above, and what it made is looked at again",
    ),
    Step(
        "python -m pytest tests/checks/test_algorithm.py tests/misconceptions tests/authoring",
        says("tests/checks/test_algorithm.py", "tests/misconceptions", "tests/authoring"),
        instead=lambda term, command: term.say(["ls", "-d", *command.split()[3:]]),
        why="these tests are run beside this one: here they are only found",
    ),
    Step("make mutants", says("-m tests.mutants"), instead=dry_run("mutants"), why=TAKES_MINUTES),
    Step(
        "make test",
        says("course build", "pytest"),
        instead=dry_run("test"),
        why="it would run itself: here `make` says what it would do",
    ),
]
IDS = [f"{number:02}-{' '.join(step.command.split()[:3])}" for number, step in enumerate(STEPS)]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What became of every step, in the page's order: None, or the error. After an error nothing else is run."""
    term = Term(tmp_path_factory.mktemp("term"))
    blocks = {f"python: {text.splitlines()[0]}": text for _, text in fences(PAGE, "python")}
    found = []
    try:
        for step in STEPS:
            try:
                _do(step, term, blocks.get(step.command))
                found.append(None)
            except Exception as error:
                found.append(error)
                break
    finally:
        term.close()
    return found


def _do(step, term, block):
    step.before(term)
    room = term.stock if step.stock else term.room
    command = term.filled_in(step.command, room)
    if block:
        code, said = term.say([sys.executable, "-c", term.filled_in(block, room)])
    elif step.instead:
        code, said = step.instead(term, command)
    else:
        code, said = term.run(command, room, term.home if step.student else term.course)
    assert code == 0, f"{command}\n{said}"
    step.after(term, said)


def test_every_command_of_the_page_is_a_step_here_and_in_its_order():
    assert commands_of(PAGE) == [step.command for step in STEPS]


@pytest.mark.parametrize("number", range(len(STEPS)), ids=IDS)
def test_a_command_does_what_the_page_says(outcomes, number):
    if number >= len(outcomes):
        pytest.fail(f"not run: step {len(outcomes) - 1} failed before it")
    if outcomes[number]:
        raise outcomes[number]


def test_what_stands_in_for_a_command_says_why():
    assert all(bool(step.instead) == bool(step.why) for step in STEPS)


def test_every_command_of_the_readme_is_a_step_here():
    lines = re.findall(r"^    (\S.*)$", README.read_text(encoding="utf-8"), re.M)
    commands = {re.sub(r"\s+#.*", "", line).removeprefix(".venv/bin/") for line in lines}
    assert "make demo" in commands and len(commands) > 8
    assert commands <= {step.command for step in STEPS}


@pytest.mark.parametrize("page", [PAGE, README], ids=["teaching", "README"])
def test_every_command_that_a_sentence_names_exists(page):
    from course_lib.cli import main

    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    named = re.findall(r"`(?:\.venv/bin/)?(course|make) ([a-z][a-z-]*)", text)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert named
    assert {name for program, name in named if program == "course"} <= set(main.commands)
    assert {name for program, name in named if program == "make"} <= targets
