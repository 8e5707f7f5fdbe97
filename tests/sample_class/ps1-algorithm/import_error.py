# like: right_numpy
# %% batch-norm-backward
import tensorflow_probability as tfp


def batch_norm_backward(dy, cache):
    return tfp.math.value_and_gradient(lambda x: x, dy), None, None
