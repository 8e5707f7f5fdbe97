"""Problem set 6: what is asked of `fold_batchnorm`."""

import numpy as np
import torch
from torch import nn

from course_lib.checks.fusion_inputs import HALVES, differing_sizes, norm, watch
from course_lib.checks.piece import Piece, WrongReturn, named

__all__ = ["fold"]

fold = Piece(
    "fusion.fold_batchnorm", call="fold_batchnorm(weight, bias, bn, transposed=False, groups=1) → (weight, bias)"
)


def _fold(impl, weight, bias, bn, *args, **how):
    result = named(impl(weight, bias, bn, *args, **how), "weight", "bias")
    for name, part in result.items():
        if not isinstance(part, torch.Tensor):
            raise WrongReturn(f"expected {name} to be a tensor, got {type(part).__name__}")
    return {name: part.detach() for name, part in result.items()}


def _with_words(results):
    """{words: {name: value}} as one set of observations."""
    return {f"{name} {words}".strip(): value for words, seen in results.items() for name, value in seen.items()}


formula = fold.group("weight and bias of linear layers and convolutions", points=1)


@formula.scenario()
def fold_into_linear(impl, case):
    outputs, inputs = differing_sizes(case, 3, 3)
    weight, bias = case.tensor((outputs, inputs), name="weight"), case.tensor((outputs,), name="bias")
    return _fold(impl, weight, bias, norm(case, outputs, 0))


@formula.scenario()
def fold_into_convolution(impl, case):
    groups = case.integer(2, 3)
    outputs = 2 * groups
    results = {}
    for shape in (outputs, 3, 5), (outputs, 1, 2, 3), (outputs, 2, 2, 1, 3):
        weight, bias, rank = case.tensor(shape, name="weight"), case.tensor((outputs,), name="bias"), len(shape) - 2
        results[f"in {rank}d"] = _fold(impl, weight, bias, norm(case, outputs, rank), groups=groups)
    return _with_words(results)


missing = fold.group("no bias, or no gamma and beta (affine=False)", points=0.5)


@missing.scenario()
def fold_without_bias(impl, case):
    outputs, inputs = differing_sizes(case, 3, 3)
    return _fold(impl, case.tensor((outputs, inputs, 3), name="weight"), None, norm(case, outputs, 1))


@missing.scenario()
def fold_without_affine(impl, case):
    outputs, inputs = differing_sizes(case, 3, 3)
    weight, bias = case.tensor((outputs, inputs, 2), name="weight"), case.tensor((outputs,), name="bias")
    bn = norm(case, outputs, 1, affine=False)
    return _with_words({"": _fold(impl, weight, bias, bn), "and no bias": _fold(impl, weight, None, bn)})


transposed = fold.group("transposed convolutions, with and without groups", points=0.75)


@transposed.scenario()
def fold_into_transposed(impl, case):
    results = {}
    for kernel in (3,), (2, 3), (2, 1, 3):
        inputs, outputs = differing_sizes(case, 3, 3)
        weight, bias = case.tensor((inputs, outputs, *kernel), name="weight"), case.tensor((outputs,), name="bias")
        bn = norm(case, outputs, len(kernel))
        results[f"in {len(kernel)}d"] = _fold(impl, weight, bias, bn, transposed=True)
    return _with_words(results)


@transposed.scenario()
def fold_into_transposed_with_groups(impl, case):
    groups, results = case.integer(2, 3), {}
    for kernel in (3,), (2, 3), (2, 1, 3):
        weight = case.tensor((2 * groups, case.integer(3, 4), *kernel), name="weight")
        outputs, rank = weight.shape[1] * groups, len(kernel)
        bias = case.tensor((outputs,), name="bias")
        results[f"in {rank}d"] = _fold(impl, weight, bias, norm(case, outputs, rank), transposed=True, groups=groups)
    # In the order of the signature, and with nothing that may be missing.
    bare = _fold(impl, weight, None, norm(case, outputs, rank, affine=False), True, groups)
    return _with_words({**results, "without bias, gamma and beta": bare})


rounded = fold.group("computed in float64, in the dtypes that came in; inputs untouched", points=0.75)


def _near(case, dtype, size, *, beta=True):
    """Weight, bias and a float32 BatchNorm: the bias is large, and near to the running mean; beta may be 0."""
    outputs, inputs = 8, case.integer(2, 4)
    bias = case.draw((outputs,), size * case.uniform(0.8, 1.2), size / 10)
    mean = bias + case.uniform(1, 2, outputs) * np.sign(case.draw((outputs,)))
    bn = case.fill(nn.BatchNorm1d(outputs), dtype="float32").eval()
    with torch.no_grad():
        bn.running_mean.copy_(case.given_tensor(mean, "running_mean", dtype="float32"))
        bn.bias.mul_(beta)
        bn.running_var.copy_(case.given_tensor(case.uniform(0.005, 0.01, outputs), "running_var", dtype="float32"))
    weight = case.given_tensor(case.draw((outputs, inputs)), "weight", dtype=dtype)
    return weight, case.given_tensor(bias, "bias", dtype=dtype), bn


# The difference of bias and running mean is what counts: in float32 what is left after multiplying both by the slope is
# off by 1e-3 or more, of about 20.
@rounded.scenario(dtypes=("float32",), within={"weight": 1e-3, "bias": 1e-4}, rounding=True)
def fold_large_bias(impl, case):
    return {name: part.to(case.torch_dtype) for name, part in _fold(impl, *_near(case, "float32", 1e4)).items()}


# Half precision cannot tell such a mean from the bias, the statistics can: they are float32, as in the usual mixture.
# A usual beta would be about as large as what it rounds away.
@rounded.scenario(dtypes=("float32",), rounding=True)
def fold_in_half_precision(impl, case):
    results = {}
    for dtype in HALVES:
        seen = _fold(impl, *_near(case, dtype, 1e3, beta=False))
        results[f"of {dtype}"] = {name: part.to(case.as_torch(dtype)) for name, part in seen.items()}
    return _with_words(results)


@rounded.scenario()
def fold_keeps_dtypes(impl, case):
    seen, changes = {}, []
    for dtype in (*HALVES, "float64"):  # in float64 a conversion makes no copy, and what works in place reaches inputs
        outputs, inputs = differing_sizes(case, 3, 3)
        weight = case.tensor((outputs, inputs), name="weight", dtype=dtype)
        bias = case.tensor((outputs,), name="bias", dtype=dtype)
        kernel = case.tensor((inputs, outputs, 2), name="transposed weight", dtype=dtype)
        of_norm = "float64" if dtype == "float64" else "float32"
        bn, bare = norm(case, outputs, 0, dtype=of_norm), norm(case, outputs, 0, dtype=of_norm, affine=False)
        changed = watch(bn=bn, bare=bare)
        results = {
            "": _fold(impl, weight, bias, bn),
            " without gamma and beta": _fold(impl, weight, bias, bare),
            " of a transposed one": _fold(impl, kernel, bias, bn, transposed=True),
        }
        for words, result in results.items():
            seen |= {f"dtype of {name}{words}, {dtype}": str(part.dtype) for name, part in result.items()}
        without = _fold(impl, weight, None, bn)
        seen[f"dtype of the new bias where there was none, {dtype}"] = str(without["bias"].dtype)
        changes += changed()
    return {**seen, "inputs changed": ", ".join(filter(None, [case.changed(), *dict.fromkeys(changes)]))}
