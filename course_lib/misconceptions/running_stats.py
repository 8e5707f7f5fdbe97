"""What people get wrong in problem set 2."""

import torch

from course_lib.misconceptions import Misconception

ALONE = "chapter 2, «When the batch is one image»"
AVERAGE = "chapter 2, «A running average»"
START = "chapter 2, «Where the average starts»"
BESSEL = "chapter 2, «Bessel's correction»"
MOMENTUM = "chapter 2, «Which way momentum counts»"
MEMORY = "chapter 2, «How long the memory is»"
CUMULATIVE = "chapter 2, «The cumulative average»"
FORWARD = "chapter 2, «Updates happen in forward»"
HISTORY = "chapter 2, «No history in the buffers»"
POPULATION = "chapter 2, «The statistics of all the data»"
MERGING = "chapter 2, «Merging batches»"
LAYER = "chapter 2, «Building the layer»"
KINDS = "chapter 2, «Parameters, buffers and plain attributes»"
IN_PLACE = "chapter 2, «Updated in place»"
DEVICE = "chapter 2, «A layer that names no device»"
RANK = "chapter 2, «Any rank»"
HALF = "chapter 2, «Half precision, float32 statistics»"
LAYOUT = "chapter 2, «Memory layout»"
EDGES = "chapter 2, «One value, no value, too many channels»"
SWITCHES = "chapter 2, «Switches: affine and track_running_stats»"
STATES = "chapter 2, «State dicts that fit both ways»"
MODES = "chapter 2, «Modes and copies»"
THREE_STEPS = "chapter 1, «The three steps»"
AXES = "chapter 1, «Which axes: one mean per channel»"
EPS = "chapter 1, «Where eps goes»"
AFFINE = "chapter 1, «Scale, shift and the identity»"
PATHS = "chapter 1, «Backward: three paths to one input»"
LARGE = "chapter 1, «When the mean is large»"


def _mistake(piece, name, *parts):
    """Edits, then hint, place to read, and where it was seen."""
    *edits, hint, read, seen = parts
    change = edits[0] if callable(edits[0]) else tuple(zip(edits[::2], edits[1::2], strict=True))
    return Misconception(f"running_stats.{piece}", name, change, hint, read, seen)


def _update(name, *parts):
    return _mistake("update_running_stats", name, *parts)


def _ema(name, *parts):
    return _mistake("ema_after", name, *parts)


def _forget(name, *parts):
    return _mistake("steps_to_forget", name, *parts)


def _momentum(name, *parts):
    return _mistake("torch_momentum", name, *parts)


def _population(name, *parts):
    return _mistake("population_stats", name, *parts)


def _layer(name, *parts):
    return _mistake("BatchNorm", name, *parts)


# --- implementations that no edit says --------------------------------------------------------------------------


def _rows(batch):
    return batch.transpose(0, 1).flatten(1).double()


def average_of_variances(batches):
    n, means, variances = 0, [], []
    for batch in batches:
        rows = _rows(batch)
        if rows.shape[1]:
            n += rows.shape[1]
            means.append(rows.mean(1))
            variances.append(rows.var(1, correction=int(rows.shape[1] > 1)))
    return torch.stack(means).mean(0), torch.stack(variances).mean(0), n


def weighted_variances(batches):
    n, mean, m2 = 0, 0, 0
    for batch in batches:
        rows = _rows(batch)
        if rows.shape[1]:
            n += rows.shape[1]
            mean = mean + rows.sum(1)
            m2 = m2 + (rows - rows.mean(1, keepdim=True)).square().sum(1)
    return mean / n, m2 / (n - 1), n


def mean_of_means(batches):
    # The squares are right, around the right mean; only the mean that is returned counts batches.
    parts = [rows for rows in map(_rows, batches) if rows.shape[1]]
    everything = torch.cat(parts, 1)
    return torch.stack([rows.mean(1) for rows in parts]).mean(0), everything.var(1), everything.shape[1]


def exponential_average(batches):
    n, mean, var = 0, None, None
    for batch in batches:
        rows = _rows(batch)
        if rows.shape[1] == 0:
            continue
        n += rows.shape[1]
        new = rows.mean(1), rows.var(1, correction=int(rows.shape[1] > 1))
        mean, var = new if mean is None else (0.9 * mean + 0.1 * new[0], 0.9 * var + 0.1 * new[1])
    return mean, var, n


def last_batch(batches):
    for batch in batches:
        if batch.numel():
            rows = _rows(batch)
    return rows.mean(1), rows.var(1), rows.shape[1]


def variance_of_every_batch(batches):
    n, mean, m2 = 0, 0, 0
    for batch in batches:
        rows = _rows(batch)
        size = rows.shape[1]
        if size:
            delta = rows.mean(1) - mean
            m2 = m2 + rows.var(1) * (size - 1) + delta.square() * (n * size / (n + size))
            mean = mean + delta * (size / (n + size))
            n += size
    return mean, m2 / (n - 1), n


def joined_as_they_are(batches):
    rows = _rows(torch.cat(list(batches)))
    return rows.mean(1), rows.var(1), rows.shape[1]


def float32_sums(batches):
    n, total, squares = 0, 0, 0
    for batch in batches:
        rows = batch.transpose(0, 1).flatten(1).float()
        n += rows.shape[1]
        total = total + rows.sum(1)
        squares = squares + rows.square().sum(1)
    return (total / n).double(), ((squares - total.square() / n) / (n - 1)).double(), n


# --- what edits touch -------------------------------------------------------------------------------------------

_U_MEAN = "running_mean.mul_(1 - momentum).add_(momentum * mean)"
_U_VAR = "running_var.mul_(1 - momentum).add_(momentum * var)"
_U_BATCH_VAR = "var = (shifted - offset).square().sum(axes) / (n - 1)"
_U_AXES = "axes = (0, *range(2, x.dim()))"
_U_WIDE = "torch.promote_types(x.dtype, torch.float32)"
_U_PIVOT = "(slice(1), slice(None)) + (slice(1),) * (x.dim() - 2)"

_P_RESULT = "return pivot[:, 0] + mean, m2 / (n - 1), n"
_P_M2 = "m2 = m2 + batch_m2 + delta.square() * (n * size / total)"
_P_MEAN = "mean = mean + delta * (size / total)"
_P_EMPTY = "if size == 0:"
_P_SHIFTED = "shifted = rows - pivot"

_MEAN_BUFFER = 'self.register_buffer("running_mean", torch.zeros_like(ones) if track_running_stats else None)'
_VAR_BUFFER = 'self.register_buffer("running_var", ones.clone() if track_running_stats else None)'
_COUNTER = "counter = torch.zeros((), device=device, dtype=torch.int64)"
_ONES = "ones = torch.ones(num_features, device=device, dtype=dtype)"
_SWITCH = "if self.training or self.running_mean is None:"
_UPDATES = "if self.track_running_stats and self.running_mean is not None and n > 0:"
_NO_GRAD = "with torch.no_grad():"
_COUNT = "self.num_batches_tracked.add_(1)"
_NONE = "momentum = 1 / self.num_batches_tracked.to(var.dtype)"
_IF_NONE = "if momentum is None:\n                        #"
_AXES = "axes = (0, *range(2, x.dim()))"
_OFFSET = "offset = shifted.mean(axes, keepdim=True)"
_VAR = "var = centred.square().mean(axes, keepdim=True)"
_BATCH_MEAN = "mean = (pivot + offset).flatten()"
_UNBIASED = "unbiased = var.flatten() * (n / (n - 1))"
_MEAN_IN = "self.running_mean.mul_(1 - momentum).add_(momentum * mean)"
_VAR_IN = "self.running_var.mul_(1 - momentum).add_(momentum * unbiased)"
_CENTRED_IN_EVAL = "centred = wide - self.running_mean.view(per_channel)"
_ROOT = "y = centred * (var + self.eps).rsqrt()"
_RESULT = "return y.to(x.dtype)"
_WEIGHT = "y = y * self.weight.view(per_channel)"
_BIAS = "y = y + self.bias.view(per_channel)"
_AFFINE = f"if self.weight is not None:\n            {_WEIGHT}\n        if self.bias is not None:\n            {_BIAS}"
_ONE = "if n == 1:"
_CHANNELS = "        expect_tensor(x, self.num_features)\n"
_OLD = "(version is None or version < 2)"
_NAMES = '("weight", "bias", "running_mean", "running_var"):\n            if getattr(self, name) is not None:'
_DEF_EXTRA = "    def extra_repr(self) -> str:"

# fmt: off
MISCONCEPTIONS = [
    # --- update_running_stats
    _update(
        "biased_variance", "/ (n - 1)", "/ n",
        "The biased variance, divided by n, goes into the buffer: that is for the batch, the buffer takes n − 1.",
        BESSEL, "one variance computed for both uses",
    ),
    _update(
        "momentum_on_the_old", _U_MEAN, "running_mean.mul_(momentum).add_((1 - momentum) * mean)",
        _U_VAR, "running_var.mul_(momentum).add_((1 - momentum) * var)",
        "momentum is taken as the weight of the old value: in PyTorch it weighs the new one.",
        MOMENTUM, "formulas of Keras and of the original paper's code",
    ),
    _update(
        "new_tensors", _U_MEAN, "running_mean = (1 - momentum) * running_mean + momentum * mean",
        _U_VAR, "running_var = (1 - momentum) * running_var + momentum * var",
        "The new values are put into new tensors: the caller's buffers are still what they were.",
        IN_PLACE, "an assignment to the argument's name",
    ),
    _update(
        "returned_instead", _U_MEAN, "running_mean = (1 - momentum) * running_mean + momentum * mean",
        _U_VAR, "return running_mean, (1 - momentum) * running_var + momentum * var",
        "The new values are returned: the caller wants its own two tensors changed, and nothing back.",
        IN_PLACE, "functions in the style of JAX",
    ),
    _update(
        "given_other_memory", _U_MEAN, "running_mean.data = (1 - momentum) * running_mean + momentum * mean",
        _U_VAR, "running_var.data = (1 - momentum) * running_var + momentum * var",
        "The buffers get other memory: a state dict, or whoever else shares theirs, sees no new values.",
        IN_PLACE, "running_mean.data = …, as it was written before no_grad",
    ),
    _update(
        "variance_in_a_new_tensor", _U_VAR, "running_var = (1 - momentum) * running_var + momentum * var",
        "The running mean is changed in place, the running variance is not: one of the two lines makes a new tensor.",
        IN_PLACE, "a line of each kind",
    ),
    _update(
        "with_history", "with torch.no_grad():", "if True:",
        "The buffers keep the graph of the batch they came from: update them where autograd does not record.",
        HISTORY, "layers that forget the no-grad block",
    ),
    _update(
        "half_statistics", _U_WIDE, "x.dtype",
        "What a half-precision batch says reaches the buffers in half precision: widen it to float32, for good.",
        HALF, "code that was never run in mixed precision",
    ),
    _update(
        "one_pass_variance", _U_BATCH_VAR,
        "var = (wide.square().mean(axes) - wide.mean(axes).square()) * (n / (n - 1))",
        "The mean of the squares minus the square of the mean: two huge numbers whose difference is all rounding.",
        LARGE, "one-pass loops, and E[x²] − E[x]² from the textbook",
    ),
    _update(
        "batch_axis_only", _U_AXES, "axes = (0,)",
        "The batch's statistics are over axis 0 only, one per position: those of a channel run over its positions too.",
        AXES, "tutorials that derive BN on (N, D) and then feed it images",
    ),
    _update(
        "bessel_by_batch_size", _U_BATCH_VAR,
        "var = (shifted - offset).square().sum(axes) / n * (len(x) / max(len(x) - 1, 1))",
        "The correction counts samples: n is the number of values per channel, and its positions count.",
        BESSEL, "N/(N − 1) with the batch size N",
    ),
    _update(
        "standard_deviation", _U_VAR, "running_var.mul_(1 - momentum).add_(momentum * var.sqrt())",
        "The standard deviation goes into the buffer: asked for is its square, the variance.",
        AVERAGE, "running_std in home-made layers",
    ),
    _update(
        "nothing_forgotten", _U_MEAN, "running_mean.add_(momentum * mean)", _U_VAR, "running_var.add_(momentum * var)",
        "The new value is added and nothing of the old one taken away: the weights of old and new have to sum to 1.",
        AVERAGE, "half of the formula",
    ),
    _update(
        "momentum_ignored", _U_MEAN, "running_mean.copy_(mean)", _U_VAR, "running_var.copy_(var)",
        "The buffers hold the last batch alone: what they held before keeps the weight 1 − momentum.",
        AVERAGE, "buffers taken for a cache",
    ),
    _update(
        "input_centred_in_place", f"wide[{_U_PIVOT}]", f"wide[{_U_PIVOT}].clone()", "wide - pivot", "wide.sub_(pivot)",
        "x itself is changed in place: whoever called still needs the batch.",
        IN_PLACE, "x -= …, to save memory",
    ),
    _update(
        "tables_and_images_only", _U_AXES, "axes = (0,) if x.dim() == 2 else (0, 2, 3)",
        "The axes are written down for tables and images: sequences and volumes have others, so build them from x.",
        RANK, "BatchNorm1d and BatchNorm2d in one function",
    ),
    _update(
        "view_of_the_batch", "wide = x.to(", "x.view(len(x), x.shape[1], -1)\n        wide = x.to(",
        "The batch is laid out anew as a view, which only contiguous memory allows: an input may come in any layout.",
        LAYOUT, "x.view(N, C, -1) for inputs of any rank",
    ),
    # --- ema_after
    _ema(
        "momentum_on_the_old", "(1 - momentum) ** steps", "momentum ** steps",
        "The distance shrinks by momentum a step: in PyTorch momentum weighs the new value, so 1 − momentum remains.",
        MOMENTUM, "formulas of Keras",
    ),
    _ema(
        "one_step_too_many", "** steps", "** (steps + 1)",
        "This is one step further: after no step the average is still where it started.",
        AVERAGE, "loops that begin counting at one",
    ),
    _ema(
        "start_forgotten", "value + (initial - value) * (1 - momentum) ** steps",
        "value * (1 - (1 - momentum) ** steps)",
        "The average starts at 0 here, whatever the initial value is: a running variance starts at 1.",
        START, "the bias correction of Adam, used as the average itself",
    ),
    _ema(
        "start_and_value_swapped", "value + (initial - value)", "initial + (value - initial)",
        "Initial value and the batches' value have changed places: it is the initial one that fades.",
        AVERAGE, "a slip when solving the recursion",
    ),
    _ema(
        "linear", "value + (initial - value) * (1 - momentum) ** steps",
        "initial + (value - initial) * min(1.0, momentum * steps)",
        "The average moves on by the same amount every step: each step takes a share of what is left.",
        AVERAGE, "the rule that momentum 0.1 is there after ten steps",
    ),
    _ema(
        "distance_only", "value + (initial - value)", "(initial - value)",
        "This is the distance that is left: the average is the batches' value plus that distance.",
        AVERAGE, "a derivation that stops one line early",
    ),
    _ema(
        "tensor_returned", "return float(", "return torch.tensor(",
        "The value comes as a tensor: return a Python float.",
        AVERAGE, "torch for arithmetic of four numbers",
    ),
    # --- steps_to_forget
    _forget(
        "rounded_down", "math.ceil(steps * (1 - 1e-13))", "math.floor(steps)",
        "The number of steps is rounded down: then a little more than the fraction is still there.",
        MEMORY, "int of a quotient",
    ),
    _forget(
        "rounded_to_nearest", "math.ceil(steps * (1 - 1e-13))", "round(steps)",
        "The number of steps is rounded to the nearest: where that is down, too much is still there.",
        MEMORY, "round of a quotient",
    ),
    _forget(
        "one_step_more", "math.ceil(steps * (1 - 1e-13))", "math.floor(steps) + 2",
        "This is one step more than needed: asked for is the smallest number.",
        MEMORY, "loops that test too late",
    ),
    _forget(
        "momentum_on_the_old", "math.log1p(-momentum)", "math.log(momentum)",
        "The initial value fades by momentum a step here: in PyTorch what remains is 1 − momentum.",
        MOMENTUM, "formulas of Keras",
    ),
    _forget(
        "window", "return math.ceil(steps * (1 - 1e-13))", "return math.ceil(1 / momentum)",
        "This is 1/momentum, the window of the rule of thumb: the fraction does not enter at all.",
        MEMORY, "the rule that momentum 0.1 averages ten batches",
    ),
    _forget(
        "fraction_forgotten", "math.log(fraction)", "math.log1p(-fraction)",
        "The fraction is read as what is to be forgotten: it is what may remain.",
        MEMORY, "half-lives, where both are the same",
    ),
    _forget(
        "linear", "steps = math.log(fraction) / math.log1p(-momentum)", "steps = (1 - fraction) / momentum",
        "The weight of the start falls by the same amount every step here: it falls by the same factor.",
        MEMORY, "the first step's slope, drawn on",
    ),
    _forget(
        "two_logarithms", "math.log(fraction)", "math.log10(fraction)",
        "Two different logarithms are divided: any base will do, but the same for both.",
        MEMORY, "math.log10 beside math.log",
    ),
    _forget(
        "float_returned", "return math.ceil(steps * (1 - 1e-13))", "return float(math.ceil(steps * (1 - 1e-13)))",
        "The number of steps comes as a float or an array's number: it counts, so return an int.",
        MEMORY, "np.ceil, which returns floats",
    ),
    _forget(
        "no_special_case", "if momentum == 1:", "if momentum > 1:",
        "With momentum 1 the logarithm of 0 is asked for: such an average forgets everything in one step.",
        MEMORY, "formulas without their domain",
    ),
    # --- torch_momentum
    _momentum(
        "not_translated", "return float(1 - momentum)", "return float(momentum)",
        "The number is passed on as it is: Keras, flax and ONNX weigh the old value, PyTorch the new one.",
        MOMENTUM, "ports that copy every argument",
    ),
    _momentum(
        "always_translated", "return float(momentum)", "return float(1 - momentum)",
        "PyTorch's own momentum is turned around as well: there is nothing to translate.",
        MOMENTUM, "one line for all four",
    ),
    _momentum(
        "onnx_like_torch", '("keras", "flax", "onnx")', '("keras", "flax")',
        'convention == "torch"', 'convention in ("torch", "onnx")',
        "ONNX is taken to count as PyTorch does: its momentum, 0.9 by default, weighs the old value.",
        MOMENTUM, "exporters that were thought to change nothing",
    ),
    _momentum(
        "flax_like_torch", '("keras", "flax", "onnx")', '("keras", "onnx")',
        'convention == "torch"', 'convention in ("torch", "flax")',
        "flax is taken to count as PyTorch does: its momentum, 0.99 by default, weighs the old value.",
        MOMENTUM, "a new library thought to follow PyTorch",
    ),
    _momentum(
        "unknown_accepted", "raise ValueError(f", "return float(1 - momentum) or (f",
        "A convention nobody knows is answered all the same: refuse it with a ValueError that says which are known.",
        MOMENTUM, "an else for everything that is not torch",
    ),
    _momentum(
        "key_error", "raise ValueError(f", "raise KeyError(f",
        "An unknown convention is refused, but not with a ValueError: a table's KeyError says little.",
        MOMENTUM, "a dict without a default",
    ),
    # --- population_stats
    _population(
        "average_of_variances", average_of_variances,
        "The batches' means and variances are averaged: that misses what is between the batches, and their sizes.",
        MERGING, "recalibration loops",
    ),
    _population(
        "weighted_variances", weighted_variances,
        "The sums of squares around every batch's own mean are added: what lies between the means is missing.",
        MERGING, "count-weighted averages of variances",
    ),
    _population(
        "mean_of_means", mean_of_means,
        "Every batch's mean weighs the same: a batch weighs as much as it has values.",
        MERGING, "the mean of a list of means",
    ),
    _population(
        "exponential_average", exponential_average,
        "This is an exponential average over the batches: here every value weighs the same, first and last.",
        POPULATION, "the layer's own update, run once more",
    ),
    _population(
        "last_batch", last_batch,
        "Mean, variance and count are those of the last batch alone.",
        POPULATION, "variables that are overwritten in the loop",
    ),
    _population(
        "biased_variance", "m2 / (n - 1), n", "m2 / n, n",
        "The variance is divided by n: asked for is the unbiased one, divided by n − 1.",
        BESSEL, "var of everything in one tensor, as NumPy computes it",
    ),
    _population(
        "samples_counted", _P_RESULT, "return pivot[:, 0] + mean, m2 / (n - 1), n // batch[:1, :1].numel()",
        "n counts samples: it is the number of values per channel, and positions count.",
        AXES, "len(batch)",
    ),
    _population(
        "delta_after_the_mean", _P_M2, "m2 = m2 + batch_m2 + (batch_mean - mean).square() * (n * size / total)",
        "delta = batch_mean - mean", "delta = batch_mean - mean\n            old = mean",
        _P_MEAN, "mean = old + delta * ((n + size) and size / (n + size))",
        "total = n + size", "total = n + size\n            mean = mean + delta * (size / total)",
        "The new mean is used where the difference of the two old ones belongs: merge the squares before the means.",
        MERGING, "updating the mean first",
    ),
    _population(
        "not_over_the_total", "(n * size / total)", "(n * size)",
        "The squared distance of the means is multiplied by both counts, and not divided by their sum.",
        MERGING, "the merge formula without its denominator",
    ),
    _population(
        "float32_returned", _P_RESULT, "return (pivot[:, 0] + mean).float(), (m2 / (n - 1)).float(), n",
        "The results come in float32: asked for is float64, whose digits a sum over many batches needs.",
        POPULATION, "results cast to the dtype of the buffers",
    ),
    _population(
        "arrays_returned", _P_RESULT, "return (pivot[:, 0] + mean).numpy(), (m2 / (n - 1)).numpy(), n",
        "The results come as NumPy arrays: asked for are tensors, which may live on a GPU.",
        POPULATION, "code carried over from exercise set 1",
    ),
    _population(
        "tensor_count", _P_RESULT, "return pivot[:, 0] + mean, m2 / (n - 1), torch.tensor(n)",
        "The count comes as a tensor: return an int.",
        POPULATION, "torch for everything",
    ),
    _population(
        "float32_sums", float32_sums,
        "Sums and sums of squares are kept in float32: two huge numbers whose difference is all rounding.",
        LARGE, "running sums in the dtype of the data",
    ),
    _population(
        "empty_batch_counted", _P_EMPTY, "if size < 0:",
        "An empty batch is taken for one like the others: it has no first value, and its mean is 0/0, so leave it out.",
        EDGES, "code that never met one",
    ),
    _population(
        "joined_as_they_are", joined_as_they_are,
        "The batches are joined as they come: sizes and ranks may differ, what goes together is a channel's values.",
        RANK, "torch.cat of everything, then the statistics",
    ),
    _population(
        "one_value_skipped", _P_EMPTY, "if size < 2:",
        "A batch of one value is left out: it has no spread of its own, but it has a value, and it counts.",
        MERGING, "a condition that keeps the unbiased variance from nan",
    ),
    _population(
        "variance_of_one_value", variance_of_every_batch,
        "The unbiased variance of a batch of one value is 0/0: add up sums of squares instead.",
        MERGING, "torch.var of every batch",
    ),
    _population(
        "length_asked", "    n = 0\n", "    n = 0 * len(batches)\n",
        "The length of the batches is asked for: a generator has none, just go through it once.",
        POPULATION, "len(loader) for a weight of 1/len",
    ),
    _population(
        "batch_centred_in_place", _P_SHIFTED, "shifted = rows.sub_(pivot)",
        "The caller's batch is changed in place: widening copies it only where it was not in float64 already.",
        IN_PLACE, "rows -= …, to save memory",
    ),
    _population(
        "view_of_the_batch", "rows = batch.transpose(0, 1).flatten(1).double()",
        "rows = batch.double().view(len(batch), channels, -1).transpose(0, 1).flatten(1)",
        "The batch is laid out anew as a view, which only contiguous memory allows: an input may come in any layout.",
        LAYOUT, "batch.view(N, C, -1) for inputs of any rank",
    ),
    # --- BatchNorm: training
    _layer(
        "unbiased_normalises", _VAR, "var = centred.square().sum(axes, keepdim=True) / max(n - 1, 1)",
        _UNBIASED, "unbiased = var.flatten()",
        "The batch is normalised by the unbiased variance: that one is for the buffer, the batch takes the biased one.",
        BESSEL, "torch.var's default in from-scratch layers",
    ),
    _layer(
        "statistics_detached", _OFFSET, _OFFSET + ".detach()", _VAR, _VAR + ".detach()",
        "The batch's statistics are constants for the gradient: they depend on x, so it has to run through them.",
        PATHS, "no_grad around everything that is a statistic",
    ),
    _layer(
        "variance_detached", _VAR, _VAR + ".detach()",
        "The gradient does not run through the batch's variance: it depends on x like the mean.",
        PATHS, "no_grad around the variance because it goes into a buffer",
    ),
    _layer(
        "eps_outside_root", _ROOT, "y = centred / (var.sqrt() + self.eps)",
        "eps is added to the standard deviation: it belongs to the variance, inside the root.",
        EPS, "std + eps, as in many from-scratch layers",
    ),
    _layer(
        "eps_ignored", "self.eps = eps", "self.eps = 1e-5",
        "The argument eps is not used: 1e-5 is only its default.",
        EPS, "a constant copied from the formula's default",
    ),
    _layer(
        "no_root", _ROOT, "y = centred / (var + self.eps)",
        "The batch is divided by the variance: divide by its square root.",
        THREE_STEPS, "slips of the pen",
    ),
    _layer(
        "no_scale_and_shift", _WEIGHT, "y = y * 1.0", _BIAS, "y = y * 1.0",
        "weight and bias are there but not used: scale and shift the normalised values by them.",
        AFFINE, "answers that stop after normalising",
    ),
    _layer(
        "shift_scaled", _AFFINE, "if self.weight is not None:\n"
        "            y = (y + self.bias.view(per_channel)) * self.weight.view(per_channel)",
        "The bias is multiplied by the weight: scale first, shift after.",
        AFFINE, "misplaced parentheses",
    ),
    _layer(
        "batch_axis_only", _AXES, "axes = (0,)",
        "The statistics are over axis 0 only, one per position: those of a channel run over its positions too.",
        AXES, "tutorials that derive BN on (N, D) and then feed it images",
    ),
    _layer(
        "tables_and_images_only", _AXES, "axes = (0,) if x.dim() == 2 else (0, 2, 3)",
        "The axes are written down for tables and images: sequences and volumes have others, so build them from x.",
        RANK, "one layer in place of BatchNorm1d and BatchNorm2d",
    ),
    _layer(
        "no_broadcast", "per_channel = (1, -1) + (1,) * (x.dim() - 2)", "per_channel = (1, -1)",
        "A vector of shape (C,) meets the last axis of x: give it a shape that lines up with axis 1.",
        RANK, "layers written for (N, C) and used on images",
    ),
    _layer(
        "positions_on_the_last_axes", "per_channel = (1, -1) + (1,) * (x.dim() - 2)",
        "per_channel = (1, -1, 1, 1) if x.dim() > 2 else (1, -1)",
        "Per-channel vectors get the shape for images at every rank: build it from the rank of x.",
        RANK, "view(1, C, 1, 1)",
    ),
    _layer(
        "running_statistics_normalise", _VAR_IN,
        _VAR_IN + "\n                centred = wide - self.running_mean.view(per_channel)\n"
        "                var = self.running_var.view(per_channel)",
        "Training normalises by the running statistics: those are for eval, here the batch's own count.",
        FORWARD, "online variants, and answers that take the buffers for the statistics",
    ),
    _layer(
        "input_overwritten", "shifted = wide - pivot",
        "shifted = wide - pivot if torch.is_grad_enabled() else wide.sub_(pivot.clone())",
        _CENTRED_IN_EVAL,
        f"{_CENTRED_IN_EVAL} if torch.is_grad_enabled() else wide.sub_(self.running_mean.view(per_channel))",
        "x itself is changed in place where nothing is recorded: whoever called still needs it, in a shortcut say.",
        IN_PLACE, "x -= …, to save memory at inference",
    ),
    # --- BatchNorm: what it remembers
    _layer(
        "biased_variance_remembered", _UNBIASED, "unbiased = var.flatten()",
        "The biased variance goes into the buffer: the batch is normalised by it, the buffer takes the unbiased one.",
        BESSEL, "one variance computed for both uses; Keras and flax",
    ),
    _layer(
        "bessel_by_batch_size", _UNBIASED, "unbiased = var.flatten() * (len(x) / max(len(x) - 1, 1))",
        "The correction of the variance counts samples: n is the number of values per channel, positions count.",
        BESSEL, "N/(N − 1) with the batch size N",
    ),
    _layer(
        "momentum_on_the_old", "momentum = self.momentum\n",
        "momentum = None if self.momentum is None else 1 - self.momentum\n",
        "momentum is taken as the weight of the old value: in PyTorch it weighs the new one.",
        MOMENTUM, "formulas of Keras and of the original paper's code",
    ),
    _layer(
        "default_momentum", "momentum: float | None = 0.1", "momentum: float | None = 0.9",
        "The default momentum is 0.9 here: PyTorch's is 0.1, on the new value.",
        MOMENTUM, "tutorials that say PyTorch's default is 0.9",
    ),
    _layer(
        "buffers_replaced", _MEAN_IN, "self.running_mean = self.running_mean * (1 - momentum) + momentum * mean",
        _VAR_IN, "self.running_var = self.running_var * (1 - momentum) + momentum * unbiased",
        "Every update puts new tensors, or new memory, in place of the buffers: others hold the ones there are.",
        IN_PLACE, "self.running_mean = …, as most tutorials write it",
    ),
    _layer(
        "with_history", _NO_GRAD, "if True:",
        "The buffers keep the graph of every batch they have seen: update them where autograd does not record.",
        HISTORY, "layers that forget the no-grad block",
    ),
    _layer(
        "no_update_without_gradients", _UPDATES, _UPDATES[:-1] + " and torch.is_grad_enabled():",
        "Without gradients nothing is remembered: the update belongs to every forward pass in training mode.",
        FORWARD, "the idea that only a training step may change state",
    ),
    _layer(
        "zero_is_none", _IF_NONE, "if not momentum:\n                        #",
        "momentum 0 is taken for no momentum: with 0 the buffers stay, with None all batches weigh alike.",
        CUMULATIVE, "truth values in place of a comparison with None",
    ),
    _layer(
        "batches_not_counted", _COUNT, "pass",
        "num_batches_tracked never moves: count every batch that moves the running statistics.",
        CUMULATIVE, "layers that keep the counter for the state dict alone",
    ),
    _layer(
        "standard_deviation_remembered", _UNBIASED, "unbiased = (var.flatten() * (n / (n - 1))).sqrt()",
        "The standard deviation goes into running_var: asked for is its square.",
        AVERAGE, "running_std in home-made layers",
    ),
    # --- BatchNorm: eval
    _layer(
        "batch_normalises_in_eval", _SWITCH, "if True:", _UPDATES, _UPDATES[:-1] + " and self.training:",
        "In eval the batch's own statistics still normalise: there the running ones do.",
        ALONE, "layers that never ask for the mode",
    ),
    _layer(
        "eval_remembers", "        y = centred",
        "        if not self.training and self.running_mean is not None and n > 0:\n"
        "            self.running_mean.lerp_(wide.detach().mean(axes).to(self.running_mean.dtype), 0.1)\n"
        "        y = centred",
        "The running statistics move in eval as well: there they are used, and stay as they are.",
        FORWARD, "an update placed before the question for the mode",
    ),
    _layer(
        "one_value_refused_in_eval", _SWITCH,
        "if n == 1:\n            raise ValueError('one value per channel is not enough')\n        " + _SWITCH,
        "One value per channel is refused in eval too: the running statistics do not mind, that is what they are for.",
        ALONE, "a check in the first line of forward",
    ),
    _layer(
        "grad_mode", _SWITCH, "if torch.is_grad_enabled() or self.running_mean is None:",
        "The mode is read off whether gradients are recorded: it is the module's training flag that decides.",
        ALONE, "a well-known from-scratch implementation",
    ),
    _layer(
        "keras_eps", "eps: float = 1e-5", "eps: float = 1e-3",
        "The default of eps is 1e-3 here, as in Keras: PyTorch uses 1e-5.",
        EPS, "signatures carried over from Keras",
    ),
    # --- BatchNorm: momentum=None
    _layer(
        "none_is_the_default", _NONE, "momentum = 0.1",
        "momentum=None is taken for the default of 0.1: it asks for an average in which all batches weigh alike.",
        CUMULATIVE, "a default for None",
    ),
    _layer(
        "none_is_off_by_one", _NONE, "momentum = 1 / (self.num_batches_tracked.to(var.dtype) + 1)",
        "The cumulative average counts one batch too many: the start keeps a weight, as if it had been measured.",
        CUMULATIVE, "counting after the update",
    ),
    _layer(
        "none_counts_in_python", "self.momentum = momentum\n",
        "self.momentum = momentum\n        self.batches_seen = 0\n",
        _NONE, "self.batches_seen += 1\n                        momentum = 1 / self.batches_seen",
        "The cumulative average counts batches by itself: a loaded layer has seen num_batches_tracked of them already.",
        CUMULATIVE, "a Python counter beside the buffer",
    ),
    # --- BatchNorm: switches
    _layer(
        "affine_ignored", "nn.Parameter(ones.clone()) if affine else None", "nn.Parameter(ones.clone())",
        "nn.Parameter(torch.zeros_like(ones)) if affine else None", "nn.Parameter(torch.zeros_like(ones))",
        "weight and bias are there although affine is off: register None under their names.",
        SWITCHES, "arguments accepted and forgotten",
    ),
    _layer(
        "tracking_ignored", "self.track_running_stats = track_running_stats",
        "self.track_running_stats = track_running_stats = True",
        "Running statistics are kept although track_running_stats is off: the batch's serve in eval too.",
        SWITCHES, "arguments accepted and forgotten",
    ),
    _layer(
        "no_eval_without_buffers", _SWITCH, "if self.training:",
        "eval reaches for running statistics that were switched off: without them the batch's own serve.",
        SWITCHES, "one question for the mode where two are needed",
    ),
    # --- BatchNorm: devices
    _layer(
        "plain_attributes", _MEAN_BUFFER, _MEAN_BUFFER.replace("register_buffer(", "__dict__.__setitem__("),
        _VAR_BUFFER, _VAR_BUFFER.replace("register_buffer(", "__dict__.__setitem__("),
        "The running statistics are plain attributes: they stay behind when the layer moves, and are not saved.",
        KINDS, "self.running_mean = torch.zeros(C)",
    ),
    _layer(
        "made_on_the_cpu", _ROOT, "y = centred * (var + torch.full((x.shape[1],), self.eps).view(per_channel)).rsqrt()",
        "forward makes a tensor without saying where: it lands on the CPU, and a GPU refuses to mix the two.",
        DEVICE, "torch.ones or torch.zeros in forward",
    ),
    _layer(
        "constant_left_behind", "self.eps = eps", "self.eps = torch.full((num_features, 1), eps)",
        "(var + self.eps)", "(var + self.eps.view(per_channel))",
        "A tensor is kept as a plain attribute: when the layer moves, it stays where it was made.",
        KINDS, "constants prepared in the constructor",
    ),
    _layer(
        "device_ignored", _ONES, _ONES.replace(", device=device", ""),
        _COUNTER, _COUNTER.replace(" device=device,", ""),
        "The argument device is not used: parameters and buffers are made there from the start.",
        DEVICE, "arguments accepted and forgotten",
    ),
    _layer(
        "through_numpy", _BATCH_MEAN,
        "mean = torch.from_numpy((pivot + offset).detach().flatten().numpy())",
        "Numbers travel through NumPy, which only knows the CPU: stay with tensors.",
        DEVICE, "statistics kept by NumPy code from exercise set 1",
    ),
    _layer(
        "through_the_cpu", _BATCH_MEAN, _BATCH_MEAN.replace(".flatten()", ".flatten().cpu()"),
        "The statistics are fetched to the CPU and meet buffers that live elsewhere: leave them where x is.",
        DEVICE, "bookkeeping on the CPU, to spare GPU memory",
    ),
    # --- BatchNorm: precision and layout
    _layer(
        "half_statistics", "torch.promote_types(x.dtype, torch.float32)", "x.dtype",
        "What a half-precision batch says is computed or kept in half precision: widen it to float32, narrow y alone.",
        HALF, "code that was never run in mixed precision",
    ),
    _layer(
        "wide_output", _RESULT, "return y",
        "A half-precision batch comes back in float32: narrow the output to the dtype of x.",
        HALF, "type promotion by float32 parameters",
    ),
    _layer(
        "dtype_ignored", _ONES, _ONES.replace(", dtype=dtype", ""),
        "The argument dtype is not used: parameters and running statistics are made in it.",
        HALF, "arguments accepted and forgotten",
    ),
    _layer(
        "contiguous_output", _RESULT, "return y.to(x.dtype).contiguous()",
        "Images stored channels-last come back in the default layout: keep the memory format of x.",
        LAYOUT, "reshapes to rows and back, contiguous",
    ),
    # --- BatchNorm: state dict
    _layer(
        "counter_as_float", _COUNTER, _COUNTER.replace("int64", "float32"),
        "num_batches_tracked is a float: it counts, PyTorch keeps a whole number of 64 bits.",
        STATES, "torch.tensor(0.)",
    ),
    _layer(
        "counter_with_an_axis", _COUNTER, _COUNTER.replace("zeros(()", "zeros((1,)"),
        "num_batches_tracked has an axis: PyTorch's is one number without any, and its files do not fit this one.",
        STATES, "torch.zeros(1)",
    ),
    _layer(
        "not_saved", _MEAN_BUFFER, _MEAN_BUFFER[:-1] + ", persistent=False)",
        _VAR_BUFFER, _VAR_BUFFER[:-1] + ", persistent=False)",
        "The running statistics are missing from the state dict: a network loaded from it would predict nonsense.",
        STATES, "buffers registered as not persistent",
    ),
    _layer(
        "buffers_as_parameters", _MEAN_BUFFER,
        "self.running_mean = nn.Parameter(0 * ones, requires_grad=False) if track_running_stats else None",
        "The running mean is a parameter: optimisers and weight decay would get hold of it, make it a buffer.",
        KINDS, "nn.Parameter with requires_grad=False",
    ),
    _layer(
        "gamma_and_beta", 'register_parameter("weight"', 'register_parameter("gamma"',
        'register_parameter("bias"', 'register_parameter("beta"',
        _NAMES, _NAMES.replace('"weight", "bias"', '"gamma", "beta"'),
        "if self.weight is not None:\n            " + _WEIGHT,
        "if self.gamma is not None:\n            " + _WEIGHT.replace("weight", "gamma"),
        "if self.bias is not None:\n            " + _BIAS,
        "if self.beta is not None:\n            " + _BIAS.replace("bias", "beta"),
        "The parameters are called gamma and beta: PyTorch's names are weight and bias, and its files hold those.",
        STATES, "the paper's letters",
    ),
    _layer(
        "old_dicts_refused", _OLD, "False",
        "A state dict from before batches were counted is refused: the counter is missing in it, and may be.",
        STATES, "layers without a loading hook",
    ),
    _layer(
        "version_one_refused", _OLD, "version is None",
        "Old state dicts load only if they carry no version at all: those of version 1 have no counter either.",
        STATES, "a comparison with None alone",
    ),
    _layer(
        "variance_starts_at_zero", _VAR_BUFFER, _VAR_BUFFER.replace("ones.clone()", "torch.zeros_like(ones)"),
        "running_var starts at 0: a new layer is the identity in eval, so it starts at 1.",
        START, "two buffers registered by one line",
    ),
    # --- BatchNorm: edges
    _layer(
        "one_value_accepted", _ONE, "if n < 0:", _UNBIASED, "unbiased = var.flatten() * (n / max(n - 1, 1))",
        "One value per channel is accepted in training: it has no spread, so refuse it with a ValueError.",
        EDGES, "code that was never run on a batch of one",
    ),
    _layer(
        "channels_not_checked", _CHANNELS, "        expect_tensor(x)\n", _NAMES, "():\n            if True:",
        "A wrong number of channels slips through: one channel broadcasts against all, so compare the numbers.",
        EDGES, "trust in broadcasting",
    ),
    _layer(
        "nan_from_nothing", _UPDATES, _UPDATES.replace(" and n > 0", ""),
        "An empty batch makes the running statistics nan: its mean is 0/0, so leave them as they are.",
        EDGES, "code that never met one",
    ),
    _layer(
        "nothing_refused", _ONE, "if n < 2:",
        "An empty batch is refused: nothing comes out of it, and nothing is remembered.",
        EDGES, "one comparison for none and for one",
    ),
    _layer(
        "one_pass_variance", "centred = shifted - offset", "centred = wide - wide.mean(axes, keepdim=True)",
        _VAR, "var = wide.square().mean(axes, keepdim=True) - wide.mean(axes, keepdim=True).square()",
        "The mean of the squares minus the square of the mean: two huge numbers whose difference is all rounding.",
        LARGE, "one-pass loops, and E[x²] − E[x]² from the textbook",
    ),
    # --- BatchNorm: in a network
    _layer(
        "keeps_its_output", _RESULT, "self.last_output = y.to(x.dtype)\n        return self.last_output",
        "The layer keeps a tensor of its last batch with the graph: it cannot be copied, and memory is not given back.",
        MODES, "attributes kept for debugging",
    ),
    _layer(
        "own_eval_flag", _SWITCH, "if not getattr(self, 'in_eval', False) or self.running_mean is None:",
        _DEF_EXTRA, "    def eval(self):\n        self.in_eval = True\n        return super().eval()\n\n"
        "    def train(self, mode=True):\n        self.in_eval = False if mode else getattr(self, 'in_eval', False)\n"
        "        return super().train(mode)\n\n" + _DEF_EXTRA,
        "The layer has a flag of its own for eval: in a network only the inherited training flag is set.",
        MODES, "layers that override eval",
    ),
]
# fmt: on
