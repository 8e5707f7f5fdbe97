"""`python -m tests.sample_class DIR [PROBLEM_SET ...]`: write the sample class into a folder, as handed in."""

import sys

from tests.sample_class import problem_sets, write_class

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for name in sys.argv[2:] or problem_sets():
        write_class(sys.argv[1], name)
