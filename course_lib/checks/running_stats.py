"""Problem set 2: what is asked of the pieces of `course_lib.running_stats`, in one module for each part."""

# A piece is listed when its module is imported: this is the order of the problem set.
# isort: off
from course_lib.checks import running_stats_functions
from course_lib.checks import running_stats_arithmetic
from course_lib.checks import running_stats_tensors
from course_lib.checks import running_stats_states

# isort: on

__all__ = ["running_stats_arithmetic", "running_stats_functions", "running_stats_states", "running_stats_tensors"]
