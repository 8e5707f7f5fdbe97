"""Several ranks on one computer: threads that torch.distributed takes for processes, or processes."""

from collections.abc import Callable
from typing import Any

from course_lib.ranks.counting import count_collectives
from course_lib.ranks.outcome import RankError
from course_lib.ranks.processes import run_processes
from course_lib.ranks.threads import here, run_threads

__all__ = ["RankError", "count_collectives", "run_ranks"]


def run_ranks(
    fn: Callable[..., Any],
    world_size: int,
    *args: Any,
    how: str = "threads",
    backend: str = "gloo",
    timeout: float = 60.0,
) -> list[Any]:
    """Call `fn(rank, *args)` on every rank of a process group, and collect what the ranks return.

    Inside `fn`, torch.distributed is initialised: `dist.get_rank()`, collectives, `dist.new_group` and layers that
    use them work as under `torchrun`.

    By default the ranks are threads of this process (milliseconds to start; no backend needed, CPU and CUDA tensors
    alike). They share `args`, globals and torch's random generator: copy what a rank changes, and draw from a
    generator of its own. A collective that some ranks never join is noticed at once and ends the run. With `"fork"`
    they are copies of this process (a few hundredths of a second; CPU only; not on Windows), with `"spawn"` fresh
    processes that import everything anew (seconds), whose `fn` has to stand in a module, not in a cell.

    What a process returns is pickled. After a failed run the next one works.

    Args:
        fn: what a rank does; a function of a notebook cell too, except for `"spawn"`.
        world_size: the number of ranks, at least 1.
        args: further arguments, the same for all ranks.
        how: `"threads"`, `"fork"` or `"spawn"`.
        backend: of the processes; threads have their own.
        timeout: seconds for the whole run, starting the ranks included.

    Returns:
        List of what the ranks returned, by rank.

    Raises:
        ValueError: no positive int as world_size; an unknown `how`; a rank that starts ranks; `"fork"` after CUDA
            was used; `"spawn"` with a function or arguments that cannot be pickled.
        RankError: a rank raised, waits for a collective that the others never join, died, or took too long. The
            message names it.

    Example:
        >>> import torch, torch.distributed as dist
        >>> def total(rank, unit):
        ...     t = torch.tensor([unit * rank])
        ...     dist.all_reduce(t)
        ...     return t.item()
        >>> run_ranks(total, 3, 10)
        [30, 30, 30]
    """
    if isinstance(world_size, bool) or not isinstance(world_size, int) or world_size < 1:
        raise ValueError(f"expected world_size to be an int of at least 1, got {world_size!r}")
    if how not in ("threads", "fork", "spawn"):
        raise ValueError(f"expected how to be 'threads', 'fork' or 'spawn', got {how!r}")
    if hasattr(here, "place"):
        raise ValueError("expected run_ranks to be called by no rank, got a call from inside one: return first")
    if how == "threads":
        outcome = run_threads(fn, world_size, args, timeout)
    else:
        outcome = run_processes(fn, world_size, args, how, backend, timeout)
    return outcome.results()
