"""Configuration of nbgrader for this course: run its commands from this folder.

A class may live elsewhere: `nbgrader autograde ps1-algorithm --course-dir DIR`.
"""

from course_lib.authoring import clearing
from course_lib.authoring.paths import EXERCISES, SOURCE
from course_lib.grading import plugins

c = get_config()  # noqa: F821 (nbgrader provides it)

c.CourseDirectory.course_id = "batchnorm-by-building-it"
# Absolute, so that they stay this repository's when --course-dir names another folder for the class.
c.CourseDirectory.source_directory = str(SOURCE)
c.CourseDirectory.release_directory = str(EXERCISES)
# Records are the instructor's: they are not copied to the feedback.
c.CourseDirectory.ignore = [".ipynb_checkpoints", "*.pyc", "__pycache__", ".pytest_cache", "*.record.json"]

c.ClearSolutions.code_stub = {"python": "raise NotImplementedError"}
c.ClearSolutions.enforce_metadata = True
# Some cells are handed out with code to repair instead of a stub.
c.GenerateAssignment.preprocessors = clearing.GENERATE

# Rebuild what came in from what was handed out, before anything else looks at it.
c.Autograde.sanitize_preprocessors = plugins.SANITIZE
# Execute (observe only), judge outside the kernel, then nbgrader's own bookkeeping.
c.Autograde.autograde_preprocessors = plugins.AUTOGRADE
c.GenerateFeedback.preprocessors = plugins.FEEDBACK
c.GenerateFeedback.exporter_class = plugins.FeedbackPage
# Formgrader shows a submission in a page of your Jupyter server: without the scripts in it.
c.HTMLExporter.preprocessors = [plugins.CleanPage]
