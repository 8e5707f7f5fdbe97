"""The kernel that runs a submission: the student edition in it, the tree's library out of it.

Until kernels are jailed, a student's code runs with the grader's rights: it could read files of the grader.
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient.client import CellExecutionComplete
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbgrader.preprocessors import Execute
from traitlets import Bool, Float, Integer, Unicode

from course_lib.authoring.paths import STUDENT
from course_lib.checks import GRADING_SECONDS, GRADING_SEED

__all__ = ["CourseExecute", "StudentKernels", "skip_after_last_check"]

_LAUNCHER = Path(__file__).with_name("launcher.py")
_SKIP = "skip-execution"  # nbclient's own tag
_OF_A_CELL = 0.8  # of a cell's time is for the check in it, so that a slow answer ends in a verdict, not in an interrupt
_SHOWN = 2**20  # characters of a student's own output that are kept of a cell
_AN_OUTPUT = 500  # characters that an output counts for beyond its own
_ANSWER = 2**24  # characters of observations


class StudentKernels(KernelSpecManager):
    """Kernel specs whose every kernel is the course's: this Python, the student edition, nothing of the tree."""

    def get_kernel_spec(self, kernel_name):
        library = STUDENT / "lib"
        if not (library / "course_lib").is_dir():
            raise FileNotFoundError(
                f"expected the student edition in {library}, found none: run `course release` first"
            )
        argv = [
            sys.executable,
            "-I",
            str(_LAUNCHER),
            str(library),
            "-f",
            "{connection_file}",
            "--IPKernelApp.log_level=ERROR",
        ]
        return KernelSpec(argv=argv, display_name="course", language="python")


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

    def preprocess(self, nb, resources, km=None):
        skip_after_last_check(nb)
        about = {key: nb.metadata[key] for key in ("course", "kernelspec")}
        self._until = time.monotonic() + self.budget * self.timeout
        self._group, self._shown = None, {}
        with tempfile.TemporaryDirectory(prefix="batchnorm-course-", ignore_cleanup_errors=True) as home:
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
        self.km = self.kernel_manager_class(
            kernel_name=self.kernel_name, config=self.config, kernel_spec_manager=StudentKernels()
        )
        return self.km

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
            GRADING_SEED: str(self.seed),
            GRADING_SECONDS: str(_OF_A_CELL * self.timeout),
        }
        super().start_new_kernel(**kwargs)
        self._group = getattr(self.km.provisioner, "pgid", None)

    def preprocess_cell(self, cell, resources, index):
        if time.monotonic() > self._until:
            raise _TimeUp
        return super().preprocess_cell(cell, resources, index)

    def process_message(self, msg, cell, cell_index):
        try:
            return super().process_message(msg, cell, cell_index)
        except CellExecutionComplete:
            raise
        except Exception:  # a message of a form that kernels do not send: student code can write to the channel
            return None

    def output(self, outs, msg, display_id, cell_index):
        """Keep an output unless the cell has shown enough already: everything is held in memory."""
        size = len(json.dumps(msg["content"]))
        if msg["msg_type"] == "execute_result":
            enough = size > _ANSWER
        else:
            self._shown[cell_index] = self._shown.get(cell_index, 0) + size + _AN_OUTPUT
            enough = self._shown[cell_index] > _SHOWN
        return None if enough else super().output(outs, msg, display_id, cell_index)

    def handle_comm_msg(self, outs, msg, cell_index):
        """Widgets have nobody to talk to."""

    def _end_children(self):
        """End what a student's code has started and left running."""
        if self._group:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, signal.SIGKILL)


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
