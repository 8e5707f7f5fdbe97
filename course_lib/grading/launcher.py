"""Start a kernel with the student edition of `course_lib`: `python -P -s launcher.py LIBRARY -f CONNECTION_FILE`.

The library is imported before the working folder is on the path, so that a `course_lib/` or a `numpy.py`
beside a submission cannot take its place, and the tree's own library is taken off the path (an editable
install has put it there).
"""

import sys
from pathlib import Path


def main():
    library = sys.argv.pop(1)
    sys.path = [library, *(entry for entry in sys.path if entry and not Path(entry, "course_lib").exists())]

    from course_lib.checks.piece import pieces

    pieces()

    from ipykernel.kernelapp import launch_new_instance
    from ipykernel.zmqshell import ZMQInteractiveShell

    # `exit` and `quit` stop a kernel a moment after their cell: what runs until then would be a matter of luck.
    ZMQInteractiveShell.ask_exit = lambda self: None
    launch_new_instance()


if __name__ == "__main__":
    main()
