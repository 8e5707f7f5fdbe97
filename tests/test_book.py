"""The book: its sources keep to what every tool understands, and the built pages work for the people who open them.

Tests of pages look at `_build/html` as it lies there. They skip, saying why, when there is no book or no browser;
`make book` builds the one, and Chromium is on the PATH of the test image.
"""

import ast
import functools
import http.server
import inspect
import itertools
import re
import shutil
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from myst_parser.mdit_to_docutils.base import default_slugify

import course_lib
from course_lib import algorithm
from course_lib.checks.piece import TOPICS
from course_lib.checks.release import link_to
from course_lib.misconceptions import catalogue

ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
PAGES = sorted(ROOT.glob("chapters/*.md"))
CHAPTERS = [page for page in PAGES if re.match(r"\d\d-", page.name)]
NAMES = [page.stem for page in PAGES]

# What Jupyter Book 2 understands as well, so that the sources survive it.
DIRECTIVES = {"admonition", "bibliography", "code-cell", "dropdown", "eval-rst", "figure", "glossary", "math", "note"}
ROLES = {"cite", "cite:t", "cite:p", "download", "term"}


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


# --- the sources


@by_page
def test_only_directives_that_every_builder_knows(page):
    used = set(re.findall(r"^\s*(?:`{3,}|:{3,})\{([\w:-]+)\}", text_of(page), re.M))
    assert used <= DIRECTIVES - ({"eval-rst"} if page.stem != "api" else set())


@by_page
def test_only_roles_that_every_builder_knows(page):
    assert set(re.findall(r"(?<!`)\{([\w:-]+)\}`", prose(page))) <= ROLES


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
    found = headings(page)
    assert {"Now you", "Quiz", "Key points", "Sources"} <= set(found)
    assert all(f"**{part}" in text_of(page) for part in ("Time:", "You need:", "Afterwards you can"))


@by_chapter
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


@pytest.mark.parametrize("read", sorted({mistake.read for topic in TOPICS for mistake in catalogue(topic)}))
def test_a_hint_links_to_a_heading_of_the_built_book(built, read):
    address, _, anchor = link_to(read, built.as_posix()).partition("#")
    page = BeautifulSoup(Path(address).read_text(encoding="utf-8"), "html.parser")
    # Sphinx puts the id on the section, or on an empty span before it where another section took it.
    section = (
        page.find(id=anchor).find_parent("section") if page.find(id=anchor).name == "span" else page.find(id=anchor)
    )
    heading = section.find(re.compile("h[1-4]")).get_text().replace("’", "'")  # Sphinx sets apostrophes
    assert re.search("«(.*)»", read)[1] in heading


# --- the myths: each is decided on its page, and a chapter leads there


MYTHS = ROOT / "chapters" / "myths.md"
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


def test_the_quiz_on_myths_is_like_those_of_the_chapters():
    test_a_quiz_has_three_questions_with_one_right_answer_each(MYTHS)


def test_the_table_of_verdicts_leads_to_every_myth(built):
    page = soup(built, "myths")
    for number, heading, _ in myths():
        section = page.find(id=f"myth-{number}").find_parent("section")
        assert section.find("h2").get_text().startswith(heading)
        assert f"Verdict on {number}: " in section.get_text()
        assert page.select_one("table").find("a", href=f"#myth-{number}")


# --- no page shows a graded function


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


@pytest.mark.parametrize("function", GRADED, ids=lambda function: function.__name__)
@by_page
def test_no_page_shows_a_graded_function(built, page, function):
    code = "\n".join(
        block.get_text()
        for block in soup(built, page.stem).select("div.highlight pre")
        if statements(block.get_text()) or "def " in block.get_text()
    )
    assert share_shown(function, code) < 0.5


@pytest.mark.parametrize("function", GRADED, ids=lambda function: function.__name__)
def test_a_shown_function_would_be_noticed(function):
    source = inspect.getsource(function).replace("channels", "c").replace("mean", "mu")
    assert share_shown(function, source) > 0.5


# --- the built pages, without a browser


@pytest.fixture(scope="session")
def built():
    """The folder of the built book."""
    if not (HTML / "index.html").is_file():
        pytest.skip("the book is not built: run `make book`")
    return HTML


@functools.cache
def _parsed(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def soup(built, name):
    return _parsed(built / "chapters" / f"{name}.html")


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
    article = BeautifulSoup(str(soup(built, name).select_one("article")), "html.parser")
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
            assert _parsed(target).find(id=unquote(parts.fragment)), link["href"]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_nothing_about_the_machine_that_built_it(built, name):
    text = (built / "chapters" / f"{name}.html").read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert sys.prefix not in text
    assert str(Path(course_lib.__file__).parent) not in text


@pytest.mark.parametrize("name", ["intro", *(page.stem for page in CHAPTERS)])
def test_the_exercises_can_be_downloaded(built, name):
    [link] = soup(built, name).select("a.download")
    assert link["href"].endswith("batchnorm-course-student.zip")


# --- the built pages, in a browser


@pytest.fixture(scope="session")
def site(built):
    """Address of the book, served on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=built))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium that starts nothing in the background."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium on the PATH")
    from playwright.sync_api import sync_playwright

    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu", *quiet])
        yield browser
        browser.close()


@contextmanager
def opened(browser, address, width=1280, theme="light"):
    """A page that is fully there, with what it asked for and complained about."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    page.requested, page.complaints = [], []
    page.on("request", lambda request: page.requested.append(request.url))
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(address, wait_until="networkidle")
    page.evaluate("window.MathJax && MathJax.startup ? MathJax.startup.promise : null")
    try:
        yield page
    finally:
        context.close()


def address(site, name):
    return f"{site}/chapters/{name}.html"


@pytest.mark.parametrize("name", [*NAMES, "../search", "../genindex"])
def test_a_page_opens_offline_and_without_complaint(site, browser, name):
    with opened(browser, address(site, name)) as page:
        assert page.complaints == []
        assert [url for url in page.requested if not url.startswith((site, "data:", "blob:"))] == []


def test_a_page_opens_from_the_disk(built, browser):
    with opened(browser, (built / "chapters" / f"{CHAPTERS[0].stem}.html").as_uri()) as page:
        assert page.complaints == []
        assert page.locator("mjx-container").count() > 50


@pytest.mark.parametrize("name", NAMES)
def test_formulas_are_set(site, browser, name):
    with opened(browser, address(site, name)) as page:
        formulas = page.locator("article .math").count()
        assert page.locator("article .math mjx-container").count() == formulas
        assert page.locator("mjx-merror").count() == 0


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_no_wider_than_the_screen(site, browser, name, width):
    with opened(browser, address(site, name), width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", [page.stem for page in CHAPTERS])
def test_an_answer_of_the_quiz_opens_by_keyboard(site, browser, name, theme):
    with opened(browser, address(site, name), 390, theme) as page:
        for answer in page.locator(".quiz details").all():
            feedback = answer.locator("p").last
            assert not feedback.is_visible()
            answer.locator("summary").focus()
            page.keyboard.press("Enter")
            assert feedback.is_visible()


@pytest.mark.parametrize("name", [page.stem for page in CHAPTERS])
def test_figures_have_a_white_ground_in_the_dark_theme(site, browser, name):
    with opened(browser, address(site, name), theme="dark") as page:
        grounds = page.locator("article figure img").evaluate_all(
            "all => all.map(i => getComputedStyle(i).backgroundColor)"
        )
        assert set(grounds) == {"rgb(255, 255, 255)"}


def test_the_search_finds_a_word(site, browser):
    with opened(browser, f"{site}/search.html?q=pivot") as page:
        page.locator("#search-results li a").first.wait_for()
        assert "algorithm" in page.locator("#search-results").inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_sliders_move_their_drawing_by_keyboard(site, browser, width, theme):
    with opened(browser, address(site, "02-running-stats"), width, theme) as page:
        explorers = page.locator(".explorer").all()
        assert len(explorers) == 2
        for explorer in explorers:
            for slider in explorer.locator("input[type=range]").all():
                label = explorer.locator(f"label[for={slider.get_attribute('id')}]")
                assert label.is_visible()
                drawn, said = explorer.locator("svg").inner_html(), explorer.locator("[aria-live]").inner_text()
                slider.focus()
                page.keyboard.press("ArrowRight")
                assert explorer.locator("svg").inner_html() != drawn
                assert explorer.locator("[aria-live]").inner_text() != said


def test_without_javascript_sliders_are_replaced_by_a_sentence(built):
    explorers = soup(built, "02-running-stats").select(".explorer")
    assert len(explorers) == 2
    assert all(explorer.select_one("noscript").get_text(strip=True) for explorer in explorers)
