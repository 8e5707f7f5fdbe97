"""Ranks that are threads: torch's own group of threads, with every wait in sight."""

import ctypes
import re
import sys
import threading
import time
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

from course_lib.ranks.outcome import GRACE, Outcome

__all__ = ["here", "run_threads", "spoken"]

here = threading.local()  # .place, in a thread that is a rank
_one_run = threading.Lock()  # the threads' world replaces torch's for the whole process


class _Stop(BaseException):
    """Ends a rank whose run is over; not an Exception, so that the rank's own `except` does not catch it."""


class _Place:
    """What a rank's thread knows about itself."""

    def __init__(self, run, rank):
        self.run, self.rank, self.recorders = run, rank, []


class _Meeting:
    """One collective of one group, until all of its ranks have come."""

    def __init__(self, name, ranks):
        self.name, self.ranks = name, ranks
        self.data, self.done, self.error = {}, False, None


class _ThreadRun:
    """The ranks of one run, who of them waits where, and when that can never end.

    torch's threaded group waits for ever when a rank does not come, and lets a collective meet another kind of
    collective. Here the run knows every wait, so it knows when no rank is left that could end one.
    """

    def __init__(self, outcome):
        self.outcome = outcome
        self.changed = threading.Condition()
        self.meetings, self.waiting = {}, {}
        self.over = False
        self.store = dist.HashStore()

    def meet(self, group, collective, data):
        """Join the collective of this group that is being gathered, and return when it is done."""
        place, name = group.place, spoken(type(collective).__name__)
        ranks = dist.get_process_group_ranks(group)
        for calls in place.recorders:
            calls.append(name)
        with self.changed:
            if self.over:
                raise _Stop
            meeting = self.meetings.setdefault(group.pg_name, _Meeting(name, ranks))
            if meeting.name != name:
                raise RuntimeError(
                    f"expected {meeting.name}, which rank {ranks[min(meeting.data)]} has called, got {name}: "
                    "every rank of a group has to call the same collectives in the same order"
                )
            meeting.data[group.rank()] = data
            if len(meeting.data) == len(ranks):
                del self.meetings[group.pg_name]
                for rank in ranks:
                    self.waiting.pop(rank, None)
                try:
                    collective.work([meeting.data[i] for i in range(len(ranks))])
                except Exception as error:
                    meeting.error = error
                meeting.done = True
                self.changed.notify_all()
            else:
                self.waiting[place.rank] = meeting
                self.changed.notify_all()
                self.changed.wait_for(lambda: meeting.done or self.over)
            if not meeting.done:
                raise _Stop
        if meeting.error is not None:
            raise RuntimeError(f"{name} failed: {meeting.error}") from meeting.error

    def rank(self, rank, fn, args):
        """What a rank's thread does."""
        here.place = _Place(self, rank)
        values, errors = self.outcome.values, self.outcome.errors
        target, value = errors, None
        try:
            limit = timedelta(seconds=max(1.0, self.outcome.timeout))
            dist.init_process_group(
                _backend(), rank=rank, world_size=self.outcome.world_size, store=self.store, timeout=limit
            )
            try:
                target, value = values, fn(rank, *args)
            finally:
                if dist.is_initialized() and not self.over:  # afterwards, torch's world is the caller's again
                    dist.destroy_process_group()
        except _Stop:
            return
        except BaseException as error:
            target, value = errors, error
        with self.changed:
            if not self.over:
                target[rank] = value
            self.changed.notify_all()

    def settled(self):
        """Whether nothing can change any more: every rank has ended, or waits for one that has."""
        return all(rank in self.waiting for rank in self.outcome.missing())

    def where(self, rank, thread):
        meeting = self.waiting.get(rank)
        if meeting is not None:
            absent = [str(each) for i, each in enumerate(meeting.ranks) if i not in meeting.data]
            return f"waits in {meeting.name} for rank {', '.join(absent)}"
        frame = sys._current_frames().get(thread.ident)
        stack = [each for each in traceback.extract_stack(frame) if each.filename != __file__]
        return f"is at line {stack[-1].lineno} of {stack[-1].filename}" if stack else "has not started"


def run_threads(fn, world_size, args, timeout):
    from torch.testing._internal.distributed import multi_threaded_pg as threaded

    outcome = Outcome(world_size, timeout)
    run = _ThreadRun(outcome)
    with _one_run:
        excepthook = sys.excepthook  # every init_process_group wraps it once more
        torch._C._distributed_c10d._set_thread_isolation_mode(True)
        threaded._install_threaded_pg()
        threads = []
        try:
            for rank in range(world_size):
                # A daemon: a rank that never returns must not keep the interpreter from ending.
                thread = threading.Thread(target=run.rank, args=(rank, fn, args), name=f"rank {rank}", daemon=True)
                thread.start()
                threads.append(thread)
            with run.changed:
                outcome.late = not run.changed.wait_for(run.settled, timeout)
                outcome.unfinished = {rank: run.where(rank, threads[rank]) for rank in outcome.missing()}
        finally:
            _stop(run, threads)
            threaded._uninstall_threaded_pg()
            torch._C._distributed_c10d._set_thread_isolation_mode(False)
            sys.excepthook = excepthook
    return outcome


def _stop(run, threads):
    """End the threads of a run; those that run Python code without a collective too."""
    with run.changed:
        run.over = True
        run.changed.notify_all()
    for kill in (False, True):
        deadline = time.monotonic() + GRACE
        for thread in threads:
            if kill and thread.is_alive():
                # Takes effect at the thread's next Python instruction; without it, an endless loop runs on unseen.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_Stop))
            thread.join(max(0.0, deadline - time.monotonic()))


_BACKEND = "course_threads"


def _backend():
    """The name of the threads' backend, registered with torch when first asked for."""
    with _registering:
        if _BACKEND.upper() not in dist.Backend._plugins:
            _register()
    return _BACKEND


_registering = threading.Lock()


def _register():
    from torch.testing._internal.distributed.multi_threaded_pg import ProcessLocalGroup

    class ThreadGroup(ProcessLocalGroup):
        """torch's group of threads, meeting where the run can see it."""

        def __init__(self, rank, size):
            super().__init__(rank, size)
            self.place = here.place

        def allgather(self, output_tensors, input_tensor, opts=None):
            # torch's would leave one too many as it was, uninitialised perhaps; processes refuse it.
            for tensors in output_tensors:
                if len(tensors) != self.size():
                    raise ValueError(
                        f"expected a list of {self.size()} tensors, one for each rank of the group, got {len(tensors)}"
                    )
            return super().allgather(output_tensors, input_tensor, opts)

        def barrier(self, opts=None):
            return begin(_Barrier(), self).join(self.rank(), None)

    class Arrival:
        """Stands for torch's Collective: all of ProcessLocalGroup's collectives come here."""

        def __init__(self, collective, group):
            self.collective, self.group = collective, group

        def join(self, rank, data):
            self.group.place.run.meet(self.group, self.collective, data)
            done = torch.futures.Future()
            done.set_result(data)
            return torch._C._distributed_c10d._create_work_from_future(done)

    begin_at_torchs = ProcessLocalGroup._start_coll

    def begin(collective, group):
        return Arrival(collective, group) if isinstance(group, ThreadGroup) else begin_at_torchs(collective, group)

    # The one place through which all of its collectives go, whatever they are called by.
    ProcessLocalGroup._start_coll = staticmethod(begin)
    dist.Backend.register_backend(
        _BACKEND, lambda store, rank, size, timeout: ThreadGroup(rank, size), devices=["cpu", "cuda"]
    )


class _Barrier:
    def work(self, data):
        """Having met is all."""


def spoken(name):
    """One name for what operators and classes of torch call differently: allgather_, _allgather_base_, AllGather."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().strip("_")
    name = re.sub(r"^all_?(?=gather|reduce|to_?all)", "all_", name).replace("toall", "to_all")
    return re.sub(r"_(base|into_tensor|tensor|coalesced|out|single)\b", "", name).rstrip("_")
