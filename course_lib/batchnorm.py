"""BatchNorm1d, BatchNorm2d and BatchNorm3d: the assembled layer, drop-in for torch.nn's.

They are torch's classes with another forward pass, so arguments, state_dict, extra_repr and everything that asks
`isinstance` stay the same. What differs, and by how much, is measured on the book's page «Parity», out of
`course_lib.parity`.

Conventions are torch's: `momentum` is the weight of the new value, the biased variance normalises, the unbiased one
goes into `running_var`.
"""

from types import NoneType

import torch
from torch import nn

from course_lib.batchnorm_functions import normalize, scale_and_shift

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "InputError"]


class InputError(ValueError, RuntimeError):
    """A batch that does not fit the layer. torch raises RuntimeError, the course ValueError: this is both."""


_STORED = ("running_mean", "running_var", "weight", "bias")


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """The forward pass of the three layers, for any rank; what a batch has to be is said by the subclass."""

    def forward(self, input):
        self._check_input_dim(input)
        weight, bias, mean, var = self.weight, self.bias, self.running_mean, self.running_var
        uses_batch = self.training or (mean is None and var is None)
        self._check_fits(input, (mean, var, weight, bias), uses_batch)
        if not uses_batch:
            return scale_and_shift(input, weight, bias, mean, var, self.eps)
        if input.numel() == 0:
            # Nothing to measure and nothing to count; weight and bias stay in the graph, for optimisers and DDP.
            zero, one = input.new_zeros(input.shape[1]), input.new_ones(input.shape[1])
            return scale_and_shift(input, weight, bias, zero, one, self.eps)
        n = input.numel() // input.shape[1]
        if n < 2:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {input.shape}: "
                "use a larger batch, or .eval() after training"
            )
        y, batch_mean, batch_var = normalize(input, weight, bias, self.eps)
        if self.training and self.track_running_stats and mean is not None:
            self._track(mean, var, batch_mean, batch_var * (n / (n - 1)))
        return y

    def _track(self, running_mean, running_var, mean, unbiased_var):
        """One step of the running averages. Nothing here has a gradient."""
        factor, counter = self.momentum, self.num_batches_tracked
        if counter is not None:
            counter.add_(1)
            if factor is None:  # a tensor: a number would have to leave the device, and no exporter could follow
                factor = counter.to(mean.dtype).reciprocal()
        if not isinstance(factor, torch.Tensor):
            factor = 0.0 if factor is None else float(factor)
        for running, new in ((running_mean, mean), (running_var, unbiased_var)):
            if running.dtype == new.dtype:
                running.lerp_(new, factor)
            else:  # buffers that .half() has narrowed: the step itself is taken in float32
                running.copy_(running.to(new.dtype).lerp_(new, factor))

    def _check_fits(self, x, stored, uses_batch):
        """Raise what torch raises, before anything is counted or updated; `stored` are those of `_STORED`."""
        channels, device, dtype = x.shape[1], x.device, x.dtype
        if not dtype.is_floating_point:
            raise InputError(f'"batch_norm" not implemented for {dtype}: expected a floating-point dtype')
        for name, v in zip(_STORED, stored, strict=True):
            if v is not None and (v.shape[0] != channels or v.device != device or v.dtype != dtype):
                _check_tensor(name, v, x)
        if (stored[0] is None) != (stored[1] is None):
            raise InputError("running_mean and running_var must either both be None or neither be None")
        if uses_batch and self.eps <= 0.0:
            raise ValueError(f"batch_norm eps must be positive during training, but got {self.eps}")
        if self.eps < 0.0:
            raise ValueError(f"batch_norm eps must be non-negative, but got {self.eps}")
        if not isinstance(self.momentum, (float, int, NoneType)) and not hasattr(self.momentum, "__float__"):
            raise TypeError(f"expected momentum to be a number or None, got {self.momentum!r}")


def _check_tensor(name, v, x):
    if v.shape[0] != x.shape[1]:
        raise InputError(
            f"{name} should contain {x.shape[1]} elements not {v.shape[0]}: "
            f"expected (N, C, ...) with C={v.shape[0]}, got {tuple(x.shape)}"
        )
    if v.device != x.device:
        raise InputError(f"expected {name} on the input's device, {x.device}, got {v.device}: use .to()")
    if v.dtype != torch.float32 or x.dtype.itemsize > 2:
        raise InputError(f"mixed dtype: expected {name} in {x.dtype} or float32, got {v.dtype}: use .to()")


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """Batch normalisation of (N, C) or (N, C, L), in place of `torch.nn.BatchNorm1d`.

    y = weight · (x − mean) / √(var + eps) + bias per channel; in training by the batch's mean and biased variance, in
    evaluation by the running ones. Every step of training moves the running values by `momentum` towards the batch's
    mean and unbiased variance; `momentum=None` makes them the average over all batches.

    Args:
        num_features: the number of channels C.
        eps: added to the variance, in units of x²; positive in training.
        momentum: weight of the new value, or None.
        affine: whether there are weight and bias, both (C,).
        track_running_stats: whether there are running_mean and running_var, both (C,), and num_batches_tracked.
            Without them the batch's statistics are used in evaluation too.
        device, dtype: of parameters and buffers.
        bias: False leaves the bias out.

    Raises:
        ValueError: in training a batch with one value per channel, or eps ≤ 0; an input of another rank, number of
            channels, dtype or device (the last three are RuntimeErrors too, as in torch). A refused batch is not
            counted and changes nothing.
        TypeError: momentum neither a number nor None.

    Example:
        >>> layer = BatchNorm1d(2)
        >>> layer(torch.tensor([[1.0, 1e6], [3.0, 1e6]])).detach()
        tensor([[-1.0000,  0.0000],
                [ 1.0000,  0.0000]])

    Source: [ioffe2015], Algorithms 1 and 2.
    """


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """Batch normalisation of (N, C, H, W), in place of `torch.nn.BatchNorm2d`; arguments as `BatchNorm1d`.

    Example:
        >>> BatchNorm2d(3)(torch.zeros(8, 3, 5, 5)).shape
        torch.Size([8, 3, 5, 5])

    Source: [ioffe2015], section 3.2.
    """


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """Batch normalisation of (N, C, D, H, W), in place of `torch.nn.BatchNorm3d`; arguments as `BatchNorm1d`.

    Example:
        >>> BatchNorm3d(3)(torch.zeros(8, 3, 2, 5, 5)).shape
        torch.Size([8, 3, 2, 5, 5])

    Source: [ioffe2015], section 3.2.
    """
