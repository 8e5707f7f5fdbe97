"""Problem set 1: what every topic is tested for, and how accurate a variance has to be."""

import numpy as np
import pytest

from course_lib.checks.judge import judge
from course_lib.checks.observe import observe
from course_lib.checks.piece import find
from tests.checks.every_topic import *  # noqa: F403  the tests
from tests.right_answers.algorithm import RIGHT

TOPIC = "algorithm"
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
    ("batch_stats", "n counts values, not samples", "stats_of_one_image", "batch_of_one_refused"),
    ("batch_stats", "two values per channel are enough", "stats_of_two_values", [("shape[1] < 2", "shape[1] < 3")]),
    ("batch_stats", "accurate when the mean is large", "stats_far_from_zero: var", "one_pass_variance"),
    ("batch_stats", "accurate when the mean is large, maps", "stats_of_maps_far_from_zero: var", "one_pass_variance"),
    ("batch_stats", "same dtype out", "stats_keep_float32: dtype of var", "float64_returned"),
    ("batch_stats", "the input stays", "stats_keep_float32: inputs changed", "input_centred_in_place"),
    ("batch_stats", "fewer than 2 values per channel", "stats_need_two_values", "single_value_accepted"),
    (
        "batch_stats",
        "no value at all",
        "stats_need_two_values: error for an input of shape (0, 3)",
        [("if rows.shape[1] < 2", "if rows.shape[1] == 1")],
    ),
    ("batch_norm_forward", "y = gamma x_hat + beta", "forward_of_table: y", "unbiased_variance"),
    ("batch_norm_forward", "eps inside the root", "forward_of_maps: y", "eps_outside_root"),
    ("batch_norm_forward", "eps is 1e-5 by default", "forward_with_default_eps", [("eps=1e-5", "eps=1e-3")]),
    ("batch_norm_forward", "the cache", "forward_cache", "variance_cached"),
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
    ("batch_norm_backward", "same dtype out", "backward_keeps_float32", "float64_returned"),
    ("recover_identity", "undoes the division", "identity_with_given_eps: gamma", "eps_forgotten"),
    ("recover_identity", "undoes the subtraction", "identity_with_given_eps: beta", "negative_shift"),
    ("recover_identity", "the statistics stay", "identity_with_given_eps: inputs changed", "variance_overwritten"),
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
