"""The record of one submission: exactly one verdict, whatever came in."""

import json
from dataclasses import asdict, dataclass, field

from course_lib.checks import Row, Verdict

__all__ = ["GRADED", "PERSON", "Record"]

GRADED = "graded"
PERSON = "needs a person"


@dataclass
class Record:
    """What grading one submission came to.

    Attributes:
        assignment, release: the problem set, and the id of its release.
        status: "graded" or "needs a person".
        reason: why a person is needed, and what to do.
        verdicts: one per check, by grade id.
        repairs: what intake changed, in sentences.
        isolation: how student code was kept apart from the grader.
        digest: of what was graded, so that nothing is graded twice.
        seconds: how long it took.
        notebook: the executed and judged notebook, an nbformat node; not part of the JSON.
    """

    assignment: str
    release: str
    status: str
    reason: str
    verdicts: dict[str, Verdict]
    repairs: list[str]
    isolation: str = "none"
    digest: str = ""
    seconds: float = 0.0
    notebook: object = field(default=None, repr=False, compare=False)

    @property
    def points(self):
        return sum(verdict.points for verdict in self.verdicts.values())

    @property
    def max_points(self):
        return sum(verdict.max_points for verdict in self.verdicts.values())

    @property
    def message(self):
        """The most telling sentence, for a table."""
        if self.reason:
            return self.reason
        messages = [message for verdict in self.verdicts.values() for message in verdict.messages]
        hints = [row.hint for verdict in self.verdicts.values() for row in verdict.rows if row.hint]
        return next(iter(hints or messages), "all right")

    def to_json(self):
        """Text of the record as it is kept beside the graded notebook."""
        data = {key: value for key, value in vars(self).items() if key not in ("notebook", "verdicts")}
        data["points"], data["max_points"] = self.points, self.max_points
        data["checks"] = {key: asdict(verdict) for key, verdict in self.verdicts.items()}
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text):
        """A record read back, without its notebook.

        Raises:
            ValueError: the text is no record.
        """
        try:
            data = json.loads(text)
            verdicts = {
                key: Verdict(v["piece"], tuple(Row(**row) for row in v["rows"]), tuple(v["notes"]))
                for key, v in data.pop("checks").items()
            }
            del data["points"], data["max_points"]
            return cls(verdicts=verdicts, **data)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"expected a grading record, got something else: {error}") from None
