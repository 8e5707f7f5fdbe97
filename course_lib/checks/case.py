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

    Attributes:
        exact: everything handed out so far was float64 in any case, so that lifting it would change nothing.

    Example:
        >>> case = Case("demo", seed=0, dtypes=("float32",))
        >>> case.array((2, 3)).dtype
        dtype('float32')
        >>> Case("demo", seed=0, dtypes=("float32",), lift=True).array((2, 3)).dtype
        dtype('float64')
    """

    def __init__(self, label, seed, dtypes=("float64",), *, lift=False):
        self.seed = seed
        self._rng = default_rng([seed, zlib.crc32(label.encode())])
        self.name = dtypes[self._rng.integers(len(dtypes))]
        self._lift = lift
        self.exact = True
        self._given = []
        self._numbers = []
        self._hash = hashlib.sha256(self.name.encode())

    @property
    def dtype(self):
        """The case's dtype as NumPy's, the same in a lifted case. NumPy has no bfloat16."""
        return np.dtype(self.name)

    @property
    def torch_dtype(self):
        """The case's dtype as torch's; float64 in a lifted case."""
        return self.as_torch(self.name)

    def as_torch(self, name):
        """Another dtype as torch's, for what is float32 beside a half input; float64 in a lifted case."""
        import torch  # a case of the first problem set works without it

        self.exact &= name == "float64"
        return torch.float64 if self._lift else getattr(torch, name)

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
        self.exact &= self.name == "float64"
        rounded = np.asarray(values, dtype=self.dtype)
        self._record(rounded.astype(np.float64))
        array = rounded.astype(np.float64) if self._lift else rounded
        before = array.copy()
        self._given.append((name, array.shape, lambda: np.array_equal(array, before, equal_nan=True)))
        return array

    def array(self, shape, mean=0.0, std=1.0, *, name="x"):
        """Normal numbers of `shape` as an input. mean and std broadcast against it."""
        return self.given(self.draw(shape, mean, std), name)

    def given_tensor(self, values, name, *, dtype=None, watch=True):
        """`values` as an input that is a torch tensor.

        Args:
            values: anything NumPy takes.
            name: of the input, for messages.
            dtype: its dtype's name where that is not the case's: float32 statistics beside a half input.
            watch: False for what the implementation is asked to change, running statistics for one.
        """
        import torch

        dtype = dtype or self.name
        rounded = torch.tensor(np.asarray(values, np.float64)).to(getattr(torch, dtype))
        self._record(rounded.double().numpy())
        tensor = rounded.to(self.as_torch(dtype))
        before = tensor.clone()
        unchanged = (lambda: torch.equal(tensor.detach().nan_to_num(), before.nan_to_num())) if watch else lambda: True
        self._given.append((name, tuple(tensor.shape), unchanged))
        return tensor

    def tensor(self, shape, mean=0.0, std=1.0, *, name="x", dtype=None, watch=True):
        """Normal numbers of `shape` as an input that is a torch tensor. mean and std broadcast against it."""
        return self.given_tensor(self.draw(shape, mean, std), name, dtype=dtype, watch=watch)

    def fill(self, module, *, dtype=None):
        """Give a model's parameters and floating buffers numbers of the case, in place, and the case's dtype.

        Weights of norms and running variances are drawn between 0.5 and 2, everything else around 0 with a spread
        that keeps signals at their size. Numbers do not depend on torch's own generator, whose bits differ between
        processors.

        Args:
            module: any module whose parameters are on the CPU and materialised.
            dtype: another dtype's name than the case's.

        Returns:
            The module.
        """
        import torch

        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for name, tensor in named.items():
            if not tensor.is_floating_point():
                continue
            positive = name.endswith("running_var") or (name.endswith("weight") and tensor.dim() == 1)
            fan_in = max(1, tensor[0].numel()) if tensor.dim() > 1 else 1
            values = self.uniform(0.5, 2, tensor.shape) if positive else self.draw(tensor.shape, std=fan_in**-0.5)
            rounded = torch.tensor(np.asarray(values)).to(getattr(torch, dtype or self.name))
            self._record(rounded.double().numpy())
            with torch.no_grad():
                tensor.data = rounded.to(self.as_torch(dtype or self.name))
        return module

    def _record(self, values):
        # Three digits are enough to notice other inputs, and too few to notice another CPU's last bit.
        scale = np.abs(values).max() if values.size else 0
        self._hash.update((np.round(values / (scale or 1), 3) + 0.0).tobytes())

    def changed(self):
        """Names of the inputs that no longer hold what was handed out: an observation like any other."""
        return ", ".join(name for name, _, unchanged in self._given if not unchanged())

    def asked(self):
        """What was handed out, in words, so that a student can ask the same."""
        arrays = [f"{name} {shape}" for name, shape, _ in self._given]
        return f"{self.name}: {', '.join(arrays + self._numbers)}" if arrays else ""

    def digest(self):
        """Short digest of everything drawn, equal wherever the same question was asked."""
        return self._hash.hexdigest()[:16]
