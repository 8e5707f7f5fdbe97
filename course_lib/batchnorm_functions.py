"""The arithmetic under `course_lib.batchnorm`: normalise by the batch or by given statistics, with gradients.

Each of the two stands here twice, and a test holds the two together:

* as a `torch.autograd.Function` with a hand-written backward and forward-mode derivative, tuned for eager execution:
  few passes over memory, temporaries of an eighth of the input, sums in an order that no number of threads changes;
* in plain differentiable operations, for what wants to see operations: compilers and exporters, `torch.func`
  transforms, and a derivative of the derivative.

Both subtract one of the channel's own values first (the pivot). It changes no variance, and what is left has the size
of the spread, not of the mean, so a large mean costs no digits.
"""

import torch
from torch.nn.functional import batch_norm

from course_lib.batchnorm_sums import Layout, per_channel, statistics_dtype

__all__ = ["normalize", "scale_and_shift"]


def normalize(x, weight, bias, eps):
    """Normalise every channel by its own batch statistics, then scale and shift it.

    y = weight · (x − mean) / √(var + eps) + bias, with the biased variance. Differentiable to any order, in reverse
    and forward mode; a constant channel comes out as exactly `bias`.

    Args:
        x: (N, C, *spatial), floating point, not empty. float16 and bfloat16 are computed in float32.
        weight, bias: (C,) or None, for 1 and 0.
        eps: added to the variance, in units of x².

    Returns:
        (y, mean, var): y of x's shape, dtype and memory format; mean and biased var of shape (C,), at least float32,
        without gradient.

    Example:
        >>> y, mean, var = normalize(torch.tensor([[1.0], [3.0]]), None, None, 0.0)
        >>> y.flatten(), mean, var
        (tensor([-1.,  1.]), tensor([2.]), tensor([1.]))

    Source: [ioffe2015], Algorithm 1; the shift by one data value: [chan1983].
    """
    return (_normalize_plainly if _is_transformed() else _Normalize.apply)(x, weight, bias, eps)


def scale_and_shift(x, weight, bias, mean, var, eps):
    """Normalise every channel by given statistics, which are constants: the layer in evaluation.

    y = weight · (x − mean) / √(var + eps) + bias. What the backward pass needs of `mean` and `var` is copied, so
    changing them in place afterwards changes no gradient.

    Args:
        x: (N, C, *spatial), floating point; may be empty.
        weight, bias: (C,) or None, for 1 and 0.
        mean, var: (C,), no gradient flows into them.
        eps: added to the variance, in units of x².

    Returns:
        y of x's shape, dtype and memory format.

    Example:
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> scale_and_shift(x, None, None, torch.tensor([1.0]), torch.tensor([4.0]), 0.0).flatten()
        tensor([0., 1.])

    Source: [ioffe2015], Algorithm 2.
    """
    if _is_transformed():
        return _scale_and_shift_plainly(x, weight, bias, mean, var, eps)
    if not torch.is_grad_enabled():
        return batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
    return _ScaleAndShift.apply(x, weight, bias, mean, var, eps)


def _is_transformed():
    """Whether a compiler, exporter, tracer or `torch.func` transform looks on (the last has no public question)."""
    watched = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return watched or torch._C._are_functorch_transforms_active()


def _goes_plainly(dy):
    """Whether a backward pass is itself differentiated, runs on a batch of gradients as for a Jacobian, or is empty."""
    return torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(dy) or dy.numel() == 0


# --- batch statistics, tuned ------------------------------------------------------------------------------------------


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        layout, n = Layout(x), x.numel() // x.shape[1]
        flat, y = layout.flat(x), layout.empty_like(x)
        pivot, out = layout.pivot(flat), layout.flat(y)
        sums, squares = layout.shifted_sums(flat, pivot, out)
        offset = sums / n
        # Rounding may leave a variance a hair below zero; clamp_ keeps NaN.
        var = (squares / n).addcmul_(offset, offset, value=-1).clamp_(min=0)
        invstd = (var + eps).rsqrt_()
        scale = invstd if weight is None else weight * invstd
        layout.affine_(out, scale, _minus_product(bias, offset, scale))
        mean = pivot + offset
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, pivot, offset, invstd)
        ctx.save_for_forward(x, weight, pivot, offset, invstd)
        return y.to(x.dtype), mean, var

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:
            return None, None, None, None
        x, weight, pivot, offset, invstd = ctx.saved_tensors
        if _goes_plainly(dy):
            gradients = _normalize_backward_plainly(dy, x, weight, ctx.eps)
        else:
            gradients = _normalize_backward(dy, x, weight, pivot, offset, invstd)
        return *(g if wanted else None for g, wanted in zip(gradients, ctx.needs_input_grad, strict=False)), None

    @staticmethod
    def jvp(ctx, x_t, weight_t, bias_t, _):
        x, weight, *stats = ctx.saved_tensors
        pivot, offset, invstd = (per_channel(v, x) for v in stats)
        x_hat = (x - pivot - offset) * invstd
        x_hat_t = None
        if x_t is not None:
            x_hat_t = invstd * (x_t - _mean(x_t.to(x_hat.dtype)) - x_hat * _mean(x_t * x_hat))
        return _tangent(x_hat, x_hat_t, weight, weight_t, bias_t).to(x.dtype), None, None


def _normalize_backward(dy, x, weight, pivot, offset, invstd):
    layout, n = Layout(x), x.numel() // x.shape[1]
    dy, dx = layout.flat(dy), layout.empty_like(x)
    out = layout.flat(dx)
    dbias, with_shifted = layout.product_sums(dy, layout.flat(x), pivot, out)
    dweight = with_shifted.addcmul_(offset, dbias, value=-1).mul_(invstd)
    # dx = scale · (dy − dbias/n − x̂ · dweight/n), and x̂ = (shifted − offset) · invstd.
    scale = invstd if weight is None else weight * invstd
    slope = (dweight * invstd).div_(-n)
    layout.add_times_(out, slope, dy)
    layout.affine_(out, scale, _minus_product(dbias / -n, slope, offset).mul_(scale))
    return dx.to(x.dtype), dweight, dbias


# --- given statistics, tuned ------------------------------------------------------------------------------------------


class _ScaleAndShift(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, eps):
        # Copies, for the buffers will move on. Only the gradient of weight looks at x: a layer whose weight is frozen
        # keeps no activation alive.
        mean_then, var_then = mean.clone(), var.clone()
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, mean_then, var_then)
        ctx.save_for_forward(x, weight, mean_then, var_then)
        return batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx, dy):
        if dy is None:
            return (None,) * 6
        x, weight, mean, var = ctx.saved_tensors
        mean, invstd = _mean_and_invstd(mean, var, ctx.eps, statistics_dtype(dy))
        derive = _scale_and_shift_backward_plainly if _goes_plainly(dy) else _scale_and_shift_backward
        dx, dweight, dbias = derive(dy, x, weight, mean, invstd, ctx.needs_input_grad[2])
        return dx, dweight, dbias if ctx.needs_input_grad[2] else None, None, None, None

    @staticmethod
    def jvp(ctx, x_t, weight_t, bias_t, *_):
        x, weight, mean, var = ctx.saved_tensors
        mean, invstd = (per_channel(v, x) for v in _mean_and_invstd(mean, var, ctx.eps, statistics_dtype(x)))
        x_hat_t = None if x_t is None else x_t * invstd
        return _tangent((x - mean) * invstd, x_hat_t, weight, weight_t, bias_t).to(x.dtype)


def _scale_and_shift_backward(dy, x, weight, mean, invstd, wants_dbias):
    layout = Layout(dy if x is None else x)
    scale = invstd if weight is None else weight * invstd
    flat_dy, dx = layout.flat(dy), layout.empty_like(dy)
    out, dweight, dbias = layout.flat(dx), None, None
    if x is not None:
        dbias, with_shifted = layout.product_sums(flat_dy, layout.flat(x), mean, out)
        dweight = with_shifted.mul_(invstd)
    elif wants_dbias:
        dbias = layout.sums(flat_dy)
    torch.mul(flat_dy, layout.wide(scale), out=out)
    return dx.to(dy.dtype), dweight, dbias


# --- plain operations -------------------------------------------------------------------------------------------------


def _normalize_plainly(x, weight, bias, eps):
    pivot, shifted = _shifted(x)
    offset = _mean(shifted)
    centred = shifted - offset
    var = _mean(centred * centred)
    invstd = (var + eps).rsqrt()
    y = _affine(centred * invstd, weight, bias).to(x.dtype)
    return y, pivot + offset.detach().reshape(-1), var.detach().reshape(-1)


def _normalize_backward_plainly(dy, x, weight, eps):
    _, shifted = _shifted(x)
    dy, centred = dy.to(shifted.dtype), shifted - _mean(shifted)
    invstd = (_mean(centred * centred) + eps).rsqrt()
    x_hat = centred * invstd
    with_one, with_x_hat = _mean(dy), _mean(dy * x_hat)
    dx = _affine(invstd * (dy - with_one - x_hat * with_x_hat), weight, None)
    n = x.numel() // x.shape[1]
    return dx.to(x.dtype), with_x_hat.reshape(-1) * n, with_one.reshape(-1) * n


def _scale_and_shift_plainly(x, weight, bias, mean, var, eps):
    dtype = statistics_dtype(x)
    mean, invstd = (per_channel(v, x) for v in _mean_and_invstd(mean, var, eps, dtype))
    return _affine((x.to(dtype) - mean) * invstd, weight, bias).to(x.dtype)


def _scale_and_shift_backward_plainly(dy, x, weight, mean, invstd, wants_dbias):
    axes = (0, *range(2, dy.ndim))
    dx = _affine(dy * per_channel(invstd, dy), weight, None).to(dy.dtype)
    dweight = None if x is None else (dy * ((x - per_channel(mean, x)) * per_channel(invstd, x))).sum(axes)
    return dx, dweight, dy.to(invstd.dtype).sum(axes) if wants_dbias else None


def _mean_and_invstd(mean, var, eps, dtype):
    return mean.to(dtype), (var.to(dtype) + eps).rsqrt()


def _minus_product(a, b, c):
    """a − b·c; a may be None, for 0."""
    return (b * c).neg_() if a is None else torch.addcmul(a, b, c, value=-1)


def _shifted(x):
    """One value of every channel, and x less that value. The first one: "the middle" would pin sizes kept open."""
    dtype = statistics_dtype(x)
    pivot = x.detach().movedim(1, -1)[(0,) * (x.ndim - 1)].to(dtype)
    return pivot, x.to(dtype) - per_channel(pivot, x)


def _mean(v):
    """Mean of every channel, ready to broadcast. The plane first: sums of means lose fewer digits than one long sum."""
    if v.ndim > 2:
        v = v.mean(tuple(range(2, v.ndim)), keepdim=True)
    return v.mean(0, keepdim=True)


def _affine(x_hat, weight, bias):
    y = x_hat if weight is None else x_hat * per_channel(weight, x_hat)
    return y if bias is None else y + per_channel(bias, x_hat)


def _tangent(x_hat, x_hat_t, weight, weight_t, bias_t):
    """Tangent of weight · x̂ + bias; a None tangent is zero."""
    y_t = torch.zeros_like(x_hat) if x_hat_t is None else _affine(x_hat_t, weight, None)
    if weight_t is not None:
        y_t = y_t + x_hat * per_channel(weight_t, x_hat)
    return y_t if bias_t is None else y_t + per_channel(bias_t, x_hat)
