"""Kernels forked from a process that has imported already what every kernel of a problem set imports first.

Importing torch takes longer than grading a small answer. The kernel of each submission is still a process of its own:
it is forked before anything of a student's is loaded, so nothing passes from one student's kernel into another's.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import threading
from pathlib import Path

from jupyter_client.provisioning import LocalProvisioner

__all__ = ["WarmProvisioner"]

#: Without process descriptors, a process whose number is taken again could be mistaken for a kernel.
_CAN_FORK = hasattr(os, "pidfd_open")
#: Milliseconds that a killed kernel is waited for.
_TO_END = 1000
#: What a kernel's environment has in common with everybody's, and the libraries read when they are loaded.
_SHARED = ("PATH", "LANG", "PYTHONHASHSEED", "OMP_NUM_THREADS")


class WarmProvisioner(LocalProvisioner):
    """Jupyter's provisioner of local kernels, for commands of `launcher.py`. Where there is no fork it starts anew."""

    async def launch_kernel(self, cmd, **kwargs):
        if not _CAN_FORK:
            return await super().launch_kernel(cmd, **kwargs)
        at = cmd.index("-f")
        self.process = _forked(cmd[:at], cmd[at:], kwargs["cwd"], kwargs["env"])
        self.pid = self.pgid = self.process.pid
        self.cwd = kwargs["cwd"]
        return self.connection_info

    async def kill(self, restart=False):
        """Kill the kernel and come back when it has ended, a moment later: Jupyter would look ten times a second."""
        await super().kill(restart)
        if isinstance(self.process, _Kernel):
            self.process.poll(_TO_END)


class _Kernel:
    """A forked kernel, with as much of `subprocess.Popen` as Jupyter uses. How it ended is not known."""

    stdin = stdout = stderr = None

    def __init__(self, pid):
        self.pid = pid
        self._descriptor = None
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            self._descriptor = os.pidfd_open(pid)

    def poll(self, within=0):
        """None while it lives, looked after for some milliseconds."""
        if self._descriptor is None:
            return 1
        ended = select.poll()
        ended.register(self._descriptor, select.POLLIN)
        if not ended.poll(within):
            return None
        os.close(self._descriptor)
        self._descriptor = None
        return 1

    wait = poll  # Jupyter waits by polling

    def send_signal(self, number):
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                signal.pidfd_send_signal(self._descriptor, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def __del__(self):
        if self._descriptor is not None:
            os.close(self._descriptor)


class _Nursery:
    """The process that kernels of one command are forked from. It ends when its input is closed, and so with us."""

    def __init__(self, command, environment):
        self._made_by = os.getpid()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
            start_new_session=True,  # an interrupt at the terminal is not for it
        )

    def fork(self, arguments, cwd, environment):
        """The process id of a new kernel; None when there is nobody to fork it any more."""
        try:
            print(json.dumps([arguments, str(cwd), environment]), file=self._process.stdin, flush=True)
            return int(self._process.stdout.readline() or 0) or None
        except (OSError, ValueError):
            return None

    def close(self):
        if self._made_by != os.getpid():  # a fork of the grader has inherited it
            return
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


_lock = threading.Lock()
_nurseries: dict = {}  # at most one: what it was made for, and itself


def _forked(command, arguments, cwd, environment):
    library = Path(command[-2])
    shared = {name: environment[name] for name in _SHARED if name in environment}
    wanted = json.dumps([command, shared, library.stat().st_mtime_ns, os.getpid()])
    with _lock:
        for _ in range(2):  # student code has the rights to end the process that it was forked from
            if wanted not in _nurseries:
                _close()
                _nurseries[wanted] = _Nursery(command, shared)
            if pid := _nurseries[wanted].fork(arguments, cwd, environment):
                return _Kernel(pid)
            _close()
    raise RuntimeError(f"expected a new kernel, the process that forks them ended: try `{' '.join(command)}` by hand")


@atexit.register
def _close():
    while _nurseries:
        _nurseries.popitem()[1].close()
