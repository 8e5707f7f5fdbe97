"""Problem set 4: what is asked of the pieces of `course_lib.finetuning`, in one module for each part."""

# A piece is listed when its module is imported: this is the order of the problem set.
# isort: off
from course_lib.checks import finetuning_freezing
from course_lib.checks import finetuning_unfreezing
from course_lib.checks import finetuning_recalibration
from course_lib.checks import finetuning_ghosts
from course_lib.checks import finetuning_replacement
from course_lib.checks import finetuning_decay

# isort: on

__all__ = [
    "finetuning_decay",
    "finetuning_freezing",
    "finetuning_ghosts",
    "finetuning_recalibration",
    "finetuning_replacement",
    "finetuning_unfreezing",
]
