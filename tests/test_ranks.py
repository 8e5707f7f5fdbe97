"""Ranks as threads and as processes: results, errors with their rank, limits, and nothing left behind."""

import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
import torch
import torch.distributed as dist
from nbclient import NotebookClient

from course_lib.authoring.paths import ROOT
from course_lib.ranks import RankError, count_collectives, run_ranks, threads
from tests.devices import DEVICES, HOWS, forked
from tests.spawned import gathered

every_way = pytest.mark.parametrize("how", HOWS)


def only_rank(wanted, do):
    """A function of a rank in which one rank does something else than the common all_reduce."""

    def fn(rank):
        if rank == wanted:
            return do()
        dist.all_reduce(torch.ones(1))

    return fn


def raising(error):
    raise error


# --- results --------------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("world_size", [1, 3])
def test_ranks_see_each_other(how, world_size):
    results = run_ranks(gathered, world_size, 10, how=how)
    assert [result.tolist() for result in results] == [[10 * rank for rank in range(world_size)]] * world_size


@every_way
def test_results_come_by_rank(how):
    def late_first(rank):
        time.sleep(0.1 * (2 - rank))
        return rank

    assert run_ranks(late_first, 3, how=how) == [0, 1, 2]


def test_spawned_ranks_see_each_other():
    assert [result.tolist() for result in run_ranks(gathered, 2, 7, how="spawn")] == [[0, 7], [0, 7]]


@pytest.mark.parametrize("device", DEVICES)
def test_threads_take_tensors_of_every_device(device):
    def total(rank):
        t = torch.ones(2, device=device)
        dist.all_reduce(t)
        return t

    assert all((t == 3).all() and t.device.type == device for t in run_ranks(total, 3))


@every_way
def test_groups_of_ranks(how):
    def total(rank):
        group, _ = dist.new_subgroups(2)
        t = torch.tensor([rank])
        dist.all_reduce(t, group=group)
        return t.item()

    assert run_ranks(total, 4, how=how) == [1, 1, 5, 5]


def test_backward_of_every_thread_stays_in_it():
    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dy):
            dy = dy.clone()
            dist.all_reduce(dy)
            return dy

    def gradient(rank):
        x = torch.ones(1, requires_grad=True)
        (Sum.apply(x) * (rank + 1)).backward()
        return x.grad.item()

    assert run_ranks(gradient, 3) == [6, 6, 6]


@forked
def test_a_forked_rank_works_in_parallel_after_its_parent_did():
    torch.rand(512, 512) @ torch.rand(512, 512)
    assert run_ranks(lambda rank: (torch.rand(512, 512) @ torch.rand(512, 512)).shape, 2, how="fork", timeout=20)


# --- errors ---------------------------------------------------------------------------------------------------------


@every_way
def test_an_error_names_its_rank(how):
    with pytest.raises(RankError, match=r"^rank 1 of 3 raised KeyError: 'here'") as raised:
        run_ranks(only_rank(1, lambda: raising(KeyError("here"))), 3, how=how)
    assert isinstance(raised.value.__cause__, KeyError) and isinstance(raised.value.errors[1], KeyError)


@every_way
def test_every_rank_that_raises_is_reported(how):
    def fn(rank):
        dist.all_reduce(torch.ones(1))
        raise ValueError(f"from {rank}")

    for _ in range(5):  # whoever is first must not stop the others on their way out of the collective
        with pytest.raises(RankError) as raised:
            run_ranks(fn, 3, how=how)
        assert {rank: str(error) for rank, error in raised.value.errors.items()} == {
            rank: f"from {rank}" for rank in range(3)
        }
        if how != "threads":
            break


@every_way
def test_a_run_after_a_failed_one_works(how):
    with pytest.raises(RankError):
        run_ranks(only_rank(1, lambda: raising(KeyError())), 2, how=how)
    assert len(run_ranks(gathered, 3, 1, how=how)) == 3


def test_who_waits_for_a_rank_that_has_returned_is_told_at_once():
    begin = time.monotonic()
    with pytest.raises(RankError, match="rank 0 waits in all_reduce for rank 1; rank 2 waits") as raised:
        run_ranks(only_rank(1, lambda: None), 3)
    assert time.monotonic() - begin < 5 and set(raised.value.unfinished) == {0, 2}


def test_different_collectives_do_not_meet():
    with pytest.raises(RankError, match=r"expected (all_reduce|barrier), which rank \d has called, got"):
        run_ranks(only_rank(1, dist.barrier), 3)


def test_groups_that_wait_for_each_other_are_noticed():
    def crossed(rank):
        one, other = dist.new_group([0, 1]), dist.new_group([0, 1])
        dist.all_reduce(torch.ones(1), group=(one, other)[rank])

    with pytest.raises(RankError, match="rank 0 waits in all_reduce for rank 1; rank 1 waits in all_reduce for rank 0"):
        run_ranks(crossed, 2)


def test_a_collective_that_fails_fails_on_every_rank():
    with pytest.raises(RankError) as raised:
        run_ranks(lambda rank: dist.all_reduce(torch.ones(1 + rank)), 3)
    assert set(raised.value.errors) == {0, 1, 2}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("places", [1, 3])
def test_gathering_takes_a_place_for_each_rank(places, how):
    def gather(rank):
        dist.all_gather([torch.zeros(1) for _ in range(places)], torch.ones(1))

    with pytest.raises(RankError, match=f"expected (length|a list of) 2.*got {places}"):
        run_ranks(gather, 2, how=how)


def test_a_rank_cannot_go_on_after_its_run():
    went_on = []

    def stubborn():
        try:
            dist.all_reduce(torch.ones(1))
        except Exception:  # what ends a rank is no Exception
            went_on.append(True)

    with pytest.raises(RankError):
        run_ranks(lambda rank: stubborn() if rank else None, 2)
    assert not went_on
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rank")]


@every_way
def test_the_time_limit_ends_what_never_returns(how):
    def endless(rank):
        while rank == 1:
            pass

    begin = time.monotonic()
    with pytest.raises(RankError, match=r"expected every rank to finish within 1 s; rank 1 ") as raised:
        run_ranks(endless, 2, how=how, timeout=1.0)
    assert list(raised.value.unfinished) == [1] and time.monotonic() - begin < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rank")]


def test_a_late_thread_says_where_it_is():
    def asleep(rank):
        time.sleep(0.5 if rank else 0)

    line = asleep.__code__.co_firstlineno + 1
    with pytest.raises(RankError, match=f"rank 1 is at line {line} of .*test_ranks.py"):
        run_ranks(asleep, 2, timeout=0.1)


@forked
def test_a_process_that_dies_is_named():
    with pytest.raises(RankError, match=r"^rank 1 of 2 raised RuntimeError: its process died with exit code 3"):
        run_ranks(only_rank(1, lambda: os._exit(3)), 2, how="fork")


@forked
def test_a_process_that_dies_is_named_before_those_that_lost_it():
    def fn(rank):
        if rank == 1:
            time.sleep(0.2)
            os._exit(3)
        raise RuntimeError("connection lost")

    with pytest.raises(RankError, match=r"^rank 1 of 2 raised RuntimeError: its process died.*raised too: rank 0"):
        run_ranks(fn, 2, how="fork")


@forked
def test_who_waits_for_a_failed_process_fails_too():
    with pytest.raises(RankError, match=r"^rank 1 of 3 raised KeyError") as raised:
        run_ranks(only_rank(1, lambda: raising(KeyError())), 3, how="fork", timeout=15)
    assert set(raised.value.errors) == {0, 1, 2}


class OneWay(Exception):
    """Can be pickled, but not made again from its one argument."""

    def __init__(self, first, second):
        super().__init__(first + second)


@forked
def test_an_error_that_cannot_be_pickled_arrives_as_text():
    class Local(Exception):
        pass

    for error in (Local("gone"), OneWay("go", "ne")):
        with pytest.raises(RankError, match=f"rank 1 of 2 raised RuntimeError: {type(error).__name__}: gone"):
            run_ranks(only_rank(1, lambda error=error: raising(error)), 2, how="fork")


@forked
def test_a_result_that_cannot_be_pickled_is_an_error_of_its_rank():
    with pytest.raises(RankError, match="rank 0 of 1 raised"):
        run_ranks(lambda rank: lambda: None, 1, how="fork")


def test_an_error_of_ranks_can_be_pickled():
    error = pickle.loads(pickle.dumps(RankError("message", {1: ValueError("x")}, {0: "waits"})))
    assert (str(error), list(error.errors), error.unfinished) == ("message", [1], {0: "waits"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"world_size": 0}, "expected world_size to be an int of at least 1, got 0"),
        ({"world_size": 2.0}, "expected world_size to be an int of at least 1, got 2.0"),
        ({"world_size": True}, "expected world_size to be an int of at least 1, got True"),
        ({"how": "mpi"}, "expected how to be 'threads', 'fork' or 'spawn', got 'mpi'"),
        ({"how": "spawn"}, "put them into a module, or use another how than 'spawn'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError) as error:
        run_ranks(lambda rank: None, **{"world_size": 2, **arguments})
    assert message in str(error.value)


def test_a_rank_starts_no_ranks():
    with pytest.raises(RankError, match="ValueError: expected run_ranks to be called by no rank"):
        run_ranks(lambda rank: run_ranks(gathered, 2, 1), 1)


# --- nothing left behind --------------------------------------------------------------------------------------------


@every_way
def test_the_callers_world_is_untouched(how):
    excepthook, world = sys.excepthook, dist.distributed_c10d._world
    run_ranks(gathered, 2, 1, how=how)
    with pytest.raises(RankError):
        run_ranks(only_rank(0, lambda: raising(KeyError())), 2, how=how)
    assert not dist.is_initialized()
    assert sys.excepthook is excepthook and dist.distributed_c10d._world is world
    assert torch._C._is_multithreading_enabled()


def test_the_callers_own_group_survives(monkeypatch):
    monkeypatch.setattr(threads, "GRACE", 0.05)
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        with pytest.raises(RankError):
            run_ranks(lambda rank: time.sleep(0.6), 2, timeout=0.1)
        while any(thread.name.startswith("rank") for thread in threading.enumerate()):
            time.sleep(0.05)  # the late ones wake up in the caller's world
        assert len(run_ranks(gathered, 3, 1)) == 3
        dist.all_reduce(torch.ones(1))
        # Found from every thread again, as functional collectives look it up in a backward pass.
        find = torch._C._distributed_c10d._resolve_process_group
        with ThreadPoolExecutor() as pool:
            assert pool.submit(find, dist.group.WORLD.group_name).result().size() == 1
    finally:
        dist.destroy_process_group()


def test_the_interpreter_ends_while_a_rank_sleeps():
    code = "import time; from course_lib.ranks import run_ranks; run_ranks(lambda rank: time.sleep(60), 2, timeout=0.1)"
    begin = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert "finish within 0.1 s" in ended.stderr and time.monotonic() - begin < 40


def test_a_function_of_a_notebook_cell():
    first = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import torch, torch.distributed as dist\n"
        "from course_lib.ranks import run_ranks\n"
        "def total(rank):\n    t = torch.tensor([rank + 1])\n    dist.all_reduce(t)\n    return t.item()"
    )
    cells = [first, "run_ranks(total, 3)", "run_ranks(total, 3, how='fork')", "run_ranks(total, 2)"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    done = NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    shown = [output["data"]["text/plain"] for cell in done.cells for output in cell.outputs if "data" in output]
    assert shown == ["[6, 6, 6]", "[6, 6, 6]", "[3, 3]"]


# --- counting -------------------------------------------------------------------------------------------------------


@every_way
def test_collectives_are_counted_by_name(how):
    def counted(rank):
        t, two = torch.ones(2), [torch.ones(2) for _ in range(2)]
        with count_collectives() as calls:
            dist.all_reduce(t)
            dist.all_gather(two, t)
            dist.all_gather_single(torch.ones(4), t)
            dist.broadcast(t, 0)
            dist.reduce_scatter(t, two)
            dist.barrier()
        dist.all_reduce(t)
        return calls

    names = ["all_reduce", "all_gather", "all_gather", "broadcast", "reduce_scatter", "barrier"]
    assert run_ranks(counted, 2, how=how) == [names, names]


@every_way
def test_a_backward_pass_is_counted(how):
    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dy):
            dist.all_reduce(dy)
            return dy

    def counted(rank):
        y = Sum.apply(torch.ones(1, requires_grad=True))
        with count_collectives() as calls:
            y.backward()
        return calls

    assert run_ranks(counted, 2, how=how) == [["all_reduce"]] * 2


def test_each_thread_counts_its_own_and_counts_nest():
    def counted(rank):
        with count_collectives() as outer:
            with count_collectives() as inner:
                dist.all_reduce(torch.ones(1))
            dist.barrier()
        return outer, inner

    assert run_ranks(counted, 3) == [(["all_reduce", "barrier"], ["all_reduce"])] * 3


def test_counting_does_not_import_the_compiler():
    code = (
        "import sys, torch; from course_lib.ranks import count_collectives\n"
        "with count_collectives(): torch.ones(2)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
