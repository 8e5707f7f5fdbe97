"""Comparing observations with what is right: messages, hints, and bundles that nobody's code has made."""

import base64
import copy
import math

import numpy as np
import pytest
import torch

from course_lib.checks.expect import expectation
from course_lib.checks.judge import distance, judge, lost, tolerance
from course_lib.checks.observe import encode, observe
from course_lib.checks.piece import Scenario, find, pieces
from course_lib.misconceptions import edit, reference
from tests.checks.every_topic import right_bundle

STATS, FORWARD = find("algorithm.batch_stats"), find("algorithm.batch_norm_forward")
BACKWARD, IDENTITY = find("algorithm.batch_norm_backward"), find("algorithm.recover_identity")
#: The engine is taken through its paces by the pieces of the first problem set, which are quick.
PIECES = pieces("algorithm")
each_quick_piece = pytest.mark.parametrize("piece", PIECES, ids=lambda piece: piece.attribute)


def judged(piece, impl, seed=0, **options):
    return judge(piece, observe(piece, impl, seed, **options), seed)


def hints(verdict):
    return {row.misconception for row in verdict.rows if row.hint}


# --- points -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("piece", "scenario", "name"),
    [(p, s.name, name) for p in PIECES for s in p.scenarios for name in expectation(p, 0).truth[s.name]["seen"]],
    ids=lambda v: getattr(v, "attribute", v),
)
def test_a_group_scores_only_if_all_its_observations_are_right(piece, scenario, name):
    bundle = right_bundle(piece)
    del bundle["scenarios"][scenario]["seen"][name]
    failed = {row.title for row in judge(piece, bundle, 0).rows if not row.passed}
    assert failed == lost(piece, bundle, 0) == lost(piece, bundle, 0, only=scenario)
    assert not any(lost(piece, bundle, 0, only=s.name) for s in piece.scenarios if s.name != scenario)
    want = expectation(piece, 0).truth[scenario]["seen"][name]
    theirs = [[s for s in group.scenarios if s.name == scenario and s.concerns(name, want)] for group in piece.groups]
    assert failed == {group.title for group, concerned in zip(piece.groups, theirs, strict=True) if concerned}


@pytest.mark.parametrize("off", [0.5, 2.0])
@pytest.mark.parametrize(
    ("piece", "scenario", "name"),
    [
        (p, s, name)
        for p in PIECES
        for s in p.scenarios
        for name, want in expectation(p, 0).truth[s.name]["seen"].items()
        if "array" in want
    ],
    ids=lambda v: getattr(v, "attribute", getattr(v, "name", v)),
)
def test_a_value_is_right_within_its_tolerance_and_wrong_beyond(piece, scenario, name, off):
    bundle, want = right_bundle(piece), expectation(piece, 0).truth[scenario.name]["seen"][name]
    values = np.frombuffer(base64.b64decode(want["array"]), "<f8").reshape(want["shape"]).copy()
    values.flat[-1] += off * tolerance(scenario, name, want)
    bundle["scenarios"][scenario.name]["seen"][name] = {**encode(values), "dtype": want["dtype"]}
    assert judge(piece, bundle, 0).passed is (off < 1)


# --- messages ---------------------------------------------------------------------------------------------------


def test_a_loop_that_never_ends_is_named_and_the_rest_is_not_run(answer):
    verdict = judged(STATS, answer("def batch_stats(x):\n    while True: pass"), limit=0.1)
    assert verdict.rows[0].message == "stopped after 0.1 s: does a loop never end?"
    assert {row.message for row in verdict.rows[1:]} == {"not run, because an earlier run had to be stopped"}


def test_a_stub_is_not_implemented_yet(answer):
    verdict = judged(STATS, answer("def batch_stats(x):\n    raise NotImplementedError"))
    assert verdict.points == 0 and verdict.messages == ["not implemented yet: batch_stats"]


def test_the_words_of_a_stub_are_repeated(answer):
    impl = answer("def batch_stats(x):\n    raise NotImplementedError('yours to write')")
    assert judged(STATS, impl).messages == ["not implemented yet: batch_stats yours to write"]


def test_a_part_that_is_finished_scores(stats):
    maps = "if x.ndim > 2: raise NotImplementedError('maps')"
    verdict = judged(STATS, stats(f"{maps}\n{' ' * 16}return mean, var"))
    assert verdict.rows[0].passed and not verdict.rows[1].passed
    assert "raised NotImplementedError: maps" in verdict.rows[1].message


@pytest.mark.parametrize("code", ["print('shapes')", "import warnings; warnings.warn('shapes')"])
def test_printing_and_warnings_are_notes_and_cost_nothing(stats, code):
    verdict = judged(STATS, stats(f"{code}; return mean, var"))
    assert verdict.passed
    assert len(verdict.notes) == 1 and "shapes" in verdict.notes[0]


def test_notes_are_few(stats):
    notes = judged(STATS, stats("print(*range(90), sep='\\n'); return mean, var")).notes
    assert notes == ("0", "1", "2", "3", "4", "…")


def test_notes_are_short(stats):
    notes = judged(STATS, stats("print('z' * 300); return mean, var")).notes
    assert notes == ("z" * 200,)


def test_a_list_is_as_good_as_a_tuple(stats):
    assert judged(STATS, stats("return [mean, var]")).passed


# --- hints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "mistake"),
    [
        ("return mean, x.var(axes, ddof=1)", "unbiased_variance"),
        ("return mean, x.std(axes)", "standard_deviation"),
        ("return x.mean(0), ((x - x.mean(0)) ** 2).mean(0)", "batch_axis_only"),
        ("m = np.mean(x * x, axes); return mean, m - mean**2", "one_pass_variance"),
        ("return mean.astype(float), var.astype(float)", "float64_returned"),
        (
            "x -= mean.reshape(1, -1, *[1] * (x.ndim - 2)); return mean, np.square(x).mean(axes)",
            "input_centred_in_place",
        ),
    ],
)
def test_a_mistake_is_recognised_in_other_words(stats, result, mistake):
    assert hints(judged(STATS, stats(result))) == {mistake}


@pytest.mark.parametrize("result", ["return mean, 0.9 * var", "return mean, -var", "raise ValueError('x')", "return 0"])
def test_what_is_no_known_mistake_has_no_hint(stats, result):
    verdict = judged(STATS, stats(result))
    assert not verdict.passed and hints(verdict) == set()


def test_the_kind_of_an_error_is_no_hint():
    # no_broadcast raises a ValueError for maps too, but what came for the table is another mistake.
    def batch_norm_forward(x, gamma, beta, eps=1e-5):
        if x.ndim > 2:
            raise ValueError("tables only")
        y, cache = reference(FORWARD.name)(x, gamma, beta, eps)
        return 0.9 * y, cache

    assert hints(judged(FORWARD, batch_norm_forward)) == set()


def test_two_mistakes_in_two_groups_have_two_hints():
    impl = edit(
        BACKWARD.name,
        [
            ("(gamma * invstd)", "invstd"),
            ("return dx, dgamma, dbeta", "return dx, dgamma / n, dbeta / n"),
        ],
    )
    assert hints(judged(BACKWARD, impl)) == {"gamma_missing", "parameter_gradients_averaged"}


def test_two_mistakes_in_one_group_have_none():
    impl = edit(IDENTITY.name, [("np.sqrt(var + var.dtype.type(eps))", "np.sqrt(var)"), ("mean.copy()", "-mean")])
    assert hints(judged(IDENTITY, impl)) == set()


# --- tolerance and distance -------------------------------------------------------------------------------------


def scenario(**within):
    return Scenario("s", None, ("float32",), within, False)


@pytest.mark.parametrize(
    ("dtype", "scale", "allowed"),
    [("float32", 1, 256 * 2**-23), ("float32", 1000, 256e3 * 2**-23), ("float64", 1, 1e-9), ("float64", 50, 50e-9)],
)
def test_the_tolerance_is_the_dtypes_times_the_largest_value(dtype, scale, allowed):
    want = encode(np.array([0.1, -scale], dtype))
    assert tolerance(scenario(), "y", want) == pytest.approx(allowed)


def test_the_tolerance_of_zeros_is_the_dtypes_own():
    assert tolerance(scenario(), "y", encode(np.zeros(3))) == 1e-9


def test_the_tolerance_of_what_is_nearly_zero_is_not_finer_than_a_rounding_error():
    # A gradient that is zero on paper: each way of computing it leaves another 1e-18.
    assert tolerance(scenario(), "y", encode(np.array([3e-18, -1e-18]))) == 1e-12


def test_a_named_tolerance_holds_where_it_is_named():
    want = encode(np.ones(2))
    assert (tolerance(scenario(y=0.2), "y", want), tolerance(scenario(y=0.2), "x", want)) == (0.2, 1e-9)


def test_one_tolerance_may_hold_for_all():
    of_all = Scenario("s", None, ("float32",), 0.3, False)
    assert tolerance(of_all, "y", encode(np.ones(2))) == 0.3


@pytest.mark.parametrize(("dtype", "allowed"), [("float16", 8 * 2**-10), ("bfloat16", 8 * 2**-7)])
def test_of_a_short_dtype_few_units_may_be_lost(dtype, allowed):
    assert tolerance(scenario(), "y", encode(torch.ones(2, dtype=getattr(torch, dtype)))) == allowed


@pytest.mark.parametrize("off", [0.0, 0.5, 2.0, 1e300])
def test_distance_is_the_largest_error_in_tolerances(off):
    assert distance(encode(np.array([1.0, 2.0 + off])), encode(np.array([1.0, 2.0])), 0.5) == off / 0.5


def test_the_largest_float_is_just_far_away():
    assert distance(encode(np.array([1.7e308])), encode(np.array([-1.7e308])), 1e-9) == math.inf


@pytest.mark.parametrize(
    "got",
    [
        {},
        {"fact": 1.0},
        {"other": "list"},
        encode(np.ones((2, 1))),
        encode(np.ones(3)),
        encode(np.float32([1, 1])),
        encode(np.array([1.0, np.nan])),
        encode(np.array([np.inf, 1.0])),
        {**encode(np.ones(2)), "array": "AAAA"},
    ],
)
def test_another_form_is_infinitely_far(got):
    assert distance(got, encode(np.ones(2)), 1e9) == math.inf


@pytest.mark.parametrize(("got", "far"), [(True, 0), (False, math.inf), (None, math.inf)])
def test_a_fact_is_right_or_infinitely_far(got, far):
    assert distance(encode(got), encode(True), 0.0) == far


# --- forged bundles ---------------------------------------------------------------------------------------------

JUNK = [
    None,
    True,
    0,
    -1,
    10**30,
    1e308,
    math.nan,
    "",
    "x" * 5000,
    "\ud800",
    "<script>",
    [],
    [[]],
    [10**9] * 500,
    {},
    {"array": "AAAAAAAAAAA=", "dtype": "float64", "shape": []},
    {"array": "AAAAAAAAAAA=", "dtype": "float64", "shape": [10**9, 10**9]},
    {"array": 3, "dtype": 4, "shape": 5},
    {"array": "", "dtype": "O", "shape": None},
    {"fact": {"fact": []}},
    {"fact": 10**5000},
    {"kind": "NotImplementedError", "message": "x" * 5000},
    {"kind": ["TimeLimit"], "message": {}, "line": []},
    {"seen": {}, "error": None, "printed": "", "digest": ""},
]


def paths(value, path=()):
    """Every place in a bundle."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*path, key))


def replaced(bundle, path, junk):
    """A bundle with something else in one place; what is beside the path is shared, for copying it takes long."""
    if not path:
        return junk
    place = copy.copy(bundle)
    place[path[0]] = replaced(bundle[path[0]], path[1:], junk)
    return place


def short(verdict):
    texts = [(row.expected, row.got) for row in verdict.rows]
    return all(len(text) <= 120 for pair in texts for text in pair) and all(len(m) <= 1200 for m in verdict.messages)


@each_quick_piece
def test_no_forged_bundle_raises_or_scores_where_it_was_forged(piece):
    bundle = right_bundle(piece)
    groups = {s.name: group.title for group in piece.groups for s in group.scenarios}
    for path in paths(bundle):
        for junk in JUNK:
            verdict = judge(piece, replaced(bundle, path, junk), 0)
            assert short(verdict) and verdict.to_html().encode(), (path, junk)
            # A piece, a seed, what is said about the question, what was printed, and a repetition of the truth decide
            # nothing.
            scenario, part = (*path[1:], None, None)[:2]
            if path[:1] in [("piece",), ("seed",)] or part in ("asked", "exact"):
                continue
            if part == "printed" and isinstance(junk, str):
                continue
            if (part == "error" and junk is None) or (path[-1:] == ("fact",) and junk == ""):
                continue  # nothing was replaced: no error, no changed input
            forged = {groups[scenario]} if scenario else set(groups.values())
            assert forged <= {row.title for row in verdict.rows if not row.passed}, (path, junk)


@each_quick_piece
@pytest.mark.parametrize("bundle", [None, 3, "full marks", [], {}, {"scenarios": {}}, {"points": 3}])
def test_no_bundle_is_no_points(piece, bundle):
    verdict = judge(piece, bundle, 0)
    assert verdict.points == 0
    assert verdict.messages == ["no observations came back from the kernel for this part"]


def test_what_is_beside_a_bundle_is_not_read():
    bundle = right_bundle(STATS)
    bundle["points"] = bundle["scenarios"]["more"] = 99
    assert judge(STATS, bundle, 0).points == STATS.max_points


def test_the_judge_does_not_change_the_bundle():
    bundle = right_bundle(STATS)
    before = copy.deepcopy(bundle)
    judge(STATS, bundle, 1)
    assert bundle == before


@each_quick_piece
def test_expected_and_got_are_short_for_every_mistake(piece):
    from course_lib.misconceptions import catalogue

    for mistake in catalogue(piece.topic):
        if mistake.piece == piece.name:
            assert short(judged(piece, mistake.implementation())), mistake.name


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("dx = (gamma * invstd) * (dy - dbeta.reshape(s) / n - x_hat * dgamma.reshape(s) / n)", {"no_broadcast"}),
        ("raise ValueError('only tables for now')", set()),
    ],
)
def test_an_error_is_a_hint_only_with_its_message(answer, code, hint):
    """Both answers are right for tables and raise a ValueError for everything else."""
    impl = answer(f"""
        def batch_norm_backward(dy, cache):
            x_hat, gamma, invstd = cache
            axes, s = (0, *range(2, dy.ndim)), (1, -1) + (1,) * (dy.ndim - 2)
            n = dy.size // dy.shape[1]
            dbeta, dgamma = dy.sum(axes), (dy * x_hat).sum(axes)
            if dy.ndim > 2:
                {code}
            dx = (gamma * invstd).reshape(s) * (dy - dbeta.reshape(s) / n - x_hat * dgamma.reshape(s) / n)
            return dx, dgamma, dbeta
    """)
    assert hints(judged(find("algorithm.batch_norm_backward"), impl)) == hint
