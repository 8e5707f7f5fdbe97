"""The release: reproducible to the byte, complete, and nothing in it that gives an answer away."""

import ast
import json
import zipfile

import nbformat
import pytest

from course_lib.authoring import leaks, paths
from course_lib.authoring.paths import EXERCISES, problem_sets
from course_lib.authoring.release import generate_exercises, release, write_sources
from course_lib.authoring.source import faulty
from course_lib.checks.piece import TOPICS, find, pieces

POINTS = {"algorithm": 10, "running_stats": 16, "modes": 16, "finetuning": 14, "sync": 14, "fusion": 14, "gpu": 16}


def _files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_committed_exercises_are_what_the_solutions_give(released):
    assert _files(EXERCISES) == _files(released.exercises)


def test_two_releases_are_the_same_to_the_byte(released, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # nor does it matter how many processors there are
    again = release(tmp_path / "exercises", tmp_path / "build", fresh=True)
    assert _files(tmp_path / "exercises") == _files(released.exercises)
    assert again.read_bytes() == released.zip.read_bytes()


def test_a_gradebook_that_is_thrown_away_is_not_asked_for_its_version(monkeypatch, tmp_path):
    monkeypatch.setattr("nbgrader.api.get_alembic_version", lambda: pytest.fail("nbgrader starts alembic to learn it"))
    write_sources(tmp_path / paths.SOURCE.relative_to(paths.BUILD))
    generate_exercises(tmp_path / "exercises", tmp_path, names=["ps1-algorithm"])
    [notebook] = (EXERCISES / "ps1-algorithm").glob("*.ipynb")
    assert (tmp_path / "exercises" / "ps1-algorithm" / notebook.name).read_bytes() == notebook.read_bytes()


def test_a_stray_file_beside_a_solution_is_not_released(released, monkeypatch, tmp_path):
    from course_lib.authoring import release as module
    from course_lib.authoring.paths import SOURCE

    write = module.write_sources

    def with_answers(folder):
        write(folder)
        (folder / "ps1-algorithm" / "answers.py").write_text("secret = 1\n")

    monkeypatch.setattr(module, "write_sources", with_answers)
    module.release(tmp_path / "exercises", tmp_path / "build")
    assert (tmp_path / "build" / SOURCE.name / "ps1-algorithm" / "answers.py").is_file()
    assert set(_files(tmp_path / "exercises")) == set(_files(released.exercises))


@pytest.mark.parametrize("problem_set", problem_sets())
def test_every_cell_is_an_answer_a_check_or_locked(problem_set):
    [path] = (EXERCISES / problem_set).glob("*.ipynb")
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.metadata.nbgrader.locked or cell.metadata.nbgrader.solution for cell in code)
    answers = [cell for cell in code if cell.metadata.nbgrader.solution]
    sick = faulty(problem_set)
    stubs = [cell for cell in answers if cell.metadata.course.piece not in sick]
    assert all(cell.source.rstrip().endswith("raise NotImplementedError") for cell in stubs)
    patients = {cell.metadata.course.piece: cell.source for cell in answers if cell not in stubs}
    assert patients == sick and not any("handed_out" in cell.metadata.course for cell in answers)
    for cell in answers:
        [piece] = ast.parse(cell.source).body
        assert ast.get_docstring(piece), "the stub keeps its docstring"
    checks = [cell for cell in code if cell.metadata.nbgrader.grade]
    wanted = {piece.name: piece.max_points for piece in pieces(find(checks[0].metadata.course.piece).topic)}
    assert {cell.metadata.course.piece: cell.metadata.nbgrader.points for cell in checks} == wanted


@pytest.mark.parametrize(("topic", "points"), [(topic, POINTS[topic]) for topic in TOPICS])
def test_a_problem_set_is_worth_what_the_contract_says(topic, points):
    assert sum(piece.max_points for piece in pieces(topic)) == points


def test_the_zip_holds_what_a_student_needs_and_nothing_else(released):
    with zipfile.ZipFile(released.zip) as archive:
        names = {name.split("/", 1)[1] for name in archive.namelist()}
        read = {name.split("/", 1)[1]: archive.read(name).decode("utf-8", "replace") for name in archive.namelist()}
    wheels = {name for name in names if name.endswith(".whl")}
    notebooks = {f"{p}/{p.partition('-')[2]}.ipynb" for p in problem_sets()}
    assert names == {"README.md", "AGENTS.md", "requirements.txt"} | wheels | notebooks
    assert len(wheels) == 1
    assert f"./{wheels.pop()}" in read["requirements.txt"]
    assert "hand in" in read["README.md"]
    assert "tutor, do not solve" in read["AGENTS.md"]
    release_id = json.loads(read["ps1-algorithm/algorithm.ipynb"])["metadata"]["course"]["release"]
    assert release_id in read["README.md"]


def test_the_wheel_leaves_out_what_is_the_instructors(released):
    [wheel] = (released.build / "student" / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {f"course_lib/checks/expected/{topic}.npz" for topic in TOPICS} <= set(names)
    # The assembled layers would give away exercises of several topics.
    for left_out in (
        "misconceptions",
        "grading",
        "authoring",
        "cli.py",
        "lib/batchnorm",
        "parity.py",
        "experiments.py",
    ):
        assert not [name for name in names if left_out in name]


def test_nothing_handed_out_holds_a_solution(released, monkeypatch):
    monkeypatch.setattr(leaks, "EXERCISES", released.exercises)
    monkeypatch.setattr(leaks, "ZIP", released.zip)
    forbidden = leaks.fingerprints()
    found = {name: leaks.leaks(codes, forbidden) for name, codes in leaks._handed_out()}
    assert any(name.startswith("exercises/") for name in found) and any(name.endswith(".py") for name in found)
    assert {name: codes for name, codes in found.items() if codes} == {}


REFERENCE_WITH_OTHER_NAMES = """
def helper(batch):
    c = expect_input(batch)
    r = np.moveaxis(batch, 1, 0).reshape(c, -1)
    if r.shape[1] < 2:
        raise ValueError(f"expected at least 2 values per channel, got {r.shape[1]} in an input of shape {batch.shape}")
    print("something else comes here")
    p = r[:, :1]
    s = r - p
    o = s.mean(axis=1, keepdims=True)
    return o
"""


def test_a_solution_under_other_names_is_recognised():
    assert leaks.leaks([REFERENCE_WITH_OTHER_NAMES], leaks.fingerprints()) == ["algorithm.batch_stats"]


def test_a_solution_in_a_page_is_recognised():
    page = "<div><pre><span>" + REFERENCE_WITH_OTHER_NAMES.replace("<", "&lt;") + "</span></pre></div>"
    assert leaks.leaks(leaks.code_blocks(page), leaks.fingerprints()) == ["algorithm.batch_stats"]


def test_the_answer_of_every_piece_is_recognised_in_its_source_notebook(solved):
    notebook = solved("ps1-algorithm")
    codes = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert leaks.leaks(codes, leaks.fingerprints()) == sorted(piece.name for piece in pieces("algorithm"))


def test_another_way_to_write_it_is_no_leak():
    code = "def f(x):\n    axes = (0, 2, 3)\n    mean = x.mean(axis=axes)\n    return mean, x.var(axis=axes)\n"
    assert leaks.leaks([code], leaks.fingerprints()) == []


def test_check_release_names_a_stale_and_a_stray_file(released, monkeypatch, tmp_path):
    exercises = tmp_path / "exercises"
    (exercises / "ps1-algorithm").mkdir(parents=True)
    stale = (released.exercises / "ps1-algorithm" / "algorithm.ipynb").read_text().replace("About 20 minutes", "!")
    (exercises / "ps1-algorithm" / "algorithm.ipynb").write_text(stale)
    (exercises / "ps1-algorithm" / "notes.txt").write_text("?")
    monkeypatch.setattr(leaks, "EXERCISES", exercises)
    monkeypatch.setattr(leaks, "ZIP", paths.BUILD / "none.zip")
    # The test above has seen what a fresh release computes anew.
    asked = []
    monkeypatch.setattr(leaks, "release", lambda *folders, fresh: asked.append(fresh) or release(*folders))
    problems = "\n".join(leaks.check_release())
    assert "notes.txt does not belong there" in problems
    assert "algorithm.ipynb is not what its solution gives now" in problems
    assert "none.zip is missing" in problems
    assert asked == [True]
