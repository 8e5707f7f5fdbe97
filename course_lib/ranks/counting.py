"""Which collectives a rank starts."""

import contextlib
import re
from collections.abc import Iterator

from torch.utils._python_dispatch import TorchDispatchMode

from course_lib.ranks.threads import here, spoken

__all__ = ["count_collectives"]


@contextlib.contextmanager
def count_collectives() -> Iterator[list[str]]:
    """Names of the collectives that this rank starts inside the `with` block, as a list that grows.

    Counts at the group, so it also sees what a backward pass, DistributedDataParallel or a functional collective
    starts, on ranks of every kind. Each call counts once, however many tensors it carries.

    Returns:
        Context manager of a list of names such as "all_gather", "all_reduce", "broadcast", "reduce_scatter", "barrier".

    Example:
        >>> import torch, torch.distributed as dist
        >>> from course_lib.ranks import run_ranks
        >>> def counted(rank):
        ...     with count_collectives() as calls:
        ...         dist.all_reduce(torch.ones(2))
        ...     return calls
        >>> run_ranks(counted, 2)
        [['all_reduce'], ['all_reduce']]
    """
    calls = []
    place = getattr(here, "place", None)
    if place is None:
        with _RealCollectives(calls):
            yield calls
        return
    place.recorders.append(calls)
    try:
        yield calls
    finally:
        # By identity: two lists of the same names are equal.
        place.recorders[:] = [each for each in place.recorders if each is not calls]


_COLLECTIVE = re.compile("gather|reduce|scatter|broadcast|all_?to_?all|barrier|send|recv")


class _RealCollectives(TorchDispatchMode):
    """Sees the operators through which every backend but the threads' is called."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # skipping it means importing it: two seconds, in every process anew

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional") and _COLLECTIVE.search(func._opname):
            self.calls.append(spoken(func._opname))
        return func(*args, **(kwargs or {}))
