"""What is asked of a student: a piece has groups, which score, and a group has scenarios, which exercise."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = [
    "COURSE",
    "PROTOCOL",
    "TOPICS",
    "Group",
    "Piece",
    "Scenario",
    "WrongReturn",
    "find",
    "named",
    "pieces",
    "raised",
]

#: Changes when bundles of observations or the rules of judging change, and with it every release id.
PROTOCOL = 1

#: The topics of the course, in order: the problem set of each is `ps<number>-<topic>`.
COURSE = ("algorithm", "running_stats", "modes", "finetuning", "sync", "fusion", "gpu")
#: Those that are graded: the ones there are checks for.
TOPICS = tuple(topic for topic in COURSE if importlib.util.find_spec(f"{__package__}.{topic}"))

_PIECES: dict[str, "Piece"] = {}


class WrongReturn(Exception):
    """The implementation returned something of another form than its contract says."""


@dataclass(frozen=True)
class Scenario:
    """One way to exercise an implementation.

    Attributes:
        name: unique in the piece.
        run: `(impl, case) -> {observation name: array or fact}`.
        dtypes: the dtypes the seed chooses from.
        within: absolute tolerance, of single observations or of all, where the dtype's own would be wrong.
        rounding: the scenario is about rounding errors. Two implementations with the same mistake
            round differently, so a mistake is recognised here by what it gets wrong, not by its values.
    """

    name: str
    run: Callable
    dtypes: tuple[str, ...]
    within: Mapping[str, float] | float
    rounding: bool


@dataclass
class Group:
    """Observations that are right together or score nothing together."""

    title: str
    points: float
    scenarios: list[Scenario] = field(default_factory=list)

    def scenario(self, *, dtypes=("float64",), within=None, rounding=False):
        """Decorator that adds `(impl, case) -> {name: array | fact}` to the group."""

        def add(run):
            self.scenarios.append(
                Scenario(run.__name__, run, tuple(dtypes), {} if within is None else within, rounding)
            )
            return run

        return add


class Piece:
    """A function or class that a student implements, by its public name.

    Args:
        name: `"<topic>.<name>"`, as in `check("algorithm.batch_stats", …)`.
        call: how it is called and what it returns, for messages.
        takes: names of what is checked together, as a tuple, where the piece alone says nothing: how to undo
            something depends on how it was done. The piece itself is the last.
    """

    def __init__(self, name, call, takes=()):
        self.name, self.call, self.takes = name, call, takes
        self.topic, self.attribute = name.split(".")
        self.groups: list[Group] = []
        _PIECES[name] = self

    def group(self, title, points):
        """A new group of the piece."""
        self.groups.append(Group(title, points))
        return self.groups[-1]

    @property
    def max_points(self):
        return float(sum(group.points for group in self.groups))

    @property
    def argument(self):
        """What a check cell passes: the piece by its name, or a tuple of names."""
        return f"({', '.join(self.takes)})" if self.takes else self.attribute

    @property
    def scenarios(self):
        return [scenario for group in self.groups for scenario in group.scenarios]

    @property
    def problem_set(self):
        """Folder of the problem set, `ps1-algorithm`."""
        return f"ps{COURSE.index(self.topic) + 1}-{self.topic.replace('_', '-')}"


def pieces(topic=None):
    """All pieces, or those of one topic, in the order of the problem sets."""
    for name in (topic,) if topic else TOPICS:
        importlib.import_module(f"course_lib.checks.{name}")
    return [piece for piece in _PIECES.values() if topic in (None, piece.topic)]


def find(name):
    """The piece of this name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    topic = str(name).partition(".")[0]
    if name not in _PIECES and topic in TOPICS:
        pieces(topic)  # and no other: most need torch, whose import takes as long as grading a small answer
    if name not in _PIECES:
        pieces()
        raise ValueError(f"expected the name of a piece, got {name!r}: there are {', '.join(sorted(_PIECES))}")
    return _PIECES[name]


def named(result, *names):
    """A returned tuple as {name: part}.

    Raises:
        WrongReturn: not a tuple (or list) of that many parts.
    """
    wanted = f"a tuple ({', '.join(names)})"
    if not isinstance(result, tuple | list):
        raise WrongReturn(f"expected {wanted} to be returned, got {_kind(result)}")
    if len(result) != len(names):
        raise WrongReturn(f"expected {wanted} to be returned, got {len(result)} values")
    return dict(zip(names, result, strict=True))


def raised(function, *args, **kwargs):
    """Name of the exception a call raises, `"ValueError"` for its subclasses too; `"no error"` when it returns."""
    try:
        function(*args, **kwargs)
    except NotImplementedError:
        raise
    except ValueError:
        return "ValueError"
    except Exception as error:
        return type(error).__name__
    return "no error"


def _kind(value):
    shape = getattr(value, "shape", None)
    name = type(value).__name__
    return "None: is there a return?" if value is None else f"{name} of shape {tuple(shape)}" if shape else name
