"""Problem set 6: what is asked of `fusion_report` and `fuse`."""

from collections import Counter

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from course_lib.checks.fusion_inputs import expect_module, run, watch
from course_lib.checks.fusion_models import (
    flat_model,
    gated_model,
    illegal_model,
    images,
    legal_model,
    returned_model,
    rows_model,
    sequence_model,
    shared_model,
    small_model,
)
from course_lib.checks.piece import Piece, WrongReturn, named

__all__ = ["report", "whole"]

#: What the contract of `fuse` allows, in units of the largest output; the outputs of these models are about 1 to 10.
_PROBE = 1e-5

# --- fusion_report ----------------------------------------------------------------------------------------------

report = Piece("fusion.fusion_report", call='fusion_report(model, example) → [(name, "fused" or a reason), …]')


def _report(impl, model, example, words=""):
    """Which layers are fused, and which rows there are in which order."""
    rows = impl(model, example)
    if not isinstance(rows, list | tuple):
        raise WrongReturn(f"expected a list of rows (name, reason) to be returned, got {type(rows).__name__}")
    said, in_words = [], True
    for row in rows:
        name, reason = named(row, "name", "reason").values()
        if not isinstance(name, str):
            raise WrongReturn(f"expected rows that begin with a layer's name, got {type(name).__name__}")
        in_words = in_words and isinstance(reason, str) and reason != ""
        said.append((name, reason == "fused"))
    seen = {
        "fused layers": ", ".join(sorted(name for name, fused in said if fused)) or "none",
        "layers in the report": ", ".join(name for name, _ in said),
        "verdicts in words": in_words,
        "fused (1) or left (0), row by row": np.array([float(fused) for _, fused in said]),
    }
    return {name + words: value for name, value in seen.items()}


good = report.group(
    "legal pairs: convolutions, transposed ones, linear layers on tables; names and call order", points=1
)


@good.scenario()
def report_of_legal_pairs(impl, case):
    model, c = legal_model(case)
    seen = _report(impl, model, images(case, c))
    model, c = flat_model(case)
    return {**seen, **_report(impl, model, images(case, c), " of a single pair")}


@good.scenario(dtypes=("float32",))
def report_in_float32(impl, case):
    # What two ways of computing differ by is 1e-7 and more here.
    model, c = small_model(case)
    return _report(impl, model, images(case, c))


bad = report.group("left: across an activation, before a convolution, in training mode, without statistics", points=1)


@bad.scenario()
def report_of_illegal_pairs(impl, case):
    model, c = illegal_model(case)
    return _report(impl, model, images(case, c, n=6))


@bad.scenario()
def report_of_a_sequence(impl, case):
    seen = {}
    for words, (model, c) in {" of sequences": sequence_model(case), " of rows": rows_model(case)}.items():
        seen |= _report(impl, model, images(case, c), words)
    return seen


shared = report.group("left: layers called twice, outputs used elsewhere", points=0.75)


@shared.scenario()
def report_of_shared_layers(impl, case):
    model, c = shared_model(case)
    seen = _report(impl, model, images(case, c))
    model, c = returned_model(case)
    returned = _report(impl, model, images(case, c))
    return {**seen, "fused layers where the model returns what comes in": returned["fused layers"]}


gentle = report.group("several arguments; the model untouched", points=0.25)


@gentle.scenario()
def report_of_two_arguments(impl, case):
    model, c = gated_model(case, dropout=True)
    changed, generator = watch(model=model), torch.get_rng_state()
    rows = _report(impl, model, (images(case, c), images(case, c, name="gate")))
    return {
        **rows,
        "torch's random numbers go on where they were": torch.equal(torch.get_rng_state(), generator),
        "inputs changed": ", ".join(filter(None, [case.changed(), *changed()])),
    }


@gentle.scenario()
def report_of_one_argument(impl, case):
    model, c = small_model(case)
    rows = _report(impl, model, (images(case, c),))
    bare = case.fill(nn.Sequential(nn.Conv2d(c, 2, 1)))
    return {**rows, **_report(impl, bare, images(case, c), " of a model without BatchNorm")}


# --- fuse -------------------------------------------------------------------------------------------------------

whole = Piece("fusion.fuse", call="fuse(model, example) → module")


def _fused_model(impl, model, example, *args, words=""):
    """What the fused model computes on other inputs than the example, and how many BatchNorm layers still run."""
    return _ran(expect_module(impl(model, example)), *args, words=words)


def _ran(fused, *args, words=""):
    ran = []
    for module in fused.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_hook(lambda norm, *_: ran.append(type(norm).__name__))
    y = run(fused, *args)
    left = ", ".join(f"{times} {kind}" for kind, times in sorted(Counter(ran).items()))
    return {f"y{words}": y, f"BatchNorm calls left{words}": left or "none"}


good = whole.group("every legal pair is fused, and the output is the same", points=1)


@good.scenario(within=_PROBE)
def fuse_legal_pairs(impl, case):
    model, c = legal_model(case)
    seen = _fused_model(impl, model, images(case, c), images(case, c, 3, "x"))
    model, c = flat_model(case)
    return {**seen, **_fused_model(impl, model, images(case, c), images(case, c, 3, "x"), words=" of a single pair")}


@good.scenario(dtypes=("float32",), within={"y": _PROBE})
def fuse_in_float32(impl, case):
    # What two ways of computing differ by is 1e-7 and more here.
    model, c = small_model(case)
    return _fused_model(impl, model, images(case, c), images(case, c, 3, "x"))


bad = whole.group("the others stay: across an activation, before a convolution, training mode, sequences", points=1)


@bad.scenario(within={"y": _PROBE})
def fuse_illegal_pairs(impl, case):
    model, c = illegal_model(case)
    return _fused_model(impl, model, images(case, c), images(case, c, 3, "x"))


@bad.scenario(within=_PROBE)
def fuse_a_sequence(impl, case):
    seen = {}
    for words, (model, c) in {" of sequences": sequence_model(case), " of rows": rows_model(case)}.items():
        seen |= _fused_model(impl, model, images(case, c), images(case, c, 3, "x"), words=words)
    return seen


shared = whole.group("the others stay: layers called twice, outputs used elsewhere", points=0.75)


@shared.scenario(within=_PROBE)
def fuse_shared_layers(impl, case):
    model, c = shared_model(case)
    seen = _fused_model(impl, model, images(case, c), images(case, c, 3, "x"))
    # The BatchNorm may be gone here, as dead code is: only the output counts.
    model, c = returned_model(case)
    fused = expect_module(impl(model, images(case, c)))
    return {**seen, "y where the model returns what comes in": run(fused, images(case, c, 3, "x"))}


gentle = whole.group("several arguments; a new model, the given one untouched", points=0.25)


@gentle.scenario(within=_PROBE)
def fuse_two_arguments(impl, case):
    model, c = gated_model(case)
    changed = watch(model=model)
    example = images(case, c), images(case, c, name="gate")
    fused = expect_module(impl(model, example))
    touched = ", ".join(filter(None, [case.changed(), *changed()]))
    x = images(case, c, 3, "x"), images(case, c, 3, "gate")
    seen = _ran(fused, *x)
    # What a run on the example has left in the layer in training mode shows once that layer uses its statistics.
    seen["y in eval mode"] = run(fused.eval(), *x)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    shared = "" if touched else ", ".join(changed())
    return {**seen, "inputs changed": touched, "what the new model shares with the given one": shared or "nothing"}


@gentle.scenario(within=_PROBE)
def fuse_with_one_argument(impl, case):
    model, c = small_model(case)
    return _fused_model(impl, model, (images(case, c),), images(case, c, 3, "x"))
