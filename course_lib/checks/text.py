"""Texts out of a student's code or files, made fit to be sent, written down and shown."""

import re

__all__ = ["plain", "whole"]

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def plain(text, length=500):
    """A text in one style: cut, without the control characters that a terminal would obey. No text: `""`.

    Example:
        >>> plain("red: \\x1b[31m")
        'red: ?[31m'
    """
    return _CONTROL.sub("?", text[:length]) if isinstance(text, str) else ""


def whole(text):
    """A text without halves of characters, which JSON may hold and no file takes.

    Example:
        >>> whole("\\ud800 tail")
        '? tail'
    """
    return text.encode(errors="replace").decode()
