"""What a student is told, as text, as HTML and as a number."""

import pytest

from course_lib.checks import Row, Verdict

RIGHT = Row("a table", 1.0, 1.0)
WRONG = Row(
    "maps", 0, 1.5, "var: wrong value", "2", "4", "This is the unbiased variance.", "chapter 1, «Bias»", "unbiased"
)
SAME = Row("other ranks", 0, 0.5, "var: wrong value", "3", "6", WRONG.hint, WRONG.read, "unbiased")


def verdict(*rows, notes=()):
    return Verdict("algorithm.batch_stats", rows, notes)


@pytest.mark.parametrize(("rows", "points"), [((), 0), ((RIGHT,), 1), ((RIGHT, WRONG), 1), ((WRONG, SAME), 0)])
def test_points_are_the_sum_of_the_rows(rows, points):
    assert verdict(*rows).points == points


def test_max_points_are_the_sum_of_the_rows():
    assert verdict(RIGHT, WRONG, SAME).max_points == 3


@pytest.mark.parametrize(("rows", "passed"), [((RIGHT,), True), ((RIGHT, WRONG), False), ((SAME,), False)])
def test_passed_is_full_marks(rows, passed):
    assert verdict(*rows).passed is passed


def test_a_right_row_has_no_message():
    assert verdict(RIGHT).messages == []


def test_a_message_has_its_hint():
    assert verdict(RIGHT, WRONG).messages == ["var: wrong value This is the unbiased variance."]


def test_equal_messages_are_said_once():
    assert len(verdict(WRONG, SAME).messages) == 1


@pytest.mark.parametrize("rows", [(RIGHT,), (RIGHT, WRONG), (WRONG,), ()])
def test_the_value_of_a_check_cell_is_a_number(rows):
    shown = verdict(*rows)
    assert float(shown._repr_mimebundle_()["text/plain"]) == shown.points


def test_a_notebook_shows_the_table():
    assert verdict(WRONG)._repr_mimebundle_()["text/html"] == verdict(WRONG).to_html()


def test_the_text_says_everything():
    text = str(verdict(RIGHT, WRONG, notes=("a warning",)))
    for part in (
        "1 of 2.5 points",
        "✓ a table (1/1)",
        "✗ maps (0/1.5)",
        "expected: 2",
        "got:      4",
        "note: a warning",
    ):
        assert part in text


def test_the_text_of_a_right_answer():
    assert "all right, 1 of 1 points" in str(verdict(RIGHT))


@pytest.mark.parametrize("form", [str, Verdict.to_html])
def test_a_hint_is_given_once_with_where_to_read(form):
    text = form(verdict(RIGHT, WRONG, SAME))
    assert text.count(WRONG.hint) == 1 and text.count(WRONG.read) == 1


def test_no_hint_no_reading():
    assert "Read" not in str(verdict(Row("maps", 0, 1, "wrong"))) + verdict(Row("maps", 0, 1, "wrong")).to_html()


EVIL = '<script>alert("x")</script><img src=x onerror=y>&'


@pytest.mark.parametrize("field", ["title", "message", "expected", "got", "hint", "read", "note", "piece"])
def test_html_escapes_every_text(field):
    texts = {"title": "t", "message": "m", "expected": "e", "got": "g", "hint": "h", "read": "r"}
    row = Row(points=0, max_points=1, **{**texts, **({field: EVIL} if field in texts else {})})
    piece = EVIL if field == "piece" else "p"
    page = Verdict(piece, (row,), (EVIL,) if field == "note" else ()).to_html()
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;" in page


def test_html_marks_rows_in_words():
    page = verdict(RIGHT, WRONG).to_html()
    assert page.count("✓ right") == 1 and page.count("✗ not yet") == 1


@pytest.mark.parametrize("part", ["headline", "table", "row"])
def test_html_says_points(part):
    page = verdict(RIGHT, WRONG).to_html()
    assert {"headline": "1 of 2.5 points", "table": "<th scope=", "row": "0\u00a0of\u00a01.5"}[part] in page


@pytest.mark.parametrize("book", ["https://example.org/book", "https://example.org/book/index.html"])
def test_what_to_read_is_a_link_where_the_book_has_an_address(book):
    row = Row("maps", 0, 1, "wrong", hint="A hint.", read="chapter 2, «Bessel's correction»")
    page = verdict(row).to_html(book)
    assert 'href="https://example.org/book/chapters/02-running-stats.html#bessel-s-correction"' in page
    assert "<a " not in verdict(row).to_html("")
