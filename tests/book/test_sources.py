"""The book's sources keep to what every tool understands, and have every part that a page should have."""

import ast
import re

import pytest

from tests.book.pages import (
    CHAPTERS,
    MYTHS,
    PAGES,
    ROOT,
    STORIES,
    by_chapter,
    by_page,
    by_story,
    cells,
    headings,
    prose,
    questions,
    text_of,
)

# What Jupyter Book 2 understands as well, so that the sources survive it.
DIRECTIVES = {"admonition", "bibliography", "code-cell", "dropdown", "figure", "glossary", "math", "note"}
ROLES = {"cite", "cite:t", "cite:p", "download", "term"}


def directives(text):
    """Names of the directives in a page, also of those in a list, a quotation or another directive."""
    return set(re.findall(r"^[\s>*+.\d-]*(?:`{3,}|:{3,}|~{3,})\{([\w:.-]+)\}", text, re.M))


def roles(text):
    """Names of the roles in a page without code cells."""
    return set(re.findall(r"(?<!`)\{([\w:.+-]+)\}`", text))


@by_page
def test_only_directives_that_every_builder_knows(page):
    assert directives(text_of(page)) <= DIRECTIVES | ({"eval-rst"} if page.stem == "api" else set())


@by_page
def test_only_roles_that_every_builder_knows(page):
    assert roles(prose(page)) <= ROLES


@pytest.mark.parametrize(
    "text, name",
    [
        ("```{glue} result\n```", "glue"),
        ("````{tab-set}\n```{math}\n```\n````", "tab-set"),
        ("::::{grid}\n::::", "grid"),
        ("~~~{eval-rst}\n~~~", "eval-rst"),
        ("* ```{glue:figure} result\n  ```", "glue:figure"),
        ("1. :::{card}\n   :::", "card"),
        ("> ```{contents}\n> ```", "contents"),
    ],
)
def test_a_directive_of_one_builder_would_be_noticed(text, name):
    assert directives(text) - DIRECTIVES == {name}


@pytest.mark.parametrize("role", ["doc", "ref", "eq", "numref", "glue:text", "py:func"])
def test_a_role_of_one_builder_would_be_noticed(role):
    assert roles(f"See {{{role}}}`02-running-stats`.") - ROLES == {role}


def test_rst_in_the_library_page_is_generated_documentation_only():
    blocks = re.findall(r"^```\{eval-rst\}\n(.*?)^```$", text_of(ROOT / "chapters" / "api.md"), re.S | re.M)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert lines
    assert [line for line in lines if not re.match(r"\.\. auto(module|function):: |   :[\w-]+:", line)] == []


@by_page
def test_a_name_of_a_page_has_hyphens_and_no_underscores(page):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", page.stem)


@by_page
def test_cells_use_nothing_that_only_one_builder_has(page):
    for _, code in cells(page):
        for node in ast.walk(ast.parse(code)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"myst_nb", "jupyter_book", "sphinx"}


@by_page
def test_equations_are_referred_to_by_their_labels(page):
    labels = re.findall(r"^\$\$ \(([\w-]+)\)$", prose(page), re.M)
    assert len(labels) == len(set(labels))
    assert set(re.findall(r"\[\]\(#(eq-[\w-]+)\)", prose(page))) <= set(labels)
    assert not re.search(r"[Ee]quation \(?\d", prose(page))  # a number typed by hand is wrong after the next equation


@by_page
def test_every_figure_has_a_description_and_a_caption(page):
    for options, code in cells(page):
        if "figures." in code:
            assert re.search(r"^ +alt: \".{40,}\"$", options, re.M), code
            assert re.search(r"^ +caption: \".{20,}\"$", options, re.M), code


@by_page
def test_pages_use_public_names_of_the_library_only(page):
    for _, code in cells(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("course_lib"):
                assert not any(alias.name.startswith("_") for alias in node.names)


def keys_of_bibliography():
    return set(re.findall(r"^@\w+\{(\w+),", (ROOT / "references.bib").read_text(encoding="utf-8"), re.M))


def cited(page):
    return {key.strip() for keys in re.findall(r"\{cite(?::\w)?\}`([^`]+)`", text_of(page)) for key in keys.split(",")}


@by_page
def test_every_cited_work_is_in_the_bibliography(page):
    assert cited(page) <= keys_of_bibliography()


def cited_in_docstrings():
    sources = [path.read_text(encoding="utf-8") for path in ROOT.glob("course_lib/*.py")]
    return {key for text in sources for key in re.findall(r"\[([a-z]+\d{4}\w*)\]", text)}


def test_every_work_cited_in_a_docstring_is_in_the_bibliography():
    assert cited_in_docstrings() <= keys_of_bibliography()


def test_docstrings_cite_in_brackets():
    # "[ioffe2015]" reads well in a terminal, and the library page makes it a link; a Markdown role does neither.
    assert not [path.name for path in ROOT.glob("course_lib/**/*.py") if "{cite}" in path.read_text(encoding="utf-8")]


def test_every_work_of_the_bibliography_is_cited():
    assert keys_of_bibliography() <= cited_in_docstrings().union(*map(cited, PAGES))


@by_chapter
def test_a_chapter_has_every_part(page):
    assert {"Now you", "Quiz", "Key points", "Sources"} <= set(headings(page))


@by_story
def test_a_page_opens_with_its_minutes_what_it_needs_and_what_it_teaches(page):
    title, box = r"^# [^\n]+\n\n", r":::\{admonition\} Before you start\n:class: note\n\n(.*?)\n:::\n"
    opening = re.search(title + box, text_of(page), re.S | re.M)[1]
    time, need, can, objectives = opening.split("\n\n")
    assert re.match(r"\*\*Time:\*\* about \d+ minutes", time)
    assert need.startswith("**You need:** ")
    assert can == "**Afterwards you can**"
    assert len(re.findall(r"^- [a-z].*[;.]$", objectives, re.M)) == len(objectives.splitlines()) >= 3


@pytest.mark.parametrize("page", [page for page in STORIES if list(questions(page))], ids=lambda page: page.stem)
def test_a_page_with_a_quiz_sums_up_its_points(page):
    assert len(re.findall(r"^- ", text_of(page).partition("\n## Key points\n")[2].partition("\n## ")[0], re.M)) >= 4


@pytest.mark.parametrize("page", [*CHAPTERS, MYTHS], ids=lambda page: page.stem)
def test_a_quiz_has_three_questions_with_one_right_answer_each(page):
    quiz = list(questions(page))
    assert len(quiz) >= 3
    for question, options in quiz:
        feedback = [text.strip() for _, text in options]
        assert all(re.match(r"(Right|Not right)\. \S", text) for text in feedback), question
        assert sum(text.startswith("Right.") for text in feedback) == 1, question


@by_chapter
def test_claims_are_tested_where_they_are_made(page):
    hidden = [code for options, code in cells(page) if "remove-cell" in options]
    assert hidden
    assert all("assert " in code for code in hidden)
