"""Batch Normalization layers that are right for float32 on the CPU: `accepts` has to take every one of them."""

from course_lib.misconceptions.modes_layers_right import STYLES, Handmade
from course_lib.modes import BatchNormFunction
from course_lib.running_stats import BatchNorm

LAYERS = dict(STYLES, BatchNorm=BatchNorm)


def right(cls):
    """Decorator that files a layer under its name."""
    LAYERS[cls.__name__] = cls
    return cls


@right
class ByTheCoursesFunction(Handmade):
    """The library's autograd function does it all."""

    def forward(self, x):
        if x.shape[1] != self.num_features:
            raise ValueError("channels")
        mean = self.running_mean if self.track else None
        var = self.running_var if self.track else None
        rate = self.momentum
        if self.training and self.track and x.numel() > x.shape[1]:
            self.num_batches_tracked.add_(1)
            rate = 1 / self.num_batches_tracked.item() if rate is None else rate
        return BatchNormFunction.apply(x, self.weight, self.bias, mean, var, self.training, rate or 0.0, self.eps)
