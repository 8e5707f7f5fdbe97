"""The built pages in a browser."""

from contextlib import ExitStack

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.book.pages import CHAPTERS, NAMES, address, opened

#: The theme and our own script make frames that scroll focusable a little after they are there.
SETTLED = """() => [...document.querySelectorAll("article :is(figure, pre, .cell_output > .output)")]
    .every(frame => frame.tabIndex === 0 || frame.scrollWidth <= frame.clientWidth)"""
VIEWS = {"desktop": (1280, "light"), "dark": (1280, "dark"), "phone": (390, "light")}
EVERY_PAGE = [*NAMES, "../search", "../genindex"]
FIRST, *_ = STUDIED = [page.stem for page in CHAPTERS]


class Views:
    """One page at a time, opened once and shown as each of VIEWS: its formulas take longer than all that is asked."""

    def __init__(self, site, browser):
        self._site, self._browser, self._name, self._open = site, browser, None, ExitStack()

    def show(self, name, kind):
        """The page in a view, answers closed, with what it has asked for and complained about since it was opened."""
        width, theme = VIEWS[kind]
        if name != self._name:
            self.close()
            self.page = self._open.enter_context(opened(self._browser, address(self._site, name), width, theme))
            self._name = name
            self.page.evaluate("document.querySelectorAll('details[open]').forEach(one => one.dataset.opened = '')")
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.evaluate(SHOW, theme)
        self.page.wait_for_function(SETTLED)
        self.page.kind = kind
        return self.page

    def close(self):
        self._open.close()
        self._name = None


#: The theme's switch sets the same attribute. What was opened by an earlier test is closed again.
SHOW = """theme => {
    document.documentElement.dataset.theme = theme;
    for (const one of document.querySelectorAll("details")) one.open = "opened" in one.dataset;
}"""


@pytest.fixture(scope="module")
def views(site, browser):
    views = Views(site, browser)
    yield views
    views.close()


@pytest.fixture
def view(request, views):
    """A page in one of VIEWS.

    `conftest.py` puts the tests that look at one page in a row. They may open answers, move sliders and scroll; who
    takes parts of the page away comes last, and what the other views are asked does not need those parts.
    """
    return views.show(*request.param)


def viewed(names, *kinds):
    views = [(name, kind) for name in names for kind in kinds]
    return pytest.mark.parametrize("view", views, indirect=True, ids="-".join)


@viewed(EVERY_PAGE, *VIEWS)
def test_a_page_opens_offline_and_without_complaint(view, site):
    assert view.complaints == []
    assert [url for url in view.requested if not url.startswith((site, "data:", "blob:"))] == []


def test_a_page_opens_from_the_disk(built, browser):
    with opened(browser, (built / "chapters" / f"{FIRST}.html").as_uri()) as page:
        assert page.complaints == []
        assert page.locator("mjx-container").count() > 50


@viewed(NAMES, "desktop")
def test_formulas_are_set(view):
    formulas = view.locator("article .math").count()
    assert view.locator("article .math mjx-container").count() == formulas
    assert view.locator("mjx-merror").count() == 0


#: Formulas that are on another line than the bracket before or the comma after them.
PARTED = """formulas => {
    const place = (text, at) => {
        if (text?.nodeType !== Node.TEXT_NODE || /[\\s—–]/.test(text.data.at(at))) return null;
        const one = document.createRange();
        one.setStart(text, at < 0 ? text.length - 1 : 0);
        one.setEnd(text, at < 0 ? text.length : 1);
        return one.getBoundingClientRect();
    };
    return formulas.filter(formula => {
        const [before, it, after] = [
            /[(\\[“]$/.test(formula.previousSibling?.data) ? place(formula.previousSibling, -1) : null,
            formula.getBoundingClientRect(),
            place(formula.nextSibling, 0),
        ];
        return (before && before.right > it.left + 1) || (after?.width && after.left < it.right - 1);
    }).map(formula => formula.closest("p, li, td, dd, summary, figcaption, h1, h2, h3")?.textContent.slice(0, 80));
}"""


@viewed(NAMES, "desktop", "phone")
def test_a_formula_and_its_comma_are_on_one_line(view):
    view.evaluate("document.querySelectorAll('details').forEach(answer => answer.open = true)")
    assert view.locator("article span.math").evaluate_all(PARTED) == []


@viewed(EVERY_PAGE, "desktop", "phone")
def test_a_page_is_no_wider_than_the_screen(view):
    assert view.evaluate("document.documentElement.scrollWidth") <= VIEWS[view.kind][0]


@viewed(STUDIED, "dark", "phone")
def test_an_answer_of_the_quiz_opens_by_keyboard(view):
    for answer in view.locator(".quiz details").all():
        feedback = answer.locator("p").last
        assert not feedback.is_visible()
        answer.locator("summary").focus()
        view.keyboard.press("Enter")
        assert feedback.is_visible()


@viewed(STUDIED, "phone")
def test_figures_stay_legible_on_a_phone(view):
    # Labels are 11 points or so: at this scale still 8 pixels. Wider figures scroll: `classes: wide` under `image:`.
    scales = view.locator("article figure").evaluate_all(
        "all => all.map(f => [f.id, f.querySelector('img')]).map(([id, i]) => [id, i.clientWidth / i.naturalWidth])"
    )
    assert [figure for figure, scale in scales if scale < 0.55] == []


@viewed(STUDIED, "dark")
def test_figures_have_a_white_ground_in_the_dark_theme(view):
    grounds = view.locator("article figure img").evaluate_all(
        "all => all.map(i => getComputedStyle(i).backgroundColor)"
    )
    assert set(grounds) == {"rgb(255, 255, 255)"}


@viewed(["intro", *STUDIED], "desktop", "phone")
def test_a_figure_that_scrolls_can_be_scrolled_by_keyboard(view):
    for frame in view.locator("article figure").all():
        scrolls = frame.evaluate("frame => frame.scrollWidth > frame.clientWidth")
        assert frame.evaluate("frame => frame.tabIndex") == (0 if scrolls else -1)
        if scrolls:
            frame.focus()
            view.keyboard.press("ArrowRight")
            view.wait_for_function("frame => frame.scrollLeft > 0", arg=frame.element_handle())


# --- an audit by axe-core: contrast, names, roles, headings, landmarks, focus

#: The light page gets every rule; the others those whose outcome depends on colours, or on the width of the screen.
RULES = {
    "desktop": None,
    "dark": ["color-contrast", "link-in-text-block"],
    "phone": ["scrollable-region-focusable", "target-size"],
}


#: Thousands of words of code and of signatures have a few colours between them: one word of each says all there is.
ONE_OF_EACH_COLOUR = """() => {
    const seen = new Set();
    for (const word of document.querySelectorAll(".highlight span[class], .sig span[class]")) {
        const around = word.closest(".cell_input, .cell_output, .sig")?.className;
        const key = [word.className, around].join(" in ");
        if (seen.has(key)) word.replaceWith(...word.childNodes);
        seen.add(key);
    }
    document.body.normalize();  // else axe looks at every word's text for itself
}"""


def barriers(page):
    """Findings that are not minor: rule → the places. Answers of the quiz are opened before."""
    page.evaluate("document.querySelectorAll('details').forEach(answer => answer.open = true)")
    page.evaluate(ONE_OF_EACH_COLOUR)
    rules = RULES[page.kind]
    options = {"resultTypes": ["violations"]} | ({"runOnly": rules} if rules else {})
    requested, complaints = list(page.requested), list(page.complaints)
    found = Axe().run(page, options=options).response["violations"]
    page.requested[:], page.complaints[:] = requested, complaints  # the audit asks for more than the page did
    return {rule["id"]: [node["target"] for node in rule["nodes"]] for rule in found if rule["impact"] != "minor"}


@viewed(EVERY_PAGE, *VIEWS)
def test_an_audit_finds_no_barrier(view):
    assert barriers(view) == {}


BARRIERS = {
    "image-alt": ("desktop", "article => article.append(document.createElement('img'))"),
    "label": ("desktop", "article => article.append(document.createElement('input'))"),
    "color-contrast": ("dark", "article => article.querySelector('p').style.color = '#333'"),
    "scrollable-region-focusable": ("phone", "article => article.querySelector('figure').removeAttribute('tabindex')"),
}


@pytest.mark.parametrize("rule", BARRIERS)
def test_the_audit_would_find_a_barrier(site, browser, rule):
    kind, put_up = BARRIERS[rule]
    with opened(browser, address(site, "intro"), *VIEWS[kind]) as page:
        page.wait_for_function(SETTLED)
        page.kind = kind
        page.locator("article").evaluate(put_up)
        assert rule in barriers(page)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_page_has_the_readers_theme_from_the_start(site, browser, theme):
    with opened(browser, address(site, "intro"), theme=theme) as page:
        assert page.evaluate("document.documentElement.dataset.theme") == theme
