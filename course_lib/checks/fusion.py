"""Problem set 6: what is asked of the pieces of `course_lib.fusion`, in one module for each part."""

# A piece is listed when its module is imported: this is the order of the problem set.
# isort: off
from course_lib.checks import fusion_fold
from course_lib.checks import fusion_pairs
from course_lib.checks import fusion_whole

# isort: on

__all__ = ["fusion_fold", "fusion_pairs", "fusion_whole"]
