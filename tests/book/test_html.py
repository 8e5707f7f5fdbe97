"""The built pages, without a browser: whole, linked, and without a graded function."""

import ast
import copy
import functools
import importlib
import inspect
import itertools
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import course_lib
from course_lib import algorithm
from course_lib.checks.piece import TOPICS
from course_lib.checks.release import link_to
from course_lib.misconceptions import catalogue
from tests.book.pages import CHAPTERS, NAMES, PAGES, ROOT, anchors, by_page, by_story, cells, parsed, soup


@pytest.mark.parametrize("name", NAMES)
def test_every_image_has_a_description(built, name):
    for image in soup(built, name).select("article img"):
        assert len(image.get("alt", "")) > 20, image.get("src")


@pytest.mark.parametrize("name", NAMES)
def test_headings_descend_one_level_at_a_time(built, name):
    levels = [int(tag.name[1]) for tag in soup(built, name).select("article :is(h1, h2, h3, h4, h5, h6)")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


@pytest.mark.parametrize("name", NAMES)
def test_no_directive_was_left_unread(built, name):
    article = copy.copy(soup(built, name).select_one("article"))
    for code in article.select("pre, code"):
        code.decompose()
    assert not re.search(r"```\{|:::|\{cite|\{download", article.get_text())


@pytest.mark.parametrize("name", NAMES)
def test_no_cell_shows_an_error_or_a_warning(built, name):
    assert not soup(built, name).select(".output.traceback, .output.error, .output.stderr")


@pytest.mark.parametrize("name", NAMES)
def test_every_link_inside_the_book_leads_somewhere(built, name):
    page = built / "chapters" / f"{name}.html"
    for link in soup(built, name).select("a[href]"):
        parts = urlsplit(link["href"])
        if parts.scheme or link["href"] == "#":
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        assert target.is_file(), link["href"]
        if parts.fragment and target.suffix == ".html":
            assert unquote(parts.fragment) in anchors(target), link["href"]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_nothing_about_the_machine_that_built_it(built, name):
    text = (built / "chapters" / f"{name}.html").read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert sys.prefix not in text
    assert str(Path(course_lib.__file__).parent) not in text


@by_story
def test_a_page_takes_the_minutes_that_it_says(built, page):
    # 238 words a minute, four seconds a line of code; what is folded, printed or an answer of the quiz is not counted.
    article = copy.copy(soup(built, page.stem).select_one("article"))
    lines = 0
    for cell in article.select("div.cell"):
        code = cell.select_one(".cell_input")
        if code and not any(tag.startswith(("tag_hide-input", "tag_remove")) for tag in cell["class"]):
            lines += sum(bool(line.strip()) for line in code.get_text().split("\n"))
    for part in article.select("div.cell, script, style, .headerlink, #sources, noscript, svg, .quiz details p"):
        part.decompose()
    for formula in article.select(".math"):
        formula.replace_with(" formula ")
    text = article.get_text(" ")
    minutes = len(re.findall(r"\S*\w\S*", text)) / 238 + lines * 4 / 60
    said = int(re.search(r"about (\d+) minutes", text)[1])
    assert abs(said - minutes) < 2, f"{page.stem} says {said} minutes, and takes {minutes:.1f}"


# --- the page of the library


def taken_from_the_library(page):
    """What the cells of a page or a problem set take from the library: the names that it may be listed under."""
    tree = ast.parse("\n".join(code for _, code in cells(page)))
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    taken, modules = set(), set()
    for node in imported:
        for name in (alias.name for alias in node.names if node.module.split(".")[0] == "course_lib"):
            try:
                value = getattr(importlib.import_module(node.module), name)
            except AttributeError:
                value = importlib.import_module(f"{node.module}.{name}")
            (modules if inspect.ismodule(value) else taken).add((node.module, name))
    names = {name for _, name in modules}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
            taken.add((f"course_lib.{node.value.id}", node.attr))
    for module, name in taken:
        value = getattr(importlib.import_module(module), name)
        yield {f"{module}.{name}", f"{getattr(value, '__module__', module)}.{name}"}


@functools.cache
def listed(built):
    return {entry["id"] for entry in soup(built, "api").select("dt.sig[id]")}


PROBLEM_SETS = sorted(ROOT.glob("solutions/*/*.md"))


@pytest.mark.parametrize("page", [*PAGES, *PROBLEM_SETS], ids=lambda page: page.stem)
def test_the_library_page_lists_what_pages_and_problem_sets_call(built, page):
    missing = [names for names in taken_from_the_library(page) if not names & listed(built)]
    checks_of_arguments = [names for names in missing if all(".expect_" in name for name in names)]
    instructors = [names for names in missing if names == {"course_lib.checks.piece.TOPICS"}]
    assert [names for names in missing if names not in checks_of_arguments + instructors] == []


def test_the_library_page_lists_no_checks_of_arguments(built):
    assert [name for name in listed(built) if name.split(".")[-1].startswith(("expect_", "_"))] == []


def test_arguments_that_are_explained_together_are_explained_once(built):
    for parameters in soup(built, "api").select("dl.field-list > dd"):
        texts = [entry.get_text().partition(" – ")[2] for entry in parameters.select(":scope > ul > li")]
        assert all(text == "" or text != before for before, text in itertools.pairwise(texts)), texts


@pytest.mark.parametrize("name", ["intro", *(page.stem for page in CHAPTERS)])
def test_the_exercises_can_be_downloaded(built, name):
    [link] = soup(built, name).select("a.download")
    assert link["href"].endswith("batchnorm-course-student.zip")


@pytest.mark.parametrize("read", sorted({mistake.read for topic in TOPICS for mistake in catalogue(topic)}))
def test_a_hint_links_to_a_heading_of_the_built_book(built, read):
    address, _, anchor = link_to(read, built.as_posix()).partition("#")
    page = parsed(Path(address))
    # Sphinx puts the id on the section, or on an empty span before it where another section took it.
    section = (
        page.find(id=anchor).find_parent("section") if page.find(id=anchor).name == "span" else page.find(id=anchor)
    )
    heading = section.find(re.compile("h[1-4]")).get_text().replace("’", "'")  # Sphinx sets apostrophes
    assert re.search("«(.*)»", read)[1] in heading


# --- no page shows a graded function


@functools.cache
def statements(code):
    """Every statement of the code that says something, with its variables renamed in order of appearance."""
    try:
        tree = ast.parse(code)
    except SyntaxError:  # printed output, a docstring's example
        return set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.Return) and sum(1 for _ in ast.walk(node)) > 9:
            names = {}
            copy = ast.parse(ast.unparse(node)).body[0]
            for name in (n for n in ast.walk(copy) if isinstance(n, ast.Name)):
                if name.id not in ("np", "torch"):
                    name.id = names.setdefault(name.id, f"v{len(names)}")
            found.add(ast.dump(copy))
    return found


def share_shown(function, code):
    """How much of a function's statements stands in the code."""
    wanted = statements(inspect.getsource(function))
    return len(wanted & statements(code)) / len(wanted)


GRADED = [getattr(algorithm, name) for name in algorithm.__all__]


@by_page
def test_no_page_shows_a_graded_function(built, page):
    blocks = [block.get_text() for block in soup(built, page.stem).select("div.highlight pre")]
    code = "\n".join(block for block in blocks if statements(block) or "def " in block)
    shown = {function.__name__: share_shown(function, code) for function in GRADED}
    assert all(share < 0.5 for share in shown.values()), shown


@pytest.mark.parametrize("function", GRADED, ids=lambda function: function.__name__)
def test_a_shown_function_would_be_noticed(function):
    source = inspect.getsource(function).replace("channels", "c").replace("mean", "mu")
    assert share_shown(function, source) > 0.5
