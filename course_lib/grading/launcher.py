"""Start kernels with the student edition of `course_lib`: `python -P -s launcher.py LIBRARY TOPIC [-f CONNECTION]`.

The topic's checks are imported before the working folder is on the path, so that a `course_lib/` or a `numpy.py`
beside a submission cannot take their place, and the tree's own library is taken off the path (an editable
install has put it there). Other topics' are not: the first problem set does without torch, whose import takes
longer than grading a small answer.

Without a connection file, every line of the input asks for a kernel: a JSON array of its arguments, its folder and its
environment. The answer is its process id.
"""

import contextlib
import gc
import json
import os
import signal
import sys
from pathlib import Path

#: Characters that a cell may show: the grader keeps no more of them.
SHOWN = 2**21
#: Characters of a check's observations, the longest that the grader takes from a kernel.
ANSWER = 2**24
#: Messages that wait on either side until the grader reads them.
WAITING = 8


def main():
    library, topic = sys.argv.pop(1), sys.argv.pop(1)
    sys.path = [library, *(entry for entry in sys.path if entry and not Path(entry, "course_lib").exists())]

    from course_lib.checks.piece import pieces

    pieces(topic)
    if "torch" in sys.modules:
        # torch does, and sympy with it, when a backward is given a gradient for the first time.
        import torch.fx.experimental.symbolic_shapes  # noqa: F401

    import ipykernel.debugger  # noqa: F401  # most of what a kernel imports when it starts: once, before forking
    import zmq
    from ipykernel.iostream import OutStream
    from ipykernel.kernelapp import IPKernelApp
    from ipykernel.zmqshell import ZMQInteractiveShell

    class BriefStream(OutStream):
        """What is printed, up to what the grader keeps of a cell: a stream holds all of it until it sends it."""

        cell, left = None, SHOWN

        def write(self, string):
            cell = self.parent_header.get("msg_id")
            if cell != self.cell:
                self.cell, self.left = cell, SHOWN
            if isinstance(string, str):
                self.left -= len(string)
                if self.left < 0:
                    return len(string)
            return super().write(string)

    class CourseKernelApp(IPKernelApp):
        def init_iopub(self, context):
            # A kernel that shows more than the grader reads has to wait. Else messages are dropped, and with them the
            # one that ends a cell: the grader would wait for it in vain, and a right answer be worth nothing.
            context.setsockopt(zmq.XPUB_NODROP, 1)
            context.setsockopt(zmq.SNDHWM, WAITING)
            super().init_iopub(context)
            send = self.iopub_thread.send_multipart

            def send_what_is_kept(parts, *args, **kwargs):
                if sum(map(len, parts)) <= ANSWER:
                    send(parts, *args, **kwargs)

            self.iopub_thread.send_multipart = send_what_is_kept

    sys.modules["__main__"].BriefStream = BriefStream
    CourseKernelApp.outstream_class = "__main__.BriefStream"

    # IPython keeps everything that is printed for its own history.
    ZMQInteractiveShell._tee = lambda self, channel: contextlib.nullcontext()
    # `exit` and `quit` stop a kernel a moment after their cell: what runs until then would be a matter of luck.
    ZMQInteractiveShell.ask_exit = lambda self: None
    if sys.argv[1:] or fork_when_asked():
        CourseKernelApp.launch_instance()


def fork_when_asked():
    """Whether this process is a forked kernel; False when nobody can ask for kernels any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # kernels that have ended are gone
    parent = os.getpid()
    gc.freeze()  # else a kernel's first collection writes to everything that was imported, and so copies it
    for line in sys.stdin:
        if pid := os.fork():
            print(pid, flush=True)
        else:
            become_a_kernel(parent, *json.loads(line))
            return True
    return False


def become_a_kernel(parent, arguments, folder, environment):
    """Leave the process that this one was forked from, all but what it has imported."""
    import numpy as np

    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.close(nothing)
    os.chdir(folder)
    os.environ.update(environment)
    np.random.seed()  # Python draws new ones for its own `random`
    sys.argv[1:] = [*arguments, f"--IPKernelApp.parent_handle={parent}"]  # it ends with its parent
    if os.getppid() != parent:  # which has ended since
        os._exit(1)


if __name__ == "__main__":
    main()
