"""The layers `accepts` is graded on: right and wrong ones, unseen, drawn and shuffled by the seed.

No student gets these texts before grading. Then they are sent to the kernel, in an order that says nothing, each as
the source of a class of one and the same name.
"""

import zlib

from numpy.random import default_rng

from course_lib.misconceptions.modes_layers_wrong import WRONG, text_of

__all__ = ["POOL", "RIGHT", "sent"]

#: One wrong layer of every family is asked about, whatever the seed: a gap in a test costs everybody the same.
#: The numbers say which of a family's layers the seed may choose. Left out are those that belong to another theme as
#: well, and those that only a very suspicious examiner would find.
POOL = {
    "eval": {
        "the batch normalises in eval": (0, 1, 2, 3),
        "the batch normalises in eval when it is large": (0, 1, 2, 3),
        "eval moves the buffers": (0, 1, 2, 3),
        "running averages are corrected in eval": (0, 1, 2, 3),
    },
    "mode": {
        "the mode is read off the wrong thing": (0, 1),
        "no update without gradients": (0, 1, 2),
        "one value per channel": (0, 1, 2, 3),
        "empty batches": (0, 1, 2, 3, 4),
        "one value per channel, another error": (0, 1, 2),
        "another number of channels": (1, 2, 3),
    },
    "statistics": {
        "biased variance in the buffer": (0, 1, 2, 3),
        "unbiased variance normalises": (0, 1, 2, 3),
        "statistics over the wrong axes": (0, 1, 2, 3, 4),
        "eps outside of the root": (0, 1, 2, 3),
        "eps is forgotten": (0, 3),
        "Bessel's correction by the batch size": (0, 1, 2, 3),
        "one pass over the data": (0, 1, 3),
    },
    "arguments": {
        "momentum weighs the old value": (0, 1, 2, 3),
        "momentum None is 0.1": (0, 1, 2, 3),
        "affine=False is ignored": (0, 1, 2, 3),
        "track_running_stats=False is ignored": (0, 1, 2, 3),
        "momentum 0 is taken for none": (0, 1, 2, 3),
        "another default of eps": (0, 1, 2),
        "another default of momentum": (0, 1, 2, 3),
        "arguments in another order": (0, 1, 2, 3),
    },
    "state": {
        "buffers are plain attributes": (0, 1, 2, 3),
        "buffers are not saved, or are parameters": (0, 1, 2, 3),
        "buffers are replaced": (0, 1, 2, 3),
        "the counter": (0, 1, 2, 3, 4),
        "names in the state dict": (0, 1, 2, 3),
        "old state dicts are refused": (0, 1, 2),
        "dtype is ignored": (2, 3),
    },
    "gradients": {
        "a graph stays in the buffers": (0, 1, 2, 3),
        "no gradient through the statistics": (0, 1, 2, 3, 4),
        "a gradient is wrong": (0, 1, 3, 5),
        "the input is changed": (0, 1, 2, 3),
        "another dtype comes out": (0, 1),
        "memory layout": (0, 1, 2, 3),
    },
}
#: One right layer of every row, so that each seed has torch's layer, something between, and one from scratch. Left
#: out is the one whose parameters are no attributes of its own: a test may look for them there.
RIGHT = (
    ("TorchBacked", "TorchByRank", "Synchronised"),
    ("Functional", "Doubles", "Rows"),
    ("Plain", "Handmade", "Welford"),
)


def sent(seed):
    """[(theme, source of a class `Layer`)] for a seed, shuffled. A right layer stands under any theme.

    Args:
        seed: of the student.
    """
    rng = default_rng([seed, zlib.crc32(b"modes_layers")])
    themes, chosen = list(POOL), []
    for theme, families in POOL.items():
        for family, numbers in families.items():
            chosen.append((theme, text_of(*WRONG[family][rng.choice(numbers)])))
    for styles in RIGHT:
        chosen.append((themes[rng.integers(len(themes))], text_of(styles[rng.integers(len(styles))])))
    return [chosen[i] for i in rng.permutation(len(chosen))]
