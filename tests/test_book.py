"""The book: its sources keep to what every tool understands, and the built pages work for the people who open them.

Tests of pages look at `_build/html` as it lies there. They skip, saying why, when there is no book or no browser;
`make book` builds the one, and Chromium is on the PATH of the test image.
"""

import ast
import functools
import http.server
import inspect
import itertools
import json
import re
import shutil
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from myst_parser.mdit_to_docutils.base import default_slugify

import course_lib
from course_lib import algorithm
from course_lib.checks.piece import TOPICS
from course_lib.checks.release import link_to
from course_lib.misconceptions import catalogue
from course_lib.running_stats import update_running_stats

ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
PAGES = sorted(ROOT.glob("chapters/*.md"))
CHAPTERS = [page for page in PAGES if re.match(r"\d\d-", page.name)]
NAMES = [page.stem for page in PAGES]

# What Jupyter Book 2 understands as well, so that the sources survive it.
DIRECTIVES = {"admonition", "bibliography", "code-cell", "dropdown", "figure", "glossary", "math", "note"}
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
    page = _parsed(Path(address))
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
def opened(browser, address, width=1280, theme="light", until="load"):
    """A page with its formulas set, and what it asked for and complained about."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    page.requested, page.complaints = [], []
    page.on("request", lambda request: page.requested.append(request.url))
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(address, wait_until=until)
    page.evaluate("window.MathJax && MathJax.startup ? MathJax.startup.promise : null")
    try:
        yield page
    finally:
        context.close()


def address(site, name):
    return f"{site}/chapters/{name}.html"


@pytest.mark.parametrize("name", [*NAMES, "../search", "../genindex"])
def test_a_page_opens_offline_and_without_complaint(site, browser, name):
    with opened(browser, address(site, name), until="networkidle") as page:
        assert page.complaints == []
        assert [url for url in page.requested if not url.startswith((site, "data:", "blob:"))] == []


def test_a_page_opens_from_the_disk(built, browser):
    with opened(browser, (built / "chapters" / f"{CHAPTERS[0].stem}.html").as_uri(), until="networkidle") as page:
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
def test_figures_stay_legible_on_a_phone(site, browser, name):
    # Labels are 11 points or so: at this scale still 8 pixels. Wider figures scroll: `classes: wide` under `image:`.
    with opened(browser, address(site, name), 390) as page:
        scales = page.locator("article figure").evaluate_all(
            "all => all.map(f => [f.id, f.querySelector('img')]).map(([id, i]) => [id, i.clientWidth / i.naturalWidth])"
        )
        assert [figure for figure, scale in scales if scale < 0.55] == []


@pytest.mark.parametrize("name", [page.stem for page in CHAPTERS])
def test_figures_have_a_white_ground_in_the_dark_theme(site, browser, name):
    with opened(browser, address(site, name), theme="dark") as page:
        grounds = page.locator("article figure img").evaluate_all(
            "all => all.map(i => getComputedStyle(i).backgroundColor)"
        )
        assert set(grounds) == {"rgb(255, 255, 255)"}


#: What a reader of each page might look for.
SEARCHES = {
    "01-algorithm": "backward",
    "02-running-stats": "Bessel",
    "03-modes": "checkpointing",
    "04-finetuning": "recalibrate",
    "05-sync": "collective",
    "06-fusion": "folding",
    "alternatives": "InstanceNorm",
    "api": "population_stats",
    "glossary": "pre-activation",
    "intro": "map",
    "myths": "verdict",
    "notation": "letter",
    "parity": "parity",
    "references": "Santurkar",
    "teaching": "gradebook",
}


def test_every_page_is_searched_for():
    assert set(SEARCHES) == set(NAMES), "name a word in SEARCHES that should lead to the page"


@pytest.mark.parametrize("name, word", SEARCHES.items())
def test_the_search_finds_every_topic(site, browser, name, word):
    with opened(browser, f"{site}/search.html?q={word}") as page:
        page.locator("#search-results .search-summary", has_text="found").wait_for()
        found = page.locator("#search-results li > a").evaluate_all("all => all.map(a => a.pathname)")
        assert f"/chapters/{name}.html" in found[:5]


def test_the_search_finds_nothing_for_a_word_that_is_nowhere(site, browser):
    with opened(browser, f"{site}/search.html?q=zymurgy") as page:
        page.locator("#search-results", has_text="did not match any documents").wait_for()
        assert page.locator("#search-results li > a").count() == 0


# --- an audit by axe-core: contrast, names, roles, headings, landmarks, focus

#: The light page gets every rule; the others those whose outcome depends on colours, or on the width of the screen.
AUDITS = {
    "light": {"theme": "light", "rules": None},
    "dark": {"theme": "dark", "rules": ["color-contrast", "link-in-text-block"]},
    "phone": {"theme": "light", "width": 390, "rules": ["scrollable-region-focusable", "target-size"]},
}


#: Thousands of words of code have a few colours between them: one word of each says what there is to say.
ONE_OF_EACH_COLOUR = """() => {
    const seen = new Set();
    for (const word of document.querySelectorAll(".highlight span[class]")) {
        const key = [word.className, word.closest(".cell_input, .cell_output")?.className].join(" in ");
        if (seen.has(key)) word.replaceWith(...word.childNodes);
        seen.add(key);
    }
}"""


def barriers(page, rules=None):
    """Findings that are not minor: rule → the places. Answers of the quiz are opened before."""
    page.evaluate("document.querySelectorAll('details').forEach(answer => answer.open = true)")
    page.evaluate(ONE_OF_EACH_COLOUR)
    page.wait_for_timeout(400)  # the theme makes frames that scroll focusable a little later
    options = {"resultTypes": ["violations"]} | ({"runOnly": rules} if rules else {})
    found = Axe().run(page, options=options).response["violations"]
    return {rule["id"]: [node["target"] for node in rule["nodes"]] for rule in found if rule["impact"] != "minor"}


@pytest.mark.parametrize("audit", AUDITS)
@pytest.mark.parametrize("name", [*NAMES, "../search", "../genindex"])
def test_an_audit_finds_no_barrier(site, browser, name, audit):
    setting = dict(AUDITS[audit])
    rules = setting.pop("rules")
    with opened(browser, address(site, name), **setting) as page:
        assert barriers(page, rules) == {}


BARRIERS = {
    "image-alt": ("light", "article => article.append(document.createElement('img'))"),
    "label": ("light", "article => article.append(document.createElement('input'))"),
    "color-contrast": ("dark", "article => article.querySelector('p').style.color = '#333'"),
    "scrollable-region-focusable": ("phone", "article => article.querySelector('figure').removeAttribute('tabindex')"),
}


@pytest.mark.parametrize("rule", BARRIERS)
def test_the_audit_would_find_a_barrier(site, browser, rule):
    audit, damage = BARRIERS[rule]
    setting = dict(AUDITS[audit])
    rules = setting.pop("rules")
    with opened(browser, address(site, "intro"), **setting) as page:
        page.locator("article").evaluate(damage)
        assert rule in barriers(page, rules)


@pytest.mark.parametrize("name", ["intro", *(page.stem for page in CHAPTERS)])
def test_a_figure_that_scrolls_can_be_scrolled_by_keyboard(site, browser, name):
    for width in (390, 1280):
        with opened(browser, address(site, name), width) as page:
            page.wait_for_timeout(200)
            for frame in page.locator("article figure").all():
                scrolls = frame.evaluate("frame => frame.scrollWidth > frame.clientWidth")
                assert frame.evaluate("frame => frame.tabIndex") == (0 if scrolls else -1)
                if scrolls:
                    frame.focus()
                    page.keyboard.press("ArrowRight")
                    page.wait_for_function("frame => frame.scrollLeft > 0", arg=frame.element_handle())


# --- explorers: sliders over drawings, without a kernel

EXPLORERS = {"normalise": "01-algorithm", "ema": "02-running-stats", "clouds": "02-running-stats", "merge": "05-sync"}
by_explorer = pytest.mark.parametrize("kind", EXPLORERS)


class Sliders:
    """An explorer of an open page, moved by keyboard."""

    def __init__(self, page, kind):
        self.page, self.root = page, page.locator(f".explorer[data-explorer={kind}]")
        self.controls = self.root.locator("input[type=range], select").all()

    def press(self, control, key, times=1):
        """Focus a control, given by its id or itself, and press a key."""
        control = self.root.locator(f"#{control}") if isinstance(control, str) else control
        control.focus()
        for _ in range(times):
            self.page.keyboard.press(key)

    def said(self):
        return self.root.locator("[aria-live]").inner_text()

    def numbers(self):
        """The numbers in what it says."""
        return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", self.said())]

    def data(self):
        """What the page brought along."""
        return json.loads(self.root.locator("script").inner_text())


@contextmanager
def explorer(site, browser, kind, width=1280, theme="light"):
    with opened(browser, address(site, EXPLORERS[kind]), width, theme) as page:
        yield Sliders(page, kind)


def test_every_explorer_is_tested_here(built):
    found = {(root["data-explorer"], name) for name in NAMES for root in soup(built, name).select(".explorer")}
    assert found == set(EXPLORERS.items())


@by_explorer
def test_without_javascript_an_explorer_is_a_sentence_below_a_figure(built, kind):
    [root] = soup(built, EXPLORERS[kind]).select(f".explorer[data-explorer={kind}]")
    assert "figure above" in root.select_one("noscript").get_text()
    assert root.find_parent("section").find("figure").sourceline < root.sourceline


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@by_explorer
def test_every_slider_moves_its_drawing_by_keyboard(site, browser, kind, width, theme):
    with explorer(site, browser, kind, width, theme) as sliders:
        assert sliders.controls
        for control in sliders.controls:
            assert sliders.root.locator(f"label[for={control.get_attribute('id')}]").is_visible()
            drawing = sliders.root.locator("svg")
            drawn, said = drawing.inner_html(), sliders.said()
            sliders.press(control, "ArrowRight")
            assert drawing.inner_html() != drawn
            assert sliders.said() != said


@by_explorer
def test_the_tab_key_leads_from_slider_to_slider(site, browser, kind):
    with explorer(site, browser, kind) as sliders:
        sliders.controls[0].focus()
        for control in sliders.controls:
            assert control.evaluate("one => one === document.activeElement")
            sliders.page.keyboard.press("Tab")


def normalised(batch, gamma, beta):
    y, _ = algorithm.batch_norm_forward(batch[:, None], np.array([gamma]), np.array([beta]))
    return y[:, 0]


def test_a_moved_sample_is_normalised_as_by_the_library(site, browser):
    with explorer(site, browser, "normalise") as sliders:
        data = sliders.data()
        before = np.array(data["batch"])
        for sample, gamma, beta in [(0, 0, 0), (12, 2, -2), (-20, -10, 1), (4, 0, 2)]:
            sliders.page.reload()
            for name, steps in {"sample": sample, "gamma": gamma, "beta": beta}.items():
                sliders.press(f"normalise-{name}", "ArrowRight" if steps > 0 else "ArrowLeft", abs(steps))
            now = before.copy()
            now[data["moved"]] += sample / 2
            scale, shift = data["gamma"] + gamma / 4, data["beta"] + beta / 2
            y_before, y = (normalised(batch, scale, shift) for batch in (before, now))
            change = np.delete(y - y_before, data["moved"])
            own = now[data["moved"]], y[data["moved"]]
            expected = [now.mean(), now.var(), *own, len(now) - 1, abs(change).max()]
            assert np.allclose(sliders.numbers(), expected, atol=0.0051), sliders.said()


@pytest.mark.parametrize("momentum, steps", [(0.1, 0), (0.5, 3), (0.02, -3)])
def test_the_running_average_of_the_sliders_is_the_layers(site, browser, momentum, steps):
    with explorer(site, browser, "ema") as sliders:
        sliders.press("ema-momentum", "ArrowRight" if steps > 0 else "ArrowLeft", abs(steps))
        level, errors = (np.array(sliders.data()[name]) for name in ("level", "errors"))
        mean, var = torch.zeros(1), torch.ones(1)
        for value in level + 0.6 * errors:
            update_running_stats(mean, var, torch.full((2, 1), value), momentum)
        *_, wobble_of_a_batch, off = sliders.numbers()
        assert abs(wobble_of_a_batch - 0.6 * errors.std()) < 0.0051
        assert abs(off - abs(mean.item() - level[-1])) < 0.0051


@pytest.mark.parametrize("order", [0, 1])
def test_every_round_of_merging_is_that_of_the_values(site, browser, order):
    with explorer(site, browser, "merge") as sliders:
        sliders.press("merge-order", "ArrowDown", order)
        data = sliders.data()
        values = [np.array(of_rank) for of_rank in data["values"]]
        rounds = list(data["orders"].values())[order]["rounds"]
        held = {rank: [rank] for rank in range(len(values))}
        for done in range(len(rounds) + 1):
            if done:
                sliders.press("merge-round", "ArrowRight")
                for into, start in rounds[done - 1]:
                    held[into] += held.pop(start)
            expected = []
            for ranks in held.values():
                together = np.concatenate([values[rank] for rank in ranks])
                m2 = ((together - together.mean()) ** 2).sum()
                averaged = np.average([values[r].var() for r in ranks], weights=[len(values[r]) for r in ranks])
                expected.append([len(together), together.mean(), m2, together.var(), averaged])
            rows = sliders.root.locator("tbody tr").all()
            shown = [[float(cell) for cell in row.locator("td").all_inner_texts()] for row in rows]
            assert np.allclose(shown, expected, atol=0.0051)
            assert sliders.numbers()[-5:] == shown[0]
            assert sliders.root.locator("svg circle").count() == sum(map(len, values))
        sliders.press("merge-round", "ArrowRight", 9)  # after the last round there is none
        assert sliders.numbers()[-5:] == shown[0]


def test_a_shorter_order_of_merging_ends_at_its_last_round(site, browser):
    with explorer(site, browser, "merge") as sliders:
        sliders.press("merge-round", "End")
        assert sliders.said().startswith("After 7 of 7 rounds")
        sliders.press("merge-order", "ArrowDown")
        assert sliders.said().startswith("After 3 of 3 rounds")
        assert sliders.root.locator("output").inner_text() == "3"
