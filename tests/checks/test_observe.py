"""Running a student's object: whatever it does is an observation."""

import json
import signal
import sys
import threading
import time
from textwrap import dedent, indent

import numpy as np
import pytest
import torch

from course_lib.checks.observe import decode, encode, observe
from course_lib.checks.piece import find


def double(x):
    return 2 * x


def entries(piece, impl, **options):
    return list(observe(piece, impl, 0, **options)["scenarios"].values())


def only_error(piece, impl, **options):
    """(kind, message) that every scenario ended with, once."""
    errors = [entry["error"] for entry in entries(piece, impl, **options)]
    assert None not in errors
    assert len({error["kind"] for error in errors}) == 1
    return errors[0]["kind"], errors[0]["message"]


# --- what is written down ---------------------------------------------------------------------------------------


def test_a_bundle_names_its_piece_its_seed_and_every_scenario(piece):
    bundle = observe(piece, double, 7)
    assert (bundle["piece"], bundle["seed"]) == ("demo.double", 7)
    assert list(bundle["scenarios"]) == ["of_table", "of_floats"]


def test_an_observation_is_what_the_implementation_did(piece):
    first, _ = entries(piece, double)
    ones, _ = entries(piece, lambda x: x)
    np.testing.assert_array_equal(decode(first["seen"]["y"]), 2 * decode(ones["seen"]["y"]))
    assert first["seen"]["inputs changed"] == {"fact": ""}
    assert first["error"] is None


def test_a_bundle_survives_json(piece, through_json):
    bundle = observe(piece, double, 0)
    assert through_json(bundle) == bundle


def test_equal_seeds_give_equal_bundles(piece):
    assert observe(piece, double, 5) == observe(piece, double, 5)


def test_another_seed_gives_other_observations(piece):
    assert observe(piece, double, 5)["scenarios"] != observe(piece, double, 6)["scenarios"]


def test_the_implementation_sees_the_dtype_of_the_case(piece):
    dtypes = [entry["seen"]["y"]["dtype"] for entry in entries(piece, double)]
    assert dtypes == ["float64", "float32"]


def test_a_lifted_run_is_in_float64(piece):
    dtypes = [entry["seen"]["y"]["dtype"] for entry in entries(piece, double, lift=True)]
    assert dtypes == ["float64", "float64"]


def test_a_modified_input_is_a_fact(piece):
    def in_place(x):
        x *= 2
        return x

    assert entries(piece, in_place)[0]["seen"]["inputs changed"] == {"fact": "x"}


# --- it never raises --------------------------------------------------------------------------------------------


class Evil(BaseException):
    pass


class Unreadable(Exception):
    def __str__(self):
        raise RuntimeError("no message either")


class Falsy(Exception):
    def __bool__(self):
        return False


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        TypeError(),
        AssertionError("x\nmany\nlines"),
        Exception("\ud800 half a character"),
        MemoryError(),
        SystemExit(0),
        GeneratorExit(),
        KeyboardInterrupt(),
        NotImplementedError("later"),
        StopIteration(3),
        Evil("a BaseException of one's own"),
        Unreadable(),
        Falsy("false"),
        ExceptionGroup("two", [ValueError(), TypeError()]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_exception_is_an_observation(piece, error):
    def fails(x):
        raise error

    assert only_error(piece, fails)[0] == type(error).__name__


def test_endless_recursion_is_an_observation(piece):
    def deeper(x):
        return deeper(x)

    assert only_error(piece, deeper)[0] == "RecursionError"


def test_the_message_of_an_exception_is_cut(piece):
    def fails(x):
        raise ValueError("y" * 10_000)

    assert only_error(piece, fails)[1] == "y" * 500


@pytest.mark.parametrize("impl", [None, 3, "double", object(), []])
def test_an_object_that_cannot_be_called_is_an_observation(piece, impl):
    assert only_error(piece, impl)[0] == "TypeError"


def test_an_implementation_with_other_arguments_is_an_observation(piece):
    assert only_error(piece, lambda: None)[0] == "TypeError"


@pytest.mark.parametrize(
    "value",
    [None, "text", 10**5000, 1j, object(), {"a": 1}, [1.0], b"bytes", np.array("text"), np.array([None])],
    ids=lambda value: type(value).__name__,
)
def test_any_returned_value_can_be_sent(piece, value):
    bundle = observe(piece, lambda x: value, 0)
    json.dumps(bundle)
    assert "array" not in bundle["scenarios"]["of_table"]["seen"]["y"]


@pytest.mark.parametrize("result", [None, 3, (1,), (1, 2, 3), np.ones(2)], ids=["None", "int", "one", "three", "array"])
@pytest.mark.parametrize("name", ["algorithm.batch_stats", "algorithm.recover_identity"])
def test_a_wrong_form_of_return_is_its_own_kind(name, result):
    bundle = observe(find(name), lambda *args, **kwargs: result, 0)
    errors = [entry["error"] for entry in bundle["scenarios"].values() if entry["error"]]
    assert errors and {error["kind"] for error in errors} == {"WrongReturn"}


def test_the_line_of_the_students_code_is_named(piece, answer):
    impl = answer("""
        def double(x):
            y = x
            return y + "1"
    """)
    assert entries(piece, impl)[0]["error"]["line"] == 'line 3 of double: return y + "1"'


def test_no_line_of_the_courses_own_code_is_named():
    assert "line" not in entries(find("algorithm.batch_stats"), None)[0]["error"]


@pytest.mark.parametrize("code", ["sys.stdout.close()", "sys.stderr.close()", "sys.stdout = None"])
def test_a_closed_or_replaced_stdout_does_no_harm(piece, answer, code):
    impl = answer(f"import sys\ndef double(x):\n    {code}\n    return 2 * x")
    assert [entry["error"] for entry in entries(piece, impl)] == [None, None]
    assert sys.stdout is not None and not sys.stdout.closed


# --- printing and warnings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["print('seen')", "sys.stderr.write('seen')", "warnings.warn('seen')"])
def test_what_is_printed_or_warned_is_kept_and_is_no_failure(piece, answer, code, capfd):
    impl = answer(f"import sys, warnings\ndef double(x):\n    {code}\n    return 2 * x")
    for entry in entries(piece, impl):
        assert "seen" in entry["printed"] and entry["error"] is None
    assert capfd.readouterr() == ("", "")


def test_a_warning_is_named_by_its_category(piece):
    first, _ = entries(piece, lambda x: np.log(-np.abs(x)))
    assert first["printed"] == "RuntimeWarning: invalid value encountered in log\n"


def test_what_is_printed_is_cut(piece):
    def loud(x):
        print("z" * 100_000)
        return 2 * x

    assert len(entries(piece, loud)[0]["printed"]) == 2000


# --- time -------------------------------------------------------------------------------------------------------


def assert_ends(threads):
    until = time.monotonic() + 2
    while (alive := threads.intersection(threading.enumerate())) and time.monotonic() < until:
        time.sleep(0.01)
    assert not alive


# An exception from outside arrives when a call returns: asleep inside the `try`, every one is caught there.
ENDLESS = {
    "pass": "while True: pass",
    "except Exception": """
        while True:
            try:
                while True: time.sleep(0.001)
            except Exception: pass
    """,
    # Nothing stops this one. It ends by itself, or it would take the time of all tests after it.
    "bare except": """
        until = time.monotonic() + 3
        while time.monotonic() < until:
            try:
                while time.monotonic() < until: sum(range(100))
            except: pass
    """,
    "three swallowed": """
        swallowed = 0
        while swallowed < 3:
            try:
                while True: time.sleep(0.001)
            except: swallowed += 1
        while True: pass
    """,
    "sleep": "time.sleep(1e6)",
    "generator": "sum(1 for _ in iter(int, 1))",
}


@pytest.mark.parametrize("code", ENDLESS.values(), ids=ENDLESS.keys())
def test_what_never_ends_is_stopped_and_the_rest_is_not_run(piece, answer, code):
    impl = answer("import time\ndef double(x):\n" + indent(dedent(code), "    "))
    start = time.monotonic()
    kinds = [entry["error"]["kind"] for entry in entries(piece, impl, limit=0.1)]
    assert kinds == ["TimeLimit", "NotRun"]
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("code", ["pass", "except Exception", "three swallowed", "generator"])
def test_a_stopped_loop_leaves_no_thread_behind(piece, answer, code):
    impl = answer("import time\ndef double(x):\n" + indent(dedent(ENDLESS[code]), "    "))
    before = set(threading.enumerate())
    observe(piece, impl, 0, limit=0.1)
    assert_ends(set(threading.enumerate()) - before)


def test_what_could_not_be_stopped_is_said_to_be_running(piece, answer):
    impl = answer("import time\ndef double(x):\n" + indent(dedent(ENDLESS["bare except"]), "    "))
    message = entries(piece, impl, limit=0.1)[0]["error"]["message"]
    assert message.endswith("It could not be stopped and is still running: restart the kernel.")


def endless(x):
    while True:
        time.sleep(0.01)


def test_the_limit_is_for_one_scenario(piece):
    def slow(x):
        time.sleep(1.1)
        return 2 * x

    assert [entry["error"] for entry in entries(piece, slow, limit=2.0)] == [None, None]


def test_the_budget_is_for_all_scenarios(piece):
    first, second = (entry["error"] for entry in entries(piece, endless, budget=0.2))
    assert first["kind"] == "TimeLimit" and "after 0.1 s" in first["message"]  # none of several gets more than half
    assert second["kind"] == "NotRun"


def test_a_scenario_of_several_groups_is_run_once(piece):
    calls = []
    piece.groups[1].scenarios.append(piece.groups[0].scenarios[0])
    bundle = observe(piece, lambda x: calls.append(x) or x, 0)
    assert list(bundle["scenarios"]) == ["of_table", "of_floats"] and len(calls) == 2


def test_the_only_scenario_may_take_all_of_the_budget(piece):
    del piece.groups[1]
    [entry] = entries(piece, endless, budget=0.2)
    assert "after 0.2 s" in entry["error"]["message"]


def test_the_message_says_when_it_was_stopped(piece):
    message = entries(piece, endless, limit=0.1)[0]["error"]["message"]
    assert message == "stopped after 0.1 s: does a loop never end?"


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to a thread on this system")
def test_the_users_own_interrupt_passes_through(piece):
    main = threading.main_thread()
    if threading.current_thread() is not main:
        pytest.skip("interrupts reach the main thread only")

    def slow(x):
        signal.pthread_kill(main.ident, signal.SIGINT)
        while True:
            time.sleep(0.01)

    before = set(threading.enumerate())
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores interrupts
    try:
        with pytest.raises(KeyboardInterrupt):
            observe(piece, slow, 0)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert_ends(set(threading.enumerate()) - before)


# --- encode and decode ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int64", "uint8"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 1, 3)])
def test_an_array_comes_back_as_it_was(dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    entry = json.loads(json.dumps(encode(array)))
    assert (entry["dtype"], entry["shape"]) == (dtype, list(shape))
    np.testing.assert_array_equal(decode(entry), array)


@pytest.mark.parametrize("array", [np.array([np.nan, np.inf, -np.inf, -0.0]), np.arange(6.0).reshape(2, 3).T])
def test_special_values_and_layouts_come_back(array):
    np.testing.assert_array_equal(decode(encode(array)), array)


@pytest.mark.parametrize("value", [1.5, np.float64(1.5), np.float32(1.5)])
def test_a_float_is_an_array_without_axes(value):
    assert encode(value)["shape"] == [] and decode(encode(value)) == 1.5


@pytest.mark.parametrize("value", [None, True, False, 3, "ValueError"])
def test_a_fact_is_itself(value):
    assert encode(value) == {"fact": value}


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"array": "", "shape": [1]},
        {"array": "AAAA", "shape": []},
        {"array": "no base64!", "shape": []},
        {"array": "AAAA!AAAAAAA=", "shape": []},
        {"array": 3, "shape": []},
        {"array": None, "shape": []},
        {"array": "AAAAAAAAAAA=", "shape": [10**9, 10**9]},
        {"array": "AAAAAAAAAAA=", "shape": ["x"]},
        {"array": "AAAAAAAAAAA="},
    ],
)
def test_what_encode_did_not_write_is_refused(entry):
    with pytest.raises(ValueError, match="expected an encoded array"):
        decode(entry)


# --- tensors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64"])
def test_a_tensor_is_an_array_that_keeps_its_dtypes_name(dtype):
    tensor = torch.tensor([[1.0, -2.0]]).to(getattr(torch, dtype)).requires_grad_(dtype != "int64")
    entry = encode(tensor)
    assert (entry["dtype"], entry["shape"]) == (dtype, [1, 2])
    assert decode(entry).tolist() == [[1.0, -2.0]]


def test_a_tensor_of_another_device_is_no_array():
    assert encode(torch.empty(2, device="meta")) == {"other": "Tensor on meta"}
