"""The sample class, graded once: everybody gets what the table in its README says, and nobody harms anybody."""

import ast
import base64
import functools
import io
import json
import re
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from multiprocessing import get_context
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest

from course_lib.authoring.paths import EXERCISES, ROOT, STUDENT
from course_lib.authoring.source import bodies
from course_lib.checks.observe import observe
from course_lib.checks.piece import TOPICS, find, pieces
from course_lib.grading import policy
from course_lib.grading.intake import skeleton_of
from course_lib.grading.record import GRADED, PERSON, Record
from course_lib.grading.submission import digest_of, grade_submission
from course_lib.misconceptions import catalogue, reference
from tests.sample_class import expected, hand_ins, problem_sets

PROBLEM_SET = "ps1-algorithm"
SKELETON = skeleton_of(EXERCISES / PROBLEM_SET)
CLASS = hand_ins(PROBLEM_SET)
EVERYBODY = {(name, student): files for name in problem_sets() for student, files in hand_ins(name).items()}
TABLE = {(name, student): row for name in problem_sets() for student, row in expected(name).items()}
everybody = pytest.mark.parametrize("who", EVERYBODY, ids="-".join)
SEED, ANOTHER_SEED = 20240229, 20240301
#: Who reaches for the machinery that grades, and what the judge gives them: the one whose answers are right loses
#: nothing by odd messages to the kernel's channel.
WITHOUT_POLICY = {
    "displayed_values": 0,
    "forged_bundle": 0,
    "imports_reference": 0,
    "odd_bundle": 0,
    "odd_messages": 10,
    "patched_judge": 0,
    "prints_sources": 0,
    "reads_expectations": 0,
}
NEVER_END = {"endless_cell", "endless_fusing", "endless_piece", "endless_steps", "holds_the_lock", "patient_examiner"}
NEVER_END |= {"stubborn_cell"}


def seconds(problem_set, student=None):
    """What a cell may take. Those that never end cost that much, and the others of these students take a moment.

    Ranks that never end stop by themselves.
    """
    if student in NEVER_END:
        return 4 if problem_set == PROBLEM_SET else 6
    return 12 if problem_set == PROBLEM_SET else 20


def grade(files, seed=SEED, problem_set=PROBLEM_SET, student=None):
    name, skeleton = f"{problem_set.partition('-')[2]}.ipynb", skeleton_of(EXERCISES / problem_set)
    timeout = seconds(problem_set, student)
    return grade_submission(files, assignment=problem_set, skeleton=skeleton, name=name, seed=seed, timeout=timeout)


def records_of(problem_set):
    """{(problem set, student): record} of those who handed in a problem set, and what was printed on the way."""
    with redirect_stdout(io.StringIO()) as printed:
        found = {
            (problem_set, student): grade(files, problem_set=problem_set, student=student)
            for student, files in hand_ins(problem_set).items()
        }
    return found, printed.getvalue()


@pytest.fixture(scope="session")
def records():
    """{(problem set, student): record} of the whole class. That this returns is a test: no submission raises.

    Four problem sets at a time, in processes of their own: much of the time goes by in waiting for those that never
    end. What a process has imported and computed for one problem set is of no use to another.
    """
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as graders:
        found, printed = zip(*graders.map(records_of, problem_sets()), strict=True)
    assert set(printed) == {""}
    return {who: record for records in found for who, record in records.items()}


@pytest.fixture(scope="session")
def graded(records):
    """{student: record} of the first problem set."""
    return {student: record for (name, student), record in records.items() if name == PROBLEM_SET}


def kept(record):
    """All there is to see of a record: JSON, and the notebook, its time left out."""
    data = json.loads(record.to_json())
    del data["seconds"]
    return json.dumps(data), nbformat.writes(record.notebook)


def test_everybody_is_in_the_table():
    assert set(TABLE) == set(EVERYBODY)


@everybody
def test_everybody_gets_what_the_table_says(records, who):
    record, wanted = records[who], TABLE[who]
    assert (record.points, record.status) == (wanted["points"], wanted["status"])
    assert wanted["message"] in record.message


@everybody
def test_everybody_has_a_record_and_a_notebook_that_can_be_written(records, who):
    record = records[who]
    assert Record.from_json(record.to_json()) == record
    record.to_json().encode()
    nbformat.validate(record.notebook)
    text = nbformat.writes(record.notebook)
    assert len(text.encode()) < 400_000
    assert [cell.metadata for cell in record.notebook.cells if cell.metadata.get("nbgrader", {}).get("grade")] == [
        cell.metadata
        for cell in skeleton_of(EXERCISES / who[0]).cells
        if cell.metadata.get("nbgrader", {}).get("grade")
    ]


@everybody
def test_nbgrader_reads_the_records_points_from_the_check_cells(records, who):
    shown = []
    for cell in records[who].notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("grade"):
            [output] = cell.outputs
            shown.append(float(output.data["text/plain"]))
    assert shown == [verdict.points for verdict in records[who].verdicts.values()]


@everybody
def test_nothing_a_browser_would_run_is_left_in_outputs(records, who):
    for cell in records[who].notebook.cells:
        for output in cell.get("outputs", []):
            mimes = {"text/plain", "text/html"} if cell.metadata.get("nbgrader", {}).get("grade") else set()
            assert set(output.get("data", {})) <= mimes | {"text/plain", "image/png"}
            assert "<script" not in output.get("data", {}).get("text/html", "")


def test_whoever_needs_a_person_is_told_why_in_every_check(graded):
    for record in graded.values():
        if record.status == PERSON:
            assert [verdict.messages for verdict in record.verdicts.values()] == [[record.reason]] * 4


@pytest.mark.parametrize(("student", "points"), WITHOUT_POLICY.items())
def test_what_is_forged_is_worth_nothing_without_the_policy(monkeypatch, student, points):
    monkeypatch.setattr(policy, "read", lambda notebook: [])
    record = grade(CLASS[student])
    assert (record.status, record.points) == (GRADED, points)


def test_repairs_are_in_the_record(graded):
    assert graded["renamed"].repairs[0].startswith("took 'algorithm (1) final.ipynb' for 'algorithm.ipynb'")
    assert graded["edited_check"].repairs == [
        "restored the locked cell check-batch-norm-forward, which had been changed"
    ]
    assert graded["right_numpy"].repairs == []


def test_what_was_printed_and_warned_is_a_note(graded):
    notes = graded["prints_and_warns"].verdicts["check-batch-stats"].notes
    assert any("x has shape" in note for note in notes)
    assert any("slow for large x" in note for note in notes)


def test_nobody_takes_longer_than_a_few_cells_may(records):
    assert {who for who, record in records.items() if record.seconds >= 4 * seconds(*who)} == set()


def test_nothing_is_left_running_or_lying_about(graded):
    running = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not any("# left behind by a student" in argument for command in running for argument in command)
    assert not list(Path(tempfile.gettempdir()).glob(f"batchnorm-course-{psutil.Process().pid}-*"))


@pytest.mark.parametrize("student", ["right_welford", "prints_and_warns", "syntax_error", "broken_json"])
def test_a_regrade_is_identical_to_the_bit(graded, student):
    assert kept(grade(CLASS[student])) == kept(graded[student])


def test_the_digest_knows_files_release_and_seed():
    digests = {
        digest_of({"a": b"1"}, "r", 1),
        digest_of({"a": b"2"}, "r", 1),
        digest_of({"b": b"1"}, "r", 1),
        digest_of({"a": b"1"}, "s", 1),
        digest_of({"a": b"1"}, "r", 2),
        digest_of({"a": b"1", "caf\udce9": b""}, "r", 1),
    }
    assert len(digests) == 6


# --- what another student's answers are worth


def memoised(seed):
    """A submission that only remembers: outputs of a right `batch_stats` for the inputs that `seed` draws."""
    right, table = reference("algorithm.batch_stats"), {}

    def remembering(x):
        key = base64.b64encode(x.tobytes()).decode()
        try:
            mean, var = right(x)
        except ValueError:
            table[key] = None
            raise
        table[key] = mean.tolist(), var.tolist()
        return mean, var

    observe(find("algorithm.batch_stats"), remembering, seed)
    lines = [
        "import base64",
        f"TABLE = {table!r}",
        "def batch_stats(x):",
        "    found = TABLE.get(base64.b64encode(x.tobytes()).decode(), next(iter(TABLE.values())))",
        "    if found is None:",
        "        raise ValueError",
        "    return tuple(np.asarray(part, dtype=x.dtype) for part in found)",
    ]
    notebook = json.loads(json.dumps(SKELETON))
    next(cell for cell in notebook["cells"] if cell["id"] == "batch-stats")["source"] = "\n".join(lines)
    return {"algorithm.ipynb": json.dumps(notebook).encode()}


@pytest.mark.parametrize(("seed", "points"), [(SEED, 3), (ANOTHER_SEED, 0)])
def test_memoised_answers_are_worth_nothing_for_another_seed(seed, points):
    assert grade(memoised(SEED), seed=seed).points == points


# --- what gets out


def squeezed(text):
    return re.sub(r"\s+", "", text)


@functools.cache
def secrets():
    """Statements of the reference and of the mistakes that a student is not handed out, without white space."""
    lines = []
    for topic in TOPICS:
        tree, names = ast.parse((ROOT / "course_lib" / f"{topic}.py").read_text()), {p.attribute for p in pieces(topic)}
        nodes = [node for node in tree.body if getattr(node, "name", None) in names]
        statements = [statement for node in nodes for body in bodies(node) for statement in body]
        lines += [line for statement in statements for line in ast.unparse(statement).splitlines()]
        lines += [new for m in catalogue(topic) if not callable(m.change) for _, new in m.change]
    public = squeezed("".join(path.read_text() for path in (STUDENT / "lib").rglob("*.py")))
    found = {squeezed(line) for line in lines}
    return {line for line in found if len(line) > 30 and line not in public}


def leaked(text):
    text = squeezed(text)
    return {secret for secret in secrets() if secret in text}


def test_secrets_are_recognised():
    assert len(secrets()) > 30
    source = (ROOT / "course_lib" / "algorithm.py").read_text()
    assert len(leaked(source)) > 10
    assert leaked(json.loads(json.dumps(source)))


@everybody
def test_nothing_of_reference_or_mistakes_is_in_outputs_or_record(records, who):
    record = records[who]
    # What students wrote themselves may well be what the reference says.
    theirs = leaked("".join(data.decode(errors="replace").replace('\\"', '"') for data in EVERYBODY[who].values()))
    outputs = [output for cell in record.notebook.cells for output in cell.get("outputs", [])]
    texts = [text for output in outputs for text in _texts(output)]
    assert leaked("\n".join([*texts, *_texts(json.loads(record.to_json()))])) <= theirs


def _texts(value):
    """All strings in nested lists and dictionaries."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for part in inner for text in _texts(part)]


def test_the_sources_a_student_can_print_are_the_student_editions(graded):
    printed = "".join(_texts(next(c for c in graded["prints_sources"].notebook.cells if c.id == "batch-stats").outputs))
    assert "is yours to write" in (STUDENT / "lib" / "course_lib" / "algorithm.py").read_text()
    assert "def" in printed


def test_grading_asks_for_a_current_student_edition():
    skeleton = nbformat.from_dict(json.loads(json.dumps(SKELETON)))
    skeleton.metadata.course.release = "00000000"
    with pytest.raises(ValueError, match="run `course release`"):
        grade_submission(
            CLASS["right_numpy"], assignment=PROBLEM_SET, skeleton=skeleton, name="algorithm.ipynb", seed=SEED
        )


def test_the_truth_is_not_moved_by_a_submission(graded):
    """The grader's own NumPy is what it was, whatever kernels did to theirs."""
    assert np.allclose(1.0, 1.0)
    assert not np.allclose(1.0, 2.0)
