"""Problem set 3: what is asked of the pieces of `course_lib.modes`, in one module for each part."""

# A piece is listed when its module is imported: this is the order of the problem set.
from course_lib.checks import modes_functions, modes_switches, modes_clinic, modes_examiner  # isort: skip

__all__ = ["modes_clinic", "modes_examiner", "modes_functions", "modes_switches"]
