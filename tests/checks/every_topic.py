"""What every topic's checks are tested for: right answers score, known mistakes cost and are named, and the margins.

A topic's test module says `TOPIC = "algorithm"` and imports everything from here. It brings

    RIGHT      the right answers, `{piece name: {style: implementation}}`
    CLAUSES    the contract: tuples (piece, clause in words, where, mistake). `where` is the name of a scenario, or
               "scenario: observation"; `mistake` the name of a misconception, or edits of the reference, that breaks
               the clause and turns it red there.

as module-level names; `conftest.py` makes the parameters from them.
"""

import copy
import functools
import math

import pytest

from course_lib.checks import Verdict, check
from course_lib.checks.expect import expectation
from course_lib.checks.judge import distance, judge, lost, tolerance
from course_lib.checks.observe import observe
from course_lib.checks.piece import find
from course_lib.misconceptions import catalogue, edit, reference

SEEDS = range(5)
#: Whom a hint is for is asked with these; `make mutants` asks with the others, for their mistakes take minutes.
TOLD = SEEDS[:2]


def distances(piece, bundle, seed):
    """{(scenario, observation): distance from what is right, in tolerances}, arrays only."""
    truth = expectation(piece, seed).truth
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


# --- the reference, and what is learnt by heart --------------------------------------------------------------------


@functools.cache
def observed(piece, seed):
    return observe(piece, reference(piece.name), seed)


def right_bundle(piece, seed=0):
    return copy.deepcopy(observed(piece, seed))


def test_the_reference_has_full_marks(piece, through_json):
    verdict = judge(piece, through_json(right_bundle(piece)), 0)
    assert verdict.passed and verdict.points == piece.max_points and verdict.notes == ()
    assert lost(piece, right_bundle(piece), 0) == set()


@pytest.mark.usefixtures("without_mistakes")
def test_points_of_a_verdict_are_those_of_the_piece(piece):
    verdict = judge(piece, observe(piece, lambda *args, **kwargs: None, 0), 0)
    assert verdict.points == 0 and verdict.max_points == piece.max_points
    assert [row.title for row in verdict.rows] == [group.title for group in piece.groups]


@pytest.mark.usefixtures("without_mistakes")
def test_observations_of_another_seed_score_nothing(piece):
    assert judge(piece, right_bundle(piece, seed=1), 2).points == 0


@pytest.mark.usefixtures("without_mistakes")
@pytest.mark.parametrize("seed", range(1, 6))
def test_constants_score_nothing_even_with_the_right_digests(piece, seed):
    # A bundle learnt by heart from the public seed; every group has an array that the seed decides.
    bundle, asked = right_bundle(piece), expectation(piece, seed).truth
    for name, entry in bundle["scenarios"].items():
        entry["digest"] = asked[name]["digest"]
    assert judge(piece, bundle, seed).points == 0


def test_every_group_has_an_observation_that_the_seed_decides(piece):
    truths = [expectation(piece, seed).truth for seed in range(4)]
    for group in piece.groups:
        seen = [
            {
                (s.name, name): want.get("array", want.get("fact"))
                for s in group.scenarios
                for name, want in truth[s.name]["seen"].items()
                if s.concerns(name, want)
            }
            for truth in truths
        ]
        # One that takes another value for every seed, or other observations: the layers `accepts` has to take.
        decided = [key for key in seen[0] if len({str(one.get(key)) for one in seen}) == 4]
        assert decided or len({tuple(one) for one in seen}) == 4, group.title


# --- right answers ----------------------------------------------------------------------------------------------


def test_there_are_right_answers_of_many_styles(piece, right_answers):
    assert len(right_answers[piece.name]) >= 4


def test_a_right_answer_has_full_marks_and_no_hint_and_is_well_within_every_tolerance(answer):
    piece, impl = answer
    for seed in SEEDS:
        bundle = observe(piece, impl, seed)
        verdict = judge(piece, bundle, seed)
        assert verdict.passed, (seed, str(verdict))
        assert verdict.messages == [] and not any(row.hint for row in verdict.rows)
        for observation, far in distances(piece, bundle, seed).items():
            assert far <= 1 / 3, (observation, seed, far)


# --- mistakes ---------------------------------------------------------------------------------------------------


@functools.cache
def handed_in(piece, mistake):
    """What a mistake is seen to do in a submission, with the first seed."""
    return observe(piece, mistake.implementation(), SEEDS[0])


def bundle_of(piece, mistake, seed):
    """What a mistake is seen to do: for the first seed as of a submission, then as the judge sees it, once."""
    if seed == SEEDS[0]:
        return handed_in(piece, mistake)
    [known] = [known for known in expectation(piece, seed).mistakes if known.name == mistake.name]
    scenarios = {name: known.truth.native(name) for name in known.truth}
    return {"piece": piece.name, "seed": seed, "scenarios": scenarios}


def test_passed_is_full_marks(piece):
    # What a student calls, here, where known mistakes have been made already.
    known = [m.implementation() for m in catalogue(piece.topic) if m.piece == piece.name]
    for impl, right in ((reference(piece.name), True), (None, False), *((wrong, False) for wrong in known[::7])):
        verdict = check(piece.name, impl)
        assert isinstance(verdict, Verdict) and verdict.max_points == piece.max_points
        assert verdict.passed is (verdict.points == verdict.max_points) is right
        assert bool(verdict.messages) is not verdict.passed


def test_a_mistake_is_told_by_its_own_hint_and_costs_the_same_for_every_seed(mistake):
    piece, failed = find(mistake.piece), set()
    for seed in SEEDS:
        bundle = bundle_of(piece, mistake, seed)
        failed.add(frozenset(lost(piece, bundle, seed)))
        if seed in TOLD:
            verdict = judge(piece, bundle, seed)
            assert recognised(verdict) == {mistake.name}, (seed, str(verdict))
        # Nothing near the tolerance: what a mistake costs is neither the seed's nor the computer's business.
        for observation, far in distances(piece, bundle, seed).items():
            assert far <= 1 / 3 or far >= 3, (observation, seed, far)
    assert len(failed) == 1 and failed.pop()


@pytest.mark.parametrize("seed", TOLD)
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


# --- the contract -----------------------------------------------------------------------------------------------


@functools.cache
def _broken(piece, mistake):
    """The observations that a clause's mistake gets wrong: {scenario: names}, None where it raises."""
    if isinstance(mistake, str):
        [known] = [m for m in catalogue(piece.topic) if (m.piece, m.name) == (piece.name, mistake)]
        bundle = handed_in(piece, known)
    else:
        bundle = observe(piece, edit(piece.name, list(mistake)), SEEDS[0])
    seen, truth = bundle["scenarios"], expectation(piece, SEEDS[0]).truth
    return {
        scenario.name: None
        if seen[scenario.name]["error"]
        else {
            name
            for name, want in truth[scenario.name]["seen"].items()
            if distance(seen[scenario.name]["seen"].get(name, {}), want, tolerance(scenario, name, want)) > 1
        }
        for scenario in piece.scenarios
    }


def _breaks(piece, mistake):
    return _broken(piece, mistake if isinstance(mistake, str) else tuple(mistake))


def test_a_clause_of_the_contract_is_observed(clause):
    piece, _, where, mistake = clause
    name, _, observation = where.partition(": ")
    wrong = _breaks(piece, mistake)[name]
    assert wrong is None or (observation in wrong if observation else wrong), f"{mistake} is right in {where}"


def test_every_observation_is_there_for_a_clause(piece, clauses):
    rows = [
        (where.partition(": "), mistake) for attribute, _, where, mistake in clauses if attribute == piece.attribute
    ]
    asked = {scenario: set(entry["seen"]) for scenario, entry in expectation(piece, 0).truth.items()}
    # Named by a row that an exception alone trips, or got wrong by the mistake of any row.
    tripped = {scenario: set() for scenario in asked}
    for (named, _, observation), mistake in rows:
        for scenario, wrong in _breaks(piece, mistake).items():
            whole = {observation} if observation else asked[scenario]
            tripped[scenario] |= wrong if wrong is not None else whole if scenario == named else set()
    assert {name for (name, *_), _ in rows} == set(asked)
    missing = {scenario: sorted(names - tripped[scenario]) for scenario, names in asked.items()}
    assert not any(missing.values()), {scenario: names for scenario, names in missing.items() if names}
