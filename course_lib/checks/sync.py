"""Problem set 5: what is asked of the pieces of `course_lib.sync`, on several ranks, in one module for each part."""

# A piece is listed when its module is imported: this is the order of the problem set.
# isort: off
from course_lib.checks import sync_moments
from course_lib.checks import sync_function
from course_lib.checks import sync_convert

# isort: on

__all__ = ["sync_convert", "sync_function", "sync_moments"]
