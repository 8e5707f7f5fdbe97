"""The inputs of one scenario: drawn from a seed, rounded to a dtype, lifted to float64 for the truth."""

import hashlib
import zlib

import numpy as np
from numpy.random import default_rng  # as it was, whatever a student's code puts in its place

__all__ = ["Case"]


class Case:
    """Everything a scenario may draw, and a record of what it handed out.

    Every draw comes from NumPy's `Generator`, so that two computers with the same seed ask the same
    question. Arrays are drawn in float64 and rounded to the case's dtype; a lifted case then turns them
    back to float64: the same numbers, exact arithmetic. That is where the truth comes from.

    Args:
        label: piece and scenario, so that two scenarios of one seed do not share their numbers.
        seed: the student's seed; 0 is the public one.
        dtypes: names of the dtypes the seed may choose from.
        lift: hand the rounded inputs out as float64.

    Example:
        >>> case = Case("demo", seed=0, dtypes=("float32",))
        >>> case.array((2, 3)).dtype
        dtype('float32')
        >>> Case("demo", seed=0, dtypes=("float32",), lift=True).array((2, 3)).dtype
        dtype('float64')
    """

    def __init__(self, label, seed, dtypes=("float64",), *, lift=False):
        self._rng = default_rng([seed, zlib.crc32(label.encode())])
        self.dtype = np.dtype(dtypes[self._rng.integers(len(dtypes))])
        self._lift = lift
        self._given = []
        self._numbers = []
        self._hash = hashlib.sha256(str(self.dtype).encode())

    def integer(self, low, high):
        """A whole number from `low` to `high`, both included."""
        number = int(self._rng.integers(low, high + 1))
        self._hash.update(str(number).encode())
        return number

    def uniform(self, low, high, shape=None):
        """A float, or a float64 array of `shape`, between `low` and `high`."""
        return self._rng.uniform(low, high, shape)

    def number(self, name, low, high):
        """A Python float between `low` and `high` as an argument of the implementation, rounded to two digits."""
        number = round(float(self._rng.uniform(low, high)), 2)
        self._numbers.append(f"{name}={number}")
        return number

    def choice(self, options):
        """One of `options`."""
        return options[self.integer(0, len(options) - 1)]

    def draw(self, shape, mean=0.0, std=1.0):
        """Normal numbers in float64, to be worked on before they are `given`. Broadcasts mean and std."""
        return mean + std * self._rng.standard_normal(shape)

    def given(self, values, name):
        """`values` as the input `name` of the implementation: rounded to the case's dtype, watched for changes."""
        rounded = np.asarray(values, dtype=self.dtype)
        # Three digits are enough to notice other inputs, and too few to notice another CPU's last bit.
        scale = np.abs(rounded).max() if rounded.size else 0
        self._hash.update((np.round(rounded.astype(np.float64) / (scale or 1), 3) + 0.0).tobytes())
        array = rounded.astype(np.float64) if self._lift else rounded
        self._given.append((name, array, array.copy()))
        return array

    def array(self, shape, mean=0.0, std=1.0, *, name="x"):
        """Normal numbers of `shape` as an input. mean and std broadcast against it."""
        return self.given(self.draw(shape, mean, std), name)

    def changed(self):
        """Names of the inputs that no longer hold what was handed out: an observation like any other."""
        return ", ".join(name for name, now, then in self._given if not np.array_equal(now, then, equal_nan=True))

    def asked(self):
        """What was handed out, in words, so that a student can ask the same."""
        arrays = [f"{name} {then.shape}" for name, _, then in self._given]
        return f"{self.dtype}: {', '.join(arrays + self._numbers)}" if arrays else ""

    def digest(self):
        """Short digest of everything drawn, equal wherever the same question was asked."""
        return self._hash.hexdigest()[:16]
