"""Intake: whatever comes in, what is graded is the released notebook with the student's answers in it."""

import copy
import json

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.authoring.paths import EXERCISES
from course_lib.grading.intake import Unreadable, choose, parse, rebuild, skeleton_of

SKELETON = skeleton_of(EXERCISES / "ps1-algorithm")
ANSWERS = ("batch-stats", "batch-norm-forward", "batch-norm-backward", "recover-identity")


def raw():
    return json.loads(json.dumps(SKELETON))


def at(notebook, grade_id):
    cells = notebook["cells"]
    return next(i for i, cell in enumerate(cells) if cell["metadata"].get("nbgrader", {}).get("grade_id") == grade_id)


def cell_of(notebook, grade_id):
    return notebook["cells"][at(notebook, grade_id)]


def taken(notebook, **options):
    """A notebook as a student's file, rebuilt: (notebook, repairs)."""
    data = notebook if isinstance(notebook, bytes) else json.dumps(notebook, **options).encode()
    return rebuild(parse(data, SKELETON), SKELETON)


def graded(notebook):
    """What nbgrader and the judge go by, in order."""
    return [(cell.id, cell.metadata) for cell in notebook.cells if "nbgrader" in cell.metadata]


def sources(notebook):
    return [cell["source"] for cell in notebook["cells"]]


def own(source, kind="code", **metadata):
    cell = {"cell_type": kind, "metadata": metadata, "source": source}
    return {**cell, "outputs": [], "execution_count": None} if kind == "code" else cell


def test_the_untouched_release_comes_back_as_it_is():
    notebook, repairs = taken(raw())
    assert (notebook, repairs) == (SKELETON, [])


def test_answers_are_taken_and_nothing_else_of_their_cells():
    handed_in = raw()
    for key in ANSWERS:
        cell = cell_of(handed_in, key)
        cell["source"] = f"# my {key}"
        cell["metadata"]["tags"] = ["skip-execution"]
        cell["metadata"]["nbgrader"].update(points=99, grade=True, locked=False)
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "10.0"}]
    notebook, repairs = taken(handed_in)
    assert [cell_of(notebook, key)["source"] for key in ANSWERS] == [f"# my {key}" for key in ANSWERS]
    assert graded(notebook) == graded(SKELETON)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    assert repairs == []


def test_a_changed_locked_cell_is_restored():
    handed_in = raw()
    cell_of(handed_in, "check-batch-stats")["source"] = "10.0"
    notebook, repairs = taken(handed_in)
    assert sources(notebook) == sources(SKELETON)
    assert repairs == ["restored the locked cell check-batch-stats, which had been changed"]


def test_a_deleted_cell_is_restored_in_its_place():
    handed_in = raw()
    for key in ("setup", "batch-norm-forward", "check-recover-identity"):
        del handed_in["cells"][at(handed_in, key)]
    notebook, repairs = taken(handed_in)
    assert sources(notebook) == sources(SKELETON)
    assert repairs == [
        f"restored the missing cell {key}" for key in ("setup", "batch-norm-forward", "check-recover-identity")
    ]


def test_a_second_check_cell_is_dropped():
    handed_in = raw()
    i = at(handed_in, "check-batch-stats")
    handed_in["cells"].insert(i + 1, {**copy.deepcopy(handed_in["cells"][i]), "id": "copy", "source": "10.0"})
    notebook, repairs = taken(handed_in)
    assert sources(notebook) == sources(SKELETON)
    assert repairs == ["dropped a second copy of the locked cell check-batch-stats"]


def test_of_two_answer_cells_the_second_is_the_students_own():
    """Split or copied: both run, in their order, and only one of them is marked."""
    handed_in = raw()
    i = at(handed_in, "batch-stats")
    second = {**copy.deepcopy(handed_in["cells"][i]), "id": "copy", "source": "second = 2"}
    handed_in["cells"][i]["source"] = "first = 1"
    handed_in["cells"].insert(i + 1, second)
    notebook, repairs = taken(handed_in)
    assert sources(notebook)[i : i + 2] == ["first = 1", "second = 2"]
    assert graded(notebook) == graded(SKELETON)
    assert repairs == ["kept a second cell marked as batch-stats as a cell of the student's own"]


def test_own_cells_stay_behind_the_cell_they_were_behind():
    handed_in = raw()
    for where, source in (("check-batch-norm-backward", "after = 3"), ("batch-stats", "helper = 2")):
        handed_in["cells"].insert(at(handed_in, where) + 1, own(source))
    handed_in["cells"].insert(0, own("first = 1"))
    notebook, _ = taken(handed_in)
    found = sources(notebook)
    assert found[0] == "first = 1"
    assert found[at(notebook, "batch-stats") + 1] == "helper = 2"
    assert found[at(notebook, "check-batch-norm-backward") + 1] == "after = 3"
    assert len(found) == len(SKELETON.cells) + 3


def test_own_cells_keep_their_order():
    handed_in = raw()
    i = at(handed_in, "batch-stats") + 1
    handed_in["cells"][i:i] = [own(f"x = {k}") for k in range(12)]
    notebook, _ = taken(handed_in)
    assert sources(notebook)[i : i + 12] == [f"x = {k}" for k in range(12)]


def test_reordered_cells_come_back_in_the_releases_order():
    handed_in = raw()
    cell_of(handed_in, "batch-stats")["source"] = "mine = 1"
    handed_in["cells"].reverse()
    notebook, repairs = taken(handed_in)
    assert graded(notebook) == graded(SKELETON)
    assert cell_of(notebook, "batch-stats")["source"] == "mine = 1"
    assert repairs == []


def test_the_releases_own_text_is_not_doubled_when_it_was_edited_or_lost_its_id():
    handed_in = raw()
    texts = [cell for cell in handed_in["cells"] if cell["cell_type"] == "markdown"]
    texts[0]["source"] += "\nmy note"
    del texts[1]["id"]
    notebook, _ = taken(handed_in)
    assert sources(notebook) == sources(SKELETON)


@pytest.mark.parametrize("kind", ["markdown", "raw", "heading", "anything"])
def test_own_text_of_any_kind_is_kept_as_text(kind):
    handed_in = raw()
    handed_in["cells"].insert(2, own("my derivation", kind, raw_mimetype="text/html"))
    notebook, _ = taken(handed_in)
    [cell] = [cell for cell in notebook.cells if cell.source == "my derivation"]
    assert (cell.cell_type, cell.metadata) == ("markdown", {})


@pytest.mark.parametrize(
    "metadata", [None, [], "text", {"nbgrader": None}, {"nbgrader": []}, {"nbgrader": {"grade_id": 3}}, {"tags": 5}]
)
def test_a_cell_with_odd_metadata_is_the_students_own(metadata):
    handed_in = raw()
    handed_in["cells"].insert(2, {**own("x = 1"), "metadata": metadata})
    notebook, _ = taken(handed_in)
    [cell] = [cell for cell in notebook.cells if cell.source == "x = 1"]
    assert cell.metadata == {}


@pytest.mark.parametrize("version", [1, 2, 4, None])
def test_another_schema_version_changes_nothing(version):
    """nbgrader stops the whole class for it."""
    handed_in = raw()
    for cell in handed_in["cells"]:
        if "nbgrader" in cell["metadata"]:
            cell["metadata"]["nbgrader"]["schema_version"] = version
    notebook, _ = taken(handed_in)
    assert graded(notebook) == graded(SKELETON)


def test_the_notebooks_own_metadata_is_the_releases():
    handed_in = raw()
    handed_in["metadata"].update(kernelspec={"name": "bash"}, widgets={"a": 1}, title="<script>")
    notebook, _ = taken(handed_in)
    assert notebook.metadata == SKELETON.metadata


@pytest.mark.parametrize("course", [{"release": "00000000"}, {}, None, []])
def test_a_notebook_of_another_release_is_graded_and_says_so(course):
    handed_in = raw()
    handed_in["metadata"]["course"] = course
    _, [repair] = taken(handed_in)
    assert f"graded on release {SKELETON.metadata.course.release}" in repair


# --- what the file looks like


def test_windows_and_old_mac_line_ends_become_plain_ones():
    handed_in = raw()
    cell_of(handed_in, "batch-stats")["source"] = "a = 1\r\nb = 2\rc = 3\n"
    for cell in handed_in["cells"]:
        if cell["cell_type"] == "markdown" or "check" in cell["source"]:
            cell["source"] = cell["source"].replace("\n", "\r\n")
    notebook, repairs = taken(handed_in)
    assert cell_of(notebook, "batch-stats")["source"] == "a = 1\nb = 2\nc = 3\n"
    assert (len(notebook.cells), repairs) == (len(SKELETON.cells), [])


def test_a_file_with_windows_line_ends_and_a_byte_order_mark_is_read():
    data = b"\xef\xbb\xbf" + json.dumps(raw(), indent=1).replace("\n", "\r\n").encode()
    assert taken(data) == (SKELETON, [])


def test_sources_may_be_lists_of_lines():
    handed_in = raw()
    for cell in handed_in["cells"]:
        cell["source"] = cell["source"].splitlines(keepends=True)
    assert taken(handed_in) == (SKELETON, [])


def test_format_4_4_has_no_cell_ids():
    handed_in = raw()
    handed_in["nbformat_minor"] = 4
    for cell in handed_in["cells"]:
        del cell["id"]
    cell_of(handed_in, "batch-stats")["source"] = "mine = 1"
    notebook, repairs = taken(handed_in)
    assert cell_of(notebook, "batch-stats")["source"] == "mine = 1"
    assert (len(notebook.cells), repairs) == (len(SKELETON.cells), [])


def test_format_3_is_converted():
    handed_in = raw()
    cell_of(handed_in, "batch-stats")["source"] = "mine = 1"
    old = json.dumps(nbformat.convert(nbformat.from_dict(handed_in), 3)).encode()
    notebook, _ = taken(old)
    assert cell_of(notebook, "batch-stats")["source"] == "mine = 1"
    assert graded(notebook) == graded(SKELETON)


def test_half_a_character_does_not_get_into_a_file():
    handed_in = raw()
    cell_of(handed_in, "batch-stats")["source"] = "text = '\ud800'"
    notebook, _ = taken(handed_in)
    assert cell_of(notebook, "batch-stats")["source"] == "text = '?'"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}',
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": null}',
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [null, 3]}',
        b'{"nbformat": 99, "nbformat_minor": 5, "metadata": {}, "cells": []}',
        b"[" * 100_000,
        json.dumps(SKELETON).encode()[:4000],
        json.dumps(SKELETON).encode("utf-16"),
    ],
)
def test_what_is_no_notebook_of_ours_is_refused_in_a_sentence(data):
    with pytest.raises(Unreadable, match=r"no readable notebook|none of this problem set's answer cells"):
        parse(data, SKELETON)


def test_a_notebook_without_metadata_is_read():
    handed_in = raw()
    del handed_in["metadata"]
    notebook, _ = taken(handed_in)
    assert graded(notebook) == graded(SKELETON)


def test_another_notebook_is_refused():
    handed_in = raw()
    for cell in handed_in["cells"]:
        cell["metadata"] = {}
    with pytest.raises(Unreadable, match="is it another notebook"):
        taken(handed_in)


def test_twenty_mebibytes_are_the_limit():
    handed_in = raw()
    handed_in["cells"].append(own("x", "markdown"))
    data = json.dumps(handed_in).encode()
    at_the_limit = data[:-1] + b" " * (20 * 2**20 - len(data)) + b"}"
    assert parse(at_the_limit, SKELETON)
    with pytest.raises(Unreadable, match="at most 20 MiB, got 20 MiB"):
        parse(at_the_limit + b" ", SKELETON)


# --- which file it is


def test_the_expected_name_is_taken_and_the_rest_named():
    files = {"algorithm.ipynb": b"1", "other.ipynb": b"2", "course_lib/__init__.py": b""}
    data, repairs = choose(files, "algorithm.ipynb")
    assert data == b"1"
    assert repairs == ["ignored the file course_lib/__init__.py", "ignored the file other.ipynb"]


def test_the_only_notebook_is_taken_under_any_name():
    data, repairs = choose({"final (2).ipynb": b"1", "notes.txt": b""}, "algorithm.ipynb")
    assert data == b"1"
    assert "'final (2).ipynb'" in repairs[0]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "no notebook at all"),
        ({"a.txt": b""}, "no notebook at all"),
        ({"a.ipynb": b"", "b.ipynb": b""}, "Keep one"),
    ],
)
def test_no_notebook_or_several_need_a_person(files, reason):
    with pytest.raises(Unreadable, match=reason):
        choose(files, "algorithm.ipynb")


def test_a_file_name_of_half_characters_can_be_written_down():
    _, [repair] = choose({"algorithm.ipynb": b"", "caf\udce9.txt": b""}, "algorithm.ipynb")
    assert repair.encode() == b"ignored the file caf?.txt"


# --- in general

some_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)
some_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | some_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(some_text, inner, max_size=3),
    max_leaves=6,
)
some_cell = st.fixed_dictionaries(
    {"cell_type": st.sampled_from(["code", "markdown", "raw"]), "source": some_text | st.lists(some_text, max_size=3)},
    optional={"metadata": some_json, "id": some_json, "outputs": some_json, "attachments": some_json},
)


@st.composite
def treated(draw):
    """The released notebook after students have been at it: cells copied, dropped, moved, changed and added."""
    handed_in = raw()
    cells = []
    for cell in draw(st.permutations(handed_in["cells"])) if draw(st.booleans()) else handed_in["cells"]:
        for _ in range(draw(st.sampled_from([1, 1, 1, 0, 2]))):
            changed = copy.deepcopy(cell)
            changed.update(draw(st.fixed_dictionaries({}, optional={"source": some_text, "id": some_json})))
            cells.append(changed)
        cells += draw(st.lists(some_cell, max_size=1))
    return {**handed_in, "cells": cells, **draw(st.fixed_dictionaries({}, optional={"metadata": some_json}))}


@settings(max_examples=60, deadline=None)
@given(treated())
def test_a_rebuilt_notebook_is_valid_and_has_just_the_releases_graded_cells(handed_in):
    try:
        notebook, _ = taken(handed_in)
    except Unreadable:
        return
    nbformat.validate(notebook)
    assert graded(notebook) == graded(SKELETON)
    assert notebook.metadata == SKELETON.metadata
    locked = [cell for cell in SKELETON.cells if cell.metadata.get("nbgrader", {}).get("locked")]
    assert [cell_of(notebook, cell.id)["source"] for cell in locked] == [cell.source for cell in locked]
    nbformat.writes(notebook).encode()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60) | some_json.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_read_or_refused(data):
    with pytest.raises(Unreadable):
        parse(data, SKELETON)
