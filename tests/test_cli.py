"""`course …`: help, exit codes and messages."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from click.testing import CliRunner

from course_lib import cli
from course_lib.authoring import book, leaks, paths
from course_lib.authoring.paths import ROOT

COMMANDS = ("build", "release", "check-release", "grade", "serve")


@pytest.fixture
def course(monkeypatch):
    """Runs the command line in this process: `course("grade", …)`."""
    monkeypatch.setattr(cli, "console", cli.Console(width=200))
    monkeypatch.setattr(cli, "errors", cli.Console(stderr=True, width=200))

    def run(*arguments):
        monkeypatch.setattr(cli.console, "file", None, raising=False)
        return CliRunner().invoke(cli.main, arguments)

    return run


def test_help_lists_every_command(course):
    result = course("--help")
    assert result.exit_code == 0
    assert all(name in result.output for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples_and_exit_codes(course, command):
    result = course(command, "--help")
    assert result.exit_code == 0
    assert re.search(rf"Examples:\n\s+course {command}", result.output)
    assert "Exit codes:" in result.output


def test_a_misspelled_command_exits_with_2(course):
    assert course("grad").exit_code == 2


def test_grade_without_submissions_says_where_they_belong(course, tmp_path):
    result = course("grade", "ps1-algorithm", "--class", str(tmp_path))
    assert result.exit_code == 1
    assert "submitted/<student>/ps1-algorithm/, found none" in result.output


def test_grade_of_an_unknown_problem_set_names_the_released_ones(course, tmp_path):
    result = course("grade", "ps9-nothing", "--class", str(tmp_path))
    assert result.exit_code == 1
    assert "got 'ps9-nothing': released are ps1-algorithm" in result.output


def test_check_release_exits_with_1_when_there_is_a_problem(course, monkeypatch):
    monkeypatch.setattr(leaks, "check_release", lambda: ["exercises/x is stale"])
    result = course("check-release")
    assert result.exit_code == 1
    assert "✗ exercises/x is stale" in result.output


def test_check_release_exits_with_0_when_there_is_none(course, monkeypatch):
    monkeypatch.setattr(leaks, "check_release", lambda: [])
    assert course("check-release").exit_code == 0


def test_a_failed_build_exits_with_1(course, monkeypatch):
    def fail(*, force):
        raise book.BuildError("the book was not built")

    monkeypatch.setattr(book, "build_book", fail)
    result = course("build")
    assert result.exit_code == 1
    assert "course: the book was not built" in result.output


def test_serve_without_a_book_says_to_build_it(course, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "BOOK", tmp_path)
    result = course("serve")
    assert result.exit_code == 1
    assert "run `course build` first" in result.output


def test_serve_on_a_used_port_says_so(course, monkeypatch, tmp_path):
    (tmp_path / "index.html").write_text("book")
    monkeypatch.setattr(paths, "BOOK", tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = course("serve", "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 1
    assert "name another one with --port" in result.output


def test_serve_shows_the_book_to_this_machine(tmp_path):
    (tmp_path / "index.html").write_text("the book")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import sys, pathlib; from course_lib.authoring import paths; from course_lib import cli; "
        f"paths.BOOK = pathlib.Path({str(tmp_path)!r}); cli.main(['serve', '--port', '{port}'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                with urllib.request.urlopen(f"http://localhost:{port}/") as page:
                    assert page.read() == b"the book"
                break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.fail("the book was not served within 10 s")
    finally:
        process.terminate()
        process.wait()


def test_the_installed_command_is_this_one():
    program = os.path.join(os.path.dirname(sys.executable), "course")
    result = subprocess.run([program, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "check-release" in result.stdout
