"""Start a kernel with the student edition of `course_lib`: `python -I launcher.py LIBRARY -f CONNECTION_FILE`.

The library is imported before the working folder is on the path, so that a `course_lib/` or a `numpy.py`
beside a submission cannot take its place, and the tree's own library is taken off the path.
"""

import sys
from pathlib import Path

library = sys.argv.pop(1)
tree = Path(__file__).resolve().parents[2]
sys.path = [library, *(entry for entry in sys.path if entry and Path(entry).resolve() != tree)]

from course_lib.checks.piece import pieces  # noqa: E402

pieces()

from ipykernel.kernelapp import launch_new_instance  # noqa: E402

launch_new_instance()
