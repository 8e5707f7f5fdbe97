"""A class to grade: small text answers, applied to the released notebook.

Every student is a file `<problem set>/<student>.py` of blocks:

    # like: right_numpy               take the answers that are not given here from that student
    # then: rename homework.ipynb     what happens to the notebook afterwards, see `_HAPPENINGS`
    # %% batch-stats                  the source of the answer cell with this grade id
    # %% batch-stats with             the same student's, changed: old text, `# ---- becomes`, new text,
                                      `# ---- and` before the next change
    # %% accepts as same_life         the right answer of that style, from `tests/right_answers`
    # %% own                          a cell of the student's own, after the cell named before it
    # %% own markdown                 the same, with text
    # %% file notes/readme.txt        another file that is handed in

`README.md` beside this file has the table of what each of them is expected to get.
"""

import ast
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
    for i, (title, _) in enumerate(blocks):
        if " as " in title:
            blocks[i] = _right_answer(path.parent.name, *title.split(" as "))
    mine = {title.removesuffix(" with") for title, _ in blocks} | {"own", "own markdown"}
    for other in _directives(path, "like"):
        theirs = _blocks(path.with_name(f"{other}.py"))
        blocks = [(title.removesuffix(" with"), _changed(title, source, theirs)) for title, source in blocks]
        blocks = [block for block in theirs if block[0] not in mine] + blocks
    return blocks


def _changed(title, source, theirs):
    """The answer of a block: its own source, or another student's with parts of it replaced."""
    if not title.endswith(" with"):
        return source
    answer = dict(theirs)[title.removesuffix(" with")]
    for change in source.split("\n# ---- and\n"):
        old, _, new = change.partition("\n# ---- becomes")
        if answer.count(old) != 1:
            raise ValueError(
                f"expected {old!r} once in {title.removesuffix(' with')}, found it {answer.count(old)} times"
            )
        answer = answer.replace(old, new.removeprefix("\n"))
    return answer


def _right_answer(problem_set, title, style):
    """(grade id, source) of a right answer: its function under the piece's name, and the helpers it uses."""
    topic = problem_set.partition("-")[2].replace("-", "_")
    tree = ast.parse((HERE.parent / "right_answers" / f"{topic}.py").read_text(encoding="utf-8"))
    nodes = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    # Other answers are no helpers, whatever a name inside this one may be.
    defined = {node.name: node for node in nodes if node.name == style or not node.decorator_list}
    wanted, waiting = set(), [style]
    while waiting:
        name = waiting.pop()
        if name in defined and name not in wanted:
            wanted.add(name)
            waiting += [
                node.id for node in ast.walk(defined[name]) if isinstance(node, ast.Name) and node.id != "right"
            ]
    answer = defined[style]
    answer.name, answer.decorator_list = title.replace("-", "_"), []
    imports = [node for node in tree.body if isinstance(node, ast.Import) and node.names[0].name == "contextlib"]
    source = ast.Module([*imports, *(node for name, node in defined.items() if name in wanted)], [])
    return title, ast.unparse(source)


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
