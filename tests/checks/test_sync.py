"""Problem set 5: what every topic is tested for, and ranks that hang, fail or never end."""

import contextlib
import functools
import os
import re
import time

import pytest
import torch
import torch.distributed as dist

from course_lib.checks import check
from course_lib.checks.observe import TIME_LIMIT, observe
from course_lib.checks.piece import find, pieces
from course_lib.checks.sync_ranks import RANKS_LIMIT, on_ranks
from course_lib.ranks.outcome import GRACE
from course_lib.sync import local_moments, merge_moments
from tests.checks.every_topic import *  # noqa: F403  the tests
from tests.right_answers.sync import RIGHT

TOPIC = "sync"
_STATE = "vars(layer).update(vars(module), process_group=group)"
_REDUCE = "functools.reduce(merge_moments, everyone)"
_VAR = "return n, mean, m2 / max(n, 1)"
_INVSTD = "invstd = (var + eps).rsqrt()"
_DX = "return dx, dweight, dbias, None"
#: What is not asked to change starts anew as well.
_ANEW = [
    (
        "converted = {}",
        "converted = {}\n    for layer in model.modules():\n        if isinstance(layer, (nn.Linear, nn.Conv2d)):\n"
        "            layer.reset_parameters()",
    )
]
CLAUSES = [
    ("merge_moments", "n of the union", "union_of_two: n", [("return n,", "return max(n_a, n_b),")]),
    ("merge_moments", "mean of the union", "union_of_two: mean", "means_averaged"),
    ("merge_moments", "m2 of the union", "union_of_two: m2", "spread_between_forgotten"),
    ("merge_moments", "the same again: what comes out can be merged", "union_of_three: m2", "variance_returned"),
    (
        "merge_moments",
        "of any shape",
        "union_of_three: mean",
        [("delta = mean_b - mean_a", "delta, _ = mean_b - mean_a, *mean_a.shape")],
    ),
    ("merge_moments", "b may be empty", "union_with_an_empty_second_side", "empty_side_returned"),
    ("merge_moments", "a may be empty", "union_with_an_empty_first_side", "only_second_side_may_be_empty"),
    ("merge_moments", "of an empty a only n counts", "union_with_an_empty_first_side: mean", "empty_side_listened_to"),
    ("merge_moments", "of an empty b only n counts", "union_with_an_empty_second_side: m2", "empty_side_listened_to"),
    ("merge_moments", "both may be empty", "union_after_two_empty_sides", "both_empty_divides"),
    (
        "merge_moments",
        "both empty: they stay",
        "union_after_two_empty_sides: inputs changed",
        [("if n_b == 0:\n        return a", "if n_b == 0:\n        m2_b.zero_(), mean_b.zero_()\n        return a")],
    ),
    (
        "merge_moments",
        "mean of the union in float32",
        "union_leaves_its_sides_alone: mean",
        [("mean_a + delta * (n_b / n)", "mean_a + mean_b")],
    ),
    ("merge_moments", "n stays an int", "union_leaves_its_sides_alone: type of n", "n_a_float"),
    (
        "merge_moments",
        "n stays an int where the first side is empty",
        "union_leaves_its_sides_alone: type of n, first side empty",
        [("return b", "return float(n_b), mean_b, m2_b")],
    ),
    (
        "merge_moments",
        "n stays an int where the second side is empty",
        "union_leaves_its_sides_alone: type of n, second side empty",
        [("return a", "return float(n_a), mean_a, m2_a")],
    ),
    (
        "merge_moments",
        "n stays an int where the sides are of different sizes",
        "union_leaves_its_sides_alone: type of n, of different sizes",
        [("return n, mean_a", "return n if n_a == n_b else float(n), mean_a")],
    ),
    (
        "merge_moments",
        "the sides stay, in float64 too",
        "union_leaves_its_sides_alone: inputs changed",
        [("delta = mean_b - mean_a", "delta = mean_b.double().sub_(mean_a).to(mean_a.dtype)")],
    ),
    ("merge_moments", "the sides stay", "union_leaves_its_sides_alone: inputs changed", "merged_in_place"),
    ("sync_moments", "n of all ranks", "moments_of_two_tables: n on rank 0", "own_count_returned"),
    ("sync_moments", "mean of all ranks, on each", "moments_of_two_tables: mean on rank 1", "this_rank_only"),
    ("sync_moments", "biased var", "moments_of_two_tables: var on rank 0", "unbiased_variance"),
    *(
        (
            "sync_moments",
            f"{name} in float32",
            f"moments_of_two_ranks_in_float32: {name} on rank 1",
            [(_VAR, f"{local} = {local} * (1 + (x.dtype == torch.float32))\n    {_VAR}")],
        )
        for name, local in {"mean": "mean", "var": "m2"}.items()
    ),
    (
        "sync_moments",
        "var of float32 around a large mean",
        "moments_around_a_large_mean: var of float32 on rank 0",
        "squares_summed_in_float32",
    ),
    (
        "sync_moments",
        "var of half",
        "moments_around_a_large_mean: var of float16 on rank 1",
        "squares_summed_in_the_dtype_of_x",
    ),
    (
        "sync_moments",
        "n of many values of half",
        "moments_around_a_large_mean: n of float16 on rank 0",
        "count_in_the_dtype_of_x",
    ),
    (
        "sync_moments",
        "n counts values, not samples",
        "moments_of_two_ranks_with_maps: n of maps on rank 0",
        "samples_counted",
    ),
    (
        "sync_moments",
        "volumes",
        "moments_of_two_ranks_with_maps: mean of volumes on rank 0",
        [("n, mean, m2 = local_moments(x)", "n, mean, m2 = local_moments(x[..., :1] if x.dim() == 5 else x)")],
    ),
    (
        "sync_moments",
        "volumes, at every depth",
        "moments_of_two_ranks_with_maps: mean of volumes on rank 1",
        [("n, mean, m2 = local_moments(x)", "n, mean, m2 = local_moments(x[:, :, :1] if x.dim() == 5 else x)")],
    ),
    ("sync_moments", "uneven shards", "moments_of_uneven_shards", "averages_of_averages"),
    ("sync_moments", "the same bits", "moments_of_uneven_shards: the same bits on every rank", "own_shard_first"),
    ("sync_moments", "empty shards", "moments_with_an_empty_shard", "empty_shard_stays_away"),
    (
        "sync_moments",
        "empty shards: the first",
        "moments_with_an_empty_shard: n, rank 0 empty, on rank 1",
        [("reduce(merge_moments, everyone)", "reduce(lambda a, b: merge_moments(a, b) if a[0] else a, everyone)")],
    ),
    (
        "sync_moments",
        "all shards empty: var",
        "moments_with_an_empty_and_a_single_shard: var, all empty, on rank 0",
        "divided_by_no_count",
    ),
    (
        "sync_moments",
        "all shards empty: n",
        "moments_with_an_empty_and_a_single_shard: n, all empty, on rank 3",
        [(_VAR, f"n = n or 1\n    {_VAR}")],
    ),
    (
        "sync_moments",
        "all shards empty: mean",
        "moments_with_an_empty_and_a_single_shard: mean, all empty, on rank 2",
        [(_VAR, f"mean = mean * n / n if n else mean / n\n    {_VAR}")],
    ),
    ("sync_moments", "shards of one value", "moments_with_an_empty_and_a_single_shard", "single_value_unbiased"),
    ("sync_moments", "one collective", "moments_take_one_collective: collectives on rank 0", "three_collectives"),
    (
        "sync_moments",
        "one collective, whatever the shards",
        "moments_take_one_collective: collectives for uneven maps on rank 1",
        [
            (
                "functools.reduce(merge_moments, everyone)",
                "functools.reduce(merge_moments, everyone)\n"
                "        if counts.unique().numel() > 1:\n            dist.barrier(group=group)",
            )
        ],
    ),
    ("sync_moments", "group", "moments_of_two_groups", "group_ignored"),
    (
        "sync_moments",
        "one collective, with an empty shard too",
        "cost_of_an_empty_shard: no more collectives than with full shards on rank 0",
        [(_REDUCE, f"{_REDUCE}\n        if (counts == 0).any():\n            dist.barrier(group=group)")],
    ),
    (
        "sync_moments",
        "one collective, with a group too",
        "moments_of_two_groups: no more collectives than without a group on rank 3",
        [(_REDUCE, f"{_REDUCE}\n        if group is not None:\n            dist.barrier(group=group)")],
    ),
    (
        "sync_moments",
        "group, by its name",
        "moments_of_two_groups",
        [
            ("group: dist.ProcessGroup | None = None", "pg=None"),
            ("group_size(group)", "group_size(pg)"),
            ("group=group", "group=pg"),
        ],
    ),
    ("sync_moments", "n int", "moments_leave_x_alone: type of n of float32 on rank 0", "n_a_float"),
    (
        "sync_moments",
        "n int, of uneven shards too",
        "moments_leave_x_alone: type of n of uneven volumes on rank 1",
        [(_VAR, f"n = n if x.dim() < 5 else float(n)\n    {_VAR}")],
    ),
    (
        "sync_moments",
        "every memory layout",
        "moments_leave_x_alone: mean of float64 on rank 0",
        [("n, mean, m2 = local_moments(x)", "n, mean, m2 = local_moments(x.view(*x.shape[:2], -1))")],
    ),
    (
        "sync_moments",
        "mean float64",
        "moments_leave_x_alone: dtype of mean on rank 0",
        "statistics_in_the_dtype_of_x",
    ),
    (
        "sync_moments",
        "var float64",
        "moments_leave_x_alone: dtype of var on rank 1",
        "statistics_in_the_dtype_of_x",
    ),
    ("sync_moments", "no gradients", "moments_leave_x_alone: gradients flow on rank 0", "history_kept"),
    (
        "sync_moments",
        "the input stays, volumes too",
        "moments_leave_x_alone: inputs changed",
        [(_VAR, f"x.dim() == 5 and x.sub_(1)\n    {_VAR}")],
    ),
    ("sync_moments", "the input stays", "moments_leave_x_alone: inputs changed", "x_centred_in_place"),
    (
        "sync_moments",
        "the input stays, in float64 too",
        "moments_leave_x_alone: inputs changed",
        [("return n, mean, m2 / max(n, 1)", "x.double().sub_(1)\n    return n, mean, m2 / max(n, 1)")],
    ),
    ("SyncBatchNormFunction", "y of the whole batch", "output_of_two_tables: y on rank 0", "not_synchronised"),
    ("SyncBatchNormFunction", "eps inside the root", "output_of_two_tables", "eps_outside_root"),
    ("SyncBatchNormFunction", "y of maps", "output_of_uneven_maps: y of maps on rank 2", "unbiased_variance"),
    (
        "SyncBatchNormFunction",
        "y of volumes",
        "output_of_uneven_maps: y of volumes on rank 0",
        [
            (
                "n, mean, var = sync_moments(x, group)",
                "n, mean, var = sync_moments(x[..., :1] if x.dim() == 5 else x, group)",
            )
        ],
    ),
    ("SyncBatchNormFunction", "dx of the whole batch", "gradient_of_two_tables: dx on rank 1", "own_sums_over_total"),
    (
        "SyncBatchNormFunction",
        "y in float32",
        "output_in_float32: y on rank 0",
        [(_INVSTD, "invstd = (var * (1 + (x.dtype == torch.float32)) + eps).rsqrt()")],
    ),
    (
        "SyncBatchNormFunction",
        "dx in float32",
        "gradient_in_float32: dx on rank 1",
        [(_DX, f"dx = dx * (1 + (x.dtype == torch.float32))\n        {_DX}")],
    ),
    *(
        (
            "SyncBatchNormFunction",
            f"{name} in float32",
            f"parameter_gradients_in_float32: {name} on rank 1",
            [(_DX, f"{name} = None if {name} is None else {name} * (1 + (x.dtype == torch.float32))\n        {_DX}")],
        )
        for name in ("dweight", "dbias")
    ),
    ("SyncBatchNormFunction", "dx of maps", "gradient_of_uneven_maps", "no_variance_term"),
    ("SyncBatchNormFunction", "dx of volumes", "gradient_of_uneven_maps: dx of volumes on rank 1", "no_mean_term"),
    (
        "SyncBatchNormFunction",
        "dx, whatever else is frozen: weight",
        "gradient_beside_frozen_parameters: dx with a frozen weight on rank 0",
        "frozen_weight_loses_a_term",
    ),
    (
        "SyncBatchNormFunction",
        "dx, whatever else is frozen: bias",
        "gradient_beside_frozen_parameters: dx with both frozen on rank 1",
        [
            (
                "both = torch.cat([sum_dy,",
                "sum_dy = sum_dy * float(bool(ctx.needs_input_grad[2]))\n        both = torch.cat([sum_dy,",
            )
        ],
    ),
    (
        "SyncBatchNormFunction",
        "dweight local",
        "parameter_gradients: dweight on rank 0",
        "parameter_gradients_summed",
    ),
    ("SyncBatchNormFunction", "dbias local", "parameter_gradients: dbias on rank 2", "parameter_gradients_summed"),
    (
        "SyncBatchNormFunction",
        "dweight where x is data",
        "parameter_gradients: dweight where x needs none on rank 0",
        "no_gradients_for_data",
    ),
    (
        "SyncBatchNormFunction",
        "dbias where x is data",
        "parameter_gradients: dbias where x needs none on rank 0",
        "no_gradients_for_data",
    ),
    (
        "SyncBatchNormFunction",
        "dweight, whatever else is frozen",
        "parameter_gradients: dweight where bias needs none on rank 0",
        [("if ctx.needs_input_grad[1]:", "if all(ctx.needs_input_grad[1:3]):")],
    ),
    (
        "SyncBatchNormFunction",
        "dbias, whatever else is frozen",
        "parameter_gradients: dbias where weight needs none on rank 0",
        [("if ctx.needs_input_grad[2]:", "if ctx.needs_input_grad[2] and (weight is None or dweight is not None):")],
    ),
    (
        "SyncBatchNormFunction",
        "one collective each, whatever is frozen",
        "parameter_gradients: no more collectives where x needs none on rank 0",
        [
            (
                "if ctx.needs_input_grad[0]:",
                "if not all(ctx.needs_input_grad[:3]):\n            dist.barrier(group=ctx.group)\n"
                "        if ctx.needs_input_grad[0]:",
            )
        ],
    ),
    (
        "SyncBatchNormFunction",
        "running_mean in place, on every rank",
        "running_statistics: running_mean on rank 1",
        "running_statistics_not_in_place",
    ),
    *(
        (
            "SyncBatchNormFunction",
            f"{name} in place, in its memory",
            f"running_statistics: {name} in its old place on rank 0",
            "buffers_given_new_memory",
        )
        for name in ("running_mean", "running_var")
    ),
    (
        "SyncBatchNormFunction",
        "buffers keep their dtype",
        "running_statistics_in_float32: running_mean on rank 0",
        "buffers_given_float64_memory",
    ),
    (
        "SyncBatchNormFunction",
        "momentum weighs the new value",
        "running_statistics: running_mean on rank 0",
        "momentum_of_the_old_value",
    ),
    (
        "SyncBatchNormFunction",
        "running_var from the unbiased variance",
        "running_statistics: running_var on rank 0",
        "biased_running_var",
    ),
    (
        "SyncBatchNormFunction",
        "unbiased over the total n",
        "running_statistics: running_var on rank 0",
        "unbiased_by_own_count",
    ),
    (
        "SyncBatchNormFunction",
        "buffers updated where x is data",
        "running_statistics: running_mean where x needs none on rank 0",
        [("if n > 1:", "if n > 1 and ctx.needs_input_grad[0]:")],
    ),
    (
        "SyncBatchNormFunction",
        "buffers in place, in float32 too",
        "running_statistics_in_float32: running_var on rank 1",
        "copy_of_the_buffers_moved",
    ),
    (
        "SyncBatchNormFunction",
        "buffers: total n of the group",
        "running_statistics_of_two_groups: running_var on rank 3",
        [("n / (n - 1)", "n * dist.get_world_size() / (n * dist.get_world_size() - 1)")],
    ),
    ("SyncBatchNormFunction", "empty shards", "step_with_an_empty_shard", "empty_shard_stays_away_backward"),
    (
        "SyncBatchNormFunction",
        "buffers of an empty shard",
        "step_with_an_empty_shard: running_mean, rank 1 empty, on rank 1",
        "empty_shard_keeps_old_statistics",
    ),
    (
        "SyncBatchNormFunction",
        "shards of one value",
        "step_with_an_empty_and_a_single_shard",
        "single_value_refused",
    ),
    (
        "SyncBatchNormFunction",
        "two values are enough",
        "step_with_two_values",
        [("if n == 1:", "if n <= 2:")],
    ),
    *(
        (
            "SyncBatchNormFunction",
            f"{name} not touched by a batch that is empty everywhere",
            f"step_with_two_values: {name} of nothing on rank 0",
            "nothing_learned_from_nothing",
        )
        for name in ("running_mean", "running_var")
    ),
    (
        "SyncBatchNormFunction",
        "one collective forward",
        "collectives_of_a_step: collectives forward on rank 0",
        "two_passes_forward",
    ),
    (
        "SyncBatchNormFunction",
        "one collective backward",
        "collectives_of_a_step: collectives backward on rank 2",
        "two_collectives_backward",
    ),
    (
        "SyncBatchNormFunction",
        "one collective each, whatever the shards",
        "collectives_of_a_step: collectives backward of uneven maps on rank 1",
        [
            (
                "if ctx.needs_input_grad[0]:",
                "if x.dim() == 4:\n            dist.barrier(group=ctx.group)\n        if ctx.needs_input_grad[0]:",
            )
        ],
    ),
    (
        "SyncBatchNormFunction",
        "one collective each, in float32 too",
        "collectives_of_a_step: collectives forward of uneven maps on rank 0",
        [
            (
                "invstd = (var + eps).rsqrt()",
                "invstd = (var + eps).rsqrt()\n        if x.dtype.itemsize < 8:\n            dist.barrier(group)",
            )
        ],
    ),
    (
        "SyncBatchNormFunction",
        "one collective backward, whatever a rank needs",
        "collectives_of_ranks_that_need_different_gradients: collectives backward on rank 0",
        "exchange_for_dx_only",
    ),
    *(
        (
            "SyncBatchNormFunction",
            f"one collective backward where {only} alone needs a gradient",
            f"collectives_of_ranks_that_need_different_gradients: collectives backward on rank {rank}",
            [("ctx.group) > 1:", f"ctx.group) > 1 and (ctx.needs_input_grad[0] or ctx.needs_input_grad[{other}]):")],
        )
        for rank, only, other in ((1, "weight", 2), (2, "bias", 1))
    ),
    (
        "SyncBatchNormFunction",
        "y, whatever a rank needs",
        "collectives_of_ranks_that_need_different_gradients: mean of y",
        "no_shift",
    ),
    ("SyncBatchNormFunction", "group", "step_of_two_groups: dx on rank 3", "group_ignored"),
    (
        "SyncBatchNormFunction",
        "one collective each, with an empty shard too",
        "cost_of_an_empty_shard: no more collectives with an empty shard on rank 0",
        [(_INVSTD, f"{_INVSTD}\n        if n == 10:\n            dist.barrier(group=group)")],
    ),
    (
        "SyncBatchNormFunction",
        "one collective each, with a group too: forward",
        "step_of_two_groups: no more collectives on rank 3",
        [(_INVSTD, f"{_INVSTD}\n        if group is not None:\n            dist.barrier(group=group)")],
    ),
    (
        "SyncBatchNormFunction",
        "one collective each, with a group too: backward",
        "step_of_two_groups: no more collectives on rank 0",
        [(_DX, f"if ctx.group is not None:\n            dist.barrier(group=ctx.group)\n        {_DX}")],
    ),
    (
        "SyncBatchNormFunction",
        "one collective each, whatever is None: weight",
        "step_without_some: no more collectives without weight on rank 0",
        [(_INVSTD, f"{_INVSTD}\n        if weight is None:\n            dist.barrier(group=group)")],
    ),
    (
        "SyncBatchNormFunction",
        "one collective each, whatever is None: bias",
        "step_without_some: no more collectives without bias on rank 1",
        [(_INVSTD, f"{_INVSTD}\n        if bias is None:\n            dist.barrier(group=group)")],
    ),
    (
        "SyncBatchNormFunction",
        "one collective each, whatever is None: buffers",
        "step_without_some: no more collectives without running statistics on rank 1",
        [(_INVSTD, f"{_INVSTD}\n        if running_mean is None:\n            dist.barrier(group=group)")],
    ),
    ("SyncBatchNormFunction", "buffers may be None", "step_without_some", "running_statistics_never_none"),
    ("SyncBatchNormFunction", "weight may be None", "step_without_some", "weight_never_none"),
    (
        "SyncBatchNormFunction",
        "weight alone may be None",
        "step_without_some: y without weight on rank 0",
        "no_bias_without_weight",
    ),
    (
        "SyncBatchNormFunction",
        "bias alone may be None",
        "step_without_some: y without bias on rank 0",
        [
            (
                "standardise(x, mean, invstd), weight, bias)",
                "standardise(x, mean, invstd), weight if bias is not None else None, bias)",
            )
        ],
    ),
    (
        "SyncBatchNormFunction",
        "dbias whatever else is None",
        "step_without_some: dbias without weight on rank 0",
        [("dbias = sum_dy", "dbias = sum_dy / len(x)")],
    ),
    (
        "SyncBatchNormFunction",
        "buffers alone may be None",
        "step_without_some: y without running statistics on rank 0",
        [
            (
                "standardise(x, mean, invstd), weight,",
                "standardise(x, mean, invstd), weight if running_mean is not None else None,",
            )
        ],
    ),
    (
        "SyncBatchNormFunction",
        "buffers updated without weight and bias",
        "running_statistics_without_some: running_var without weight and bias, as with on rank 0",
        [("if n > 1:", "if n > 1 and weight is not None:")],
    ),
    *(
        (
            "SyncBatchNormFunction",
            f"{one} alone may be None",
            f"running_statistics_without_some: {other} without {one}, as with on rank 1",
            "buffers_only_together",
        )
        for one, other in {"running_mean": "running_var", "running_var": "running_mean"}.items()
    ),
    (
        "SyncBatchNormFunction",
        "dtype of x out",
        "dtypes_and_what_was_given: dtype of y of float32 on rank 0",
        "float64_returned",
    ),
    (
        "SyncBatchNormFunction",
        "dtype of x out: half",
        "output_in_float16: dtype of y on rank 1",
        "float32_returned_for_half",
    ),
    (
        "SyncBatchNormFunction",
        "half normalised with statistics of float32",
        "output_in_float16: mean of y",
        "statistics_in_the_dtype_of_x",
    ),
    (
        "SyncBatchNormFunction",
        "memory layout of x out",
        "dtypes_and_what_was_given: y is channels_last on rank 1",
        "layout_lost",
    ),
    (
        "SyncBatchNormFunction",
        "dtype of x out: float64",
        "dtypes_and_what_was_given: dtype of y of float64 on rank 0",
        [("weight, bias).to(x.dtype)", "weight, bias).float()")],
    ),
    (
        "SyncBatchNormFunction",
        "the input stays",
        "dtypes_and_what_was_given: inputs changed",
        [("invstd = (var + eps).rsqrt()", "invstd = (var + eps).rsqrt()\n        x.data.add_(1)")],
    ),
    ("SyncBatchNormFunction", "dy stays", "dtypes_and_what_was_given: inputs changed", "dy_overwritten"),
    (
        "SyncBatchNormFunction",
        "the weight stays",
        "dtypes_and_what_was_given: inputs changed",
        [("scale = invstd if weight is None", "scale = invstd if weight is None or weight.data.mul_(2) is None")],
    ),
    ("convert_sync_batchnorm", "children replaced, at any depth", "layers_of_a_nested_model", "children_only"),
    ("convert_sync_batchnorm", "every BN kind", "layers_of_a_nested_model: layer 1", "two_dimensional_only"),
    (
        "convert_sync_batchnorm",
        "every BN kind: torch's SyncBatchNorm",
        "layers_of_a_nested_model: layer 5.0",
        "three_kinds_only",
    ),
    (
        "convert_sync_batchnorm",
        "every BN kind: the course's",
        "layers_of_a_nested_model: layer 5.1",
        "torchs_kinds_only",
    ),
    (
        "convert_sync_batchnorm",
        "in every place: of one module",
        "layers_of_a_nested_model: layer 6.2",
        "two_places_named_once",
    ),
    ("convert_sync_batchnorm", "in every place", "layers_of_a_nested_model: layer 7.again", "first_place_only"),
    (
        "convert_sync_batchnorm",
        "in every place, the same",
        "layers_of_a_nested_model: shared layer still one",
        "shared_layer_split",
    ),
    (
        "convert_sync_batchnorm",
        "every BN: without weight",
        "layers_of_a_nested_model: layer 4.bare.0",
        [("if not is_batchnorm(module):", "if not is_batchnorm(module) or module.weight is None:")],
    ),
    (
        "convert_sync_batchnorm",
        "every BN: without running statistics",
        "layers_of_a_nested_model: layer 4.bare.1",
        [("if not is_batchnorm(module):", "if not is_batchnorm(module) or module.running_mean is None:")],
    ),
    (
        "convert_sync_batchnorm",
        "every BN: in eval mode",
        "layers_of_a_nested_model: layer 4.bare.2",
        [("if not is_batchnorm(module):", "if not is_batchnorm(module) or not module.training:")],
    ),
    ("convert_sync_batchnorm", "no other layer", "layers_of_a_nested_model: layer 3.0", "other_norms_replaced"),
    (
        "convert_sync_batchnorm",
        "no other layer: one with running statistics",
        "layers_of_a_nested_model: layer 3.0",
        [
            (
                "if not is_batchnorm(module):",
                "if getattr(module, 'running_mean', None) is None and not is_batchnorm(module):",
            )
        ],
    ),
    (
        "convert_sync_batchnorm",
        "no other layer: any",
        "layers_of_a_nested_model: layer 2.conv",
        [
            ("if child in converted:", "if child in converted or not list(child.children()):"),
            (
                "setattr(parent, name, converted[child])",
                "setattr(parent, name, converted.get(child, SyncBatchNorm(1)))",
            ),
        ],
    ),
    (
        "convert_sync_batchnorm",
        "no other layer: not even by one like it",
        "layers_of_a_nested_model: others exchanged",
        [("converted = {}", "converted = {}\n    model[0] = __import__('copy').deepcopy(model[0])")],
    ),
    (
        "convert_sync_batchnorm",
        "no other layer's weights",
        "layers_of_a_nested_model: weight of the linear layer",
        _ANEW,
    ),
    ("convert_sync_batchnorm", "by course_lib.sync's layer", "layers_of_a_nested_model: layer 1", "torchs_layer"),
    ("convert_sync_batchnorm", "in place", "layers_of_a_nested_model: returned", "a_copy_converted"),
    (
        "convert_sync_batchnorm",
        "a BN root is returned converted",
        "layer_as_model: returned for BatchNorm1d",
        "root_forgotten",
    ),
    (
        "convert_sync_batchnorm",
        "a BN root of any kind",
        "layer_as_model: returned for BatchNorm3d",
        [
            (
                "converted.get(model, model)",
                "model if isinstance(model, nn.BatchNorm3d) else converted.get(model, model)",
            )
        ],
    ),
    ("convert_sync_batchnorm", "weights kept", "state_of_layers: 1.weight", "fresh_layers"),
    ("convert_sync_batchnorm", "buffers kept", "state_of_layers: 1.running_var", "buffers_lost"),
    ("convert_sync_batchnorm", "counter kept", "state_of_layers: 2.num_batches_tracked", "counter_lost"),
    (
        "convert_sync_batchnorm",
        "a root's state kept",
        "state_of_layers: running_mean of a layer as the model",
        "root_starts_anew",
    ),
    ("convert_sync_batchnorm", "no other state", "state_of_layers: 0.weight", _ANEW),
    (
        "convert_sync_batchnorm",
        "nothing but what was there",
        "state_of_layers: names in the state_dict",
        [(_STATE, f"{_STATE}\n        layer.register_buffer('seen', torch.ones(1))")],
    ),
    ("convert_sync_batchnorm", "eps and momentum kept", "settings_of_layers: eps of layer 1", "settings_lost"),
    (
        "convert_sync_batchnorm",
        "eps and momentum, each in its place",
        "settings_of_layers: eps of layer 3",
        [(_STATE, f"{_STATE}\n        layer.eps, layer.momentum = layer.momentum, layer.eps")],
    ),
    (
        "convert_sync_batchnorm",
        "the number of channels kept",
        "settings_of_layers: num_features of layer 3",
        [(_STATE, f"{_STATE}\n        layer.num_features = layer.weight")],
    ),
    (
        "convert_sync_batchnorm",
        "affine and track_running_stats kept",
        "settings_of_layers: affine of layer 3",
        [(_STATE, f"{_STATE}\n        layer.affine = layer.track_running_stats = None")],
    ),
    (
        "convert_sync_batchnorm",
        "dtype kept, without running statistics too",
        "state_of_layers: 5.weight",
        "device_of_running_mean",
    ),
    (
        "convert_sync_batchnorm",
        "kept where they are, without running statistics too",
        "layers_on_another_device",
        "device_of_running_mean",
    ),
    (
        "convert_sync_batchnorm",
        "kept where they are",
        "layers_on_another_device: where 1.weight lives",
        [("converted = {}", "converted = {}\n    model.to_empty(device='cpu')")],
    ),
    ("convert_sync_batchnorm", "mode kept", "modes_of_layers: training of 2", "mode_lost"),
    ("convert_sync_batchnorm", "mode kept: the layer's own", "modes_of_layers: training of 2", "mode_of_the_model"),
    (
        "convert_sync_batchnorm",
        "no other mode: eval",
        "modes_of_layers: training of the model",
        [("converted = {}", "converted = {}\n    model.eval()")],
    ),
    (
        "convert_sync_batchnorm",
        "no other mode: training",
        "modes_of_layers: training of the model, the other way round",
        [("converted.get(model, model)", "converted.get(model, model).train()")],
    ),
    ("convert_sync_batchnorm", "requires_grad kept", "frozen_parameters", "frozen_parameters_thawed"),
    (
        "convert_sync_batchnorm",
        "requires_grad kept: nothing freezes",
        "frozen_parameters: requires_grad of 1.bias",
        [("converted.get(model, model)", "converted.get(model, model).requires_grad_(False)")],
    ),
    (
        "convert_sync_batchnorm",
        "requires_grad kept: of other layers",
        "frozen_parameters: requires_grad of 0.weight",
        [("converted.get(model, model)", "converted.get(model, model).requires_grad_(True)")],
    ),
    ("convert_sync_batchnorm", "group", "group_of_layers: group of layer 1 on rank 0", "group_forgotten"),
    (
        "convert_sync_batchnorm",
        "group, at any depth",
        "group_of_layers: group of layer 4.0 on rank 0",
        "group_not_handed_down",
    ),
    (
        "convert_sync_batchnorm",
        "group, of a BN root",
        "group_of_layers: group of a layer as the model on rank 0",
        [(_STATE, "vars(layer).update(vars(module), process_group=group if name else None)")],
    ),
    (
        "convert_sync_batchnorm",
        "group, of a layer that has one",
        "group_of_layers: group of layer 6 on rank 2",
        "synchronised_layer_skipped",
    ),
    (
        "convert_sync_batchnorm",
        "all ranks without a group, where a layer has one too",
        "no_group_of_layers: group of layer 6",
        [("process_group=group)", "process_group=group or getattr(module, 'process_group', None))")],
    ),
    (
        "convert_sync_batchnorm",
        "all ranks without a group",
        "no_group_of_layers",
        [("process_group=group)", "process_group=group or object())")],
    ),
]


# --- ranks that go wrong ----------------------------------------------------------------------------------------


def moments(change=None):
    """A right sync_moments, that does something else first: `change(rank, x)`."""

    def sync_moments(x, group=None):
        if change is not None:
            change(dist.get_rank(), x)
        return RIGHT["sync.sync_moments"]["sums_all_reduced"](x, group)

    return sync_moments


def checked(change):
    started = time.monotonic()
    verdict = check("sync.sync_moments", moments(change))
    return verdict, time.monotonic() - started


def afterwards_all_is_well():
    return check("sync.sync_moments", moments()).passed and check("sync.merge_moments", merge_moments).passed


def test_a_rank_that_stays_away_is_named_and_costs_its_group_only():
    def sync_moments(x, group=None):
        if x.numel() == 0:
            return 0, torch.zeros(x.shape[1]), torch.zeros(x.shape[1])
        return moments()(x, group)

    started = time.monotonic()
    verdict = check("sync.sync_moments", sync_moments)
    assert time.monotonic() - started < 3
    [row] = [row for row in verdict.rows if not row.passed]
    assert row.title == "an empty shard, and one of a single value"
    assert re.match(r"rank \d and \d left waiting in all_reduce for rank \d: all ranks of a group have to", row.message)
    assert afterwards_all_is_well()


def test_what_one_rank_raises_is_told_with_its_line():
    def raises(rank, x):
        if rank == 1:
            raise IndexError("list index out of range")

    verdict, seconds = checked(raises)
    assert verdict.points == 0 and seconds < 3
    assert "rank 1 of 2 raised IndexError: list index out of range; rank 0 left waiting in all_reduce" in str(verdict)
    assert 'of raises: raise IndexError("list index out of range"))' in str(verdict)
    assert afterwards_all_is_well()


def test_what_all_ranks_raise_is_told_as_anywhere_else():
    def raises(rank, x):
        raise IndexError(f"on rank {rank}")

    verdict, _ = checked(raises)
    assert verdict.points == 0 and "raised IndexError: on rank 0 (line" in str(verdict)


def test_different_collectives_do_not_meet():
    def calls_another(rank, x):
        if rank == 0:
            dist.all_gather([torch.ones(1), torch.ones(1)], torch.ones(1))

    verdict, seconds = checked(calls_another)
    assert verdict.points == 0 and seconds < 5
    assert "every rank of a group has to call the same collectives" in str(verdict)
    assert afterwards_all_is_well()


def test_a_rank_that_never_ends_is_stopped_and_no_further_one_is_started(monkeypatch):
    monkeypatch.setattr("course_lib.checks.sync_ranks.RANKS_LIMIT", 0.3)

    def loops(rank, x):
        while rank == 1:
            pass

    verdict, seconds = checked(loops)
    assert verdict.points == 0 and seconds < 6
    assert verdict.rows[0].message == "stopped after 0.3 s: does rank 1 ever end?"
    assert {row.message for row in verdict.rows[1:]} == {"not run, because an earlier run had to be stopped"}
    assert afterwards_all_is_well()


def test_the_ranks_end_before_the_scenario_has_to():
    assert RANKS_LIMIT + 2 * GRACE < TIME_LIMIT


processors_are_chosen = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or torch.accelerator.is_available(),
    reason="ranks stay where the system puts them: it offers no choice, or an accelerator's threads would follow them",
)


@processors_are_chosen
@pytest.mark.parametrize("fails", [False, True])
def test_ranks_share_a_processor_and_nobody_else_is_kept_on_it(fails):
    before, seen = os.sched_getaffinity(0), []

    def step(rank):
        seen.append(os.sched_getaffinity(0))
        if fails:
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose") if fails else contextlib.nullcontext():
        on_ranks(step, 3)
    assert len(seen) == 3 and len(seen[0]) == 1 and all(processors == seen[0] for processors in seen)
    assert os.sched_getaffinity(0) == before


@processors_are_chosen
def test_ranks_run_where_a_processor_cannot_be_chosen(monkeypatch):
    def refuses(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuses)
    assert on_ranks(lambda rank: rank, 3) == [0, 1, 2]


@pytest.mark.parametrize("leave", ["group", "exit", "world"])
def test_what_ranks_leave_behind_does_no_harm(leave):
    def leaves(rank, x):
        if leave == "group":
            dist.new_group([0, 1])
        elif leave == "exit":
            raise SystemExit
        else:
            dist.destroy_process_group()

    checked(leaves)
    assert afterwards_all_is_well()


def test_a_stub_is_not_implemented_yet():
    def unwritten(rank, x):
        raise NotImplementedError

    verdict, _ = checked(unwritten)
    assert {row.message for row in verdict.rows} == {"not implemented yet: sync_moments"}


class Unwritten(torch.autograd.Function):
    """What the release hands out."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, group):
        raise NotImplementedError

    @staticmethod
    def backward(ctx, dy):
        raise NotImplementedError


def test_the_stub_of_the_function_is_not_implemented_yet():
    verdict = check("sync.SyncBatchNormFunction", Unwritten)
    assert {row.message for row in verdict.rows} == {"not implemented yet: SyncBatchNormFunction"}


# --- what is asked ----------------------------------------------------------------------------------------------


def test_objects_gathered_by_pickle_are_more_than_one_collective():
    def sync_moments(x, group=None):
        shards = [None] * dist.get_world_size(group)
        dist.all_gather_object(shards, local_moments(x), group=group)
        n, mean, m2 = functools.reduce(merge_moments, shards)
        return n, mean, m2 / max(n, 1)

    verdict = check("sync.sync_moments", sync_moments)
    assert [row.title for row in verdict.rows if not row.passed] == ["one collective"]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "expected a tuple (n, mean, var) to be returned, got None: is there a return?"),
        ((3, 0.5, torch.ones(1)), "expected mean to be a tensor, got float"),
        ((None, torch.ones(1), torch.ones(1)), "expected n to be a number, got NoneType"),
    ],
)
def test_a_result_of_another_form_is_told_so(returned, message):
    assert check("sync.sync_moments", lambda x, group=None: returned).rows[0].message == message


def test_an_output_of_another_shape_is_told_so():
    class Flat(RIGHT["sync.SyncBatchNormFunction"]["SavesXHat"]):
        @staticmethod
        def forward(ctx, x, *rest):
            return RIGHT["sync.SyncBatchNormFunction"]["SavesXHat"].forward(ctx, x, *rest).flatten()

    message = check("sync.SyncBatchNormFunction", Flat).rows[0].message
    assert re.fullmatch(r"expected y of shape \(\d, \d\), got \(\d+,\)", message)


def test_points_of_the_set():
    assert sum(piece.max_points for piece in pieces("sync")) == 14


@pytest.mark.parametrize("seed", range(20))
def test_two_three_and_four_ranks_one_empty_one_of_a_single_value(seed):
    seen = set()

    def sync_moments(x, group=None):
        seen.add((dist.get_world_size(), len(x)))
        return moments()(x, group)

    observe(find("sync.sync_moments"), sync_moments, seed)
    assert {ranks for ranks, _ in seen} == {2, 3, 4}
    assert {(3, 0), (4, 0), (4, 1)} < seen
