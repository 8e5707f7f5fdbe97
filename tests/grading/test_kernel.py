"""The kernel that runs a submission: what it imports, what it knows, and when it is stopped."""

import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import zmq
from nbclient import NotebookClient

from course_lib.authoring.paths import EXERCISES, ROOT, STUDENT
from course_lib.checks import GRADING_SECONDS, GRADING_SEED
from course_lib.grading import kernel
from course_lib.grading.intake import skeleton_of
from course_lib.grading.kernel import CourseExecute, expect_current, skip_after_last_check

SKELETON = skeleton_of(EXERCISES / "ps1-algorithm")
PROBE = """
import contextlib, importlib, json, os, sys
import course_lib

def imports(name):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
        return True
    return False

kept = ["course_lib." + part for part in ("misconceptions", "grading", "authoring", "cli")]
parts = [name for name in kept if imports(name)]
found = {"library": course_lib.__file__, "environment": dict(os.environ), "parts": parts}
found |= {"path": sys.path, "folder": os.getcwd(), "files": os.listdir(), "torch": "torch" in sys.modules}
# Without the library that was imported at the start: what does the path lead to?
for name in [name for name in sys.modules if name.startswith("course_lib")]:
    del sys.modules[name]
sys.path[:] = [entry for entry in sys.path if "student" not in entry]
found["another"] = imports("course_lib")
print(json.dumps(found))
"""


def with_answer(source, key="batch-stats"):
    notebook = nbformat.from_dict(json.loads(json.dumps(SKELETON)))
    next(cell for cell in notebook.cells if cell.id == key).source = source
    return notebook


def run(notebook, **options):
    options = {"seed": 77, "timeout": 20, **options}
    CourseExecute(**options).preprocess(notebook, {"metadata": {"path": str(ROOT)}})
    return {cell.id: cell for cell in notebook.cells}


@pytest.fixture(scope="module")
def ran():
    os.environ["A_SECRET_OF_THE_GRADER"] = "token"
    notebook = with_answer(PROBE)
    notebook.metadata["widgets"] = {"a": 1}
    try:
        cells = run(notebook)
    finally:
        del os.environ["A_SECRET_OF_THE_GRADER"]
    return {"cells": cells, "notebook": notebook, "found": json.loads(cells["batch-stats"].outputs[0].text)}


def test_the_library_is_the_student_edition(ran):
    assert Path(ran["found"]["library"]).is_relative_to(STUDENT)


def test_the_library_in_the_kernel_has_neither_mistakes_nor_grading(ran):
    assert ran["found"]["parts"] == []


def test_the_trees_library_is_not_on_the_kernels_path(ran):
    assert not any(Path(entry, "course_lib", "grading").exists() for entry in ran["found"]["path"])
    assert ran["found"]["another"] is False


def test_the_kernel_runs_in_an_empty_folder_of_its_own(ran):
    folder = Path(ran["found"]["folder"])
    assert not folder.is_relative_to(ROOT)
    assert {name for name in ran["found"]["files"] if not name.startswith(".")} <= {"profile_default"}
    assert not folder.exists()


def test_the_kernels_environment_is_made_from_nothing(ran):
    environment = ran["found"]["environment"]
    assert "A_SECRET_OF_THE_GRADER" not in environment
    assert (environment[GRADING_SEED], environment[GRADING_SECONDS]) == ("77", "16.0")
    given = {"PATH", "HOME", "IPYTHONDIR", "MPLCONFIGDIR", "MPLBACKEND", "LANG", "NBGRADER_EXECUTION", "PYTHONHASHSEED"}
    given |= {"OMP_NUM_THREADS"}
    of_jupyter = {"JPY_PARENT_PID", "PYDEVD_USE_FRAME_EVAL", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TERM"}
    of_jupyter |= {
        "GIT_PAGER",
        "PAGER",
        "LC_CTYPE",
        "JPY_SESSION_NAME",
        "TORCHINDUCTOR_CACHE_DIR",
    }  # the last is torch's
    assert set(environment) - of_jupyter == {*given, GRADING_SEED, GRADING_SECONDS}


def test_the_finale_is_not_run(ran):
    assert ran["cells"]["finale"].outputs == []
    assert ran["cells"]["check-recover-identity"].outputs


def test_nothing_of_the_kernels_own_stays_in_the_notebooks_metadata(ran):
    assert set(ran["notebook"].metadata) == {"course", "kernelspec", "language_info"}
    assert not any("execution" in cell.metadata for cell in ran["notebook"].cells)


def test_what_comes_after_the_last_check_is_skipped_and_no_tag_of_a_students_counts():
    notebook = with_answer("x = 1")
    notebook.cells.append(nbformat.v4.new_code_cell("after the last check"))
    for cell in notebook.cells:
        cell.metadata["tags"] = ["skip-execution", "raises-exception"]
    skip_after_last_check(notebook)
    tagged = [cell.source for cell in notebook.cells if cell.metadata.get("tags")]
    assert tagged == [notebook.cells[-3].source, "after the last check"]


def test_a_notebook_that_takes_too_long_altogether_is_stopped():
    notebook = with_answer("import time; time.sleep(0.6)")
    cells = run(notebook, timeout=5, budget=0.1)
    assert "took too long" in notebook.metadata.course.stopped
    assert not cells["check-recover-identity"].outputs


def test_nothing_of_a_kernel_is_left_in_the_temporary_folder(ran):
    assert not list(Path(tempfile.gettempdir()).glob(f"{kernel.FOLDER}{os.getpid()}-*"))


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
@pytest.mark.parametrize("afterwards", ["", "import os; os._exit(1)"], ids=["kernel lives", "kernel is dead"])
def test_a_process_that_was_left_behind_is_ended(afterwards):
    mark = f"left by test {os.getpid()}"
    code = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)  # {mark}'])"
    run(with_answer(f"{code}\n{afterwards}"))
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not any(mark in command for command in commands)


def test_what_is_written_past_jupyter_does_not_reach_the_graders_terminal(capfd):
    past = "import os, sys; print(os.write(sys.stderr._original_stdstream_copy, b'past Jupyter'))"
    assert run(with_answer(past))["batch-stats"].outputs[0].text == "12\n"
    assert capfd.readouterr() == ("", "")


def test_what_is_shown_faster_than_the_grader_reads_is_waited_for(monkeypatch):
    read, count = CourseExecute._is_enough, itertools.count()

    def slow(self, msg, cell_index):
        if next(count) == 10:  # the grader has other things to do for a moment
            time.sleep(1)
        return read(self, msg, cell_index)

    monkeypatch.setattr(CourseExecute, "_is_enough", slow)
    showing = "from IPython.display import display\nfor i in range(6_000):\n    display(i)"
    cells = run(with_answer(showing), timeout=60)
    assert next(count) > 6_000 and cells["check-recover-identity"].outputs


def printed(source):
    """What the cell after the one with this answer prints."""
    notebook = with_answer(source)
    after = [cell.id for cell in notebook.cells if cell.cell_type == "code"]
    after = after[after.index("batch-stats") + 1]
    next(cell for cell in notebook.cells if cell.id == after).source = "print(told)"
    cells = run(notebook)
    return cells["batch-stats"].outputs, cells[after].outputs[0].text


def test_what_is_printed_past_what_is_kept_takes_no_memory():
    memory = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss"
    endless = f"for _ in range(300):\n    print('x' * 10**6)\n    os.write(2, b'x' * 10**6)\ntold = {memory} - before"
    shown, more = printed(f"import os, resource\nbefore = {memory}\n{endless}")
    assert {output.output_type for output in shown} == {"stream"} and shown[0].text.startswith("xxx")
    assert int(more) < 100_000  # kB


def test_the_grader_gets_no_message_that_it_would_not_keep(monkeypatch):
    read, sizes = CourseExecute._is_enough, []

    def weighing(self, msg, cell_index):
        sizes.append(len(str(msg["content"])))
        return read(self, msg, cell_index)

    monkeypatch.setattr(CourseExecute, "_is_enough", weighing)
    showing = "from IPython.display import HTML, display\ndisplay(HTML('x' * 20_000_000))\ntold = 'still there'\ntold"
    shown, told = printed(showing)
    assert [output.output_type for output in shown] == ["execute_result"] and told == "still there\n"
    assert max(sizes) < 2**24


@pytest.fixture
def publishing(tmp_path):
    """A socket that sends what a kernel would, and a client of ours that listens to it."""
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        socket.setsockopt(zmq.XPUB_NODROP, 1)
        socket.setsockopt(zmq.SNDHWM, 1)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(f"ipc://{tmp_path}/k-1")
        client = kernel.PromptClient(transport="ipc", ip=f"{tmp_path}/k", iopub_port=1)
        with client.connect_iopub() as listener:
            socket.recv()  # it listens
            yield socket, zmq.Socket.shadow(listener)
        client.context.destroy(linger=0)


def test_a_kernel_waits_before_the_grader_holds_many_of_its_messages(publishing):
    socket, _ = publishing
    sent = 0
    with contextlib.suppress(zmq.Again):
        while sent < 500:
            time.sleep(0.002)  # for the threads that carry them
            socket.send(b"x" * 100_000, zmq.NOBLOCK)
            sent += 1
    assert sent < 50


def test_a_message_larger_than_any_observations_is_not_taken(publishing):
    socket, listener = publishing
    for size, arrives in ((2**24, True), (2**26, False)):
        socket.send(bytes(size))
        assert bool(listener.poll(1000)) is arrives
        assert not arrives or len(listener.recv()) == size


def listening(messages):
    """An execution, and one of its cells, after these messages from the kernel."""
    notebook = with_answer("x = 1")
    execute = CourseExecute()
    NotebookClient.__init__(execute, notebook)
    execute.reset_execution_trackers()
    execute._shown, execute.clear_before_next_output = {}, False
    cell = notebook.cells[1]
    cell.outputs = []
    for kind, content in messages:
        message = {"msg_type": kind, "header": {"msg_type": kind}, "parent_header": {"msg_id": "m"}, "content": content}
        execute.process_message(message, cell, 1)
    return execute, cell


def received(messages):
    """The outputs of a cell after these messages from its kernel."""
    return listening(messages)[1].outputs


def test_of_widgets_nothing_is_held_in_memory():
    content = {"comm_id": "c", "target_name": "jupyter.widget", "data": {"state": {"text": "x" * 1000}}}
    execute, _ = listening([("comm_open", content), ("comm_msg", content)])
    assert not execute.widget_state


def test_a_cell_that_shows_too_much_is_cut_in_memory():
    assert len(received([("stream", {"name": "stdout", "text": "x" * 1000})] * 10)) == 10
    assert len(received([("stream", {"name": "stdout", "text": "x" * 1000})] * 20_000)) < 2000
    assert len(received([("stream", {"name": "stdout", "text": ""})] * 20_000)) < 5000


def test_observations_get_through_whatever_was_shown_before():
    bundle = {"data": {"text/plain": "x" * 100_000}, "metadata": {}, "execution_count": 1}
    shown = [("stream", {"name": "stdout", "text": "x" * 1000})] * 5000
    assert received([*shown, ("execute_result", bundle)])[-1].output_type == "execute_result"


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("stream", {"name": 7, "text": None}),
        ("stream", {}),
        ("execute_result", {"data": [1], "metadata": None, "execution_count": "x"}),
        ("error", {"ename": None, "evalue": 3, "traceback": "none"}),
        ("status", {}),
        ("comm_open", {"comm_id": "c", "target_name": "jupyter.widget", "data": {"state": 3}}),
        ("nonsense", {}),
        ("update_display_data", {"data": 1, "transient": 5}),
    ],
)
def test_messages_of_odd_forms_are_dropped(kind, content):
    assert received([(kind, content), ("stream", {"name": "stdout", "text": "after"})])[-1].text == "after"


def test_checks_library_and_notebook_have_to_be_of_one_release(tmp_path, monkeypatch):
    release = SKELETON.metadata.course.release
    expect_current("ps1-algorithm", release)
    with pytest.raises(ValueError, match="expected the notebook of ps1-algorithm to be of release"):
        expect_current("ps1-algorithm", "00000000")
    file = tmp_path / "lib" / "course_lib" / "checks" / "release.json"
    file.parent.mkdir(parents=True)
    monkeypatch.setattr(kernel, "STUDENT", tmp_path)
    with pytest.raises(FileNotFoundError, match="run `course release`"):
        expect_current("ps1-algorithm", release)
    file.write_text('{"problem_sets": {"ps1-algorithm": "00000000"}}')
    with pytest.raises(ValueError, match="expected the student edition of ps1-algorithm to be of release"):
        expect_current("ps1-algorithm", release)
