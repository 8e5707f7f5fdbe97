"""The pages of the book: what stands in their sources, in their HTML, and in a browser."""

import functools
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[2]
HTML = ROOT / "_build" / "html"
PAGES = sorted(ROOT.glob("chapters/*.md"))
CHAPTERS = [page for page in PAGES if re.match(r"\d\d-", page.name)]
NAMES = [page.stem for page in PAGES]
MYTHS = ROOT / "chapters" / "myths.md"
#: Pages that are read from the beginning; the others are there to look things up.
STORIES = [*CHAPTERS, MYTHS, *(ROOT / "chapters" / f"{name}.md" for name in ("alternatives", "parity", "teaching"))]


def text_of(page):
    return page.read_text(encoding="utf-8")


def cells(page):
    """(options, code) of every code cell."""
    return cells_of(text_of(page))


def cells_of(text):
    for match in re.finditer(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", text, re.S | re.M):
        options = re.match(r"---\n.*?^---\n|(?::[\w-]+:[^\n]*\n)+", match[1], re.S | re.M)
        options = options[0] if options else ""
        yield options, match[1][len(options) :]


def prose(page):
    """The page without its code."""
    return re.sub(r"^```\{code-cell\}.*?^```$", "", text_of(page), flags=re.S | re.M)


def questions(page):
    """The quiz: (question, [(option, feedback), …]) for every question."""
    for match in re.finditer(r"^::::\{admonition\} ([^\n]*)\n:class: quiz\n(.*?)^::::$", text_of(page), re.S | re.M):
        yield match[1], re.findall(r"^:::\{dropdown\} ([^\n]*)\n(.*?)^:::$", match[2], re.S | re.M)


def headings(page):
    return re.findall(r"^#+ (.*)$", prose(page), re.M)


by_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)
by_chapter = pytest.mark.parametrize("page", CHAPTERS, ids=[page.stem for page in CHAPTERS])
by_story = pytest.mark.parametrize("page", STORIES, ids=[page.stem for page in STORIES])


@functools.cache
def parsed(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def soup(built, name):
    return parsed(built / "chapters" / f"{name}.html")


@functools.cache
def anchors(path):
    """All that a link into a page may lead to."""
    return {tag["id"] for tag in parsed(path).find_all(id=True)}


@contextmanager
def opened(browser, address, width=1280, theme="light", formulas=True):
    """A page, and what it asked for and complained about. Without formulas, which take longest, it is there at once."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    page.requested, page.complaints = [], []
    page.on("request", lambda request: page.requested.append(request.url))
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    if not formulas:
        page.route("**/*mathjax*/**", lambda route: route.abort())
    page.goto(address)
    # What fades in, or moves from one theme's colour to the other's, is on the way in neither.
    page.add_style_tag(content="*, *::before, *::after { animation: none !important; transition: none !important; }")
    page.evaluate("window.MathJax && MathJax.startup ? MathJax.startup.promise : null")
    try:
        yield page
    finally:
        context.close()


def address(site, name):
    return f"{site}/chapters/{name}.html"
