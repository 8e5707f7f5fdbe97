"""The house itself: arrows between folders, pinned dependencies, the Makefile's messages, the README's length."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from course_lib.authoring.paths import ROOT
from course_lib.checks.piece import COURSE, TOPICS

MODULES = sorted(ROOT.glob("course_lib/**/*.py"))
#: Topics of the course in its order, with and without a problem set.
FOUNDATION = {"shapes", "tracing", "ranks"}
#: What a part may import of the others. `checks` sees `misconceptions` through `expect` alone, `authoring` to hand the
#: bug clinic out with its faults.
ALLOWED = {
    "checks": {"checks", "modes_examples"} | set(COURSE),
    "misconceptions": {"misconceptions"} | set(COURSE),
    "grading": {"grading", "checks", "authoring"},
    "authoring": {"authoring", "checks", "misconceptions"},
    "plugging": {"checks"},
    "ranks": {"ranks"},
    "tracing": set(),
    "shapes": set(),
    "inspection": set(COURSE),
    "batchnorm": {"batchnorm_functions", "batchnorm_sums"} | set(COURSE),
    "batchnorm_functions": {"batchnorm_sums"},
    "batchnorm_sums": set(),
    "parity": {"batchnorm"},
    "experiments": {"data"},
}


def _part(path):
    return path.relative_to(ROOT / "course_lib").parts[0].removesuffix(".py")


def _imports(path):
    """Parts of course_lib that a module names in an import."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "course_lib":
            names = [node.module] if "." in node.module else [f"course_lib.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("course_lib.")]
        else:
            continue
        yield from (name.split(".")[1] for name in names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_run_one_way(path):
    part, imports = _part(path), set(_imports(path))
    assert "cli" not in imports
    if path.name == "expect.py":
        imports -= {"misconceptions"}
    if part in COURSE:
        earlier = set(COURSE[: COURSE.index(part)])
        assert imports <= earlier | FOUNDATION
    elif part in ALLOWED:
        assert imports <= ALLOWED[part] | FOUNDATION


def test_the_graded_topics_are_the_first_of_the_course():
    assert COURSE[: len(TOPICS)] == TOPICS


def test_only_expect_is_a_door_to_misconceptions():
    found = {
        path.relative_to(ROOT / "course_lib").as_posix()
        for path in MODULES
        if "misconceptions" in set(_imports(path)) and _part(path) != "misconceptions"
    }
    assert found == {"checks/expect.py", "authoring/source.py"}


def test_every_dependency_is_pinned_and_says_why():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    for line in filter(None, lines):
        assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+ +# .{10,}", line), line


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90


def test_every_folder_the_readme_names_is_there():
    table = re.findall(r"^\| `([\w/]+?)/?` \|", (ROOT / "README.md").read_text(), flags=re.M)
    assert "chapters" in table and len(table) > 5
    assert [name for name in table if name != "_build" and not (ROOT / name).exists()] == []


def test_every_course_command_of_readme_and_contributing_exists():
    from course_lib.cli import main

    for name in ("README.md", "CONTRIBUTING.md"):
        used = set(re.findall(r"(?:`|bin/)course ([a-z][a-z-]*)", (ROOT / name).read_text()))
        assert used and used <= set(main.commands)


@pytest.mark.parametrize("path", sorted((ROOT / "course_lib").glob("*.py")), ids=lambda path: path.stem)
def test_every_public_function_of_the_library_shows_an_example(path):
    # That the examples are right is pytest's own business: it runs them.
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.stem in ("__init__", "cli"):  # names from elsewhere; commands, whose examples are in their --help
        return
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    assert [node.name for node in functions if ">>>" not in (ast.get_docstring(node) or "")] == []


#: Beside problem set 1, which takes arrays only, what is not called from outside, and examples of students' layers.
UNTYPED = {"__init__", "algorithm", "batchnorm_functions", "batchnorm_sums", "cli", "modes_examples", "plugging"}
TYPED = [path for path in sorted((ROOT / "course_lib").glob("*.py")) if path.stem not in UNTYPED]


@pytest.mark.parametrize("path", [*TYPED, ROOT / "course_lib" / "ranks" / "__init__.py"], ids=lambda path: path.stem)
def test_what_the_library_offers_is_typed(path):
    untyped = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        methods = node.body if isinstance(node, ast.ClassDef) else []
        for function in [node, *(method for method in methods if getattr(method, "name", None) == "__init__")]:
            if isinstance(function, ast.FunctionDef) and not node.name.startswith("_"):
                given = function.args
                arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
                named = [one for one in arguments if one is not None and one.arg != "self"]
                untyped += [f"{node.name}: {one.arg}" for one in named if one.annotation is None]
                if function.name != "__init__" and function.returns is None:
                    untyped.append(f"{node.name}: what it returns")
    assert untyped == []


# --- the Makefile ---------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path):
    """A folder with the Makefile and what it needs to make an environment."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "requirements.txt").write_text("a-package-that-does-not-exist==1.0\n")
    return tmp_path


def _make(folder, *arguments, **environment):
    command = ["make", *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE", "MFLAGS"))}
    result = subprocess.run(command, cwd=folder, env={**clean, **environment}, capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


def test_make_from_another_folder_says_where_to_go(checkout, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    code, said = _make(elsewhere, "-f", str(checkout / "Makefile"), "help")
    assert code != 0
    assert f"but the course is in {checkout}" in said


def test_a_python_that_is_too_old_is_named(checkout):
    old = checkout / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.18" && exit 0\nexit 1\n')
    old.chmod(0o755)
    code, said = _make(checkout, f"PYTHON={old}", "demo")
    assert code != 0
    assert "expected Python 3.11 or newer, got: Python 3.9.18" in said


def test_no_network_is_explained(checkout):
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    code, said = _make(checkout, f"PYTHON={sys.executable}", "demo", **nowhere)
    assert code != 0
    assert "Is there a network" in said
    assert not Path(checkout / ".venv" / "ready").exists()
