"""What a student is told: points, and for every group what was expected, what came, and why."""

import html
from dataclasses import dataclass

from course_lib.checks.release import book_address, link_to

__all__ = ["Row", "Verdict"]

_SAME = "the same mistake as above"


@dataclass(frozen=True)
class Row:
    """The outcome of one group of observations.

    Attributes:
        title: what the group is about.
        points, max_points: what it scored.
        message: one sentence; empty when the group is right.
        expected, got: short summaries of the first difference, never a dump.
        hint: what mistake this looks like; empty when it is none that is known.
        read: page and heading of the book that explains it.
        misconception: name of the recognised mistake.
    """

    title: str
    points: float
    max_points: float
    message: str = ""
    expected: str = ""
    got: str = ""
    hint: str = ""
    read: str = ""
    misconception: str = ""

    @property
    def passed(self):
        return self.points == self.max_points


@dataclass(frozen=True)
class Verdict:
    """The outcome of `check`: rows, and notes about what was printed or warned on the way.

    Its value in a notebook is the number of points, which nbgrader reads as partial credit, beside a
    table for the student. `print(verdict)` gives the same as text.
    """

    piece: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def points(self):
        return float(sum(row.points for row in self.rows))

    @property
    def max_points(self):
        return float(sum(row.max_points for row in self.rows))

    @property
    def passed(self):
        return self.points == self.max_points

    @property
    def messages(self):
        """One message per group that is not right, its hint included, each said once."""
        texts = (" ".join(filter(None, (row.message, row.hint))) for row in self.rows if not row.passed)
        return list(dict.fromkeys(texts))

    @property
    def headline(self):
        if self.passed:
            return f"{self.piece}: all right, {self.points:g} of {self.max_points:g} points"
        return f"{self.piece}: {self.points:g} of {self.max_points:g} points"

    def __str__(self):
        lines, said = [self.headline], set()
        for row in self.rows:
            lines.append(f"  {'✓' if row.passed else '✗'} {row.title} ({row.points:g}/{row.max_points:g})")
            details = (("", row.message), ("expected: ", row.expected), ("got:      ", row.got))
            lines += [f"      {label}{text}" for label, text in details if text]
            if row.hint:
                lines.append(f"      → {_SAME}" if row.hint in said else f"      → {row.hint} Read: {row.read}")
                said.add(row.hint)
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    __repr__ = __str__

    def to_html(self, book=None):
        """The table as HTML, with every text escaped: it may quote what a student's code printed.

        Args:
            book: address of the book that hints link to; None takes the one the student edition knows.
        """
        book = book_address() if book is None else book
        cell = 'style="text-align:left;vertical-align:top;padding:.3em .6em"'
        body, said = [], set()
        for row in self.rows:
            mark = "✓ right" if row.passed else "✗ not yet"
            points = f"{mark},\u00a0{row.points:g}\u00a0of\u00a0{row.max_points:g}"
            texts = (points, row.message, row.expected, row.got)
            cells = "".join(f"<td {cell}>{html.escape(text)}</td>" for text in texts)
            body.append(f'<tr><th scope="row" {cell}>{html.escape(row.title)}</th>{cells}</tr>')
            if row.hint:
                address, read = link_to(row.read, book), html.escape(row.read)
                read = f'<a href="{html.escape(address)}">{read}</a>' if address else read
                first = f"<strong>{html.escape(row.hint)}</strong> Read: {read}"
                body.append(f'<tr><td colspan="5" {cell}>→ {_SAME if row.hint in said else first}</td></tr>')
                said.add(row.hint)
        head = "".join(f'<th scope="col" {cell}>{name}</th>' for name in ("", "points", "what", "expected", "got"))
        notes = "".join(f"<p><small>Note: {html.escape(note)}</small></p>" for note in self.notes)
        return (
            f"<div><p><strong>{html.escape(self.headline)}</strong></p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>{notes}</div>"
        )

    def _repr_mimebundle_(self, **_):
        return {"text/plain": str(self.points), "text/html": self.to_html()}
