"""`build_book` decides when a build is needed; what the book looks like is tested in tests/test_book.py."""

import subprocess

import pytest

from course_lib.authoring import book


@pytest.fixture
def builder(monkeypatch, tmp_path):
    """`build_book` on a folder of its own, with a recorder in the place of jupyter-book."""
    calls = []

    def run(command, **_):
        calls.append(command)
        (tmp_path / "html").mkdir(exist_ok=True)
        (tmp_path / "html" / "index.html").write_text("book")
        return subprocess.CompletedProcess(command, builder_exit[0])

    builder_exit = [0]
    (tmp_path / "chapters").mkdir()
    (tmp_path / "chapters" / "intro.md").write_text("# Intro")
    monkeypatch.setattr(book, "ROOT", tmp_path)
    monkeypatch.setattr(book, "BUILD", tmp_path)
    monkeypatch.setattr(book, "BOOK", tmp_path / "html")
    monkeypatch.setattr(book, "ZIP", tmp_path / "none.zip")
    monkeypatch.setattr(book, "_STAMP", tmp_path / "stamp")
    monkeypatch.setattr(book.subprocess, "run", run)
    return calls, tmp_path, builder_exit


def test_warnings_are_errors_and_every_page_is_read(builder):
    calls, _, _ = builder
    book.build_book()
    assert {"-W", "-n", "--keep-going", "--all"} <= set(calls[0])


def test_a_current_book_is_not_built_again(builder):
    calls, _, _ = builder
    assert [book.build_book(), book.build_book()] == [True, False]
    assert len(calls) == 1


@pytest.mark.usefixtures("builder")
def test_force_builds_in_any_case():
    assert [book.build_book(), book.build_book(force=True)] == [True, True]


@pytest.mark.parametrize(
    "name", ["chapters/intro.md", "course_lib/figures.py", "benchmarks/results/cpu.json", "references.bib"]
)
def test_a_changed_source_is_noticed(builder, name):
    _, folder, _ = builder
    book.build_book()
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("something else")
    assert book.build_book()


def test_a_failed_build_raises_and_is_tried_again(builder):
    calls, _, builder_exit = builder
    builder_exit[0] = 1
    with pytest.raises(book.BuildError):
        book.build_book()
    builder_exit[0] = 0
    assert book.build_book()
    assert len(calls) == 2
