"""Source policy: what an answer may not call, read from the submission's syntax tree before anything is judged.

Two kinds of findings. A **forbidden call** is a ready-made version of what the student is to build: the piece it
stands in, or whose helpers it stands in, gets no points. **Tampering** is code that reaches for the machinery that
grades: the submission needs a person. What a student tries out in cells that no answer uses is their own business.

The names are resolved through imports and aliases. Who hides a name well enough (text put together at run time) is
not found: the policy keeps honest people honest, and the judge's own defences do not depend on it.
"""

import ast
import re
from dataclasses import dataclass

__all__ = ["Finding", "for_a_person", "read"]

_LAYERS = (
    r"torch\.nn\.(\w+\.)*\w*BatchNorm\w*",
    r"torch\.nn\.modules\.batchnorm(\.\w+)*",
    r"torch\.(\w+\.)*\w*batch_norm\w*(\.\w+)*",
)
#: What a piece, or a whole topic, may not call, as patterns of full dotted names.
_FORBIDDEN = {
    "algorithm": (r"torch(\.\w+)*",),
    "running_stats": _LAYERS,
    "modes.batch_norm_eval_backward": _LAYERS,
    "modes.BatchNormFunction": _LAYERS,
    **{
        f"modes.clinic_{name}": _LAYERS
        for name in ("no_eval", "plain_buffers", "graph_in_buffers", "grad_mode", "momentum", "biased_var")
    },
    "modes.accepts": (r"inspect(\.\w+)*", r".*\.__(name|qualname|mro|module)__", r"course_lib\.checks\.check"),
    "finetuning": (r"torch\.optim\.swa_utils\.update_bn", r"(\w+\.)*FrozenBatchNorm\w*"),
    "sync": (r"torch\.nn\.(\w+\.)*SyncBatchNorm", r"torch\.nn\.modules\._functions(\.\w+)*"),
    "fusion": (r"torch\.nn\.utils\.(fusion|fuse_\w+)(\.\w+)*", r"torch\.fx\.experimental\.optimization(\.\w+)*"),
}
_TAMPERING = {
    r"IPython\.(core|terminal|extensions)(\.\w+)*": "IPython's internals",
    r"(IPython\.)?get_ipython\(\)\.(?!run_(line|cell)_magic|system|getoutput|magic)\w+(\.\w+)*": "IPython's internals",
    r"(ipykernel|nbgrader|nbclient|jupyter_client)(\.\w+)*": "the kernel",
    r"sys\.(modules|_getframe|_current_frames|settrace|setprofile)(\.\w+)*": "the interpreter's frames or modules",
    r"inspect\.(currentframe|stack|trace|getouterframes)": "frames of the caller",
    r".*\.(f_back|f_globals|f_locals|f_builtins|tb_frame|gi_frame)": "frames of the caller",
    r"gc\.get_(objects|referrers|referents)": "other people's objects",
    r"ctypes(\.\w+)*": "ctypes",
    r"(builtins\.)?(exec|eval|__import__)": "text that is run as code",
    r"course_lib\.checks\.(?!check\b|expect_release\b)\w+(\.\w+)*": "the grader",
    r"course_lib\.(misconceptions|grading|plugging\._\w+)(\.\w+)*": "the grader",
}


@dataclass(frozen=True)
class Finding:
    """One thing that the policy does not allow.

    Attributes:
        piece: the piece that gets no points; None for tampering.
        message: what was found and where, for the student and the instructor.
    """

    piece: str | None
    message: str


def read(notebook):
    """What a notebook's source has that the policy does not allow.

    Args:
        notebook: rebuilt by intake, so that its answer cells carry their pieces. It need not run, nor even parse:
            a cell that does not parse does not run either.

    Returns:
        A list of `Finding`, forbidden calls in the order of the answers, then tampering.
    """
    try:
        return _findings(notebook)
    except RecursionError:  # it is parsed, and may run: a sum of thousands of terms
        return [Finding(None, "a statement is nested too deeply to be read")]


def for_a_person(findings):
    """Why a person has to look at a submission, `""` where nobody has to."""
    messages = [finding.message for finding in findings if finding.piece is None]
    return f"{messages[0]}: no points before a person has looked at it" if messages else ""


def _findings(notebook):
    trees = [(cell, tree) for cell in notebook.cells if cell.cell_type == "code" and (tree := _parsed(cell.source))]
    aliases = {}
    for _, tree in trees:
        _collect_aliases(tree, aliases)
    bound = {}
    for cell, tree in trees:
        if cell.metadata.get("nbgrader", {}).get("locked"):
            continue  # the course's own cells, which use every answer, and by names such as x
        for statement in tree.body:
            for name in _binds(statement):
                bound.setdefault(name, []).append(statement)

    findings = []
    for cell, _ in trees:
        piece = cell.metadata.get("course", {}).get("piece")
        if piece and cell.metadata.get("nbgrader", {}).get("solution"):
            patterns = (*_FORBIDDEN.get(piece, ()), *_FORBIDDEN.get(piece.split(".")[0], ()))
            if used := _first(patterns, _said(_reachable(piece.split(".")[1], bound), aliases)):
                findings.append(Finding(piece, f"calls {used}, which this exercise asks you to do without"))
    for cell, tree in trees:
        if not cell.metadata.get("nbgrader", {}).get("locked"):
            said = _said(tree.body, aliases)
            for pattern, what in _TAMPERING.items():
                if used := _first((pattern,), said):
                    where = cell.metadata.get("nbgrader", {}).get("grade_id") or cell.id
                    findings.append(Finding(None, f"cell {where} reaches for {what}: {used}"))
    return findings


def _parsed(source):
    """The syntax tree of a cell, its magics taken out; None where there is none."""
    lines = ["" if line.lstrip().startswith(("%", "!", "?")) else line for line in source.splitlines()]
    try:
        return ast.parse("\n".join(lines))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _collect_aliases(tree, aliases):
    """What the names of a cell stand for: imports, also inside functions, and plain renamings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                aliases[name.asname or name.name.split(".")[0]] = name.name if name.asname else name.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                if name.name == "*":
                    aliases.setdefault("*", set()).add(node.module)
                else:
                    aliases[name.asname or name.name] = f"{node.module}.{name.name}"
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            full = _dotted(node.value, aliases)
            if full and full != node.targets[0].id:
                aliases[node.targets[0].id] = full


def _dotted(node, aliases):
    """Full name of what an expression refers to, of `nn.Linear` and of `getattr(nn, "Linear")`; `""` for none."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id) if node.id != "*" else ""
    if isinstance(node, ast.Attribute):
        of = _dotted(node.value, aliases)
        return f"{of}.{node.attr}" if of else f".{node.attr}"
    if isinstance(node, ast.Call):
        name = _dotted(node.func, aliases)
        texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        if name == "getattr" and len(node.args) >= 2 and texts:
            return f"{_dotted(node.args[0], aliases)}.{texts[0]}"
        if name in ("importlib.import_module", "__import__") and texts:
            return texts[0]
        return f"{name}()" if name else ""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
        of = _dotted(node.value, aliases)
        for table in (".__dict__", ".modules"):
            if of.endswith(table):
                return node.slice.value if table == ".modules" else f"{of.removesuffix(table)}.{node.slice.value}"
        if of == "vars()" and isinstance(node.value, ast.Call) and node.value.args:
            return f"{_dotted(node.value.args[0], aliases)}.{node.slice.value}"
    return ""


def _binds(statement):
    """Names that a top-level statement gives a value, or changes an attribute or an item of."""
    names = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
            while isinstance(node, ast.Attribute | ast.Subscript):
                node = node.value
            if isinstance(node, ast.Name):
                names.add(node.id)
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        names = {statement.name}  # what is bound inside belongs to it
    return names


def _reachable(name, bound):
    """The statements that define a name, and those that define what they use, and so on."""
    found, waiting, known = [], [name], set()
    while waiting:
        name = waiting.pop()
        if name in known:
            continue
        known.add(name)
        for statement in bound.get(name, ()):
            found.append(statement)
            waiting += _free(statement)
    return found


def _free(node):
    """Names that a statement takes from outside: what a function calls `model` has nothing to do with a cell's."""
    names = {node.id} if isinstance(node, ast.Name) else set()
    for child in ast.iter_child_nodes(node):
        names |= _free(child)
    return names - _own(node)


def _own(node):
    """Names of a function's own: its parameters, and what it binds without saying `global`. Imports are looked up."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return set()
    inside = [child for child in ast.walk(node) if child is not node]
    own = {child.arg for child in ast.walk(node.args) if isinstance(child, ast.arg)}
    own |= {child.id for child in inside if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store)}
    return own - {name for child in inside if isinstance(child, ast.Global) for name in child.names}


def _said(statements, aliases):
    """The full names in these statements, each once, in the order in which they stand there."""
    said = {}
    for statement in statements:
        for node, known in _with_aliases(statement, aliases):
            said.update(dict.fromkeys(_names(node, known)))
    return list(said)


def _first(patterns, said):
    """The first of these full names that a pattern matches; None where none does."""
    return next((full for full in said if any(re.fullmatch(pattern, full) for pattern in patterns)), None)


def _with_aliases(node, aliases):
    """(node, what names stand for there) of everything below: a function's own name is no alias of a cell's."""
    own = _own(node)
    if own & aliases.keys():
        # What it renames inside itself, it still knows: `bn = nn.BatchNorm2d`.
        aliases = {name: full for name, full in aliases.items() if name not in own}
        _collect_aliases(node, aliases)
    yield node, aliases
    for child in ast.iter_child_nodes(node):
        yield from _with_aliases(child, aliases)


def _names(node, aliases):
    if isinstance(node, ast.Import):
        return [name.name for name in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{name.name}" for name in node.names]
    if isinstance(node, ast.Name):
        return [aliases.get(node.id, node.id), *(f"{module}.{node.id}" for module in aliases.get("*", ()))]
    if isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        return [_dotted(node, aliases)]
    return []
