"""Problem set 1: right answers of every style score, every known mistake costs, and the margins between them."""

import math

import numpy as np
import pytest

from course_lib.checks.expect import expectation
from course_lib.checks.judge import distance, judge, tolerance
from course_lib.checks.observe import observe
from course_lib.checks.piece import find, pieces
from course_lib.misconceptions import catalogue
from tests.right_answers.algorithm import RIGHT

SEEDS = range(6)
PIECES = pieces("algorithm")
MISTAKES = catalogue("algorithm")
answers = pytest.mark.parametrize(
    ("piece", "impl"),
    [(find(name), impl) for name, styles in RIGHT.items() for impl in styles.values()],
    ids=lambda v: getattr(v, "attribute", None) or v.__name__,
)
mistakes = pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: f"{m.piece.split('.')[1]}-{m.name}")


def distances(piece, impl, seed):
    """{(scenario, observation): distance from what is right, in tolerances}, arrays only."""
    bundle, truth = observe(piece, impl, seed), expectation(piece, seed).truth
    return {
        (scenario.name, name): distance(
            bundle["scenarios"][scenario.name]["seen"].get(name, {}), want, tolerance(scenario, name, want)
        )
        for scenario in piece.scenarios
        for name, want in truth[scenario.name]["seen"].items()
        if "array" in want
    }


def recognised(verdict):
    return {row.misconception for row in verdict.rows if not row.passed}


# --- right answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: piece.attribute)
def test_there_are_right_answers_of_many_styles(piece):
    assert len(RIGHT[piece.name]) >= 4


@pytest.mark.parametrize("seed", SEEDS)
@answers
def test_a_right_answer_has_full_marks_and_no_hint(piece, impl, seed):
    verdict = judge(piece, observe(piece, impl, seed), seed)
    assert verdict.passed, str(verdict)
    assert verdict.messages == [] and not any(row.hint for row in verdict.rows)


@answers
def test_the_error_of_a_right_answer_is_at_most_a_third_of_the_tolerance(piece, impl):
    for seed in SEEDS:
        for observation, far in distances(piece, impl, seed).items():
            assert far <= 1 / 3, (observation, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("off", [-0.02, 0.02])
def test_a_variance_off_by_two_hundredths_is_inaccurate(off, seed):
    # The contract: at mean 1e4 and std 1 in float32, within 1e-2.
    def batch_stats(x):
        mean, var = RIGHT["algorithm.batch_stats"]["numpy_methods"](x)
        return mean, var + x.dtype.type(off * (np.abs(mean).max() > 1000))

    piece = find("algorithm.batch_stats")
    verdict = judge(piece, observe(piece, batch_stats, seed), seed)
    assert [row.title for row in verdict.rows if not row.passed] == [piece.groups[2].title]


# --- mistakes ---------------------------------------------------------------------------------------------------


@mistakes
def test_a_mistake_costs_points(mistake):
    piece = find(mistake.piece)
    assert judge(piece, observe(piece, mistake.implementation(), 0), 0).points < piece.max_points


@mistakes
def test_a_mistake_costs_the_same_for_every_seed(mistake):
    piece, impl = find(mistake.piece), mistake.implementation()
    assert len({judge(piece, observe(piece, impl, seed), seed).points for seed in SEEDS}) == 1


@pytest.mark.parametrize("seed", SEEDS)
@mistakes
def test_a_mistake_is_told_by_its_own_hint_in_every_group_it_costs(mistake, seed):
    piece = find(mistake.piece)
    verdict = judge(piece, observe(piece, mistake.implementation(), seed), seed)
    assert recognised(verdict) == {mistake.name}, str(verdict)


@mistakes
def test_a_mistake_is_far_from_right_or_right(mistake):
    # Nothing near the tolerance: what a mistake costs is neither the seed's nor the computer's business.
    piece, impl = find(mistake.piece), mistake.implementation()
    for seed in SEEDS:
        for observation, far in distances(piece, impl, seed).items():
            assert far <= 1 / 3 or far >= 3, (observation, seed, far)


@pytest.mark.parametrize("seed", SEEDS[:3])
@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: piece.attribute)
def test_no_two_mistakes_look_alike(piece, seed):
    known = expectation(piece, seed).mistakes
    for i, one in enumerate(known):
        for other in known[:i]:
            assert not alike(piece, one.truth, other.truth), (one.name, other.name)


def alike(piece, one, other):
    """Whether no observation tells the two apart by more than a tolerance."""
    for scenario in piece.scenarios:
        a, b = one[scenario.name], other[scenario.name]
        if (a["error"] or {}).get("kind") != (b["error"] or {}).get("kind"):
            return False
        for name, want in a["seen"].items():
            if distance(b["seen"].get(name, {}), want, tolerance(scenario, name, want) or math.inf) > 1:
                return False
    return True
