"""Stand-ins for a student's notebook and for the student edition."""

import itertools
import json
import linecache
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest

import course_lib
from course_lib.checks import expect
from course_lib.checks.expect import Expectation, expectation
from course_lib.checks.judge import judge
from course_lib.checks.piece import _PIECES, Piece, find, pieces
from course_lib.misconceptions import catalogue

_numbers = itertools.count(1)


def pytest_generate_tests(metafunc):
    """The parameters of `every_topic`'s tests, from what a topic's test module brings."""
    topic = getattr(metafunc.module, "TOPIC", None)
    if topic is None:
        return
    right, clauses = metafunc.module.RIGHT, metafunc.module.CLAUSES
    answers = [(find(name), impl) for name, styles in right.items() for impl in styles.values()]
    styles = [f"{find(name).attribute}-{style}" for name, styles in right.items() for style in styles]
    mistakes = catalogue(topic)
    bound = [(find(f"{topic}.{attribute}"), *rest) for attribute, *rest in clauses]
    for name, values, ids in (
        ("piece", pieces(topic), [piece.attribute for piece in pieces(topic)]),
        ("answer", answers, styles),
        ("mistake", mistakes, [f"{m.piece.split('.')[1]}-{m.name}" for m in mistakes]),
        ("clause", bound, [f"{piece.attribute}-{words}" for piece, words, *_ in bound]),
        ("right_answers", [right], [""]),
        ("clauses", [clauses], [""]),
    ):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, ids=ids)


@pytest.fixture
def answer():
    """Compiles source as a notebook's cell is compiled, and returns the last name it defines."""

    def compiled(source):
        source = textwrap.dedent(source).lstrip("\n")
        file = f"/nowhere/ipykernel_1/{next(_numbers)}.py"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        namespace = {"np": np}
        exec(compile(source, file, "exec"), namespace)
        return list(namespace.values())[-1]

    return compiled


@pytest.fixture
def stats(answer):
    """Makes a `batch_stats` that ends with a given statement."""

    def made(statement):
        return answer(f"""
            def batch_stats(x):
                axes = (0, *range(2, x.ndim))
                if x.size // x.shape[1] < 2:
                    raise ValueError("two few")
                mean, var = x.mean(axes), x.var(axes)
                {statement}
        """)

    return made


@pytest.fixture
def piece(monkeypatch):
    """A small piece of its own, unknown to the rest of the course: `double(x) → y` in two groups."""
    monkeypatch.setattr("course_lib.checks.piece._PIECES", dict(_PIECES))
    made = Piece("demo.double", call="double(x) → y")
    first, second = made.group("tables", points=1), made.group("floats", points=2)

    @first.scenario()
    def of_table(impl, case):
        return {"y": impl(case.array((3, 2))), "inputs changed": case.changed()}

    @second.scenario(dtypes=("float32",))
    def of_floats(impl, case):
        return {"y": impl(case.array((4,)))}

    return made


@pytest.fixture(scope="session")
def shipped(tmp_path_factory):
    """Folder of `course_lib.checks` as the student edition has it: with expectations as data."""
    folder = tmp_path_factory.mktemp("checks")
    (folder / "expected").mkdir()
    (folder / "expected" / "algorithm.npz").write_bytes(expect.export("algorithm"))
    return folder


@pytest.fixture
def student_edition(shipped, monkeypatch):
    """The library as a student has it: expectations of the public seed as data, no mistakes in code."""
    monkeypatch.setattr(expect, "resources", SimpleNamespace(files=lambda package: shipped))
    monkeypatch.setitem(sys.modules, "course_lib.misconceptions", None)
    monkeypatch.delattr(course_lib, "misconceptions", raising=False)
    for cache in (expect.expectation, expect._read):
        cache.cache_clear()
    yield
    for cache in (expect.expectation, expect._read):
        cache.cache_clear()


@pytest.fixture
def without_mistakes(monkeypatch):
    """No known mistakes, which take time to make and decide about hints only."""
    module = sys.modules[judge.__module__]
    monkeypatch.setattr(module, "expectation", lambda piece, seed: Expectation(expectation(piece, seed).truth, ()))


@pytest.fixture
def through_json():
    """What is left of a bundle after it went from the kernel to the grader."""
    return lambda bundle: json.loads(json.dumps(bundle))
