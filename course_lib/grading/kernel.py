"""The kernel that runs a submission: the student edition in it, the tree's library out of it.

Until kernels are jailed, a student's code runs with the grader's rights: it could read files of the grader.
"""

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import zmq
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient.client import CellExecutionComplete
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbgrader.preprocessors import Execute
from traitlets import Bool, Float, Integer, Unicode, default

from course_lib.authoring.paths import STUDENT
from course_lib.authoring.source import release_id, topic_of
from course_lib.checks import GRADING_SECONDS, GRADING_SEED
from course_lib.checks.expect import unseen_layers
from course_lib.grading.launcher import ANSWER, SHOWN, WAITING

__all__ = ["CourseExecute", "StudentKernels", "expect_current", "skip_after_last_check"]

#: How the names of kernels' temporary folders begin; the grader's process id follows.
FOLDER = "batchnorm-course-"

_LAUNCHER = Path(__file__).with_name("launcher.py")
_SKIP = "skip-execution"  # nbclient's own tag
_OF_A_CELL = 0.8  # of a cell's time is a check's, so that a slow answer ends in a verdict and not in an interrupt
_KNOWN = {"status", "execute_input", "stream", "display_data", "update_display_data", "clear_output"}
_KNOWN |= {"execute_result", "error"}  # of widgets nothing is kept
_LONGEST_SOCKET = 90  # characters of a folder in which a socket's path still fits into the system's 107
_A_MESSAGE = 500  # characters that a message counts for beyond its own


def expect_current(problem_set, release):
    """Stop before anybody is graded with the checks of one release and the library or the notebook of another.

    Args:
        problem_set: for example `"ps1-algorithm"`.
        release: release id of the notebook that was handed out.

    Raises:
        FileNotFoundError: there is no student edition for the kernels.
        ValueError: notebook or student edition are not what the tree gives now.
    """
    file = STUDENT / "lib" / "course_lib" / "checks" / "release.json"
    if not file.is_file():
        raise FileNotFoundError(f"expected the student edition in {STUDENT / 'lib'}, found none: run `course release`")
    wanted, edition = release_id(problem_set), json.loads(file.read_text())["problem_sets"].get(problem_set)
    for what, found in (("notebook", release), ("student edition", edition)):
        if found != wanted:
            what = f"{what} of {problem_set}"
            raise ValueError(f"expected the {what} to be of release {wanted}, found {found}: run `course release`")


class StudentKernels(KernelSpecManager):
    """Kernel specs whose every kernel is the course's: this Python, the student edition, nothing of the tree."""

    topic = Unicode(help="whose checks are imported before anything of the student's")

    def get_kernel_spec(self, kernel_name):
        files = ["-P", "-s", str(_LAUNCHER), str(STUDENT / "lib"), self.topic, "-f", "{connection_file}"]
        argv = [sys.executable, *files, "--IPKernelApp.log_level=ERROR"]
        warm = {"kernel_provisioner": {"provisioner_name": "batchnorm-course"}}
        return KernelSpec(argv=argv, display_name="course", language="python", metadata=warm)


class PromptClient(AsyncKernelClient):
    """Jupyter's client, which takes a kernel for ready as soon as it has answered on both of its channels.

    Jupyter's own then waits for a fifth of a second of silence, so that nothing from before is taken for a cell's. Here
    nothing is: nbclient looks whose answer a message is.
    """

    def _context_default(self):
        context = super()._context_default()
        # What is on its way is held in memory: a kernel has to wait with more of it.
        context.setsockopt(zmq.RCVHWM, WAITING)
        context.setsockopt(zmq.MAXMSGSIZE, 2 * ANSWER)
        return context

    async def wait_for_ready(self, timeout=None):
        until = time.monotonic() + (math.inf if timeout is None else timeout)
        while True:
            self.kernel_info()
            with contextlib.suppress(queue.Empty):
                reply = await self.shell_channel.get_msg(timeout=1)
                # What was said before the kernel knew of us is lost: without this one it is asked again.
                await self.iopub_channel.get_msg(timeout=0.2)
                self._handle_kernel_info_reply(reply)
                return
            if not await self.is_alive():
                raise RuntimeError("the kernel ended before it was ready")
            if time.monotonic() > until:
                raise RuntimeError(f"the kernel was not ready within {timeout} s")


class CourseExecute(Execute):
    """nbgrader's Execute in the course's kernel, with the student's seed in the kernel's environment.

    It runs in an empty folder of its own, so that neither what was handed in beside the notebook nor the
    grader's folder is on the kernel's path. What ran before a kernel died or was stopped is judged.
    """

    seed = Integer(help="what this student's inputs are drawn from")
    kernel_name = Unicode("python3")
    shutdown_kernel = Unicode("immediate")
    record_timing = Bool(False)  # a regrade is bit-identical
    budget = Float(10.0, help="what all cells together may take, in timeouts of one cell").tag(config=True)

    @default("iopub_timeout")
    def _iopub_timeout(self):
        # A kernel has answered, and its output is still on the way: megabytes of it take seconds on a busy machine,
        # and cost a right answer its points if they are not waited for.
        return self.timeout

    def preprocess(self, nb, resources, km=None):
        skip_after_last_check(nb)
        about = {key: nb.metadata[key] for key in ("course", "kernelspec")}
        expect_current(about["course"]["problem_set"], about["course"]["release"])
        self._topic = topic_of(about["course"]["problem_set"])
        self._until = time.monotonic() + self.budget * self.timeout
        self._unseen = _unseen(nb, self.seed)
        self._group, self._shown = None, {}
        with tempfile.TemporaryDirectory(prefix=f"{FOLDER}{os.getpid()}-", ignore_cleanup_errors=True) as home:
            self._home = home
            try:
                super().preprocess(nb, resources, km)
            except (DeadKernelError, CellTimeoutError, _TimeUp) as stopped:
                about["course"]["stopped"] = _REASONS[type(stopped)]
            finally:
                self._end_children()
        nb.metadata.clear()  # kernels write there, too: the state of widgets, for one
        nb.metadata.update(about, language_info={"name": "python"})
        return nb, resources

    def create_kernel_manager(self):
        specs = StudentKernels(topic=self._topic)
        self.km = self.kernel_manager_class(
            kernel_name=self.kernel_name,
            config=self.config,
            kernel_spec_manager=specs,
            client_class=f"{__name__}.{PromptClient.__name__}",
            **self._channel(),
        )
        return self.km

    def _channel(self):
        """Where kernel and grader talk: sockets in the kernel's own folder, where they can be.

        Free TCP ports are found by trying, and two graders at work may find the same.
        """
        if sys.platform == "win32" or len(self._home) > _LONGEST_SOCKET:
            return {}
        return {
            "transport": "ipc",
            "ip": os.path.join(self._home, ".kernel"),
            "connection_file": os.path.join(self._home, ".connection.json"),
        }

    def start_new_kernel(self, **kwargs):
        kwargs["cwd"] = self._home
        kwargs["env"] = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": self._home,
            "IPYTHONDIR": self._home,
            "MPLCONFIGDIR": self._home,
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            "NBGRADER_EXECUTION": "autograde",
            "PYTHONHASHSEED": "0",  # sets in the same order at every regrade
            "OMP_NUM_THREADS": "1",  # kernels run side by side: with more, each waits for the threads of all others
            GRADING_SEED: str(self.seed),
            GRADING_SECONDS: str(_OF_A_CELL * self.timeout),
            **self._unseen,
        }
        # What a kernel or its children write past Jupyter would end on the grader's terminal.
        super().start_new_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **kwargs)
        self._group = getattr(self.km.provisioner, "pgid", None)

    def preprocess_cell(self, cell, resources, index):
        if time.monotonic() > self._until:
            raise _TimeUp
        return super().preprocess_cell(cell, resources, index)

    def process_message(self, msg, cell, cell_index):
        """Keep what can be shown, and no more of it than one would read: everything is held in memory."""
        if msg["msg_type"] not in _KNOWN or self._is_enough(msg, cell_index):
            return None
        try:
            return super().process_message(msg, cell, cell_index)
        except CellExecutionComplete:
            raise
        except Exception:  # a message of a form that kernels do not send: student code can write to the channel
            return None

    def _is_enough(self, msg, cell_index):
        size = len(json.dumps(msg["content"], default=str))
        if msg["msg_type"] == "execute_result":
            return size > ANSWER
        self._shown[cell_index] = self._shown.get(cell_index, 0) + size + _A_MESSAGE
        return self._shown[cell_index] > SHOWN and msg["msg_type"] != "status"

    def _end_children(self):
        """End what a student's code has started and left running."""
        if self._group:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, signal.SIGKILL)


def _unseen(notebook, seed):
    """The layers `accepts` is asked about when it is graded, for the kernel's environment; nothing without it."""
    if not any(cell.metadata.get("course", {}).get("piece") == "modes.accepts" for cell in notebook.cells):
        return {}
    from course_lib.checks.modes_layers import (
        GRADING_LAYERS,
        pack,
    )  # with torch, which other notebooks need not wait for

    return {GRADING_LAYERS: pack(unseen_layers(seed))}


class _TimeUp(Exception):
    """All cells together have taken too long."""


_REASONS = {
    DeadKernelError: "the kernel died before this check was through: "
    "does the code end the process or take all the memory?",
    CellTimeoutError: "the kernel did not answer any more before this check was through: does a loop never end?",
    _TimeUp: "the notebook was stopped before this check: all its cells together took too long",
}


def skip_after_last_check(notebook):
    """Mark everything after the last check cell as not to be run: the finale is the student's own pleasure."""
    graded = [i for i, cell in enumerate(notebook.cells) if cell.metadata.get("nbgrader", {}).get("grade")]
    for i, cell in enumerate(notebook.cells):
        cell.metadata.pop("tags", None)
        if graded and i > graded[-1] and cell.cell_type == "code":
            cell.metadata["tags"] = [_SKIP]
