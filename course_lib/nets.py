"""Small networks that chapters and problem sets train."""

from itertools import pairwise

import numpy as np

from course_lib import algorithm

__all__ = ["NumpyMLP"]


class NumpyMLP:
    """A multilayer perceptron in plain NumPy, whose Batch Normalization is `course_lib.algorithm`'s.

    Linear → BatchNorm → ReLU for every hidden layer, a linear layer and softmax cross-entropy at the end,
    trained by gradient descent with momentum. The functions are looked up in the module when they are
    called, so pieces that were plugged in do the work.

    Args:
        sizes: features of the input, of every hidden layer, and the number of classes.
        batch_norm: leave the normalisation out for comparison.
        scale: standard deviation of the initial weights, in units of He's √(2 / fan_in).
        seed: of the initial weights.

    Example:
        >>> net = NumpyMLP((2, 8, 2), seed=0)
        >>> net.step(np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]), np.array([0, 1, 0]), learning_rate=0.1) > 0
        True
    """

    def __init__(self, sizes, *, batch_norm=True, scale=1.0, seed=0):
        rng = np.random.default_rng(seed)
        pairs = list(pairwise(sizes))
        self.batch_norm = batch_norm
        self.parameters = {}
        for i, (fan_in, fan_out) in enumerate(pairs):
            self.parameters[f"w{i}"] = scale * np.sqrt(2 / fan_in) * rng.standard_normal((fan_in, fan_out))
            self.parameters[f"b{i}"] = np.zeros(fan_out)
            if batch_norm and i < len(pairs) - 1:
                self.parameters[f"gamma{i}"], self.parameters[f"beta{i}"] = np.ones(fan_out), np.zeros(fan_out)
        self.depth = len(pairs)
        self._velocity = {name: np.zeros_like(value) for name, value in self.parameters.items()}

    def forward(self, x):
        """Logits of a batch (N, features), with the statistics of that batch, and what backward needs.

        Returns:
            (logits, tape): logits of shape (N, classes).
        """
        p, tape = self.parameters, []
        for i in range(self.depth - 1):
            z = x @ p[f"w{i}"] + p[f"b{i}"]
            cache = None
            if self.batch_norm:
                z, cache = algorithm.batch_norm_forward(z, p[f"gamma{i}"], p[f"beta{i}"])
            tape.append((x, cache, z > 0))
            x = np.maximum(z, 0)
        last = self.depth - 1
        tape.append((x, None, None))
        return x @ p[f"w{last}"] + p[f"b{last}"], tape

    def gradients(self, tape, dlogits):
        """Gradients of every parameter, by name, from the gradient at the logits."""
        p, grads, d = self.parameters, {}, dlogits
        for i in reversed(range(self.depth)):
            x, cache, active = tape[i]
            if active is not None:
                d = d * active
            if cache is not None:
                d, grads[f"gamma{i}"], grads[f"beta{i}"] = algorithm.batch_norm_backward(d, cache)
            grads[f"w{i}"], grads[f"b{i}"] = x.T @ d, d.sum(axis=0)
            d = d @ p[f"w{i}"].T
        return grads

    def step(self, x, labels, learning_rate, momentum=0.9):
        """One step of gradient descent on a batch.

        Args:
            x: (N, features), float64.
            labels: (N,), whole numbers.
            learning_rate, momentum: of the heavy-ball update.

        Returns:
            The mean cross-entropy of the batch before the step, in nats.
        """
        logits, tape = self.forward(x)
        logits = logits - logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        rows = np.arange(len(labels))
        loss = -log_p[rows, labels].mean()
        dlogits = np.exp(log_p)
        dlogits[rows, labels] -= 1
        for name, gradient in self.gradients(tape, dlogits / len(labels)).items():
            self._velocity[name] = momentum * self._velocity[name] - learning_rate * gradient
            self.parameters[name] += self._velocity[name]
        return float(loss)

    def fit(self, x, labels, *, steps, learning_rate, batch_size=64, seed=0):
        """Train on random batches; returns the loss of every step, an array of length `steps`."""
        rng = np.random.default_rng(seed)
        batches = (rng.choice(len(x), batch_size, replace=False) for _ in range(steps))
        return np.array([self.step(x[rows], labels[rows], learning_rate) for rows in batches])
