"""Right answers, written as differently as students write: all of them have to get full marks, and no hint."""

from collections import defaultdict


def collected(topic):
    """An empty table `{piece name: {style: implementation}}` of a topic, and the decorator that files into it.

    The decorator takes the piece's attribute, and files an implementation under its own name.
    """
    table = defaultdict(dict)

    def right(piece):
        def add(implementation):
            table[f"{topic}.{piece}"][implementation.__name__] = implementation
            return implementation

        return add

    return table, right
