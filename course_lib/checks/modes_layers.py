"""The layers that `accepts` is asked about: those of `course_lib.modes_examples`, and others when it is graded.

Every class is asked about under the name `Layer`, in an order drawn by the seed.
"""

import base64
import json
import os
import zlib

import torch
import torch.nn.functional as F
from torch import nn

from course_lib.checks.expect import PUBLIC_SEED, unseen_layers
from course_lib.modes_examples import RIGHT, WRONG

__all__ = ["GRADING_LAYERS", "THEMES", "asked", "pack"]

#: Set by the grader in the kernel's environment: the layers of a student's seed, packed by `pack`. Whoever changes it
#: there is asked about other layers than the judge knows the answers for.
GRADING_LAYERS = "BATCHNORM_COURSE_LAYERS"
#: What the wrong layers are wrong about.
THEMES = tuple(WRONG)


def asked(case):
    """[(theme, class)] in the order of asking. The theme of a right layer means nothing."""
    if case.seed != PUBLIC_SEED:
        return [(theme, _class_of(source)) for theme, source in _sent(case.seed)]
    layers = [(case.choice(THEMES), cls) for cls in RIGHT] + list(WRONG.items())
    shuffled = [layers.pop(case.integer(0, len(layers) - 1)) for _ in range(len(layers))]
    return [(theme, type("Layer", (cls,), {"__module__": "layers"})) for theme, cls in shuffled]


def pack(layers):
    """[(theme, source)] as a text short enough for an environment variable."""
    return base64.b85encode(zlib.compress(json.dumps(layers).encode(), 9)).decode()


def _sent(seed):
    packed = os.environ.get(GRADING_LAYERS)
    return json.loads(zlib.decompress(base64.b85decode(packed))) if packed else unseen_layers(seed)


def _class_of(source):
    namespace = {"__name__": "layers", "torch": torch, "nn": nn, "F": F}
    exec(compile(source, "<layer>", "exec"), namespace)
    return namespace["Layer"]
