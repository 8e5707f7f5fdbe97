"""Sums over channels: how a tensor lies in memory, and adding it up in an order that no number of threads changes.

torch divides a reduction among threads by its outputs, and then no sum depends on how many there are. The exception is
a reduction to a single number, which is cut itself: with one channel, sums are taken in runs first.

Scratch tensors are slabs of the input, an eighth of it or less: fresh pages cost more than the arithmetic.
"""

import math

import torch

__all__ = ["Layout", "per_channel", "statistics_dtype"]

_RUN = 256  # values; `vector_norm` does not cascade (over 4096 values of mean 1e5 a variance was 9e-6 wrong)
_SHORT = 16  # planes below this many values are cheaper as columns
_SLAB = 2**19  # elements; a tensor of fewer than two slabs is not cut


def statistics_dtype(x):
    """float64 for float64, float32 for everything narrower.

    Example:
        >>> statistics_dtype(torch.zeros(2, dtype=torch.bfloat16))
        torch.float32
    """
    return torch.promote_types(x.dtype, torch.float32)


def per_channel(v, x):
    """(C,) so that it broadcasts against x, (N, C, *spatial).

    Example:
        >>> per_channel(torch.ones(3), torch.zeros(2, 3, 5, 5)).shape
        torch.Size([1, 3, 1, 1])
    """
    return v.reshape(1, -1, *(1,) * (x.ndim - 2))


class Layout:
    """How one tensor (N, C, *spatial) is worked on: as planes, (N, C, L), or as columns, (rows, C · repeat).

    Columns are what channels_last and (N, C) are; very short planes become columns too, one for each place of a plane,
    which is why a value per channel may have to be repeated.
    """

    def __init__(self, x):
        self.channels, self.dtype = x.shape[1], statistics_dtype(x)
        area = math.prod(x.shape[2:])
        self.last = None  # the memory format, where it is channels_last
        for rank, last in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if x.ndim == rank and area > 1 and x.is_contiguous(memory_format=last) and not x.is_contiguous():
                self.last = last
        self.repeat = 1 if self.last else area
        self.planes = self.repeat >= _SHORT
        self.slabs = max(1, min(8, x.numel() // _SLAB))

    def flat(self, x):
        """x as planes or columns: a view where it has this layout, a copy where not."""
        if self.last:
            x = x.contiguous(memory_format=self.last)
            return x.movedim(1, -1).reshape(-1, self.channels)
        x = x.contiguous()
        return x.view(x.shape[0], self.channels, -1) if self.planes else x.view(x.shape[0], -1)

    def empty_like(self, x):
        """A new tensor of x's shape and this layout, in the dtype of the statistics.

        Results are made whole and filled through `flat`: a view that a Function returned could not be changed in place.
        """
        return torch.empty_like(x, dtype=self.dtype, memory_format=self.last or torch.contiguous_format)

    def pivot(self, flat):
        """One of every channel's own values, (C,), in the dtype of the statistics: the middle one of three.

        One alone may be an outlier, and then subtracting it does harm. A mean would do for accuracy, but only a value
        of the data makes a constant channel exactly zero.
        """
        step = (len(flat) - 1) // 2 * flat.stride(0) + (self.repeat - 1) // 2
        first, middle, last = flat.as_strided((3, self.channels), (step, self.repeat)).to(self.dtype).unbind()
        lower, upper = torch.minimum(first, middle), torch.maximum(first, middle)
        return torch.maximum(lower, torch.minimum(upper, last))

    def wide(self, v):
        """(C,) so that it broadcasts against what `flat` made."""
        if self.planes:
            return v.unsqueeze(1)
        return v if self.repeat == 1 else v.repeat_interleave(self.repeat)

    def sums(self, v):
        """Σv of every channel, (C,)."""
        return self._total([self._partial_sums(slab) for slab in self._cut(v)])

    def shifted_sums(self, x, pivot, out):
        """Put x − pivot into `out`; its sum and the sum of its squares."""
        pivot, sums, squares = self.wide(pivot), [], []
        for x_slab, slab in zip(self._cut(x), self._cut(out), strict=True):
            torch.sub(x_slab, pivot, out=slab)
            sums.append(self._partial_sums(slab))
            squares.append(self._partial_squares(slab))
        return self._total(sums), self._total(squares)

    def product_sums(self, dy, x, pivot, out):
        """Put x − pivot into `out`; Σdy and Σdy · (x − pivot)."""
        pivot, sums, products, scratch = self.wide(pivot), [], [], torch.empty_like(self._cut(out)[0])
        for dy_slab, x_slab, slab in zip(self._cut(dy), self._cut(x), self._cut(out), strict=True):
            torch.sub(x_slab, pivot, out=slab)
            product = torch.mul(dy_slab, slab, out=scratch[: len(slab)])
            sums.append(self._partial_sums(dy_slab))
            products.append(self._partial_sums(product))
        return self._total(sums), self._total(products)

    def affine_(self, v, scale, shift):
        """v · scale + shift, in place."""
        scale, shift = self.wide(scale), self.wide(shift)
        for slab in self._cut(v):
            if self.planes:  # addcmul is no vector loop where two of its arguments are constant along a row
                slab.mul_(scale).add_(shift)
            else:
                torch.addcmul(shift, slab, scale, out=slab)

    def add_times_(self, v, factor, other):
        """v · factor + other, in place."""
        factor = self.wide(factor)
        for slab, other_slab in zip(self._cut(v), self._cut(other), strict=True):
            torch.addcmul(other_slab, slab, factor, out=slab)

    def _cut(self, v):
        return v.split(-(-len(v) // self.slabs)) if self.slabs > 1 else (v,)

    def _partial_sums(self, v):
        v = v.to(self.dtype)
        return _over_runs(v, _sum) if self.planes else _over_columns(v)[None]

    def _partial_squares(self, v):
        return _over_runs(v, _squares) if self.planes else _over_columns(v * v)[None]

    def _total(self, parts):
        """(C,) from partial sums of shapes (some, C · repeat)."""
        v = _over_columns(torch.cat(parts) if len(parts) > 1 else parts[0])
        return v.view(self.channels, -1).sum(-1) if not self.planes and self.repeat > 1 else v


def _sum(run):
    return run.sum(-1)


def _squares(run):
    return torch.linalg.vector_norm(run, dim=-1).square_()


def _over_columns(v):
    """(rows, K) to (K,)."""
    if v.shape[1] == 1:
        return _over_runs(v.view(1, 1, -1), _sum)[0]
    return v.sum(0)


def _over_runs(v, reduce):
    """(N, C, L) to (N, C): `reduce`, which takes the last axis away, in runs of at most `_RUN`, and their sum."""
    length = v.shape[-1]
    if length <= _RUN:
        return reduce(v)
    fewest = -(-length // _RUN)
    for runs in range(fewest, 2 * fewest):
        if length % runs == 0:
            return _over_runs(reduce(v.unflatten(-1, (runs, -1))), _sum)
    whole = length - length % _RUN
    return _over_runs(reduce(v[..., :whole].unflatten(-1, (-1, _RUN))), _sum) + reduce(v[..., whole:])
