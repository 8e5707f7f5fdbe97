"""What became of the ranks of a run."""

__all__ = ["GRACE", "Outcome", "RankError"]

#: Seconds in which the others may still finish, or fail by themselves, after a rank has failed.
GRACE = 1.0


class RankError(RuntimeError):
    """One rank or more raised, or did not come back.

    Attributes:
        errors: {rank: exception}, in the order in which they were raised; the first one is also the cause.
        unfinished: {rank: where it was}, ranks that were stopped.
    """

    def __init__(
        self, message: str, errors: dict[int, BaseException] | None = None, unfinished: dict[int, str] | None = None
    ):
        super().__init__(message)
        self.errors, self.unfinished = errors or {}, unfinished or {}


class Outcome:
    """What became of the ranks: values, errors in order of appearance, and where the rest was when it ended."""

    def __init__(self, world_size, timeout):
        self.world_size, self.timeout = world_size, timeout
        self.values, self.errors, self.unfinished = {}, {}, {}
        self.late = False

    def missing(self):
        return [rank for rank in range(self.world_size) if rank not in self.values and rank not in self.errors]

    def results(self):
        if not self.errors and not self.unfinished:
            return [self.values[rank] for rank in range(self.world_size)]
        parts = []
        first = next(iter(self.errors), None)
        if self.errors:
            error = self.errors[first]
            parts.append(f"rank {first} of {self.world_size} raised {type(error).__name__}: {error}")
            others = [rank for rank in self.errors if rank != first]
            parts += [f"raised too: rank {', '.join(map(str, sorted(others)))}"] if others else []
        if self.late:
            parts.append(f"expected every rank to finish within {self.timeout:g} s")
        parts += [f"rank {rank} {where}" for rank, where in sorted(self.unfinished.items())]
        if self.unfinished and not self.late and not self.errors:
            parts.append("every rank of a group has to call the same collectives in the same order")
        raise RankError("; ".join(parts), self.errors, self.unfinished) from self.errors.get(first)
