"""How fast the layers of `course_lib.batchnorm` are on a CPU, as ratios to `torch.nn.functional.batch_norm`.

    python -m benchmarks.cpu_batchnorm [--rounds 40] [--threads 1 --threads 8]

Both run in turn, in the same process, so that a busy machine is busy for both. A ratio is the median over rounds of
(ours / torch's in the same round), with the quartiles as its spread; the fastest round of each is given too. Training
builds the graph, also where only the forward pass is timed; an evaluation's forward pass runs under no_grad.
Ours is the layer with its checks and its counter, torch's the bare function. One thread is timed in CPU seconds, which
other programs hardly disturb; several threads by the wall clock, which they do: each waits for the slowest.
"""

import argparse
import copy
import datetime
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import batch_norm

from course_lib.batchnorm import BatchNorm1d, BatchNorm2d

RESULTS = Path(__file__).parent / "results" / "cpu_batchnorm.json"
CASES = [
    ("contiguous", (32, 64, 56, 56)),
    ("contiguous", (8, 256, 14, 14)),
    ("channels_last", (32, 64, 56, 56)),
    ("channels_last", (8, 256, 14, 14)),
    ("contiguous", (256, 1024)),
]
#: What is wanted: (layout or rank, task) → ratio at most.
WANTED = {
    ("planes", "train forward"): 0.65,
    ("planes", "train forward + backward"): 1.2,
    ("planes", "eval forward"): 1.5,
    ("channels_last", "train forward + backward"): 3.0,
    ("rows", "train forward + backward"): 3.0,
}


def tasks(layout, shape):
    """{task: (torch's, ours)}, functions without arguments."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    dy = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if layout == "channels_last":
        x, dy = (v.contiguous(memory_format=torch.channels_last) for v in (x, dy))
    train = (BatchNorm2d if len(shape) == 4 else BatchNorm1d)(shape[1])
    evaluate = copy.deepcopy(train).eval()
    mean, var = torch.zeros(shape[1]), torch.ones(shape[1])
    weight, bias = torch.ones(shape[1], requires_grad=True), torch.zeros(shape[1], requires_grad=True)
    leaf = x.clone().requires_grad_()

    def torchs(v, training):
        return batch_norm(v, mean, var, weight, bias, training, 0.1, 1e-5)

    def backward(y, parameters):
        torch.autograd.grad(y, [leaf, *parameters], dy)

    return {
        "train forward": (lambda: torchs(x, True), lambda: train(x)),
        "train forward + backward": (
            lambda: backward(torchs(leaf, True), [weight, bias]),
            lambda: backward(train(leaf), [train.weight, train.bias]),
        ),
        "eval forward": (torch.no_grad()(lambda: torchs(x, False)), torch.no_grad()(lambda: evaluate(x))),
        "eval forward + backward": (
            lambda: backward(torchs(leaf, False), [weight, bias]),
            lambda: backward(evaluate(leaf), [evaluate.weight, evaluate.bias]),
        ),
    }


def seconds(run, repeats, clock):
    """Seconds of one call, the mean over some in a row."""
    start = clock()
    for _ in range(repeats):
        run()
    return (clock() - start) / repeats


def measure(torchs, ours, rounds, clock):
    """Both in turn, `rounds` times: ratio with its quartiles, and the fastest round of each in milliseconds."""
    for run in (torchs, ours):
        run()
    repeats = max(1, round(2e-3 / seconds(torchs, 3, clock)))  # rounds of 2 ms at least: timers and caches settle
    pairs = [(seconds(torchs, repeats, clock), seconds(ours, repeats, clock)) for _ in range(rounds)]
    low, middle, high = statistics.quantiles([mine / theirs for theirs, mine in pairs], n=4)
    fastest = [1e3 * min(column) for column in zip(*pairs, strict=True)]
    return {
        "ratio": round(middle, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "ratio_of_fastest": round(fastest[1] / fastest[0], 3),
        "torch_ms": round(fastest[0], 4),
        "ours_ms": round(fastest[1], 4),
    }


def cpu():
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def run(threads, rounds):
    """All cases with this number of threads."""
    clock, rows, before = time.perf_counter if threads > 1 else time.thread_time, [], torch.get_num_threads()
    torch.set_num_threads(threads)
    for layout, shape in CASES:
        group = "rows" if len(shape) == 2 else "planes" if layout == "contiguous" else layout
        for task, (torchs, ours) in tasks(layout, shape).items():
            row = {"shape": shape, "layout": layout, "task": task, "wanted": WANTED.get((group, task))}
            rows.append(row | measure(torchs, ours, rounds, clock))
    torch.set_num_threads(before)
    return {"threads": threads, "clock": "wall" if threads > 1 else "cpu", "rows": rows}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, action="append", help="may be given several times")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    threads = options.threads or sorted({1, torch.get_num_threads()})
    command = " ".join(f"--threads {n}" for n in threads)
    report = {
        "benchmark": "course_lib.batchnorm against torch.nn.functional.batch_norm, float32",
        "command": f"python -m benchmarks.cpu_batchnorm --rounds {options.rounds} {command}",
        "date": datetime.date.today().isoformat(),
        "device": "cpu",
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "runs": [run(n, options.rounds) for n in threads],
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    show(report)


def show(report):
    """Print the report, a table for each number of threads."""
    for run in report["runs"]:
        title = f"{report['benchmark']}\n{report['cpu']}, torch {report['torch']}, load {report['load']}"
        table = Table(title=f"{title}\nthreads: {run['threads']}, {run['clock']} clock")
        for column in ("shape", "layout", "task", "ratio", "quartiles", "fastest", "wanted", "torch ms", "ours ms"):
            table.add_column(column, no_wrap=True)
        for row in run["rows"]:
            wanted = "" if row["wanted"] is None else f"≤ {row['wanted']:g}"
            spread = "–".join(f"{quartile:.2f}" for quartile in row["quartiles"])
            numbers = [f"{row['ratio']:.2f}", spread, f"{row['ratio_of_fastest']:.2f}", wanted]
            milliseconds = [f"{row['torch_ms']:.3f}", f"{row['ours_ms']:.3f}"]
            table.add_row(str(tuple(row["shape"])), row["layout"], row["task"], *numbers, *milliseconds)
        Console(width=max(140, Console().width)).print(table)


if __name__ == "__main__":
    sys.exit(main())
