"""Problem set 1: what every topic is tested for, and how accurate a variance has to be."""

import numpy as np
import pytest

from course_lib.checks.judge import judge
from course_lib.checks.observe import observe
from course_lib.checks.piece import find
from tests.checks.every_topic import *  # noqa: F403  the tests
from tests.right_answers.algorithm import RIGHT

TOPIC = "algorithm"
# Where edits of the reference break a clause.
_RESULT = "return (pivot + offset)[:, 0], var"
_VAR = "np.square(shifted - offset).mean(axis=1)"
_CACHE = "return y, (x_hat, gamma, invstd)"
_GRADIENTS = "return dx, dgamma, dbeta"
CLAUSES = [
    ("batch_stats", "mean and variance of every channel", "stats_of_table: mean", "values_swapped"),
    ("batch_stats", "biased variance", "stats_of_table: var", "unbiased_variance"),
    ("batch_stats", "over every axis but 1", "stats_of_maps", "batch_axis_only"),
    (
        "batch_stats",
        "any rank",
        "stats_of_other_ranks: var of volumes",
        [("reshape(channels, -1)", "reshape(channels, -1)[:, :24]")],
    ),
    ("batch_stats", "over the samples too", "stats_of_other_ranks", "per_sample"),
    ("batch_stats", "shape (C,)", "stats_of_maps: mean", "axes_kept"),
    ("batch_stats", "shape (C,) of one channel too", "stats_of_one_channel: mean of one column", "squeezed"),
    ("batch_stats", "n counts values, not samples", "stats_of_one_image", "batch_of_one_refused"),
    ("batch_stats", "two values per channel are enough", "stats_of_two_values", [("shape[1] < 2", "shape[1] < 3")]),
    ("batch_stats", "accurate when the mean is large", "stats_far_from_zero: var", "one_pass_variance"),
    ("batch_stats", "accurate when the mean is large, maps", "stats_of_maps_far_from_zero: var", "one_pass_variance"),
    (
        "batch_stats",
        "accurate when the mean is large, any rank",
        "stats_of_other_ranks_far_from_zero: var of volumes",
        "one_pass_variance",
    ),
    (
        "batch_stats",
        "accurate when |mean| is large: below zero as well",
        "stats_far_from_zero: var",
        [(_VAR, f"np.where(pivot[:, 0] > 0, {_VAR}, (rows**2).mean(1) - rows.mean(1) ** 2)")],
    ),
    *(
        (
            "batch_stats",
            f"the mean when it is large, {where}",
            f"{where}",
            [(_RESULT, "return (pivot + offset)[:, 0] * x.dtype.type(0.999), var")],
        )
        for where in ("stats_of_other_ranks_far_from_zero: mean of sequences", "stats_far_from_zero: mean")
    ),
    ("batch_stats", "same dtype out", "stats_keep_float32: dtype of var", "float64_returned"),
    (
        "batch_stats",
        "same dtype out, maps",
        "stats_keep_float32_of_maps: dtype of mean",
        [(_RESULT, "return (pivot + offset)[:, 0].astype(x.dtype if x.ndim == 2 else float), var")],
    ),
    (
        "batch_stats",
        "maps stay",
        "stats_keep_float32_of_maps: inputs changed",
        [(_RESULT, "if x.ndim == 4:\n        x -= pivot[0]\n    return (pivot + offset)[:, 0], var")],
    ),
    ("batch_stats", "the input stays", "stats_keep_float32: inputs changed", "input_centred_in_place"),
    ("batch_stats", "fewer than 2 values per channel", "stats_need_two_values", "single_value_accepted"),
    (
        "batch_stats",
        "no value at all",
        "stats_need_two_values: error for an input of shape (0, 3)",
        [("if rows.shape[1] < 2", "if rows.shape[1] == 1")],
    ),
    *(
        (
            "batch_stats",
            f"fewer than 2 values per channel: {words}",
            f"stats_need_two_values: error for an input of shape {shape}",
            [("if rows.shape[1] < 2", f"if rows.shape[1] < 2 and not ({but})")],
        )
        for words, shape, but in (
            ("one voxel", (1, 3, 1, 1, 1), "x.ndim == 5"),
            ("no map", (0, 3, 3, 2), "x.ndim == 4"),
            ("samples without a position", (4, 3, 0), "len(x) > 1"),
        )
    ),
    ("batch_norm_forward", "y = gamma x_hat + beta", "forward_of_table: y", "unbiased_variance"),
    (
        "batch_norm_forward",
        "gamma comes before beta, and eps is the fourth",
        "forward_of_table: y",
        [("x, gamma, beta, eps=1e-5", "x, beta, gamma, eps=1e-5")],
    ),
    ("batch_norm_forward", "eps inside the root", "forward_of_maps: y", "eps_outside_root"),
    ("batch_norm_forward", "eps is 1e-5 by default", "forward_with_default_eps", [("eps=1e-5", "eps=1e-3")]),
    ("batch_norm_forward", "the cache", "forward_cache", "variance_cached"),
    *(
        ("batch_norm_forward", f"the cache of {words}", f"forward_cache_at_other_ranks: {what}", [(_CACHE, made)])
        for words, what, made in (
            ("a table", "x_hat of a table", "return y, (x_hat if x.ndim > 2 else y, gamma, invstd)"),
            ("a table: invstd of shape (C,)", "invstd of a table", "return y, (x_hat, gamma, invstd.reshape(1, -1))"),
            ("one channel: invstd of shape (C,)", "invstd of one column", "return y, (x_hat, gamma, invstd.squeeze())"),
            ("a volume: gamma", "gamma of volumes", "return y, (x_hat, gamma + (x.ndim == 5), invstd)"),
        )
    ),
    (
        "batch_norm_forward",
        "gamma in it as given",
        "forward_cache: gamma",
        [("return y, (x_hat, gamma", "return y, (x_hat, 1 / gamma")],
    ),
    ("batch_norm_forward", "beta", "forward_keeps_float32: mean of y", [(" + beta.reshape(per_channel)", "")]),
    (
        "batch_norm_forward",
        "the inputs stay",
        "forward_keeps_float32: inputs changed",
        [("shifted = x - x[first] if x.size else x", "x -= x[first].copy()\n    shifted = x")],
    ),
    ("batch_norm_forward", "accurate when the mean is large", "forward_far_from_zero", "one_pass_variance"),
    ("batch_norm_forward", "same dtype out", "forward_keeps_float32: dtype of y", "float64_returned"),
    (
        "batch_norm_forward",
        "same dtype out, a table",
        "forward_keeps_float32: dtype of y of a table",
        [(_CACHE, "return y.astype(x.dtype if x.ndim > 2 else float), (x_hat, gamma, invstd)")],
    ),
    (
        "batch_norm_forward",
        "a table stays",
        "forward_keeps_float32: inputs changed",
        [(_CACHE, "x *= 2 if x.ndim == 2 else 1\n    return y, (x_hat, gamma, invstd)")],
    ),
    ("batch_norm_backward", "dx, both coupling terms", "backward_of_table: dx", "no_mean_term"),
    ("batch_norm_backward", "dx of maps", "backward_of_maps", "no_variance_term"),
    ("batch_norm_backward", "any rank", "backward_of_other_ranks", "no_variance_term"),
    ("batch_norm_backward", "dgamma", "parameter_gradients_of_table: dgamma", "dgamma_without_x_hat"),
    ("batch_norm_backward", "dbeta, sums over the positions", "parameter_gradients_of_maps: dbeta", "batch_axis_only"),
    ("batch_norm_backward", "dgamma at any rank", "parameter_gradients_of_other_ranks", "batch_axis_only"),
    (
        "batch_norm_backward",
        "dbeta",
        "parameter_gradients_of_table: dbeta",
        [("dbeta = dy.sum(axis=axes)", "dbeta = dy.mean(axis=axes)")],
    ),
    (
        "batch_norm_backward",
        "the inputs stay",
        "backward_keeps_float32: inputs changed",
        [("    n = dy.size // channels\n", "    n = dy.size // channels\n    dy *= 1.5\n")],
    ),
    (
        "batch_norm_backward",
        "dgamma of shape (C,) of one channel too",
        "parameter_gradients_of_one_channel: dgamma of maps of one channel",
        [(_GRADIENTS, "return dx, dgamma.squeeze(), dbeta")],
    ),
    ("batch_norm_backward", "same dtype out", "backward_keeps_float32: dtype of dx", "float64_returned"),
    (
        "batch_norm_backward",
        "same dtype out, maps",
        "backward_keeps_float32: dtype of dx of maps",
        [(_GRADIENTS, "return dx.astype(dy.dtype if dy.ndim == 2 else float), dgamma, dbeta")],
    ),
    (
        "batch_norm_backward",
        "the cache of maps stays",
        "backward_keeps_float32: inputs changed",
        [(_GRADIENTS, "cache[0][:] *= 2 if dy.ndim == 4 else 1\n    return dx, dgamma, dbeta")],
    ),
    ("recover_identity", "undoes the division", "identity_with_given_eps: gamma", "eps_forgotten"),
    ("recover_identity", "undoes the subtraction", "identity_with_given_eps: beta", "negative_shift"),
    ("recover_identity", "the statistics stay", "identity_with_given_eps: inputs changed", "variance_overwritten"),
    (
        "recover_identity",
        "eps is the third",
        "identity_with_given_eps",
        [("recover_identity(mean, var, eps=1e-5)", "recover_identity(mean, var, *, eps=1e-5)")],
    ),
    (
        "recover_identity",
        "the variance is named var",
        "identity_with_default_eps",
        [("recover_identity(mean, var, eps=1e-5):", "recover_identity(mean, variance, eps=1e-5):\n    var = variance")],
    ),
    ("recover_identity", "with the default eps", "identity_with_default_eps: gamma", "eps_forgotten"),
]


@pytest.mark.parametrize("seed", SEEDS)  # noqa: F405
@pytest.mark.parametrize("off", [-0.02, 0.02])
def test_a_variance_off_by_two_hundredths_is_inaccurate(off, seed):
    # The contract: at mean 1e4 and std 1 in float32, within 1e-2.
    def batch_stats(x):
        mean, var = RIGHT["algorithm.batch_stats"]["numpy_methods"](x)
        return mean, var + x.dtype.type(off * (np.abs(mean).max() > 1000))

    piece = find("algorithm.batch_stats")
    verdict = judge(piece, observe(piece, batch_stats, seed), seed)
    assert [row.title for row in verdict.rows if not row.passed] == [piece.groups[2].title]
