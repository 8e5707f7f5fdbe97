"""The course's steps as nbgrader preprocessors, for stock `nbgrader autograde` and `generate_feedback`."""

import re
from pathlib import Path

from bs4 import BeautifulSoup
from nbconvert.exporters import HTMLExporter
from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor
from nbconvert.preprocessors.sanitize import SanitizeHTML
from nbgrader.preprocessors import (
    AssignLatePenalties,
    CheckCellMetadata,
    ClearOutput,
    DeduplicateIds,
    GetGrades,
    LimitOutput,
    NbGraderPreprocessor,
    OverwriteCells,
    OverwriteKernelspec,
    SaveAutoGrades,
)
from traitlets import Bool

from course_lib.authoring.paths import EXERCISES
from course_lib.grading import policy
from course_lib.grading.intake import parse, rebuild, skeleton_of
from course_lib.grading.judging import judge_notebook
from course_lib.grading.kernel import CourseExecute
from course_lib.grading.record import GRADED, PERSON, Record
from course_lib.grading.seeds import class_key, seed_of

__all__ = ["AUTOGRADE", "FEEDBACK", "SANITIZE", "CleanPage", "FeedbackPage", "Intake", "Judge", "SeededExecute"]


class Intake(NbGraderPreprocessor):
    """Rebuild a submitted notebook from the released one, before any other step looks at it."""

    def preprocess(self, nb, resources):
        import nbformat

        skeleton = skeleton_of(EXERCISES / resources["nbgrader"]["assignment"])
        rebuilt, repairs = rebuild(parse(nbformat.writes(nb).encode(errors="replace"), skeleton), skeleton)
        rebuilt.metadata.course["repairs"] = repairs
        return rebuilt, resources


class SeededExecute(CourseExecute):
    """Execute with the seed that the class's key gives this student."""

    def preprocess(self, nb, resources, km=None):
        self.seed = _seed(self.config, nb, resources)
        return super().preprocess(nb, resources, km)


class Judge(NbGraderPreprocessor):
    """Judge the observations, put score and feedback into the check cells, and keep the record beside them."""

    def preprocess(self, nb, resources):
        findings = policy.read(nb)
        verdicts = judge_notebook(nb, _seed(self.config, nb, resources), findings)
        about = resources["nbgrader"]
        repairs = list(nb.metadata.course.pop("repairs", []))
        reason = policy.for_a_person(findings)
        status = PERSON if reason else GRADED
        record = Record(about["assignment"], nb.metadata.course.release, status, reason, verdicts, repairs)
        folder = Path(resources["metadata"]["path"])
        (folder / f"{about['notebook']}.record.json").write_text(record.to_json(), encoding="utf-8")
        return nb, resources


class CleanPage(SanitizeHTML):
    """A student's Markdown and outputs without anything a browser would run; our own tables stay tables."""

    enabled = Bool(True)  # nbconvert's default is off

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.tags = sorted(
            {*self.tags, "details", "div", "h1", "h2", "h3", "p", "small", "summary"}
            | {"table", "tbody", "td", "th", "thead", "tr", "br", "img"}
        )
        self.attributes = {"th": ["scope", "style"], "td": ["colspan", "style"], "a": ["href", "title"]}


class FeedbackPage(HTMLExporter):
    """Feedback as HTML that may not run or load anything, should some script have got past the cleaning."""

    _policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:"

    def from_notebook_node(self, nb, resources=None, **kwargs):
        page, resources = super().from_notebook_node(nb, resources, **kwargs)
        soup = BeautifulSoup(page, "html.parser")
        for script in soup.find_all("script"):  # the template's own: MathJax from a CDN
            script.decompose()
        for link in soup.find_all("a", href=True):  # Markdown makes links of its own after the cleaning
            if not _LINK.match(link["href"]):
                del link["href"]
        # The first thing in the head: a policy holds for what comes after it.
        policy = {"http-equiv": "Content-Security-Policy", "content": self._policy}
        soup.head.insert(0, soup.new_tag("meta", attrs=policy))
        return str(soup), resources


_LINK = re.compile(r"https?://|mailto:|#|[\w./-]+(#[\w.-]*)?$", re.I)


def _seed(config, nb, resources):
    root = config.CourseDirectory.get("root") or "."
    return seed_of(class_key(root), nb.metadata.course.release, resources["nbgrader"]["student"])


SANITIZE = [Intake, ClearOutput, DeduplicateIds, OverwriteKernelspec, OverwriteCells, CheckCellMetadata]
AUTOGRADE = [SeededExecute, Judge, LimitOutput, SaveAutoGrades, AssignLatePenalties, CheckCellMetadata]
FEEDBACK = [GetGrades, CleanPage, CSSHTMLHeaderPreprocessor]
