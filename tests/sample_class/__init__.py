"""A class to grade: small text answers, applied to the released notebook.

Every student is a file `<problem set>/<student>.py` of blocks:

    # like: right_numpy               take the answers that are not given here from that student
    # then: rename homework.ipynb     what happens to the notebook afterwards, see `_HAPPENINGS`
    # %% batch-stats                  the source of the answer cell with this grade id
    # %% own                          a cell of the student's own, after the cell named before it
    # %% own markdown                 the same, with text
    # %% file notes/readme.txt        another file that is handed in

`README.md` beside this file has the table of what each of them is expected to get.
"""

import json
import re
from pathlib import Path

from course_lib.grading.intake import skeleton_of

HERE = Path(__file__).parent
RELEASED = HERE.parents[1] / "exercises"


def problem_sets():
    """The problem sets that the class has handed something in for."""
    return sorted(path.name for path in HERE.glob("ps*"))


def hand_ins(problem_set):
    """{student: {file name: bytes}} of everybody in the class."""
    return {path.stem: _hand_in(path, problem_set) for path in sorted((HERE / problem_set).glob("*.py"))}


def write_class(folder, problem_set):
    """Lay the class out as nbgrader expects it: `<folder>/submitted/<student>/<problem set>/`."""
    for student, files in hand_ins(problem_set).items():
        for name, data in files.items():
            path = Path(folder) / "submitted" / student / problem_set / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def expected(problem_set):
    """Rows of the table in README.md: {student: {"points", "status", "message"}}."""
    rows = {}
    section = (HERE / "README.md").read_text(encoding="utf-8").split(f"## {problem_set}\n")[1].split("\n## ")[0]
    for line in section.splitlines():
        if cells := re.fullmatch(r"\| `(\w+)` \| ([\d.]+) \| ([a-z ]+) \| (.*?) \| (.*?) \|", line.strip()):
            student, points, status, message, _ = cells.groups()
            rows[student] = {"points": float(points), "status": status, "message": message}
    return rows


def _hand_in(path, problem_set):
    blocks = _blocks(path)
    notebook = _plain(skeleton_of(RELEASED / problem_set))
    name = next((RELEASED / problem_set).glob("*.ipynb")).name
    files, here = {}, 0
    for title, source in blocks:
        if title in ("own", "own markdown"):
            kind = {"cell_type": "code", "outputs": []} if title == "own" else {"cell_type": "markdown"}
            notebook["cells"].insert(here + 1, {**kind, "metadata": {}, "source": source})
            here += 1
        elif title.startswith("file "):
            files[title.removeprefix("file ")] = source.encode()
        else:
            here = _index(notebook, title)
            notebook["cells"][here]["source"] = source
    files[name] = notebook
    for happening in _directives(path, "then"):
        verb, _, argument = happening.partition(" ")
        _HAPPENINGS[verb](files, name, argument)
    return {name: data if isinstance(data, bytes) else json.dumps(data).encode() for name, data in files.items()}


def _blocks(path):
    """[(title, source)] of a student, the answers taken over from another one first."""
    text = path.read_text(encoding="utf-8")
    parts = re.split(r"^# %% (.+)$", text, flags=re.M)[1:]
    blocks = [(title.strip(), source.strip("\n")) for title, source in zip(parts[::2], parts[1::2], strict=True)]
    mine = {title for title, _ in blocks} | {"own", "own markdown"}
    for other in _directives(path, "like"):
        blocks = [b for b in _blocks(path.with_name(f"{other}.py")) if b[0] not in mine] + blocks
    return blocks


def _directives(path, word):
    return re.findall(rf"^# {word}: (.+)$", path.read_text(encoding="utf-8"), flags=re.M)


def _plain(notebook):
    return json.loads(json.dumps(notebook))


def _index(notebook, grade_id):
    return next(i for i, cell in enumerate(notebook["cells"]) if _id(cell) == grade_id)


def _id(cell):
    return cell["metadata"].get("nbgrader", {}).get("grade_id")


def _duplicate(files, name, grade_id):
    cells = files[name]["cells"]
    i = _index(files[name], grade_id)
    cells.insert(i + 1, {**_plain(cells[i]), "id": f"{grade_id}-copy"})


def _split(files, name, grade_id):
    cells = files[name]["cells"]
    i = _index(files[name], grade_id)
    parts = cells[i]["source"].split("# ---- split here\n")
    cells[i : i + 1] = [{**_plain(cells[i]), "source": part, "id": f"{grade_id}-{k}"} for k, part in enumerate(parts)]


def _delete(files, name, grade_id):
    del files[name]["cells"][_index(files[name], grade_id)]


def _rename(files, name, new):
    files[new] = files.pop(name)


def _truncate(files, name, _):
    data = json.dumps(files[name]).encode()
    files[name] = data[: len(data) // 2]


def _tag(files, name, argument):
    grade_id, tag = argument.split()
    files[name]["cells"][_index(files[name], grade_id)]["metadata"]["tags"] = [tag]


def _replace(files, name, argument):
    grade_id, source = argument.split(maxsplit=1)
    files[name]["cells"][_index(files[name], grade_id)]["source"] = source


def _withhold(files, name, _):
    del files[name]


_HAPPENINGS = {
    "duplicate": _duplicate,  # a cell is copied, metadata and all
    "split": _split,  # a cell is split in two where its source says so; both keep the metadata
    "delete": _delete,  # a cell is deleted
    "rename": _rename,  # the notebook is handed in under another name
    "truncate": _truncate,  # the file ends in the middle: broken JSON
    "tag": _tag,  # a cell gets a tag
    "replace": _replace,  # a locked cell's source is changed
    "withhold": _withhold,  # the notebook is not handed in
}
