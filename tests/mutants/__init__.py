"""Mutation gate: small changes of right answers that the checks have to notice.

A mutant is a right answer with one thing changed: an operator, a constant, a comparison, a statement left out, two
arguments swapped, a keyword dropped. `equivalent.toml` names those that are still right, with the reason; of the
rest nearly all must lose points. Not mutated are texts (docstrings, messages) and manners with wrong inputs that no
student is graded on: `expect_…(…)`, and `if …: raise …` in the pieces whose contract names no error.

`python -m tests.mutants` runs all of them and writes `table.md`; those that survive are added to `survivors.txt`, and
from then on every run of the tests includes them.
"""

import ast
import copy
import importlib
import inspect
import pickle
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from course_lib.checks.expect import expectation
from course_lib.checks.judge import lost
from course_lib.checks.observe import observe
from course_lib.checks.piece import find, pieces
from course_lib.misconceptions import reference

__all__ = [
    "HERE",
    "LIMIT",
    "Mutant",
    "all_mutants",
    "answers",
    "equivalent",
    "is_killed",
    "mutations",
    "past_survivors",
]

HERE = Path(__file__).parent
#: Seconds a scenario of a mutant may take; right answers need a small part of it. A time-out counts as killed.
LIMIT = 3.0

#: The pieces whose row in the contract names an error: their guards are mutated as well.
_GRADED_ERRORS = {
    "algorithm.batch_stats",
    "running_stats.torch_momentum",
    "running_stats.BatchNorm",
    "finetuning.recalibrate",
    "fusion.fuse_conv_bn",
    "fusion.fuse_linear_bn",
}
#: Where the seed decides not only on the numbers but on what is asked: another seed shows `accepts` other layers.
_SEEDS = {"modes.accepts": range(3)}
_BINARY = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
_BINARY |= {ast.Pow: ast.Mult, ast.Mod: ast.Mult, ast.MatMult: ast.Mult}
_COMPARED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
_COMPARED |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}


@dataclass(frozen=True)
class Mutant:
    """One changed right answer.

    Attributes:
        piece: for example `"algorithm.batch_stats"`.
        answer: `"reference"`, or the style of another right answer.
        name: what was changed into what, and which of several equal places it is.
        source: makes the source of the changed function or class.
    """

    piece: str
    answer: str
    name: str
    source: Callable

    @property
    def title(self):
        return f"{self.piece} / {self.answer} / {self.name}"

    def implementation(self):
        """The mutant, ready to be observed."""
        *others, right = _together(_answers(self.piece)[self.answer])
        namespace = dict(vars(inspect.getmodule(right)))
        exec(compile(self.source(), f"<{self.title}>", "exec"), namespace)
        return (*others, namespace[right.__name__]) if others else namespace[right.__name__]


def all_mutants(topic=None):
    """All mutants of the reference and of one other right answer of every piece, or of those of one topic."""
    return [
        Mutant(piece.name, answer, name, source)
        for piece in pieces(topic)
        for answer, right in _answers(piece.name).items()
        for name, source in mutations(_source(_together(right)[-1]), guards=piece.name in _GRADED_ERRORS)
    ]


def answers(topic):
    """{(piece, style): implementation} of the right answers of a topic, the reference with them."""
    right = importlib.import_module(f"tests.right_answers.{topic}").RIGHT
    found = {(piece.name, "reference"): reference(piece.name) for piece in pieces(topic)}
    return found | {(piece, style): impl for piece, styles in right.items() for style, impl in styles.items()}


def is_killed(mutant):
    """Whether the checks take points from a mutant."""
    piece = find(mutant.piece)
    try:
        impl = mutant.implementation()
    except Exception:  # changed so that it cannot even be defined
        return True
    names = dict.fromkeys(scenario.name for scenario in piece.scenarios)
    asked = [(piece.name, scenario, seed) for seed in _SEEDS.get(piece.name, (0,)) for scenario in names]
    for which in sorted(asked, key=lambda which: -_told[which]):
        _, scenario, seed = which
        one = _until_it_is_wrong(impl, seed) if piece.name == "modes.accepts" else impl
        if lost(piece, observe(piece, one, seed, limit=LIMIT, only=scenario), seed, only=scenario):
            _told[which] += 1
            return True
    return False


_told = Counter()  # how many mutants of a piece lost points in a scenario, with a seed: the most telling come first


def _until_it_is_wrong(accepts, seed):
    """An `accepts` that looks at no further layer once it was wrong about one, which costs points already."""
    [entry] = expectation(find("modes.accepts"), seed).truth.values()
    right, wrong = iter(entry["seen"].values()), False

    def looks(cls):
        nonlocal wrong
        if wrong:
            return True
        wrong = True  # unless it comes back
        answer = accepts(cls)
        wrong = {"fact": "accepted" if answer else "rejected"} != next(right)
        return answer

    return looks


def equivalent():
    """{title: reason} of the mutants that are still right."""
    table = tomllib.loads((HERE / "equivalent.toml").read_text(encoding="utf-8"))
    return {
        f"{piece} / {answer} / {name}": reason
        for piece, answers in table.items()
        for answer, names in answers.items()
        for name, reason in names.items()
    }


def past_survivors():
    """Titles of the mutants that the checks have missed at some time."""
    return (HERE / "survivors.txt").read_text(encoding="utf-8").splitlines()


def mutations(source, *, guards=True):
    """Every single change of a function or class.

    Args:
        source: of one function or class, without decorators.
        guards: change `if …: raise …` as well.

    Yields:
        (name, function that makes the source): the name says what became what, with a number where the same change is
        possible twice.
    """
    tree = ast.parse(source)
    kept, seen = pickle.dumps(tree), Counter()
    number = {id(node): i for i, node in enumerate(ast.walk(tree))}
    for node in _mutable(tree, guards):
        for which in range(len(_changes(node))):
            mutated = copy.deepcopy(node)
            _changes(mutated)[which]()
            name = f"{_text(node)} → {_text(mutated)}"
            seen[name] += 1
            yield f"{name} #{seen[name]}", partial(_source_of, kept, number[id(node)], which)


def _source_of(kept, number, which):
    """Source with one change of one node: of a pickled tree, in the order of `ast.walk`."""
    tree = pickle.loads(kept)
    _changes(next(islice(ast.walk(tree), number, None)))[which]()
    return ast.unparse(ast.fix_missing_locations(tree))


def _changes(node):
    """Functions that change a node in place, one for each thing that can be changed about it."""
    changes = []
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _BINARY:
        changes.append(lambda: setattr(node, "op", _BINARY[type(node.op)]()))
    elif isinstance(node, ast.Compare):
        changes += [
            lambda i=i: node.ops.__setitem__(i, _COMPARED[type(node.ops[i])]())
            for i, op in enumerate(node.ops)
            if type(op) in _COMPARED
        ]
    elif isinstance(node, ast.BoolOp):
        changes.append(lambda: setattr(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And()))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        changes.append(lambda: _take_off_sign(node))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        changes += [lambda value=value: setattr(node, "value", value) for value in _other_constants(node.value)]
    if isinstance(node, ast.Call):
        if len(node.args) > 1 and not any(isinstance(arg, ast.Starred) for arg in node.args[:2]):
            changes.append(lambda: node.args.__setitem__(slice(0, 2), node.args[1::-1]))
        changes += [lambda i=i: node.keywords.pop(i) for i in range(len(node.keywords))]
    if isinstance(node, ast.stmt) and not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Pass):
        changes.append(lambda: _leave_out(node))
    return changes


def _take_off_sign(node):
    """Turn `-x` into `+x` and `not x` into `bool(x)`, in place."""
    if isinstance(node.op, ast.USub):
        node.op = ast.UAdd()
    else:
        node.__class__, operand = ast.Call, node.operand
        node.func, node.args, node.keywords = ast.Name("bool", ast.Load()), [operand], []


def _other_constants(value):
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1] if value <= 0 else [value + 1, value - 1]
    return [2 * value if value else 1.0]


def _mutable(node, guards):
    """The nodes below, depth first, without texts and manners."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue  # a docstring
        if isinstance(child, ast.Raise | ast.JoinedStr | ast.arg):
            continue
        if isinstance(child, ast.Expr | ast.Assign) and any(map(_is_check_of_input, ast.walk(child))):
            continue
        if isinstance(child, ast.If) and isinstance(child.body[0], ast.Raise) and not child.orelse and not guards:
            continue
        if isinstance(child, ast.FunctionDef) and child.name in ("extra_repr", "__repr__"):
            continue  # what is printed is not graded
        yield child
        if not (isinstance(child, ast.UnaryOp) and isinstance(child.operand, ast.Constant)):  # -1 is one thing
            yield from _mutable(child, guards)


def _is_check_of_input(node):
    return isinstance(node, ast.Call) and _text(node.func).split(".")[-1].startswith("expect_")


def _leave_out(node):
    """Turn a statement into `pass`, in its place."""
    node.__class__ = ast.Pass
    for field in list(node.__dict__):
        if field not in ("lineno", "col_offset", "end_lineno", "end_col_offset"):
            del node.__dict__[field]


def _text(node):
    return " ".join(ast.unparse(node).split())[:100]


def _answers(piece):
    """The reference, and the first other right answer that is a function or class of its own, written for the tests."""
    found = {"reference": reference(piece)}
    styles = importlib.import_module(f"tests.right_answers.{piece.split('.')[0]}").RIGHT[piece]
    for style, right in styles.items():
        if all(map(_is_of_its_own, _together(right))):
            found[style] = right
            break
    return found


def _is_of_its_own(right):
    in_tests = getattr(right, "__module__", "").startswith("tests.")
    return in_tests and getattr(right, "__qualname__", ".") == getattr(right, "__name__", None)


def _together(right):
    """A right answer as a tuple: where several pieces are checked together, the last is the one that is changed."""
    return right if isinstance(right, tuple) else (right,)


def _source(right):
    """Source of a function or class without its decorators."""
    text = inspect.getsource(inspect.getmodule(right))
    [node] = [node for node in ast.parse(text).body if getattr(node, "name", None) == right.__name__]
    node.decorator_list = []
    return ast.unparse(node)
