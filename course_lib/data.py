"""The data of the chapters: scikit-learn's digits, which lie inside its wheel, so nothing is downloaded."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["SHIFTS", "Digits", "blurred", "digits", "inverted", "loaders", "minibatches", "noisy", "rotated"]


class Digits(NamedTuple):
    """Handwritten digits, split into a training and a test part.

    Attributes:
        x_train: (n_train, 64) or (n_train, 1, 8, 8), float32, pixels in [0, 1].
        y_train: (n_train,), int64, the digit 0 to 9.
        x_test: like x_train.
        y_test: like y_train.
    """

    x_train: torch.Tensor
    y_train: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor


def digits(*, images: bool = False, test_size: int = 450, seed: int = 0) -> Digits:
    """The 1,797 handwritten digits of scikit-learn, 8 × 8 pixels each, shuffled and split.

    The pixels, whole numbers from 0 to 16, are divided by 16 and otherwise left as they are.

    Args:
        images: True gives (N, 1, 8, 8) for convolutions, False gives (N, 64).
        test_size: how many images are held out, 1 to 1,796.
        seed: which images are held out, and the order of the others.

    Returns:
        A `Digits` of four tensors on the CPU.

    Raises:
        ValueError: `test_size` leaves one of the two parts empty.

    Example:
        >>> d = digits(images=True)
        >>> tuple(d.x_train.shape), tuple(d.x_test.shape)
        ((1347, 1, 8, 8), (450, 1, 8, 8))

    Source: the test part of Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, as `sklearn.datasets.load_digits` ships it.
    """
    from sklearn.datasets import load_digits  # half a second, and only chapters need it

    x, y = load_digits(return_X_y=True)
    if not 0 < test_size < len(x):
        raise ValueError(f"expected 0 < test_size < {len(x)}, got {test_size}")
    order = np.random.default_rng(seed).permutation(len(x))
    pixels = torch.from_numpy((x[order] / 16).astype(np.float32))
    if images:
        pixels = pixels.reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(y[order].astype(np.int64))
    return Digits(pixels[test_size:], labels[test_size:], pixels[:test_size], labels[:test_size])


def minibatches(n: int, size: int, steps: int, *, seed: int = 0) -> Iterator[torch.Tensor]:
    """Indices of `steps` mini-batches, epoch after epoch without replacement.

    Every batch is full: what is left over at the end of an epoch is dropped, so that a comparison of batch
    sizes never meets a small last batch.

    Args:
        n: number of samples.
        size: samples per batch, at most n.
        steps: number of batches.
        seed: the order.

    Yields:
        (size,) int64 tensors.

    Raises:
        ValueError: `size` is not in 1 to n.

    Example:
        >>> [sorted(i.tolist()) for i in minibatches(4, 4, steps=2)]
        [[0, 1, 2, 3], [0, 1, 2, 3]]
    """
    if not 1 <= size <= n:
        raise ValueError(f"expected 1 ≤ size ≤ {n}, got {size}")
    rng = np.random.default_rng(seed)
    per_epoch = n // size
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.from_numpy(rng.permutation(n))
        start = step % per_epoch * size
        yield order[start : start + size]


def loaders(data: Digits, batch_size: int = 64, *, seed: int = 0) -> tuple[DataLoader, DataLoader]:
    """Loaders of (x, labels) over the training and the test part.

    The training part is shuffled anew in every epoch and its incomplete last batch dropped: one of a single image
    would stop BatchNorm. The test part comes whole and in order.

    Args:
        data: what `digits` returns.
        batch_size: images per batch, at most as many as there are to train on.
        seed: of the shuffling.

    Returns:
        (training, test).

    Raises:
        ValueError: `batch_size` is not in 1 to the number of training images.

    Example:
        >>> training, test = loaders(digits(images=True), 100)
        >>> len(training), len(test), next(iter(test))[0].shape
        (13, 5, torch.Size([100, 1, 8, 8]))
    """
    if not 1 <= batch_size <= len(data.x_train):
        raise ValueError(f"expected 1 ≤ batch_size ≤ {len(data.x_train)}, got {batch_size}")
    order = torch.Generator().manual_seed(seed)
    train, test = TensorDataset(data.x_train, data.y_train), TensorDataset(data.x_test, data.y_test)
    return DataLoader(train, batch_size, shuffle=True, drop_last=True, generator=order), DataLoader(test, batch_size)


def inverted(x: Tensor) -> Tensor:
    """Digits with ink and paper exchanged: 1 − x.

    Args:
        x: digits as `digits` gives them, (N, 64) or (N, 1, 8, 8), pixels in [0, 1].

    Returns:
        Like x.

    Example:
        >>> inverted(torch.full((1, 64), 0.25)).unique()
        tensor([0.7500])
    """
    _as_images(x)
    return 1 - x


def blurred(x: Tensor, sigma: float = 1.0) -> Tensor:
    """Digits out of focus: every pixel becomes a weighted mean of its surroundings.

    The weights are a Gaussian's, cut off at 3 sigma; beyond the edge the picture is paper (0).

    Args:
        x: (N, 64) or (N, 1, 8, 8), pixels in [0, 1].
        sigma: the Gaussian's standard deviation in pixels, above 0.

    Returns:
        Like x.

    Raises:
        ValueError: x of another shape; sigma not above 0.

    Example:
        >>> x = torch.zeros(1, 1, 8, 8)
        >>> x[0, 0, 4, 4] = 1.0
        >>> blurred(x).max().round(decimals=2)
        tensor(0.1600)

    Source: one of the corruptions of [hendrycks2019].
    """
    images = _as_images(x)
    if not sigma > 0:
        raise ValueError(f"expected sigma > 0, got {sigma}")
    reach = int(np.ceil(3 * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).to(x) / sigma) ** 2)
    weights = weights / weights.sum()
    # A Gaussian is one along the rows, then one along the columns.
    along_rows = F.conv2d(images, weights.view(1, 1, 1, -1), padding=(0, reach))
    return F.conv2d(along_rows, weights.view(1, 1, -1, 1), padding=(reach, 0)).reshape(x.shape)


def rotated(x: Tensor, degrees: float = 30.0) -> Tensor:
    """Digits turned counter-clockwise about the middle of the picture, interpolated between pixels.

    Args:
        x: (N, 64) or (N, 1, 8, 8), pixels in [0, 1]; what comes in from outside is paper (0).
        degrees: the angle.

    Returns:
        Like x.

    Raises:
        ValueError: x of another shape.

    Example:
        >>> x = torch.arange(64.0).view(1, 64) / 64
        >>> torch.allclose(rotated(x, 90), x.view(8, 8).rot90().reshape(1, 64), atol=1e-5)
        True
    """
    images = _as_images(x)
    angle = torch.deg2rad(torch.tensor(float(degrees)).to(x))
    zero = torch.zeros_like(angle)
    # Where each pixel of the result comes from: the inverse turn. Rows grow downwards, so signs are not the usual ones.
    turn = torch.stack([angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero]).view(1, 2, 3)
    grid = F.affine_grid(turn.expand(len(images), -1, -1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).reshape(x.shape)


def noisy(x: Tensor, std: float = 0.3, *, seed: int = 0) -> Tensor:
    """Digits with normal noise on every pixel, cut to [0, 1].

    Args:
        x: (N, 64) or (N, 1, 8, 8), pixels in [0, 1].
        std: standard deviation of the noise, at least 0.
        seed: of the noise, which comes from NumPy and is the same on every computer.

    Returns:
        Like x.

    Raises:
        ValueError: x of another shape; std negative.

    Example:
        >>> torch.equal(noisy(torch.zeros(1, 64), seed=1), noisy(torch.zeros(1, 64), seed=1))
        True

    Source: one of the corruptions of [hendrycks2019].
    """
    _as_images(x)
    if not std >= 0:
        raise ValueError(f"expected std ≥ 0, got {std}")
    noise = np.random.default_rng(seed).standard_normal(tuple(x.shape))
    return (x + std * torch.from_numpy(noise).to(x)).clamp(0, 1)


def _as_images(x):
    if not (isinstance(x, Tensor) and x.shape[1:] in ((64,), (1, 8, 8))):
        raise ValueError(f"expected digits of shape (N, 64) or (N, 1, 8, 8), got {tuple(getattr(x, 'shape', ()))}")
    return x.reshape(-1, 1, 8, 8)


#: The shifts of the digits by name, at their usual strength.
SHIFTS: dict[str, Callable[[Tensor], Tensor]] = {
    "inverted": inverted,
    "blurred": blurred,
    "rotated": rotated,
    "noise": noisy,
}
