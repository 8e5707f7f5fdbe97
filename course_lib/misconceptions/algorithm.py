"""What people get wrong in problem set 1."""

from course_lib.misconceptions import Misconception

THREE_STEPS = "chapter 1, «The three steps»"
AXES = "chapter 1, «Which axes: one mean per channel»"
BIAS = "chapter 1, «Biased or unbiased»"
EPS = "chapter 1, «Where eps goes»"
AFFINE = "chapter 1, «Scale, shift and the identity»"
PATHS = "chapter 1, «Backward: three paths to one input»"
PARAMETERS = "chapter 1, «The gradients of gamma and beta»"
GEOMETRY = "chapter 1, «The geometry of the gradient»"
LARGE = "chapter 1, «When the mean is large»"
DTYPE = "chapter 1, «Same dtype in, same dtype out»"


def _stats(name, old, new, hint, read, seen):
    return Misconception("algorithm.batch_stats", name, ((old, new),), hint, read, seen)


def _forward(name, old, new, hint, read, seen):
    return Misconception("algorithm.batch_norm_forward", name, ((old, new),), hint, read, seen)


def _backward(name, old, new, hint, read, seen):
    return Misconception("algorithm.batch_norm_backward", name, ((old, new),), hint, read, seen)


def _identity(name, old, new, hint, read, seen):
    return Misconception("algorithm.recover_identity", name, ((old, new),), hint, read, seen)


_RESULT = "return (pivot + offset)[:, 0], var"
_VAR = "np.square(shifted - offset).mean(axis=1)"
_INVSTD = "1 / np.sqrt(var + x.dtype.type(eps))"
_CACHE = "return y, (x_hat, gamma, invstd)"
_Y = "gamma.reshape(per_channel) * x_hat + beta.reshape(per_channel)"
_SHIFT = "shifted = x - x[first] if x.size else x"
_STATS = "mean, var = batch_stats(shifted)"
_COUPLED = "(dbeta.reshape(per_channel) + x_hat * dgamma.reshape(per_channel)) / n"
_DX = "dx = (gamma * invstd).reshape(per_channel) * (dy - coupled)"
_GRADIENTS = "return dx, dgamma, dbeta"
_GAMMA = "np.sqrt(var + var.dtype.type(eps))"
_PAIR = "return gamma, mean.copy()"

# fmt: off
MISCONCEPTIONS = [
    # --- batch_stats
    _stats(
        "unbiased_variance", _VAR, "np.square(shifted - offset).sum(axis=1) / (rows.shape[1] - 1)",
        "This is the unbiased variance, divided by n − 1: the batch is normalised with the biased one, divided by n.",
        BIAS, "np.var(..., ddof=1), torch.var's default",
    ),
    _stats(
        "standard_deviation", _RESULT, "return (pivot + offset)[:, 0], np.sqrt(var)",
        "The second value is the standard deviation: asked for is its square, the variance.",
        THREE_STEPS, "x.std beside x.mean",
    ),
    _stats(
        "batch_axis_only", _RESULT, "return x.mean(axis=0), x.var(axis=0)",
        "These statistics are over axis 0 only, one per position: a channel's statistics run over its positions too.",
        AXES, "tutorials that derive BN on (N, D) and then feed it images",
    ),
    _stats(
        "channels_last", _RESULT, "axes = tuple(range(x.ndim - 1))\n    return x.mean(axis=axes), x.var(axis=axes)",
        "These statistics keep the last axis: the channels are on axis 1, as in PyTorch.",
        AXES, "code carried over from Keras, where channels come last",
    ),
    _stats(
        "per_sample", _RESULT, "axes = tuple(range(2, x.ndim))\n    return x.mean(axis=axes), x.var(axis=axes)",
        "These statistics are taken for every sample by itself: batch statistics run over the samples as well.",
        AXES, "x.mean(axis=(2, 3)), which is instance normalisation",
    ),
    _stats(
        "axes_kept", _RESULT,
        "axes = (0, *range(2, x.ndim))\n    return x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)",
        "The values look reduced over the right axes, but those axes are still there with length 1: return shape (C,).",
        AXES, "keepdims=True, handy for broadcasting, left in the result",
    ),
    _stats(
        "squeezed", _RESULT, "return (pivot + offset).squeeze(), var.squeeze()",
        "With one channel the results have no axis left: squeeze takes every axis of length 1, the channels' own too.",
        AXES, "keepdims=True for broadcasting, then .squeeze() without an axis",
    ),
    _stats(
        "one_pass_variance", _VAR, "np.square(rows).mean(axis=1) - np.square(rows.mean(axis=1))",
        "The mean of the squares minus the square of the mean: two huge numbers whose difference is all rounding.",
        LARGE, "one-pass loops, and E[x²] − E[x]² from the textbook",
    ),
    _stats(
        "single_value_accepted", "if rows.shape[1] < 2:", "if rows.shape[1] < 1:",
        "One value per channel has no spread: refuse it with a ValueError instead of returning a variance of 0.",
        THREE_STEPS, "code that was never run on a batch of one",
    ),
    _stats(
        "float64_returned", _RESULT, "return (pivot + offset)[:, 0].astype(np.float64), var.astype(np.float64)",
        "float32 came in and float64 went out: the results have to have the input's dtype.",
        DTYPE, "accumulators made by np.zeros(C)",
    ),
    _stats(
        "input_centred_in_place", _RESULT,
        "mean = (pivot + offset)[:, 0]\n    x -= mean.reshape(1, channels, *(1,) * (x.ndim - 2))\n    return mean, var",
        "x itself is changed in place, by an operator such as -=: whoever called still needs the data.",
        DTYPE, "x -= mean, to save memory",
    ),
    _stats(
        "values_swapped", _RESULT, "return var, (pivot + offset)[:, 0]",
        "Mean and variance have changed places: the mean comes first.",
        THREE_STEPS, "the order of torch.var_mean",
    ),
    _stats(
        "sum_of_squares", _VAR, "np.square(shifted - offset).sum(axis=1)",
        "The second value is the sum of the squared deviations: the variance is their mean.",
        THREE_STEPS, "a forgotten 1/n",
    ),
    _stats(
        "divided_by_batch_size", _VAR, "np.square(shifted - offset).sum(axis=1) / x.shape[0]",
        "The squared deviations are divided by the batch size: a channel of images has more values than that.",
        AXES, "code written for (N, D) and used on images",
    ),
    _stats(
        "whole_tensor", _RESULT, "return x.mean(), x.var()",
        "This is one mean and one variance of everything: every channel has its own.",
        AXES, "x.mean() without an axis",
    ),
    _stats(
        "reshaped_without_transposing", "np.moveaxis(x, 1, 0).reshape(channels, -1)", "x.reshape(channels, -1)",
        "The values were regrouped without moving the channel axis to the front: rows mix channels.",
        AXES, "x.reshape(C, -1)",
    ),
    _stats(
        "batch_of_one_refused", "if rows.shape[1] < 2:", "if x.shape[0] < 2:",
        "A batch of one image is refused: what counts is the number of values per channel, and its positions count.",
        AXES, "taking n for the batch size",
    ),
    # --- batch_norm_forward
    _forward(
        "unbiased_variance", _INVSTD,
        "1 / np.sqrt(var * (x.size // channels) / (x.size // channels - 1) + x.dtype.type(eps))",
        "The batch is divided by the unbiased standard deviation: normalise with the biased variance, over n.",
        BIAS, "torch.var's default in from-scratch layers",
    ),
    _forward(
        "eps_outside_root", _INVSTD, "1 / (np.sqrt(var) + x.dtype.type(eps))",
        "eps is added to the standard deviation: it belongs to the variance, inside the root.",
        EPS, "std + eps, as in many from-scratch layers",
    ),
    _forward(
        "eps_forgotten", _INVSTD, "1 / np.sqrt(var)",
        "eps does not enter: the root is taken of the variance alone.",
        EPS, "formulas quoted without their small print",
    ),
    _forward(
        "keras_eps", "eps=1e-5", "eps=1e-3",
        "The default of eps is 1e-3 here, as in Keras: this course and PyTorch use 1e-5.",
        EPS, "signatures carried over from Keras",
    ),
    _forward(
        "eps_ignored", _INVSTD, "1 / np.sqrt(var + x.dtype.type(1e-5))",
        "The argument eps is not used: 1e-5 is only its default.",
        EPS, "a constant copied from the formula's default",
    ),
    _forward(
        "multiplied_by_std", _INVSTD, "np.sqrt(var + x.dtype.type(eps))",
        "The batch is multiplied by its standard deviation: divide by it.",
        THREE_STEPS, "invstd that was never inverted",
    ),
    _forward(
        "not_centred", "(shifted - mean.reshape(per_channel)) * invstd", "x * invstd",
        "The mean is not taken off: centre the values before dividing.",
        THREE_STEPS, "answers that skip the first step",
    ),
    _forward(
        "no_root", _INVSTD, "1 / (var + x.dtype.type(eps))",
        "The batch is divided by the variance: divide by its square root.",
        THREE_STEPS, "slips of the pen",
    ),
    _forward(
        "gamma_beta_swapped", _Y, "beta.reshape(per_channel) * x_hat + gamma.reshape(per_channel)",
        "gamma and beta have changed places: gamma multiplies, beta is added.",
        AFFINE, "tutorials that call them beta and gamma",
    ),
    _forward(
        "no_shift", _Y, "gamma.reshape(per_channel) * x_hat",
        "The shift is missing: beta is added at the end.",
        AFFINE, "answers that stop after the scale",
    ),
    _forward(
        "no_scale", _Y, "x_hat + beta.reshape(per_channel)",
        "The scale is missing: x̂ is multiplied by gamma before beta is added.",
        AFFINE, "answers that forget a parameter",
    ),
    _forward(
        "shift_subtracted", _Y, "gamma.reshape(per_channel) * x_hat - beta.reshape(per_channel)",
        "beta is subtracted: it is added.",
        AFFINE, "a wrong sign",
    ),
    _forward(
        "no_scale_and_shift", _Y, "x_hat.copy()",
        "This is x̂: the scale gamma and the shift beta are still to be applied.",
        AFFINE, "answers that stop after normalising",
    ),
    _forward(
        "shift_scaled", _Y, "gamma.reshape(per_channel) * (x_hat + beta.reshape(per_channel))",
        "beta is multiplied by gamma: scale first, shift after.",
        AFFINE, "misplaced parentheses",
    ),
    _forward(
        "no_broadcast", _Y, "gamma * x_hat + beta",
        "A vector of shape (C,) meets the last axis of x: give it a shape that lines up with axis 1.",
        AXES, "layers written for (N, D) and used on images",
    ),
    Misconception(
        "algorithm.batch_norm_forward",
        "whole_tensor",
        ((_SHIFT, "shifted = x"), (_STATS, "mean, var = np.full(channels, x.mean()), np.full(channels, x.var())")),
        "One mean and one variance are used for all channels: every channel has its own.",
        AXES,
        "x.mean() without an axis",
    ),
    Misconception(
        "algorithm.batch_norm_forward",
        "per_sample",
        (
            (_STATS, "mean, var = (f(shifted, tuple(range(2, x.ndim)), keepdims=True) for f in (np.mean, np.var))"),
            ("mean.reshape(per_channel)", "mean"),
            ("* invstd.reshape(per_channel)", "* invstd"),
        ),
        "Every sample is normalised by itself, as instance normalisation does: use the whole batch.",
        AXES,
        "x.mean(axis=(2, 3))",
    ),
    Misconception(
        "algorithm.batch_norm_forward",
        "layer_norm",
        (
            (_SHIFT, "shifted = x"),
            (_STATS, "mean, var = (f(x, tuple(range(1, x.ndim)), keepdims=True) for f in (np.mean, np.var))"),
            ("mean.reshape(per_channel)", "mean"),
            ("* invstd.reshape(per_channel)", "* invstd"),
        ),
        "Every sample is normalised over its own features, as layer normalisation does: use the batch, per channel.",
        AXES, "x.mean(axis=-1)",
    ),
    Misconception(
        "algorithm.batch_norm_forward",
        "batch_axis_only",
        (
            (_STATS, "mean, var = shifted.mean(axis=0), shifted.var(axis=0)"),
            ("mean.reshape(per_channel)", "mean"),
            ("* invstd.reshape(per_channel)", "* invstd"),
            (_SHIFT, "shifted = x - x[:1]"),
        ),
        "Every position has its own statistics, over axis 0 only: all positions of a channel share them.",
        AXES, "x.mean(axis=0) on images",
    ),
    Misconception(
        "algorithm.batch_norm_forward",
        "one_pass_variance",
        (
            (_SHIFT, "shifted = x"),
            (
                _STATS,
                "axes = (0, *range(2, x.ndim))\n"
                "    mean = x.mean(axis=axes)\n"
                "    var = np.square(x).mean(axis=axes) - np.square(mean)",
            ),
        ),
        "The variance is the mean of the squares minus the square of the mean: for a large mean nothing of it is left.",
        LARGE,
        "one-pass loops",
    ),
    _forward(
        "variance_cached", _CACHE, "return y, (x_hat, gamma, var)",
        "The third part of the cache is the variance: backward needs invstd = 1/√(var + eps).",
        PATHS, "caches that keep whatever forward computed",
    ),
    _forward(
        "std_cached", _CACHE, "return y, (x_hat, gamma, 1 / invstd)",
        "The third part of the cache is the standard deviation: keep its inverse.",
        PATHS, "caches that keep std",
    ),
    _forward(
        "axes_kept_in_cache", _CACHE, "return y, (x_hat, gamma, invstd.reshape(per_channel))",
        "invstd is cached with extra axes of length 1: keep it in shape (C,).",
        PATHS, "keepdims=True, left in the cache",
    ),
    _forward(
        "centred_input_cached", _CACHE, "return y, (shifted - mean.reshape(per_channel), gamma, invstd)",
        "The first part of the cache is x − mean: keep x̂, already divided by the standard deviation.",
        PATHS, "caches in the style of the step-by-step computation graph",
    ),
    _forward(
        "output_cached", _CACHE, "return y, (y, gamma, invstd)",
        "The first part of the cache is y: keep x̂, before scale and shift.",
        PATHS, "a variable reused for both",
    ),
    _forward(
        "float64_returned", _CACHE,
        "return y.astype(np.float64), tuple(part.astype(np.float64) for part in (x_hat, gamma, invstd))",
        "float32 came in and float64 went out: output and cache have to have the input's dtype.",
        DTYPE, "statistics computed in float64 and never cast back",
    ),
    _forward(
        "input_overwritten", _SHIFT, "shifted = x\n    shifted -= x[first].copy()",
        "x is changed in place: whoever called still needs it, a residual branch for example.",
        DTYPE, "x -= mean, to save memory",
    ),
    # --- batch_norm_backward
    _backward(
        "no_mean_term", _COUPLED, "x_hat * dgamma.reshape(per_channel) / n",
        "The path through the mean is missing: dx does not sum to zero in every channel.",
        PATHS, "derivations that treat the mean as a constant",
    ),
    _backward(
        "no_variance_term", _COUPLED, "dbeta.reshape(per_channel) / n",
        "The path through the variance is missing: the term along x̂ does not come off.",
        PATHS, "derivations that treat the variance as a constant",
    ),
    _backward(
        "statistics_constant", _DX, "dx = (gamma * invstd).reshape(per_channel) * dy",
        "The statistics are treated as constants, which is the gradient in eval mode: in training they depend on x.",
        PATHS, "the chain rule through (x − mean) · invstd alone",
    ),
    _backward(
        "coupling_not_averaged", _COUPLED, "dbeta.reshape(per_channel) + x_hat * dgamma.reshape(per_channel)",
        "The two coupling terms are sums where means belong: divide them by n.",
        GEOMETRY, "a forgotten 1/n",
    ),
    _backward(
        "mean_term_not_averaged", _COUPLED, "dbeta.reshape(per_channel) + x_hat * dgamma.reshape(per_channel) / n",
        "The term of the mean is a sum where a mean belongs: divide it by n, like the other one.",
        GEOMETRY, "misplaced parentheses",
    ),
    _backward(
        "variance_term_not_averaged", _COUPLED, "dbeta.reshape(per_channel) / n + x_hat * dgamma.reshape(per_channel)",
        "The term of the variance is a sum where a mean belongs: divide it by n, like the other one.",
        GEOMETRY, "misplaced parentheses",
    ),
    _backward(
        "sign_of_variance_term", _COUPLED, "(dbeta.reshape(per_channel) - x_hat * dgamma.reshape(per_channel)) / n",
        "The term of the variance has the wrong sign: both coupling terms come off dy.",
        GEOMETRY, "a lost minus sign",
    ),
    _backward(
        "divided_by_n_minus_one", _COUPLED,
        "(dbeta.reshape(per_channel) + x_hat * dgamma.reshape(per_channel)) / (n - 1)",
        "The coupling terms are divided by n − 1: the forward pass takes the biased variance, so it is n.",
        BIAS, "the unbiased variance's derivative",
    ),
    _backward(
        "divided_by_norm", _COUPLED,
        "dbeta.reshape(per_channel) / n\\\n"
        "        + x_hat * (dgamma / np.square(x_hat).sum(axis=axes)).reshape(per_channel)",
        "The part along x̂ is divided by the sum of x̂², as in a projection: that is n for eps = 0 only, divide by n.",
        GEOMETRY, "the geometric picture taken literally",
    ),
    _backward(
        "n_is_everything", "n = dy.size // channels", "n = dy.size",
        "n counts all values of dy here: it is the number of values per channel.",
        AXES, "dy.size for n",
    ),
    _backward(
        "n_is_batch_size", "n = dy.size // channels", "n = dy.shape[0]",
        "n is the batch size here: a channel has N times all its positions values.",
        AXES, "code written for (N, D) and used on images",
    ),
    _backward(
        "gamma_missing", "(gamma * invstd)", "invstd",
        "gamma is missing in dx: the gradient at x̂ is dy times gamma.",
        PATHS, "derivations that start at x̂",
    ),
    _backward(
        "gamma_squared", "(gamma * invstd)", "(gamma * gamma * invstd)",
        "gamma comes in twice: once is enough, at x̂.",
        PATHS, "gamma multiplied in at y and again at the end",
    ),
    _backward(
        "gamma_on_direct_path_only", _DX,
        "dx = invstd.reshape(per_channel) * (gamma.reshape(per_channel) * dy - coupled)",
        "gamma multiplies the direct path alone: the coupling terms come from the gradient at x̂, with gamma in it.",
        PATHS, "coupling terms computed from dy",
    ),
    _backward(
        "invstd_missing", "(gamma * invstd)", "gamma",
        "invstd is missing in dx: what divides in the forward pass divides the gradient too.",
        PATHS, "derivations that end at x − mean",
    ),
    _backward(
        "sign_of_coupling", "(dy - coupled)", "(dy + coupled)",
        "The coupling terms are added: they come off dy.",
        GEOMETRY, "a lost minus sign",
    ),
    _backward(
        "dgamma_without_x_hat", "(dy * x_hat).sum(axis=axes)", "dy.sum(axis=axes)",
        "dgamma is the sum of dy, like dbeta: gamma is multiplied by x̂, so x̂ is in its gradient.",
        PARAMETERS, "dgamma copied from the line of dbeta",
    ),
    _backward(
        "parameter_gradients_averaged", _GRADIENTS, "return dx, dgamma / n, dbeta / n",
        "dgamma and dbeta are means over the batch: they are sums, the loss already has its 1/N.",
        PARAMETERS, "averaging twice",
    ),
    _backward(
        "parameter_gradients_swapped", _GRADIENTS, "return dx, dbeta, dgamma",
        "dgamma and dbeta have changed places.",
        PARAMETERS, "the order of frameworks that return them the other way round",
    ),
    _backward(
        "gamma_in_parameter_gradients", _GRADIENTS, "return dx, gamma * dgamma, gamma * dbeta",
        "gamma is in its own gradient and in that of beta: neither depends on it.",
        PARAMETERS, "sums over the gradient at x̂ where the one at y is meant",
    ),
    _backward(
        "axes_kept", _GRADIENTS, "return dx, dgamma.reshape(per_channel), dbeta.reshape(per_channel)",
        "dgamma and dbeta still have axes of length 1: return shape (C,), like the parameters.",
        PARAMETERS, "keepdims=True, left in the result",
    ),
    Misconception(
        "algorithm.batch_norm_backward",
        "batch_axis_only",
        (
            ("axes = (0, *range(2, dy.ndim))", "axes = (0,)"),
            ("n = dy.size // channels", "n = dy.shape[0]"),
            (_COUPLED, "(dbeta + x_hat * dgamma) / n"),
        ),
        "The sums run over axis 0 only: gamma of a channel acts at all its positions, so all of them add up.",
        AXES, "dy.sum(axis=0), right for tables alone",
    ),
    _backward(
        "no_broadcast", _DX, "dx = (gamma * invstd) * (dy - coupled)",
        "A vector of shape (C,) meets the last axis of dy: give it a shape that lines up with axis 1.",
        AXES, "layers written for (N, D) and used on images",
    ),
    _backward(
        "float64_returned", _GRADIENTS, "return tuple(part.astype(np.float64) for part in (dx, dgamma, dbeta))",
        "float32 came in and float64 went out: gradients have the dtype of dy.",
        DTYPE, "accumulators made by np.zeros(C)",
    ),
    _backward(
        "gradient_overwritten", _DX, "dy -= coupled\n    dx = (gamma * invstd).reshape(per_channel) * dy",
        "dy is changed in place: in a residual network another branch still needs it.",
        DTYPE, "dy -= …, to save memory",
    ),
    # --- recover_identity
    _identity(
        "eps_forgotten", _GAMMA, "np.sqrt(var)",
        "gamma is √var: the layer divides by √(var + eps), so that is what has to be undone.",
        AFFINE, "the original paper's remark, which leaves eps out",
    ),
    _identity(
        "eps_ignored", _GAMMA, "np.sqrt(var + var.dtype.type(1e-5))",
        "The argument eps is not used: 1e-5 is only its default.",
        EPS, "a constant copied from the formula's default",
    ),
    _identity(
        "eps_outside_root", _GAMMA, "np.sqrt(var) + var.dtype.type(eps)",
        "eps is added to the standard deviation: it belongs to the variance, inside the root.",
        EPS, "std + eps",
    ),
    _identity(
        "variance_as_scale", _GAMMA, "var + var.dtype.type(eps)",
        "gamma is the variance: the layer divides by its square root.",
        AFFINE, "a forgotten root",
    ),
    _identity(
        "inverse_scale", _GAMMA, "1 / np.sqrt(var + var.dtype.type(eps))",
        "gamma normalises a second time: to undo a division, multiply.",
        AFFINE, "invstd taken over from the forward pass",
    ),
    _identity(
        "negative_shift", _PAIR, "return gamma, -mean",
        "beta is −mean: the layer has subtracted the mean, so add it back.",
        AFFINE, "a lost sign",
    ),
    _identity(
        "folded_shift", _PAIR, "return gamma, mean / gamma",
        "beta is divided by gamma: the shift comes after the scale, so it is the mean itself.",
        AFFINE, "the folding formula of inference, used backwards",
    ),
    _identity(
        "gamma_beta_swapped", _PAIR, "return mean.copy(), gamma",
        "gamma and beta have changed places.",
        AFFINE, "the order (mean, var) → (beta, gamma)",
    ),
    _identity(
        "float64_returned", _PAIR, "return gamma.astype(np.float64), mean.copy()",
        "float32 came in and gamma went out in float64: it has to have the input's dtype.",
        DTYPE, "np.sqrt(eps), whose float64 spreads",
    ),
    _identity(
        "variance_overwritten", _GAMMA, "np.sqrt(np.add(var, var.dtype.type(eps), out=var))",
        "eps is added to the caller's variance in place: compute with a copy.",
        DTYPE, "var += eps",
    ),
]
# fmt: on
