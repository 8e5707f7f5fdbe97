"""`python -m tests.mutants [TOPIC ...]`: every mutant, every right answer with 50 seeds, known mistakes with three.

Writes `table.md`, and into `survivors.txt` whoever survives.
"""

import platform
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from course_lib.checks.judge import judge
from course_lib.checks.observe import observe
from course_lib.checks.piece import TOPICS, find
from course_lib.misconceptions import catalogue
from tests.mutants import HERE, all_mutants, answers, equivalent, is_killed, past_survivors

WANTED = 0.97
_SEEDS = range(50)
_FOR_MISTAKES = range(2, 5)  # the tests ask with the two before
_FEW = 5  # survivors of a piece that are printed


def main(topics):
    """Runs everything; returns the exit code."""
    started = time.monotonic()
    mutants = [mutant for topic in topics for mutant in all_mutants(topic)]
    asked = [(piece, style) for topic in topics for piece, style in answers(topic)]
    with ProcessPoolExecutor(
        2, mp_context=get_context("fork"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        killed = list(pool.map(is_killed, mutants, chunksize=8))
        unsteady = [which for which, points in zip(asked, pool.map(_points, asked), strict=True) if len(points) > 1]
        # By topic, and not in turn: a process keeps what it has computed of a piece.
        untold = [name for names in pool.map(_untold, topics) for name in names]
    still_right = equivalent()
    survivors = [m for m, dead in zip(mutants, killed, strict=True) if not dead and m.title not in still_right]
    dead = {m.title for m, dead in zip(mutants, killed, strict=True) if dead}
    known = {m.title for m in mutants}
    stale = [t for t in still_right if t in dead or (t not in known and t.split(".")[0] in topics)]

    # Those that were killed by a new check stay; those that turned out to be right, or are no mutants any more, go.
    past = {t for t in past_survivors() if t in known or t.split(".")[0] not in topics} - set(still_right)
    lines = sorted(past | {m.title for m in survivors})
    (HERE / "survivors.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    rows = _rows(mutants, killed, still_right)
    if topics == list(TOPICS):
        (HERE / "table.md").write_text(_table(rows, time.monotonic() - started), encoding="utf-8")
    for row in rows:
        print(*row, sep="  ")
    for mutant in survivors:
        print(f"survived: {mutant.title}")
    for title in stale:
        print(f"listed as equivalent, but killed or no mutant any more: {title}")
    for piece, style in unsteady:
        print(f"other points for other seeds: {piece} / {style}")
    for name in untold:
        print(f"a mistake that its hint does not tell: {name}")
    asked_for = len(mutants) - sum(m.title in still_right for m in mutants)
    share = 1 - len(survivors) / asked_for
    print(f"{share:.2%} of {asked_for} killed, {WANTED:.0%} wanted; {time.monotonic() - started:.0f} s")
    return int(share < WANTED or bool(stale or unsteady or untold))


def _points(asked):
    """The different points that an answer gets with 50 seeds."""
    piece, _ = asked
    impl = answers(piece.split(".")[0])[asked]
    return {judge(find(piece), observe(find(piece), impl, seed), seed).points for seed in _SEEDS}


def _untold(topic):
    """The mistakes of a topic that are not told, or told by another's hint, with some seed: "piece / mistake, seed"."""
    found = []
    for mistake in catalogue(topic):
        piece, impl = find(mistake.piece), mistake.implementation()
        for seed in _FOR_MISTAKES:
            verdict = judge(piece, observe(piece, impl, seed), seed)
            if {row.misconception for row in verdict.rows if not row.passed} != {mistake.name}:
                found.append(f"{piece.name} / {mistake.name}, seed {seed}")
    return found


def _rows(mutants, killed, still_right):
    total, equal, dead = Counter(), Counter(), Counter()
    for mutant, is_dead in zip(mutants, killed, strict=True):
        key = (mutant.piece, mutant.answer)
        total[key] += 1
        equal[key] += mutant.title in still_right
        dead[key] += is_dead
    return [(piece, answer, n, equal[piece, answer], dead[piece, answer]) for (piece, answer), n in total.items()]


def _table(rows, seconds):
    asked_for = sum(n - equal for *_, n, equal, _ in rows)
    dead = sum(row[-1] for row in rows)
    lines = [
        "Written by `python -m tests.mutants`, do not edit.",
        "",
        f"{dead} of {asked_for} mutants killed ({dead / asked_for:.2%}), "
        f"in {seconds / 60:.0f} minutes on two cores (Python {platform.python_version()}, torch {torch.__version__}).",
        "",
        "| piece | answer | mutants | equivalent | killed |",
        "|---|---|---|---|---|",
    ]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows]) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(TOPICS)))
