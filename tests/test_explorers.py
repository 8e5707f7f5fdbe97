"""Explorers bring their data into the page unharmed. What the scripts make of it is tested in book/test_sliders.py."""

import json
from html.parser import HTMLParser

import pytest

from course_lib.explorers import Explorer


class Scripts(HTMLParser):
    """Text of the scripts of a page, as a browser would see it."""

    def __init__(self, page):
        super().__init__()
        self.inside, self.texts = False, []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.inside = tag == "script"
        self.texts += [""] * self.inside

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.texts[-1] += data


@pytest.mark.parametrize("data", [[0.1, -2], {"a": {"b": None}}, "</script><b>", "µ & <!--"])
def test_data_arrive_as_they_were(data):
    [text] = Scripts(Explorer("kind", data, "A sentence.")._repr_html_()).texts
    assert json.loads(text) == data


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        Explorer("kind", [float("nan")], "A sentence.")._repr_html_()


def test_without_javascript_there_is_a_sentence():
    page = Explorer("kind", [], "Two <of> them.")._repr_html_()
    assert "<noscript><p>Two &lt;of&gt; them.</p></noscript>" in page
