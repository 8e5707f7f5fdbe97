"""What people get wrong in problem set 5."""

from course_lib.misconceptions import Misconception

LOCAL = "chapter 5, «Four devices, four opinions»"
MERGING = "chapter 5, «Merging two sets of values»"
BETWEEN = "chapter 5, «The spread between the shards»"
UNEVEN = "chapter 5, «Uneven and empty shards»"
FORWARD = "chapter 5, «One collective forward»"
EVERY_RANK = "chapter 5, «Every rank, every collective»"
TRAVELS = "chapter 5, «What travels, and in which dtype»"
FORMULA = "chapter 5, «The formula, on every rank»"
BIAS = "chapter 5, «Biased for the batch, unbiased for the buffer»"
COUPLED = "chapter 5, «Backward: the ranks feel each other»"
BACKWARD = "chapter 5, «One collective backward»"
PARAMETERS = "chapter 5, «The gradients of weight and bias stay local»"
GROUPS = "chapter 5, «Groups of ranks»"
CONVERTING = "chapter 5, «Converting a model»"
KEEPS = "chapter 5, «What a converted layer keeps»"


def _merge(name, old, new, hint, read, seen):
    return Misconception("sync.merge_moments", name, ((old, new),), hint, read, seen)


def _moments(name, old, new, hint, read, seen):
    return Misconception("sync.sync_moments", name, ((old, new),), hint, read, seen)


def _function(name, old, new, hint, read, seen):
    return Misconception("sync.SyncBatchNormFunction", name, ((old, new),), hint, read, seen)


def _convert(name, old, new, hint, read, seen):
    return Misconception("sync.convert_sync_batchnorm", name, ((old, new),), hint, read, seen)


_MEAN = "mean_a + delta * (n_b / n)"
_BETWEEN = "delta**2 * (n_a * n_b / n)"
_GUARDS = "if n_b == 0:\n        return a\n    if n_a == 0:\n        return b\n    n = n_a + n_b"
_LOCAL = "n, mean, m2 = local_moments(x)"
_ONE_PASS = (
    _LOCAL + "\n"
    "    if n:\n"
    "        values = x.detach().to({}).transpose(0, 1).flatten(1)\n"
    "        m2 = (values.square().sum(1) / n - (values.sum(1) / n).square()).double() * n"
)
_RANKS = "ranks = group_size(group)"
_WIRE = "mine = torch.cat([mean.new_full((1,), n), mean, m2])"
_REDUCED = "n, mean, m2 = functools.reduce(merge_moments, everyone)"
_VAR = "return n, mean, m2 / max(n, 1)"
_SYNCED = "n, mean, var = sync_moments(x, group)"
_UNBIASED = "var * (n / (n - 1))"
_UPDATE = "buffer.mul_(1 - momentum).add_(new * momentum)"
_INVSTD = "invstd = (var + eps).rsqrt()"
_Y = "return scale_and_shift(standardise(x, mean, invstd), weight, bias).to(x.dtype)"
_SUMS = "sum_dy, sum_dy_x_hat = dy.to(x_hat.dtype).sum(axes), (dy * x_hat).sum(axes)"
_REDUCE = "if group_size(ctx.group) > 1:\n            dist.all_reduce(both, group=ctx.group)"
_COUPLED = "coupled = (both / max(ctx.n, 1)).to(x_hat.dtype)"
_DX = "(dy - mean_dy - x_hat * mean_dy_x_hat) * scale"
_SCALE = "scale = invstd if weight is None else invstd * weight"
_GRADIENTS = "return dx, dweight, dbias, None"
_FRESH = "SyncBatchNorm(module.num_features)"
_STATE = "vars(layer).update(vars(module), process_group=group)"
_RESULT = "return converted.get(model, model)"
_IS_ONE = "if not is_batchnorm(module):"
_PLACES = "parent._modules.items()"
_PLACED = "setattr(parent, name, converted[child])"
_SETTINGS = "module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats, group"
_ANOTHER = (
    "layer = SyncBatchNorm(child.num_features)\n"
    "                vars(layer).update(vars(converted[child]))\n"
    "                setattr(parent, name, layer)"
)

# fmt: off
MISCONCEPTIONS = [
    # --- merge_moments
    _merge(
        "means_averaged", _MEAN, "(mean_a + mean_b) / 2",
        "The two means count alike: the side with more values has to weigh more.",
        MERGING, "mean of means, right only for sides of one size",
    ),
    _merge(
        "weights_swapped", _MEAN, "mean_a + delta * (n_a / n)",
        "The step from one mean to the other is weighted with the wrong side's count.",
        MERGING, "Chan's formula from memory",
    ),
    _merge(
        "spread_between_forgotten", "m2_a + m2_b + " + _BETWEEN, "m2_a + m2_b",
        "The sums of squares are only added: the distance of the two means is part of the spread as well.",
        BETWEEN, "an average of variances, as many hand-made multi-GPU layers take it",
    ),
    _merge(
        "distance_not_squared", _BETWEEN, "delta.abs() * (n_a * n_b / n)",
        "The distance of the means enters m2 as it is: m2 is in units of x², so it has to enter as a square.",
        BETWEEN, "a forgotten square",
    ),
    _merge(
        "distance_not_divided", _BETWEEN, "delta**2 * (n_a * n_b)",
        "The share of the distance between the means is too large by a factor of n.",
        BETWEEN, "a forgotten division by the total count",
    ),
    _merge(
        "distance_of_one_side", _BETWEEN, "delta**2 * n_b",
        "The second side's values are taken around the first mean, but both sides have moved away from their own mean.",
        BETWEEN, "Welford's update for one value, used for many",
    ),
    _merge(
        "m2_taken_for_variance", "m2_a + m2_b + " + _BETWEEN, "m2_a * n_a + m2_b * n_b + " + _BETWEEN,
        "The given m2 are multiplied by their counts: they are sums of squares already, not variances.",
        MERGING, "formulas for merging variances, fed with sums",
    ),
    _merge(
        "variance_returned", "m2_a + m2_b + " + _BETWEEN, "(m2_a + m2_b + " + _BETWEEN + ") / n",
        "The last value is divided by n: asked for is the sum of squares, so that merging can go on.",
        MERGING, "answers that finish the variance too early",
    ),
    _merge(
        "unbiased_variances_pooled", "m2_a + m2_b + " + _BETWEEN, "(m2_a + m2_b + " + _BETWEEN + ") * (n / (n - 1))",
        "m2 is corrected by n/(n − 1) here: it is a plain sum, and corrections come after the last merge.",
        MERGING, "Bessel's correction applied once too often",
    ),
    _merge(
        "both_empty_divides", _GUARDS, "n = n_a + n_b",
        "With two empty sides the total count is zero, and something is divided by it.",
        UNEVEN, "formulas without the case of nothing",
    ),
    _merge(
        "empty_side_returned", _GUARDS,
        "if n_b == 0:\n        return b\n    if n_a == 0:\n        return a\n    n = n_a + n_b",
        "When one side is empty, the empty side comes back: the union is the other one.",
        UNEVEN, "guards written the wrong way round",
    ),
    _merge(
        "only_second_side_may_be_empty",
        "if n_a == 0:\n        return b", "if n_a == 0:\n        return 0, mean_a, m2_a",
        "An empty first side swallows the second: a fold over shards may well start with an empty one.",
        UNEVEN, "guards tested on one side only",
    ),
    _merge(
        "empty_side_listened_to", _GUARDS, "n = n_a + n_b\n    if n == 0:\n        return a",
        "The mean of an empty side enters, if only times zero: it may be NaN, and 0 · NaN is NaN; look at its n.",
        UNEVEN, "formulas that seem to need no special case, since a count of 0 takes the other terms away",
    ),
    _merge(
        "empty_first_side_listened_to", "    if n_a == 0:\n        return b\n", "",
        "The mean of an empty first side enters, if only times zero: it may be NaN, and 0 · NaN is NaN.",
        UNEVEN, "one guard, in the order of the arguments that was tried",
    ),
    _merge(
        "merged_in_place", _MEAN, "mean_a.add_(delta * (n_b / n))",
        "A given mean is overwritten by an operator that works in place: the caller still needs it.",
        MERGING, "mean_a += …, as running updates do",
    ),
    _merge(
        "n_a_float", "return n, mean_a", "return float(n), mean_a",
        "n comes back as another kind of number: counts are whole, keep it an int.",
        MERGING, "counts that have been through a float tensor",
    ),
    # --- sync_moments
    _moments(
        "this_rank_only", _RANKS, "ranks = 1",
        "Every rank reports its own shard: nothing has been exchanged.",
        LOCAL, "an ordinary BatchNorm in a data-parallel model",
    ),
    _moments(
        "variances_averaged", _REDUCED, _REDUCED + "\n        m2 = m2s.sum(0)",
        "The shards' own spreads are averaged: that their means differ is part of the variance, too.",
        BETWEEN, "all-reduced variances, the first idea of most",
    ),
    _moments(
        "averages_of_averages", _REDUCED,
        "weights = 1 / ranks\n"
        "        squares = m2s / counts.clamp(min=1) + means**2\n"
        "        mean, n = means.sum(0) * weights, int(counts.sum())\n"
        "        m2 = n * (squares.sum(0) * weights - mean**2)",
        "Every rank counts alike, whatever the size of its shard: a large shard has to weigh more than a small one.",
        UNEVEN, "all_reduce divided by the world size, as in detectron2's NaiveSyncBatchNorm",
    ),
    _moments(
        "unbiased_variance", _VAR, "return n, mean, m2 / max(n - 1, 1)",
        "This is the unbiased variance: asked for is the biased one, divided by n.",
        BIAS, "torch.var's default",
    ),
    _moments(
        "standard_deviation", _VAR, "return n, mean, (m2 / max(n, 1)).sqrt()",
        "The last value is the standard deviation: asked for is its square.",
        FORMULA, "std beside mean",
    ),
    _moments(
        "m2_returned", _VAR, "return n, mean, m2",
        "The last value is the sum of squares: the variance is that sum divided by the total n.",
        MERGING, "merged moments handed on as they are",
    ),
    _moments(
        "divided_by_own_count", _REDUCED,
        "own = n\n        " + _REDUCED + "\n        m2 = m2 * (n / max(own, 1))",
        "The sum over all shards is divided by this rank's count: divide it by the total.",
        UNEVEN, "a local n that is still in scope after the exchange",
    ),
    _moments(
        "own_count_returned", _REDUCED,
        "own = n\n        " + _REDUCED + "\n        m2, n = m2 / max(n, 1) * max(own, 1), own",
        "n is this rank's own: mean and variance are of all ranks, and so has to be the count.",
        UNEVEN, "a local n that is still in scope after the exchange",
    ),
    _moments(
        "samples_counted", _LOCAL, _LOCAL + "\n    m2, n = m2 * (len(x) / max(n, 1)), len(x)",
        "n counts samples: a channel of maps has a value at every position.",
        FORMULA, "n taken for the batch size",
    ),
    _moments(
        "empty_shard_stays_away", "if ranks > 1:", "if ranks > 1 and n > 0:",
        "A rank with an empty shard does not take part in the exchange, and the others wait for it for ever.",
        EVERY_RANK, "an early return for empty inputs",
    ),
    _moments(
        "nothing_has_no_mean", _REDUCED,
        _REDUCED + "\n        if not counts.all():\n            mean, m2 = mean * torch.nan, m2 * torch.nan",
        "The mean of an empty shard is not a number, and spreads to everybody in the exchange.",
        UNEVEN, "x.mean() on an empty shard, which is NaN",
    ),
    _moments(
        "single_value_unbiased", _LOCAL,
        "n, mean, m2 = local_moments(x)\n    m2 = m2 / (n - 1) * (n - 1) if n == 1 else m2",
        "A shard of a single value has no unbiased variance: exchanged, its NaN spreads to everybody.",
        UNEVEN, "x.var() on a shard of one value, which is NaN",
    ),
    _moments(
        "divided_by_no_count", _VAR, "return n, mean, m2 / n",
        "With no value on any rank the sum of squares is divided by zero: then mean and variance are zeros.",
        UNEVEN, "a division by the total count, which is only looked at when it is too late",
    ),
    _moments(
        "squares_summed_in_float32", _LOCAL,
        _ONE_PASS.format("torch.promote_types(x.dtype, torch.float32)"),
        "The variance comes from Σx and Σx² in float32: where the mean is large, nothing of it is left in them.",
        TRAVELS, "one all_reduce of n, Σx and Σx², as mean of squares minus square of mean",
    ),
    _moments(
        "squares_summed_in_the_dtype_of_x", _LOCAL, _ONE_PASS.format("x.dtype"),
        "The variance comes from Σx and Σx² in x's dtype: large means leave nothing of it, half's squares overflow.",
        TRAVELS, "one all_reduce of n, Σx and Σx², packed with x.new_tensor",
    ),
    _moments(
        "own_shard_first", _REDUCED,
        "everyone, own = list(everyone), dist.get_rank(group)\n"
        "        n, mean, m2 = functools.reduce(merge_moments, everyone[own:] + everyone[:own])",
        "Every rank begins with its own shard, so the last bits differ from rank to rank: merge in the same order.",
        FORWARD, "a fold that starts from the moments at hand and goes around the ranks",
    ),
    _moments(
        "three_collectives", "dist.all_gather(shards, mine, group=group)",
        "for part in range(3):\n"
        "            pieces = [torch.empty_like(mine) for _ in range(ranks)]\n"
        "            dist.all_gather(pieces, mine, group=group)\n"
        "        shards = pieces",
        "Count, mean and spread travel one after the other: put together they need a single trip.",
        FORWARD, "one all_gather for each of n, mean and M2",
    ),
    _moments(
        "one_buffer_for_all", "[torch.empty_like(mine) for _ in range(ranks)]", "[torch.empty_like(mine)] * ranks",
        "All places of the list are one and the same tensor, so the last rank's moments are merged with themselves.",
        FORWARD, "a list multiplied by a number",
    ),
    _moments(
        "group_ignored", _RANKS, "group = None\n    " + _RANKS,
        "All ranks take part in the exchange: only those of the given group should.",
        GROUPS, "collectives called without their group",
    ),
    _moments(
        "count_in_the_dtype_of_x", _WIRE, _WIRE.replace("n)", "n).to(x.dtype).double()"),
        "The count travels in the dtype of x: half holds whole numbers up to 2048, so what travels has to be float64.",
        TRAVELS, "x.new_tensor([n]), packed with the moments",
    ),
    _moments(
        "float32_travels", _WIRE, _WIRE + ".float().double()",
        "On their way the moments are rounded to float32: they lose digits that float64 data still has.",
        TRAVELS, "the count cast to the dtype of the statistics, or all of them to float",
    ),
    _moments(
        "float32_returned", _VAR, "return n, mean.float(), (m2 / max(n, 1)).float()",
        "Mean and variance are rounded to float32: they lose digits that float64 data still has.",
        TRAVELS, "tensors made from Python numbers, which are float32 by default",
    ),
    _moments(
        "statistics_in_the_dtype_of_x", _VAR, "return n, mean.to(x.dtype), (m2 / max(n, 1)).to(x.dtype)",
        "Mean and variance come back in the dtype of x: they are float64, finer than the values they are made of.",
        TRAVELS, "statistics cast back to x's dtype, as y has to be",
    ),
    _moments(
        "history_kept", _VAR,
        "values = x.double().transpose(0, 1).flatten(1)\n"
        "    " + _VAR + " + 0 * values.sum(1)",
        "Where x needs a gradient, mean and variance carry a history: through a collective no gradient comes back.",
        COUPLED, "local moments of an x that was not detached",
    ),
    _moments(
        "n_a_float", _VAR, "return float(n), mean, m2 / max(n, 1)",
        "n comes back as it travelled, among floats: make an int of it again.",
        TRAVELS, "counts read back from the exchanged tensor",
    ),
    _moments(
        "x_centred_in_place", _VAR, "x -= x.mean()\n    " + _VAR,
        "x itself is changed in place: whoever called still needs it.",
        FORWARD, "x -= mean, to save memory",
    ),
    # --- SyncBatchNormFunction
    _function(
        "not_synchronised", _SYNCED,
        "n, mean, m2 = local_moments(x)\n        var = m2 / max(n, 1)",
        "The statistics are those of this rank's shard: all shards belong to one batch.",
        LOCAL, "an ordinary BatchNorm in a data-parallel model",
    ),
    _function(
        "variances_averaged", _SYNCED,
        "own_n, own, m2 = local_moments(x)\n"
        "        sums = torch.cat([own.new_full((1,), own_n), own * own_n, m2])\n"
        "        if group_size(group) > 1:\n"
        "            dist.all_reduce(sums, group=group)\n"
        "        n = int(sums[0])\n"
        "        mean, var = (sums[1:] / n).chunk(2)",
        "The variance that comes in is an average of the shards' own: that their means differ is part of it, too.",
        BETWEEN, "all-reduced variances",
    ),
    _function(
        "averages_of_averages", _SYNCED,
        "own_n, own, m2 = local_moments(x)\n"
        "        sums = torch.cat([own.new_full((1,), own_n), own, m2 / max(own_n, 1) + own**2])\n"
        "        if group_size(group) > 1:\n"
        "            dist.all_reduce(sums, group=group)\n"
        "        n = int(sums[0])\n"
        "        mean, squares = (sums[1:] / group_size(group)).chunk(2)\n"
        "        var = squares - mean**2",
        "The statistics that come in weigh every rank alike: a large shard has to count for more than a small one.",
        UNEVEN, "all_reduce divided by the world size, as in detectron2's NaiveSyncBatchNorm",
    ),
    _function(
        "corrected_twice", _SYNCED, _SYNCED + "\n        var = var * (n / max(n - 1, 1))",
        "The batch is divided by the unbiased variance: only the running variance is the unbiased one.",
        BIAS, "torch.var's default in the statistics of all ranks",
    ),
    _function(
        "unbiased_variance", _INVSTD, "invstd = (var * (n / (n - 1)) + eps).rsqrt()",
        "The batch is normalised with the unbiased variance: that one is for the running statistics only.",
        BIAS, "torch.var's default in from-scratch layers",
    ),
    _function(
        "eps_outside_root", _INVSTD, "invstd = 1 / (var.sqrt() + eps)",
        "eps is added to the standard deviation: it belongs to the variance, inside the root.",
        FORMULA, "std + eps, as in many from-scratch layers",
    ),
    _function(
        "eps_forgotten", _INVSTD, "invstd = var.rsqrt()",
        "eps does not enter: the root is taken of the variance alone.",
        FORMULA, "formulas quoted without their small print",
    ),
    _function(
        "multiplied_by_std", _INVSTD, "invstd = (var + eps).sqrt()",
        "The batch is multiplied by its standard deviation: divide by it.",
        FORMULA, "invstd that was never inverted",
    ),
    _function(
        "no_shift", _Y, "return scale_and_shift(standardise(x, mean, invstd), weight, None).to(x.dtype)",
        "The shift is missing: bias is added at the end.",
        FORMULA, "answers that stop after the scale",
    ),
    _function(
        "shift_scaled", _Y,
        "shifted = scale_and_shift(standardise(x, mean, invstd), None, bias)\n"
        "        return scale_and_shift(shifted, weight, None).to(x.dtype)",
        "bias is multiplied by weight: scale first, shift after.",
        FORMULA, "misplaced parentheses",
    ),
    _function(
        "statistics_constant", _DX, "dy * scale",
        "The statistics are treated as constants, as in eval mode: in training they depend on every shard's x.",
        COUPLED, "the chain rule through (x − mean) · invstd alone",
    ),
    _function(
        "no_mean_term", _DX, "(dy - x_hat * mean_dy_x_hat) * scale",
        "The path through the mean is missing: dx does not sum to zero over the ranks.",
        COUPLED, "derivations that treat the mean as a constant",
    ),
    _function(
        "no_variance_term", _DX, "(dy - mean_dy) * scale",
        "The path through the variance is missing: the term along x̂ does not come off.",
        COUPLED, "derivations that treat the variance as a constant",
    ),
    _function(
        "backward_of_one_rank", _REDUCE + "\n        if ctx.needs_input_grad[0]:\n            " + _COUPLED,
        "if ctx.needs_input_grad[0]:\n            coupled = both / max(x.numel() // x.shape[1], 1)",
        "The backward pass looks at this rank's shard only: through the statistics, dx depends on every rank's dy.",
        COUPLED, "BatchNorm's backward copied under a synchronised forward",
    ),
    _function(
        "own_sums_over_total", _REDUCE, "pass",
        "The sums of dy are this rank's own, divided by everybody's n: they have to be summed over the ranks first.",
        COUPLED, "the all_reduce forgotten, the total n kept",
    ),
    _function(
        "sums_over_own_count", _COUPLED, "coupled = both / max(x.numel() // x.shape[1], 1)",
        "The sums of all ranks are divided by this rank's count: divide them by the total n.",
        COUPLED, "a local n in backward",
    ),
    _function(
        "sums_averaged_over_ranks", _COUPLED, "coupled = both / max(ctx.n, 1) / group_size(ctx.group)",
        "The sums are averaged over the ranks and then divided by n: dividing by the number of ranks is one too many.",
        COUPLED, "all_reduce divided by the world size, as gradients are",
    ),
    _function(
        "not_divided_by_n", _COUPLED, "coupled = both",
        "The two coupling terms are sums where means belong: divide them by the total n.",
        COUPLED, "a forgotten 1/n",
    ),
    _function(
        "dx_not_scaled", _SCALE, "scale = invstd",
        "dx lacks the weight: y is x̂ times weight, and so is every gradient that comes back through it.",
        COUPLED, "the derivation for x̂ instead of y",
    ),
    _function(
        "dx_not_divided_by_std", _SCALE, "scale = torch.ones_like(invstd) if weight is None else weight.double()",
        "dx lacks the division by the standard deviation, which x went through on its way to y.",
        COUPLED, "the derivation stopped at x̂",
    ),
    _function(
        "frozen_weight_loses_a_term", _SUMS,
        _SUMS + "\n        if weight is not None and not ctx.needs_input_grad[1]:\n"
        "            sum_dy_x_hat = torch.zeros_like(sum_dy)",
        "A frozen weight takes a term of dx with it: both sums go into dx, whether or not weight and bias need them.",
        COUPLED, "sums made under needs_input_grad, as they are in torch's own backward",
    ),
    _function(
        "dy_overwritten", _DX, "(dy.sub_(mean_dy) - x_hat * mean_dy_x_hat) * scale",
        "The gradient that came in is changed in place: other branches of the network are given the same tensor.",
        COUPLED, "grad_output -= …, to save memory",
    ),
    _function(
        "parameter_gradients_summed", _REDUCE,
        _REDUCE + "\n        dweight, dbias = both.chunk(2)[1].to(x_hat.dtype), both.chunk(2)[0].to(x_hat.dtype)",
        "dweight and dbias are summed over the ranks here: data-parallel training will do that, and they count twice.",
        PARAMETERS, "the all-reduced sums returned because they are at hand",
    ),
    _function(
        "gradient_of_weight_without_x_hat", "dweight = sum_dy_x_hat", "dweight = (dy * x).sum(axes)",
        "dweight is the sum of dy · x: weight multiplies x̂, not x.",
        PARAMETERS, "the input in the place of the normalised input",
    ),
    _function(
        "parameter_gradients_swapped", _GRADIENTS, "return dx, dbias, dweight, None",
        "The gradients of weight and bias have changed places: they come back in the order of the arguments.",
        PARAMETERS, "backward's return in another order than forward's arguments",
    ),
    _function(
        "exchange_for_dx_only",
        "if group_size(ctx.group) > 1:", "if group_size(ctx.group) > 1 and ctx.needs_input_grad[0]:",
        "A rank whose x needs no gradient does not take part in the backward exchange, and the others wait for it.",
        BACKWARD, "all_reduce under needs_input_grad, as in torch's own backward",
    ),
    _function(
        "no_gradients_for_data", "x, weight, mean, invstd = ctx.saved_tensors",
        "x, weight, mean, invstd = ctx.saved_tensors\n"
        "        if not ctx.needs_input_grad[0]:\n"
        "            return (None,) * 8",
        "Where x needs no gradient nothing comes back: weight and bias of a network's first layer learn all the same.",
        PARAMETERS, "an early return where dx is not asked for",
    ),
    _function(
        "biased_running_var", _UNBIASED, "var.clone()",
        "The biased variance goes into the running one: there the unbiased one is kept.",
        BIAS, "one variance used for both",
    ),
    _function(
        "unbiased_by_own_count", _UNBIASED, "var * ((x.numel() // x.shape[1]) / (x.numel() // x.shape[1] - 1))",
        "The running variance is corrected with this rank's count: n is that of all ranks together.",
        BIAS, "n read from the shape of the shard",
    ),
    _function(
        "own_running_statistics", "for buffer, new in (",
        "count, mine, m2 = local_moments(x)\n"
        "            mine_var = m2 / max(count - 1, 1)\n"
        "            for buffer, new in ((running_mean, mine), (running_var, mine_var)) if count else (",
        "The running statistics follow this rank's shard: they would differ from rank to rank.",
        LOCAL, "buffers updated before the exchange",
    ),
    _function(
        "momentum_of_the_old_value", _UPDATE, "buffer.mul_(momentum).add_(new * (1 - momentum))",
        "momentum weighs the old value here, as in Keras: in PyTorch it is the weight of the new one.",
        FORMULA, "code carried over from Keras",
    ),
    _function(
        "running_statistics_not_in_place", _UPDATE, "buffer = (1 - momentum) * buffer + new * momentum",
        "The running statistics were computed but the given tensors still hold the old values: change them in place.",
        FORMULA, "buffer = …, which only renames",
    ),
    _function(
        "buffers_given_new_memory", _UPDATE,
        "buffer.data = (buffer * (1 - momentum) + new * momentum).to(buffer.dtype)",
        "The given tensors got new memory (.data = …): views of them keep the old values, so change them in place.",
        FORMULA, ".data = …, which looks as if it were in place",
    ),
    _function(
        "buffers_given_float64_memory", _UPDATE, "buffer.data = buffer * (1 - momentum) + new * momentum",
        "The given tensors got new memory (.data = …), in the statistics' float64: in place they stay what they are.",
        TRAVELS, ".data = …, which takes over the dtype of what is assigned",
    ),
    _function(
        "copy_of_the_buffers_moved", _UPDATE, "buffer.double().mul_(1 - momentum).add_(new * momentum)",
        "The running statistics are converted and the copy is updated: in float32 the given ones stay as they were.",
        TRAVELS, "running_mean.double(), to fit the statistics that came in",
    ),
    _function(
        "empty_shard_stays_away_backward",
        "if group_size(ctx.group) > 1:", "if group_size(ctx.group) > 1 and x.numel():",
        "A rank with an empty shard does not take part in the backward exchange, and the others wait for it for ever.",
        EVERY_RANK, "an early return for empty gradients",
    ),
    _function(
        "empty_shard_keeps_old_statistics", "if n > 1:", "if n > 1 and x.numel():",
        "A rank with an empty shard leaves its running statistics as they were: they are of all ranks, also there.",
        EVERY_RANK, "if x.numel(): around everything that is not a collective",
    ),
    _function(
        "nothing_learned_from_nothing", "if n > 1:", "if n != 1:",
        "A batch that is empty on all ranks pulls the running statistics towards zero: it has to leave them alone.",
        UNEVEN, "an update that does not look at n",
    ),
    _function(
        "single_value_refused", _SYNCED,
        "if x.numel() == x.shape[1]:\n"
        "            raise ValueError(\"expected more than 1 value per channel\")\n"
        "        " + _SYNCED,
        "A shard of a single value is refused by its own rank, and the others wait: what counts is the total number.",
        EVERY_RANK, "torch's check of the shape of a batch, before the exchange",
    ),
    _function(
        "two_collectives_backward", "dist.all_reduce(both, group=ctx.group)",
        "for part in both.chunk(2):\n                dist.all_reduce(part, group=ctx.group)",
        "The two sums travel one after the other: put together they need a single trip backward.",
        BACKWARD, "one all_reduce for each sum",
    ),
    _function(
        "two_passes_forward", _SYNCED,
        "mean = sync_moments(x, group)[1]\n"
        "        n, _, var = sync_moments(x, group)",
        "The mean travels first and the squares around it later: moments around a shard's own mean fit into one trip.",
        FORWARD, "one all_reduce for the mean, and one for the squares around it",
    ),
    _function(
        "group_ignored", "ctx.n, ctx.group = n, group", "ctx.n, ctx.group = n, None",
        "Forward keeps to the group, backward sums over all ranks: pass the group on.",
        GROUPS, "the group not kept for backward",
    ),
    _function(
        "weight_never_none", _SCALE, "scale = invstd * weight",
        "Backward multiplies by a weight that may be None.",
        FORMULA, "layers that are always affine",
    ),
    _function(
        "no_bias_without_weight", _Y, _Y.replace(", bias)", ", None if weight is None else bias)"),
        "Without a weight the bias is left out as well: each of the two may be missing by itself.",
        FORMULA, "if weight is not None: around scale and shift",
    ),
    _function(
        "running_statistics_never_none", "if buffer is not None:", "if True:",
        "Without running statistics there is nothing to update: they may be None.",
        FORMULA, "layers that always track",
    ),
    _function(
        "buffers_only_together",
        "if buffer is not None:", "if running_mean is not None and running_var is not None:",
        "With one of the running statistics None the other is left as it was: each may be missing by itself.",
        FORMULA, "one if around both updates",
    ),
    _function(
        "float32_returned_for_half", _Y, _Y.replace(".to(x.dtype)", ""),
        "Half came in and float32 went out: y has to have the dtype of x.",
        TRAVELS, "half that is normalised in float32, and never cast back",
    ),
    _function(
        "statistics_in_the_dtype_of_x", _Y,
        _Y.replace("mean, invstd)", "mean.to(x.dtype).double(), invstd.to(x.dtype).double())"),
        "The statistics are rounded to the dtype of x before they are used: half inputs are normalised in float32.",
        TRAVELS, "mean.to(x), so that dtypes fit",
    ),
    _function(
        "layout_lost", _Y, _Y + ".contiguous()",
        "channels_last came in and another layout went out: y has to have the memory layout of x.",
        FORMULA, "a contiguous() to be on the safe side",
    ),
    _function(
        "float64_returned", _Y, _Y.replace(".to(x.dtype)", ".double()"),
        "float32 came in and float64 went out: y has to have the dtype of x.",
        TRAVELS, "statistics in float64 that were never cast back",
    ),
    # --- convert_sync_batchnorm
    _convert(
        "synchronised_layer_skipped", _IS_ONE,
        "if not is_batchnorm(module) or hasattr(module, \"_normalised_together\"):",
        "A layer that is a SyncBatchNorm of the course already is passed over, and keeps its old group.",
        GROUPS, "if isinstance(module, SyncBatchNorm): return module",
    ),
    _convert(
        "children_only", "for parent in list(model.modules()):", "for parent in [model]:",
        "Only direct children are replaced: BatchNorm layers sit deeper in a model, too.",
        CONVERTING, "a loop over named_children without recursion",
    ),
    _convert(
        "two_dimensional_only", _IS_ONE, "if not isinstance(module, nn.BatchNorm2d):",
        "Only BatchNorm2d is replaced: models have BatchNorm1d and BatchNorm3d as well.",
        CONVERTING, "isinstance with the one kind that the author used",
    ),
    _convert(
        "three_kinds_only", _IS_ONE, "if not isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):",
        "Only BatchNorm1d, 2d and 3d are replaced: PyTorch's SyncBatchNorm and the course's layer are none of them.",
        CONVERTING, "isinstance with the kinds that one knows",
    ),
    _convert(
        "torchs_kinds_only", _IS_ONE, "if not isinstance(module, _BatchNorm):",
        "Only PyTorch's layers are replaced: the course's own BatchNorm does not derive from their base class.",
        CONVERTING, "isinstance with torch's base class, as in torch's own conversion",
    ),
    Misconception(
        "sync.convert_sync_batchnorm", "two_places_named_once",
        ((_PLACES, "parent.named_children()"), (_PLACED, _ANOTHER)),
        "A layer that stands twice in one module was replaced once, and one that stands in two modules became two.",
        CONVERTING, "a recursion over named_children, as torch's own conversion",
    ),
    _convert(
        "shared_layer_split", _PLACED, _ANOTHER,
        "A layer that the model uses in two places became two layers: remember what each one was replaced by.",
        CONVERTING, "a recursion over the children that does not remember where it has been",
    ),
    _convert(
        "first_place_only", _PLACED, "setattr(parent, name, converted.pop(child))",
        "A layer that the model uses in several places was replaced in the first of them only.",
        CONVERTING, "a loop over the names of named_modules",
    ),
    _convert(
        "other_norms_replaced",
        _IS_ONE, "if not isinstance(module, nn.modules.batchnorm._NormBase):",
        "Instance normalisation is replaced as well: it has no batch statistics to share.",
        CONVERTING, "a base class that is too wide, or a test on the name",
    ),
    _convert(
        "root_forgotten", _RESULT, "return model",
        "A model that is itself a BatchNorm layer comes back as it was: only layers inside others are replaced.",
        CONVERTING, "recursion that looks at children only",
    ),
    _convert(
        "root_starts_anew", _RESULT,
        "return SyncBatchNorm(model.num_features, process_group=group) if model in converted else model",
        "A model that is itself a BatchNorm layer comes back as a fresh one: it has a state to keep like any other.",
        KEEPS, "a special case for the root, written in one line",
    ),
    _convert(
        "torchs_layer", "layer = " + _FRESH, "layer = nn." + _FRESH,
        "The new layers are torch's: it refuses the CPU, and your function would not be in it.",
        CONVERTING, "torch.nn.SyncBatchNorm",
    ),
    _convert(
        "a_copy_converted", "converted = {}", "model, converted = __import__(\"copy\").deepcopy(model), {}",
        "A copy of the model was converted: the caller's own model has to change, in place.",
        CONVERTING, "deepcopy, to be on the safe side",
    ),
    _convert(
        "nothing_returned", _RESULT, "converted.get(model, model)",
        "The model was changed but is not returned.",
        CONVERTING, "functions that work in place and end there",
    ),
    _convert(
        "fresh_layers", _STATE, f"layer = SyncBatchNorm({_SETTINGS}).train(module.training)",
        "The new layers start from ones and zeros: what the old ones had learned and measured is lost.",
        KEEPS, "a replaced layer whose state nobody copied",
    ),
    _convert(
        "buffers_lost", _STATE,
        f"layer = SyncBatchNorm({_SETTINGS}).train(module.training)\n"
        "        layer.weight, layer.bias = module.weight, module.bias",
        "Weights came along, running statistics did not: the model would start measuring anew.",
        KEEPS, "weight and bias copied by hand",
    ),
    _convert(
        "device_of_running_mean", _STATE,
        f"layer = SyncBatchNorm({_SETTINGS}).train(module.training)\n"
        "        if module.running_mean is not None:\n"
        "            layer.to(module.running_mean)\n"
        "        layer.load_state_dict(module.state_dict())\n"
        "        for old, new in zip(module.parameters(), layer.parameters(), strict=True):\n"
        "            new.requires_grad_(old.requires_grad)",
        "Device and dtype were read from running_mean, which is None in a layer that keeps no running statistics.",
        KEEPS, "layer.to(module.running_mean.device)",
    ),
    _convert(
        "settings_lost", _STATE, _STATE + "\n        layer.eps, layer.momentum = 1e-5, 0.1",
        "eps and momentum are the defaults: the old layer's own have to stay.",
        KEEPS, "new layers made from the number of channels alone",
    ),
    _convert(
        "counter_lost", _STATE,
        _STATE + "\n        if layer.num_batches_tracked is not None:\n"
        "            layer.num_batches_tracked = torch.zeros_like(layer.num_batches_tracked)",
        "The counter of batches starts again at zero: it is part of the running statistics.",
        KEEPS, "running_mean and running_var copied by hand",
    ),
    _convert(
        "mode_lost", _STATE, _STATE + "\n        layer.training = True",
        "New layers are in training mode: one that was in eval mode has to stay there.",
        KEEPS, "new modules, which always start in training mode",
    ),
    _convert(
        "mode_of_the_model", _STATE, _STATE + "\n        layer.training = model.training",
        "New layers are in the mode of the whole model: each has to stay in the mode of the layer that it replaces.",
        KEEPS, "new_layer.train(model.training)",
    ),
    _convert(
        "frozen_parameters_thawed", _STATE,
        _STATE + "\n        vars(layer)[\"_parameters\"] = {\n"
        "            k: v if v is None else nn.Parameter(v.detach().clone()) for k, v in module._parameters.items()\n"
        "        }",
        "The values were copied into new parameters, which learn: frozen ones have to stay frozen.",
        KEEPS, "load_state_dict into a new layer",
    ),
    _convert(
        "group_forgotten", _STATE, "vars(layer).update(vars(module), process_group=None)",
        "The new layers were not given the group, so they would share their statistics with all ranks.",
        GROUPS, "an argument that is never passed on",
    ),
    _convert(
        "group_not_handed_down", _STATE,
        "vars(layer).update(vars(module), process_group=None if \".\" in name else group)",
        "Layers deeper in the model were not given the group: hand it on wherever the function calls itself.",
        GROUPS, "a recursive call without the second argument",
    ),
]
