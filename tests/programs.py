"""Programs of this environment, each in a process that has imported already what they import: most of their time."""

import json
import subprocess
import sys

__all__ = ["Programs"]

#: Reads what to run, forks, and says how it ended. What was imported is kept out of the garbage collector's way, which
#: would write to all of it when a fork ends.
_SERVER = """
import course_lib.authoring
import gc, json, os, runpy, shutil, sys
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
        sys.argv = command
        runpy.run_path(shutil.which(command[0]), run_name="__main__")
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Programs:
    """Runs `course` and `nbgrader`; a context manager.

    Args:
        folder: where their output is written on the way.
        course: the copy of the repository whose library they use.
        environment: theirs.
    """

    def __init__(self, folder, course, environment):
        self._log = folder / "said.log"
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=course,
            env=environment,
        )

    def run(self, command, folder):
        """(exit code, what was said) of a list of words, run in `folder`."""
        self._log.unlink(missing_ok=True)
        print(json.dumps([command, str(folder), str(self._log)]), file=self._server.stdin, flush=True)
        code = int(self._server.stdout.readline())
        return code, self._log.read_text(errors="replace") if self._log.exists() else ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()
