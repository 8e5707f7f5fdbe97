"""`python -m tests.sample_class DIR [PROBLEM_SET]`: write the sample class into a folder, as handed in."""

import sys

from tests.sample_class import write_class

if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    write_class(sys.argv[1], *(sys.argv[2:] or ["ps1-algorithm"]))
