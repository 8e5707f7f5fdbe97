"""A student's pieces in the installed library: in, out again, and whose is which."""

import json

import pytest

from course_lib import algorithm, nets, plug_in, plug_in_from, unplug, whose
from course_lib.checks.piece import pieces
from course_lib.misconceptions import reference
from course_lib.plugging import _is_stub

PIECES = ["batch_stats", "batch_norm_forward", "batch_norm_backward", "recover_identity"]
ORIGINAL = {name: getattr(algorithm, name) for name in PIECES}


@pytest.fixture(autouse=True)
def as_it_came():
    yield
    unplug()
    for name, original in ORIGINAL.items():
        setattr(algorithm, name, original)


def piece(name="batch_stats"):
    """A function that goes by the name of a piece."""

    def mine(*args, **kwargs):
        return "mine"

    mine.__name__ = name
    return mine


def cell(source, grade=None, cell_type="code", lines=False):
    metadata = {} if grade is None else {"nbgrader": {"grade": grade}}
    return {"cell_type": cell_type, "metadata": metadata, "source": source.splitlines(True) if lines else source}


def finished(folder, *cells, name="algorithm.ipynb"):
    """A notebook of these cells, at ps1-algorithm/ in `folder`."""
    path = folder / "ps1-algorithm" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": list(cells)}), encoding="utf-8")
    return path


STATS = 'def batch_stats(x):\n    return "from the notebook"\n'
CHECK = "raise AssertionError('a check was run')"

# --- plug_in, unplug, whose -------------------------------------------------------------------------------------


def test_nothing_is_the_students_at_first():
    assert whose() == {piece.name: "the course's" for piece in pieces()}


@pytest.mark.parametrize("name", PIECES)
def test_plug_in_puts_a_piece_where_the_library_looks_for_it(name):
    mine = piece(name)
    plug_in(mine)
    assert getattr(algorithm, name) is mine


def test_whose_names_the_origin_of_what_is_plugged_in_and_of_nothing_else():
    plug_in(piece(), origin="my own head")
    assert whose()["algorithm.batch_stats"] == "yours, from my own head"
    assert set(whose().values()) == {"yours, from my own head", "the course's"}


def test_the_library_calls_the_plugged_in_piece():
    plug_in(piece("batch_stats"))
    with pytest.raises(ValueError, match="unpack"):  # the forward pass of the library gets "mine" as (mean, var)
        algorithm.batch_norm_forward(*map(algorithm.np.ones, [(3, 2), 2, 2]))


def test_names_imported_by_other_modules_follow(monkeypatch):
    monkeypatch.setattr(nets, "batch_stats", algorithm.batch_stats, raising=False)
    mine = piece()
    plug_in(mine)
    assert nets.batch_stats is mine


def test_what_other_modules_call_by_the_same_name_stays(monkeypatch):
    other = piece()
    monkeypatch.setattr(nets, "batch_stats", other, raising=False)
    plug_in(piece())
    assert nets.batch_stats is other


def test_what_is_right_stays_the_reference():
    plug_in(piece())
    assert reference("algorithm.batch_stats")(algorithm.np.ones((2, 1)))[0].tolist() == [1.0]


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_unplug_brings_the_courses_pieces_back_however_often(rounds):
    for _ in range(rounds):
        plug_in(*map(piece, PIECES))
        plug_in(piece())
        unplug()
    assert {name: getattr(algorithm, name) for name in PIECES} == ORIGINAL
    assert set(whose().values()) == {"the course's"}


def test_unplug_twice_is_unplug_once():
    plug_in(piece())
    unplug()
    unplug()
    assert algorithm.batch_stats is ORIGINAL["batch_stats"]


@pytest.mark.parametrize("stranger", [piece("my_stats"), lambda x: x, 3])
def test_a_stranger_is_refused_with_the_names_there_are(stranger):
    with pytest.raises(ValueError, match=r"expected one of the pieces batch_stats, batch_norm_forward, .*, got "):
        plug_in(stranger)


def test_all_or_nothing_is_plugged_in():
    with pytest.raises(ValueError, match="got 'my_stats'"):
        plug_in(piece(), piece("my_stats"))
    assert algorithm.batch_stats is ORIGINAL["batch_stats"]


# --- plug_in_from -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [False, True])
def test_a_finished_notebook_is_plugged_in(tmp_path, lines):
    path = finished(tmp_path, cell("# text", cell_type="markdown"), cell(STATS, False, lines=lines), cell(CHECK, True))
    assert plug_in_from(path) == ["batch_stats"]
    assert algorithm.batch_stats(None) == "from the notebook"
    assert whose()["algorithm.batch_stats"] == f"yours, from {path}"


@pytest.mark.parametrize("here", [".", "elsewhere"])
def test_a_problem_set_is_found_here_and_one_folder_up(tmp_path, monkeypatch, here):
    finished(tmp_path, cell(STATS))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / here)
    assert plug_in_from("ps1-algorithm") == ["batch_stats"]


def test_checks_are_not_run(tmp_path):
    plug_in_from(finished(tmp_path, cell(CHECK, True), cell(STATS, False), cell(CHECK, True)))


def test_nothing_after_the_last_check_is_run(tmp_path):
    plug_in_from(finished(tmp_path, cell(STATS, False), cell("", True), cell("raise RuntimeError('the finale')")))


def test_helpers_and_imports_of_other_cells_belong_to_the_answers(tmp_path):
    uses = "def batch_stats(x):\n    return helper(math.pi)\n"
    cells = cell("import math\n"), cell("def helper(x):\n    return round(x)\n"), cell(uses, False), cell("", True)
    plug_in_from(finished(tmp_path, *cells))
    assert algorithm.batch_stats(None) == 3


def test_pieces_of_a_notebook_use_each_other(tmp_path):
    uses = "def batch_norm_forward(x, gamma, beta, eps=1e-5):\n    return batch_stats(x)\n"
    plug_in_from(finished(tmp_path, cell(STATS, False), cell(uses, False), cell("", True)))
    assert algorithm.batch_norm_forward(None, None, None) == "from the notebook"


def test_a_piece_may_go_by_another_name_inside(tmp_path):
    plug_in_from(finished(tmp_path, cell("def mine(x):\n    return 7\nbatch_stats = mine", False)))
    assert algorithm.batch_stats(None) == 7


@pytest.mark.parametrize("magic", ["%matplotlib inline", "!ls", "%%bash\nls -l | wc"])
def test_magics_of_the_notebook_are_passed_over(tmp_path, magic):
    assert plug_in_from(finished(tmp_path, cell(magic), cell(STATS, False))) == ["batch_stats"]


def test_what_a_notebook_prints_is_not_shown(tmp_path, capsys):
    plug_in_from(finished(tmp_path, cell("print('shapes, shapes')"), cell(STATS, False)))
    assert capsys.readouterr().out == ""


def test_a_missing_notebook_is_reported_with_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected .*ps1-algorithm/algorithm\.ipynb or .*found none"):
        plug_in_from("ps1-algorithm")


@pytest.mark.parametrize(("name", "source"), [("other.ipynb", STATS), ("algorithm.ipynb", "x = 1")])
def test_a_notebook_without_pieces_of_its_topic_is_reported(tmp_path, name, source):
    with pytest.raises(ValueError, match=f"expected a notebook named after its topic, .*{name}"):
        plug_in_from(finished(tmp_path, cell(source), name=name))


def test_a_class_is_a_stub_when_every_method_is():
    class Untouched:
        def __init__(self):
            raise NotImplementedError

        def forward(self, x):
            """Documented."""
            raise NotImplementedError

    class Begun(Untouched):
        def forward(self, x):
            return x

    assert _is_stub(Untouched)
    assert not _is_stub(Begun)
