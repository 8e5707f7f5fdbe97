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
    # As many features in as out: which axis is which cannot be guessed from their lengths.
    features = case.integer(3, 5)
    weight, bias = case.tensor((features, features), name="weight"), case.tensor((features,), name="bias")
    return _fold(impl, weight, bias, norm(case, features, 0))


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
        if len(kernel) == 2:  # the lengths of the axes do not tell this one from an ordinary one
            inputs = outputs
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


def _near(case, dtype, size):
    """Weight, bias and a float32 BatchNorm: the new bias is a small difference of terms of many times `size`.

    All of them take part: the old bias and the running mean, both multiplied by the slope, and β.
    """
    outputs, inputs = 8, case.integer(2, 4)
    bias = case.given_tensor(case.draw((outputs,), size * case.uniform(0.8, 1.2), size / 10), "bias", dtype=dtype)
    bn = case.fill(nn.BatchNorm1d(outputs), dtype="float32").eval()
    mean = bias.double().numpy() + size * case.uniform(1, 1.5, outputs) * np.sign(case.draw((outputs,)))
    with torch.no_grad():
        bn.running_mean.copy_(case.given_tensor(mean, "running_mean", dtype="float32"))
        bn.running_var.copy_(case.given_tensor(case.uniform(0.005, 0.01, outputs), "running_var", dtype="float32"))
        gamma, mean, var = (t.double().numpy() for t in (bn.weight, bn.running_mean, bn.running_var))
        beta = (mean - bias.double().numpy()) * gamma / np.sqrt(var + bn.eps) + case.draw((outputs,))
        bn.bias.copy_(case.given_tensor(beta, "beta", dtype="float32"))
    weight = case.given_tensor(case.draw((outputs, inputs)), "weight", dtype=dtype)
    return weight, bias, bn


# Whatever is rounded to float32 on the way, be it the slope alone, leaves the bias off by 1e-5 and more. Whoever has
# forgotten or misplaced a term is off by thousands: the rough look tells the two apart.
@rounded.scenario(dtypes=("float32",), within={"bias": 3e-6, "bias, roughly": 300}, rounding=True)
def fold_large_bias(impl, case):
    seen = {name: part.to(case.torch_dtype) for name, part in _fold(impl, *_near(case, "float32", 1e3)).items()}
    return {**seen, "bias, roughly": seen["bias"]}


# Half precision can neither tell such a mean from the bias nor hold a slope of 1e-8. The BatchNorm can, it is float32,
# as in the usual mixture.
@rounded.scenario(dtypes=("float32",), rounding=True)
def fold_in_half_precision(impl, case):
    results = {}
    for dtype in HALVES:
        seen = _fold(impl, *_near(case, dtype, 300))
        results[f"of {dtype}"] = {name: part.to(case.as_torch(dtype)) for name, part in seen.items()}
    flat = case.fill(nn.BatchNorm1d(4), dtype="float32").eval()
    with torch.no_grad():
        flat.weight.copy_(case.given_tensor(case.uniform(0.5e-8, 1.5e-8, 4), "gamma", dtype="float32"))
    weight = case.tensor((4, 3), std=1e4, name="weight", dtype="float16")
    weight = _fold(impl, weight, case.tensor((4,), name="bias", dtype="float16"), flat)["weight"]
    return {**_with_words(results), "weight of float16 with a tiny slope": weight.to(case.as_torch("float16"))}


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
    # Weights are shortened more often than the few numbers of a bias: each keeps the dtype it came in.
    weight, bias = case.tensor((4, 3), name="weight", dtype="float16"), case.tensor((4,), name="bias", dtype="float32")
    mixed = _fold(impl, weight, bias, norm(case, 4, 0, dtype="float32"))
    seen["dtype of a float32 bias beside a weight in float16"] = str(mixed["bias"].dtype)
    return {**seen, "inputs changed": ", ".join(filter(None, [case.changed(), *dict.fromkeys(changes)]))}
