"""Which mistakes are known: wrong implementations with their hints. Never shipped to students.

Most are edits of the reference, which read as a table of what people get wrong, and which break loudly
when the reference changes.
"""

import ast
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["TOGETHER", "Misconception", "catalogue", "edit", "edited", "reference"]

#: Pieces that are checked together with others, as a tuple: the `takes` of their checks.
TOGETHER = {"finetuning.unfreeze_batchnorm": ("freeze_batchnorm", "unfreeze_batchnorm")}


@dataclass(frozen=True)
class Misconception:
    """One known mistake of one piece.

    Attributes:
        piece: for example `"algorithm.batch_stats"`.
        name: short, unique in the piece.
        change: edits `((old, new), …)` of the reference's source, each matching exactly once, or a function
            or class that replaces it whole.
        hint: one sentence that names the mistake and does not give the code.
        read: page and heading of the book that explains it, `"chapter 1, «Where eps goes»"`.
        seen: where people write it.
    """

    piece: str
    name: str
    change: tuple[tuple[str, str], ...] | Callable
    hint: str
    read: str
    seen: str

    def implementation(self):
        """The wrong implementation, ready to be observed."""
        return self.change if callable(self.change) else edit(self.piece, self.change)


def reference(piece):
    """The reference implementation of a piece, untouched by `plug_in`; a tuple where several are checked together."""
    return _named(piece, vars(_pristine(piece.split(".")[0])))


def _named(piece, namespace):
    if piece in TOGETHER:
        return tuple(namespace[name] for name in TOGETHER[piece])
    return namespace[piece.split(".")[1]]


@functools.cache
def _pristine(topic):
    """A copy of the topic's module of its own: a student's piece plugged into the library does not reach it."""
    found = importlib.util.find_spec(f"course_lib.{topic}")
    spec = importlib.util.spec_from_file_location(f"{__name__}._reference_{topic}", found.origin)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def edit(piece, changes):
    """The reference of a piece with parts of its source replaced.

    Args:
        piece: for example `"algorithm.batch_stats"`.
        changes: pairs (old, new); each old text stands exactly once in the source of the piece, or of all that
            are checked together.

    Raises:
        ValueError: an old text is not there, or more than once: the reference has changed.
    """
    namespace = dict(vars(_pristine(piece.partition(".")[0])))
    exec(compile(edited(piece, changes), f"<{piece} edited>", "exec"), namespace)
    return _named(piece, namespace)


def edited(piece, changes):
    """The source of what `edit` returns, decorators included."""
    source = _source(piece)
    for old, new in changes:
        if source.count(old) != 1:
            raise ValueError(f"expected {old!r} once in the source of {piece}, found it {source.count(old)} times")
        source = source.replace(old, new)
    return source


@functools.cache
def _source(piece):
    """The source of a piece, or of all that are checked together."""
    topic, attribute = piece.split(".")
    with open(_pristine(topic).__file__, encoding="utf-8") as file:
        whole = file.read()
    wanted = TOGETHER.get(piece, (attribute,))
    nodes = [node for node in ast.parse(whole).body if getattr(node, "name", None) in wanted]
    return "\n\n\n".join(_source_of(node, whole) for node in nodes)


def _source_of(node, whole):
    """The source of a function or class, decorators included."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return "\n".join(whole.splitlines()[first - 1 : node.end_lineno])


def catalogue(topic):
    """All misconceptions of a topic, in the order of its problem set."""
    return importlib.import_module(f"{__name__}.{topic}").MISCONCEPTIONS
