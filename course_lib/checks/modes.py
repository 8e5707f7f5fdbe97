"""Problem set 3: what is asked of the pieces of `course_lib.modes`, in one module for each part."""

# A piece is listed when its module is imported: this is the order of the problem set.
# isort: off
from course_lib.checks import modes_functions
from course_lib.checks import modes_switches
from course_lib.checks import modes_clinic
from course_lib.checks import modes_examiner

# isort: on

__all__ = ["modes_clinic", "modes_examiner", "modes_functions", "modes_switches"]
