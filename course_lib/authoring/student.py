"""The student edition: the same library with the exercised bodies, the mistakes and the grading left out."""

import ast
import hashlib
import json
import os
import shutil
import tomllib
import zipfile
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from course_lib.authoring.paths import BUILD, ROOT, problem_sets
from course_lib.authoring.source import bodies, exercised, release_id
from course_lib.checks.expect import export
from course_lib.checks.piece import COURSE, TOPICS, find

__all__ = ["book_url", "build_wheel", "stage", "unpack", "write_zip"]

_LEFT_OUT = {"authoring", "grading", "misconceptions", "cli.py", "__pycache__"}
#: The assembled layers: they would give away exercises of several topics.
_LEFT_OUT |= {"batchnorm.py", "batchnorm_functions.py", "batchnorm_sums.py", "parity.py"}
#: What the pages of the book run: one of its layers comes close to an exercise.
_LEFT_OUT |= {"experiments.py"}
#: Parts of the library beside the topics, and the topic each is made for.
_NEEDS = {"inspection.py": "modes", "tracing.py": "fusion", "ranks": "sync"}
#: A topic without a problem set would give away a later exercise, and what needs it would not work.
_UNRELEASED = {f"{topic}.py" for topic in COURSE if topic not in TOPICS}
_UNRELEASED |= {name for name, topic in _NEEDS.items() if topic not in TOPICS}
_NAME = "batchnorm-course-student"
_EPOCH = (1980, 1, 1, 0, 0, 0)

_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "{version}"
description = "BatchNorm by Building It, student edition: the parts that you write are left out"
requires-python = ">=3.11"
license = "BSD-3-Clause"
dependencies = ["numpy", "torch"]

[tool.hatch.build.targets.wheel]
packages = ["course_lib"]
artifacts = ["*.npz", "*.json"]
"""


def stage(target, *, fresh=False):
    """Write the student edition's source tree to `target`, a folder that is emptied first.

    Args:
        target: the folder.
        fresh: compute what is expected of students, also where it is known from an earlier release.
    """
    target = Path(target)
    shutil.rmtree(target, ignore_errors=True)
    package = target / "course_lib"
    shutil.copytree(ROOT / "course_lib", package, ignore=lambda _, names: (_LEFT_OUT | _UNRELEASED).intersection(names))
    releases = {}
    for problem_set in problem_sets():
        releases[problem_set] = release_id(problem_set)
        for name in exercised(problem_set):
            _stub(package, find(name))
    expected = package / "checks" / "expected"
    expected.mkdir()
    for topic, data in _expectations(fresh).items():
        (expected / f"{topic}.npz").write_bytes(data)
    edition = {"book": book_url(), "problem_sets": releases}
    (package / "checks" / "release.json").write_text(json.dumps(edition, indent=1) + "\n")
    (target / "pyproject.toml").write_text(_PYPROJECT.format(name=_NAME, version=_version()))
    return target


def _expectations(fresh):
    """{topic: what is right and what known mistakes look like}, kept from release to release while no code changes."""
    digest = hashlib.sha256(f"{version('numpy')} {version('torch')}".encode())
    for path in sorted((ROOT / "course_lib").rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    kept = {topic: BUILD / "expected" / f"{topic}-{digest.hexdigest()[:16]}.npz" for topic in TOPICS}
    missing = [topic for topic, path in kept.items() if fresh or not path.is_file()]
    found = {topic: path.read_bytes() for topic, path in kept.items() if topic not in missing}
    if missing:
        with ProcessPoolExecutor(min(len(missing), os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
            for topic, data in zip(missing, pool.map(_export, missing), strict=True):
                _keep(kept[topic], topic, data)
                found[topic] = data
    return {topic: found[topic] for topic in TOPICS}


def _export(topic):
    import torch  # grading the first problem set does without it, and imports this module

    torch.set_num_threads(1)  # several threads add in another order, and the last digits differ
    return export(topic)


def _keep(path, topic, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f"{topic}-*.npz"):
        old.unlink(missing_ok=True)
    half = path.with_suffix(f".{os.getpid()}")
    half.write_bytes(data)
    half.replace(path)  # whoever reads at the same time reads a whole file


def _version():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def _stub(package, piece):
    """Replace every body of a piece by an error that says whose it is. Signature and docstring stay."""
    path = package / f"{piece.topic}.py"
    lines = path.read_text(encoding="utf-8").splitlines()
    tree = ast.parse("\n".join(lines))
    node = next(node for node in tree.body if getattr(node, "name", None) == piece.attribute)
    message = f"{piece.attribute} is yours to write, in {piece.problem_set}; then plug_in({piece.attribute})"
    for body in reversed(list(bodies(node))):
        indent = " " * body[0].col_offset
        lines[body[0].lineno - 1 : body[-1].end_lineno] = [f'{indent}raise NotImplementedError("{message}")']
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def build_wheel(staged, folder):
    """Build the wheel of a staged tree into `folder`, the same bytes every time. Returns its path."""
    from hatchling.build import build_wheel as build

    folder = Path(folder).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    here = os.getcwd()
    os.chdir(staged)  # a build backend works in the folder of its project
    try:
        return folder / build(str(folder))
    finally:
        os.chdir(here)


def unpack(wheel, folder):
    """Unpack a wheel into `folder`, emptied first: the library that the grader's kernels import."""
    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


def write_zip(path, wheel, exercises):
    """Write what a student downloads: notebooks, wheel, requirements, a README and a word to coding assistants.

    Args:
        path: the zip to write.
        wheel: the student edition's wheel.
        exercises: folder with one folder per problem set.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handed_out = Path(__file__).parent / "handed_out"
    readme = (handed_out / "README.md").read_text(encoding="utf-8")
    sets = problem_sets()
    listing = "\n".join(f"* `{name}` (release {release_id(name)})" for name in sets)
    address = book_url() or "your instructor tells you where it is"
    files = {
        "README.md": readme.replace("PROBLEM_SETS", listing).replace("BOOK_ADDRESS", address).encode(),
        "AGENTS.md": (handed_out / "AGENTS.md").read_bytes(),
        "requirements.txt": _requirements(wheel.name).encode(),
        wheel.name: wheel.read_bytes(),
    }
    for name in sets:
        for notebook in sorted((exercises / name).glob("*.ipynb")):
            files[f"{name}/{notebook.name}"] = notebook.read_bytes()
    # Stored, not deflated: compressors differ, and the release is compared byte by byte.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(files.items()):
            info = zipfile.ZipInfo(f"{_NAME}/{name}", _EPOCH)
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)


def book_url():
    """Address of the book, `[tool.batchnorm-course] book-url` of pyproject.toml; `""` where no instructor set it."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["batchnorm-course"]["book-url"]


def _requirements(wheel):
    """The course's own dependencies with their pins, the editor, and the wheel beside the file."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    course = text.split("# The course itself\n")[1].split("\n\n")[0]
    pins = "\n".join(line.split("#")[0].rstrip() for line in course.splitlines())
    return f"{pins}\njupyterlab>=4,<5\n./{wheel}\n"
