"""What several test folders share: the release made once, and a Python that has nothing but the student edition."""

import os

# Before torch is there. Tests run side by side, each of them on one thread: more would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from course_lib.authoring.paths import ROOT
from course_lib.authoring.release import release
from course_lib.authoring.source import source_notebook
from tests.devices import DEVICES


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        choices=("cpu", "cuda", "standin"),
        help="run what is asked of every device, on this one alone; standin needs no GPU",
    )


def pytest_configure(config):
    device = config.getoption("device")
    if device == "standin":
        from tests import standin

        standin.register()  # for good: in such a run alone
    if device:
        DEVICES[:] = [device]  # before the first module with tests is there


def pytest_collection_modifyitems(config, items):
    device = config.getoption("device")
    if device:
        chosen = {item for item in items if hasattr(item, "callspec") and item.callspec.params.get("device") == device}
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = [item for item in items if item in chosen]


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    """A release made from scratch: `.exercises`, `.build`, `.zip`."""
    folder = tmp_path_factory.mktemp("release")
    path = release(folder / "exercises", folder / "build")
    return SimpleNamespace(exercises=folder / "exercises", build=folder / "build", zip=path)


@pytest.fixture(scope="session")
def student(released, tmp_path_factory):
    """A student's computer: the unpacked zip and a fresh environment with its wheel in it.

    The environment sees this one's packages, so that nothing is downloaded, but not the course's own library:
    Python does not follow the `.pth` file of an editable install from another environment's path.
    """
    home = tmp_path_factory.mktemp("student")
    with zipfile.ZipFile(released.zip) as archive:
        archive.extractall(home)
    [folder] = home.iterdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "venv"], check=True)
    python = home / "venv" / "bin" / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    [wheel] = folder.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    return SimpleNamespace(folder=folder, python=python, wheel=wheel, packages=packages)


@pytest.fixture(scope="session")
def run_as_student(student):
    """Runs a notebook in the student's environment and folder; errors stay in their cells."""

    class Kernels(KernelSpecManager):
        def get_kernel_spec(self, kernel_name):
            argv = [str(student.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=[*argv, "--IPKernelApp.log_level=ERROR"], language="python")

    class Manager(AsyncKernelManager):
        kernel_spec_manager = Kernels()

    def run(notebook):
        client = NotebookClient(
            notebook,
            kernel_manager_class=Manager,
            allow_errors=True,
            timeout=120,
            resources={"metadata": {"path": str(student.folder)}},
            shutdown_kernel="immediate",  # nothing is left to be cleaned up, and to ask for it takes a second or two
        )
        return client.execute()

    return run


@pytest.fixture(scope="session")
def solved():
    """Makes a released notebook with the reference's answers in it: `solved("ps1-algorithm")`."""

    def make(problem_set, exercises=ROOT / "exercises"):
        source = {cell.id: cell.source for cell in source_notebook(problem_set).cells}
        [path] = (exercises / problem_set).glob("*.ipynb")
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.metadata.get("nbgrader", {}).get("solution"):
                cell.source = source[cell.id]
        return notebook

    return make
