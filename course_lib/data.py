"""The data of the chapters: scikit-learn's digits, which lie inside its wheel, so nothing is downloaded."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

__all__ = ["Digits", "digits", "minibatches"]


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
