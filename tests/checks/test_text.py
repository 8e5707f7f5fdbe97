"""Texts from a student's side, before anybody sends, writes or shows them."""

import json

import pytest

from course_lib.checks.text import plain, whole


@pytest.mark.parametrize("text", ["", "two lines\nand a\ttab", "ünïcode ∑ 𝔁 «»", "<script>"])
def test_a_plain_text_stays(text):
    assert plain(text) == text == whole(text)


@pytest.mark.parametrize("control", ["\x00", "\x1b", "\x07", "\x7f", "\x9b", "\ud800", "\udfff"])
def test_what_a_terminal_would_obey_or_no_file_takes_is_replaced(control):
    assert plain(f"a{control}b") == "a?b"


@pytest.mark.parametrize("length", [0, 3, 500])
def test_a_text_is_cut(length):
    assert plain("x" * 1000, length) == "x" * length


@pytest.mark.parametrize("value", [None, 3, ["text"], {"text": 1}, b"text"])
def test_what_is_no_text_is_empty(value):
    assert plain(value) == ""


@pytest.mark.parametrize("half", ["\ud800", "a\udfffb"])
def test_half_a_character_is_replaced(half):
    whole(json.loads(json.dumps(half))).encode()
    assert "?" in whole(half)
