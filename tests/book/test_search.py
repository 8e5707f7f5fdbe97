"""The search of the built book."""

import pytest

from tests.book.pages import NAMES, opened

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
    with opened(browser, f"{site}/search.html?q={word}", formulas=False) as page:
        page.locator("#search-results .search-summary", has_text="found").wait_for()
        found = page.locator("#search-results li > a").evaluate_all("all => all.map(a => a.pathname)")
        assert f"/chapters/{name}.html" in found[:5]


def test_the_search_finds_nothing_for_a_word_that_is_nowhere(site, browser):
    with opened(browser, f"{site}/search.html?q=zymurgy", formulas=False) as page:
        page.locator("#search-results", has_text="did not match any documents").wait_for()
        assert page.locator("#search-results li > a").count() == 0
