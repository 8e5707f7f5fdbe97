"""Forked kernels: apart from each other, ended with their parent, and replaced when that is gone."""

import asyncio
import json
import os
import queue
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import nbformat
import psutil
import pytest
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

from course_lib.authoring.paths import EXERCISES
from course_lib.grading import warm
from course_lib.grading.intake import skeleton_of
from course_lib.grading.kernel import CourseExecute, PromptClient, StudentKernels

PROBE = """
import json, os, random, sys
import numpy as np
import course_lib
found = {"pid": os.getpid(), "parent": os.getppid(), "group": os.getpgid(0), "left": hasattr(course_lib, "left")}
found |= {"drawn": [random.random(), float(np.random.random())], "input": sys.stdin is None or os.read(0, 1) == b""}
found["done"] = __import__("subprocess").run(["true"]).returncode
course_lib.left = True
print(json.dumps(found))
"""

needs_forks = pytest.mark.skipif(not warm._CAN_FORK, reason="no kernel is forked without process descriptors")


def run(source, problem_set="ps1-algorithm"):
    """What a cell printed in a kernel of its own."""
    notebook = nbformat.from_dict(json.loads(json.dumps(skeleton_of(EXERCISES / problem_set))))
    answer = next(cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("solution"))
    answer.source = source
    CourseExecute(seed=1, timeout=20).preprocess(notebook, {"metadata": {}})
    return "".join(output.get("text", "") for output in answer.outputs)


@pytest.fixture(scope="module")
def two():
    return [json.loads(run(PROBE)) for _ in range(2)]


def gone(pid, within=60):
    until = time.monotonic() + within
    while psutil.pid_exists(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not psutil.pid_exists(pid)


@needs_forks
def test_kernels_have_one_parent_and_a_process_group_each(two):
    assert two[0]["parent"] == two[1]["parent"] != os.getpid()
    assert [kernel["group"] for kernel in two] == [kernel["pid"] for kernel in two]
    assert two[0]["pid"] != two[1]["pid"]


def test_nothing_passes_from_one_kernel_to_the_next(two):
    assert [kernel["left"] for kernel in two] == [False, False]


GRADIENT_GIVEN = """
import sys, torch
before = set(sys.modules)
torch.ones(3, requires_grad=True).exp().backward(torch.ones(3))
print(sorted(set(sys.modules) - before))
"""


@needs_forks
def test_what_torch_imports_when_a_backward_is_given_a_gradient_is_there():
    assert run(GRADIENT_GIVEN, "ps3-modes") == "[]\n"


def test_kernels_do_not_draw_the_same_numbers(two):
    assert all(a != b for a, b in zip(two[0]["drawn"], two[1]["drawn"], strict=True))


def test_a_kernel_has_nothing_to_read_and_can_run_programs(two):
    assert [(kernel["input"], kernel["done"]) for kernel in two] == [(True, 0)] * 2


def test_a_kernel_is_gone_when_its_notebook_is_done(two):
    assert gone(two[1]["pid"])


@needs_forks
def test_kernels_are_waited_for_and_not_the_clock(monkeypatch, two):
    sleep, get_msg = asyncio.sleep, AsyncZMQSocketChannel.get_msg

    async def noted(seconds, *rest):
        waited.append(seconds)
        await sleep(seconds, *rest)

    async def noted_in_vain(channel, timeout=None):
        try:
            return await get_msg(channel, timeout)
        except queue.Empty:
            waited.append(timeout)
            raise

    monkeypatch.setattr(asyncio, "sleep", noted)
    monkeypatch.setattr(AsyncZMQSocketChannel, "get_msg", noted_in_vain)
    runs = []
    for _ in range(3):  # on a busy machine an answer can take longer than one is willing to wait before asking again
        runs.append(waited := [])
        run(PROBE)
    # nbclient looks every second whether the kernel is alive, and some hundredths are between the steps of its start.
    assert [] in [[seconds for seconds in waits if 0.05 < seconds < 1] for waits in runs]


@pytest.mark.parametrize(
    ("program", "said"), [("pass", "ended before it was ready"), ("input()", "not ready within 0.5 s")]
)
def test_a_kernel_that_never_answers_is_not_waited_for(program, said):
    class Mute(KernelSpecManager):
        def get_kernel_spec(self, kernel_name):
            return KernelSpec(argv=[sys.executable, "-c", program])

    async def start():
        manager = AsyncKernelManager(
            kernel_spec_manager=Mute(), client_class=f"{PromptClient.__module__}.{PromptClient.__name__}"
        )
        await manager.start_kernel(stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        client = manager.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=0.5)
        finally:
            client.stop_channels()
            await manager.shutdown_kernel(now=True)

    # In a thread: where a browser is open, this one has an event loop already.
    with ThreadPoolExecutor(1) as apart, pytest.raises(RuntimeError, match=said):
        apart.submit(lambda: asyncio.run(start())).result()


@needs_forks
def test_a_kernel_that_ends_its_parent_harms_nobody_else(two):
    run("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)")
    after = json.loads(run(PROBE))
    assert after["parent"] != two[0]["parent"] and not after["left"]


@needs_forks
def test_a_kernel_ends_with_its_parent(tmp_path):
    specs = StudentKernels(topic="algorithm")
    command = specs.get_kernel_spec("course").argv
    connection = str(tmp_path / "connection.json")
    arguments = [connection if part == "{connection_file}" else part for part in command[command.index("-f") :]]
    kernel = warm._forked(command[: command.index("-f")], arguments, tmp_path, {"PATH": os.defpath})
    assert kernel.poll() is None
    warm._close()
    assert gone(kernel.pid) and kernel.poll() == 1


def test_without_forks_a_kernel_starts_anew(monkeypatch):
    monkeypatch.setattr(warm, "_CAN_FORK", False)
    found = json.loads(run(PROBE))
    assert found["parent"] == os.getpid() and not found["left"]


@needs_forks
def test_nobody_to_fork_from_is_an_error_that_says_so(tmp_path):
    command = [os.path.realpath("/bin/false"), str(tmp_path), "no_topic"]
    with pytest.raises(RuntimeError, match="the process that forks them ended: try"):
        warm._forked(command, ["-f", "x"], tmp_path, {"PATH": os.defpath})
