"""Ranks that are processes, forked or spawned."""

import contextlib
import multiprocessing
import pickle
import tempfile
import time
import traceback
import warnings
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

import torch
import torch.distributed as dist

from course_lib.ranks.outcome import GRACE, Outcome

__all__ = ["run_processes"]


def run_processes(fn, world_size, args, how, backend, timeout):
    if how not in multiprocessing.get_all_start_methods():
        raise ValueError(f"expected how to be 'threads' or 'spawn' on this system, got {how!r}")
    if how == "fork" and torch.cuda.is_initialized():
        raise ValueError("expected 'fork' before CUDA is used, got it afterwards: use how='threads' or 'spawn'")
    deadline = time.monotonic() + timeout
    outcome = Outcome(world_size, timeout)
    context = multiprocessing.get_context(how)
    pipes, processes = [], []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(world_size):
                ours, theirs = context.Pipe()
                told = (rank, world_size, str(Path(folder, "store")), theirs, fn, args, backend, timeout)
                process = context.Process(target=_process, args=told, name=f"rank {rank}", daemon=True)
                _start(process, how)
                theirs.close()
                pipes.append(ours)
                processes.append(process)
            _collect(outcome, pipes, processes, deadline)
        finally:
            for pipe in pipes:
                _release(pipe)
            patience = time.monotonic() + GRACE
            for process in processes:
                process.join(max(0.0, patience - time.monotonic()))
                if process.is_alive():
                    process.kill()
                    process.join()
            for pipe in pipes:
                pipe.close()
    return outcome


def _start(process, how):
    try:
        with warnings.catch_warnings():
            # Python warns of locks that other threads hold; torch's threads are handled in `_process`.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            process.start()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"expected a function and arguments that can be pickled, got {error}: "
            f"put them into a module, or use another how than {how!r}"
        ) from error


def _collect(outcome, pipes, processes, deadline):
    """Reports of the ranks, until all have reported or the time is over."""
    while outcome.missing():
        missing = outcome.missing()
        patience = max(0.0, deadline - time.monotonic())
        ready = wait(
            [*(pipes[rank] for rank in missing), *(processes[rank].sentinel for rank in missing)],
            min(patience, GRACE) if outcome.errors else patience,
        )
        for rank in missing:
            if pipes[rank] in ready or processes[rank].sentinel in ready:
                _report(outcome, rank, pipes[rank], processes[rank])
        if not ready:
            # Who has failed may go: its connections close, and who waits for it fails instead of hanging.
            for rank in outcome.errors:
                _release(pipes[rank])
            if time.monotonic() >= deadline:
                outcome.late = True
                outcome.unfinished = {rank: "did not report back" for rank in outcome.missing()}
                return


def _report(outcome, rank, pipe, process):
    try:
        kind, value, text = pickle.loads(pipe.recv_bytes())
    except (EOFError, OSError):
        process.join(GRACE)
        # In front: that the others lost their connection to it is a consequence.
        died = RuntimeError(f"its process died with exit code {process.exitcode}")
        outcome.errors = {rank: died, **outcome.errors}
        return
    if kind == "error":
        value.add_note(f"on rank {rank}:\n{text}")
        outcome.errors[rank] = value
    else:
        outcome.values[rank] = value


def _release(pipe):
    with contextlib.suppress(OSError):
        pipe.send_bytes(b"go")


def _process(rank, world_size, store, pipe, fn, args, backend, timeout):
    """What a rank's process does."""
    # torch's pool of threads was not copied by fork: the first parallel operation would wait for it for ever.
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            backend,
            store=dist.FileStore(store, world_size),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=max(1.0, timeout)),
        )
        report = pickle.dumps(("value", fn(rank, *args), ""))
    except BaseException as error:
        report = _pickled(error)
    pipe.send_bytes(report)
    # Closing the connections at once would fail a rank that is still inside the last collective.
    with contextlib.suppress(EOFError, OSError):
        if pipe.poll(timeout):
            pipe.recv_bytes()
    if dist.is_initialized():
        dist.destroy_process_group()


def _pickled(error):
    text = traceback.format_exc()
    try:
        report = pickle.dumps(("error", error, text))
        pickle.loads(report)  # some exceptions only fail on the way back
    except Exception:
        report = pickle.dumps(("error", RuntimeError(f"{type(error).__name__}: {error}"), text))
    return report
