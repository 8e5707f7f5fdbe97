"""Start a kernel with the student edition of `course_lib`: `python -P -s launcher.py LIBRARY TOPIC -f CONNECTION_FILE`.

The topic's checks are imported before the working folder is on the path, so that a `course_lib/` or a `numpy.py`
beside a submission cannot take their place, and the tree's own library is taken off the path (an editable
install has put it there). Other topics' are not: the first problem set does without torch, whose import takes
longer than grading a small answer.
"""

import sys
from pathlib import Path


def main():
    library, topic = sys.argv.pop(1), sys.argv.pop(1)
    sys.path = [library, *(entry for entry in sys.path if entry and not Path(entry, "course_lib").exists())]

    from course_lib.checks.piece import pieces

    pieces(topic)

    from ipykernel.kernelapp import launch_new_instance
    from ipykernel.zmqshell import ZMQInteractiveShell

    # `exit` and `quit` stop a kernel a moment after their cell: what runs until then would be a matter of luck.
    ZMQInteractiveShell.ask_exit = lambda self: None
    launch_new_instance()


if __name__ == "__main__":
    main()
