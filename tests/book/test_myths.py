"""The myths: each is decided on its page, and a chapter leads there."""

import re

import pytest
from myst_parser.mdit_to_docutils.base import default_slugify

from tests.book.pages import CHAPTERS, MYTHS, ROOT, by_chapter, cells_of, headings, prose, soup, text_of

MYTH = re.compile(r"^## (\d+) .*$", re.M)


def myths():
    """(number, heading, text) of every numbered section of the page."""
    text = text_of(MYTHS)
    for found in MYTH.finditer(text):
        end = re.search(r"^## ", text[found.end() :], re.M).start() + found.end()
        yield int(found[1]), found[0].removeprefix("## "), text[found.end() : end]


by_myth = pytest.mark.parametrize(
    ("number", "heading", "text"), list(myths()), ids=[f"myth-{number}" for number, *_ in myths()]
)


def slugs(page):
    return {default_slugify(heading) for heading in headings(page)}


def test_the_myths_are_numbered_from_1_to_25():
    assert [number for number, *_ in myths()] == list(range(1, 26))


@by_myth
def test_a_myth_is_quoted_and_decided_by_a_cell_that_is_seen(number, heading, text):
    assert re.match(r'\s+^> "[A-Z`].*"', text, re.M)
    assert [
        options for options, code in cells_of(text) if f"\nverdict({number}, " in code and "remove" not in options
    ] == [""]


@by_myth
def test_a_verdict_that_flips_stops_the_build(number, heading, text):
    *_, (options, code) = cells_of(text)
    assert "remove-cell" in options
    assert re.match(rf'assert verdicts\[{number}\]\[0\] == "[a-z ]+"', code)


@by_myth
def test_a_myth_says_which_section_of_a_chapter_explains_it(number, heading, text):
    links = re.findall(r"\]\((\d\d-[a-z-]+)\.md#([^)]+)\)", text)
    assert links
    assert all(slug in slugs(ROOT / "chapters" / f"{chapter}.md") for chapter, slug in links)


@by_myth
def test_a_chapter_leads_to_the_myth(number, heading, text):
    link = f"[myth {number}](myths.md#{default_slugify(heading)})"
    assert [page.stem for page in CHAPTERS if link in prose(page)]


@by_chapter
def test_a_link_to_a_myth_has_its_number(page):
    for said, number in re.findall(r"\[([^]]+)\]\(myths\.md#(\d+)", text_of(page)):
        assert said == f"myth {number}"


def test_the_table_of_verdicts_leads_to_every_myth(built):
    page = soup(built, "myths")
    for number, heading, _ in myths():
        section = page.find(id=f"myth-{number}").find_parent("section")
        assert section.find("h2").get_text().startswith(heading)
        assert f"Verdict on {number}: " in section.get_text()
        assert page.select_one("table").find("a", href=f"#myth-{number}")
