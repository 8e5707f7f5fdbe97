"""Seven things that the book's build needs and a configuration file cannot say."""

import functools
import hashlib
import logging
import re
import shutil
from importlib.metadata import version
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor
from myst_nb.core import render
from pybtex import plugin
from sphinx.util.logging import getLogger

_ALWAYS_RUN = "execution_mode: force"  # what a page says whose outputs are never kept
_log = getLogger(__name__)
_coalesce_streams = render.coalesce_streams
# For every citation it reads the metadata of all packages again, which takes longer than most pages.
plugin.entry_points = functools.cache(plugin.entry_points)
#: An inline formula, and what stands beside it without a space: "(", a comma, "-th".
_FORMULA = re.compile(r"""([(\[“]*)(<span class="math notranslate nohighlight">[^<]*</span>)([^\s<—–]*)""")
_CITED = re.compile(r"\[([a-z]+\d{4}\w*)\]")  # "[ioffe2015]" in a docstring, a key of references.bib


def _library_digest(root: Path) -> str:
    """A digest of everything whose change changes what a page shows, except the page itself."""
    digest = hashlib.sha256()
    behind_the_scenes = {"authoring", "cli.py", "grading", "misconceptions"}  # no page imports them
    for path in sorted((root / "course_lib").rglob("*.py")):
        if path.relative_to(root).parts[1] in behind_the_scenes:
            continue
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    for path in sorted(root.glob("benchmarks/results/*.json")):  # the parity page shows them
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for package in ("torch", "numpy", "scikit-learn", "matplotlib"):
        digest.update(f"{package}=={version(package)}\n".encode())
    return digest.hexdigest()[:16]


def place_cache(app, config) -> None:
    """Keep the executed pages under a digest of the library: the cache itself sees only changes of the pages."""
    root = Path(app.srcdir)
    caches = root / "_build" / ".jupyter_cache"
    here = caches / _library_digest(root)
    for old in caches.glob("*"):
        if old != here:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    config.nb_execution_cache_path = str(here)


def execute_side_by_side(app, env, docnames) -> None:
    """Run the pages that are not in the cache, one on each processor, where myst-nb would run one after the other.

    A page that fails is not kept: myst-nb runs it again, and says what is wrong with it.
    """
    cache = get_cache(app.config.nb_execution_cache_path)
    texts = {page: page.read_text(encoding="utf-8") for page in (Path(env.doc2path(name)) for name in docnames)}
    pages = [str(page) for page, text in texts.items() if "{code-cell}" in text and _ALWAYS_RUN not in text]
    for page in sorted(pages, key=lambda page: -Path(page).stat().st_size):  # the longest first
        cache.add_nb_to_project(page, read_data={"name": "myst_nb_md", "type": "plugin"})
    quiet = logging.getLogger(__name__)
    quiet.setLevel(logging.ERROR)
    executor = load_executor("local-parallel", cache, logger=quiet)
    if missing := executor.get_records(pages, None):
        _log.info(f"running the cells of {len(missing)} pages, one page on each processor: this takes minutes")
        executor.run_and_cache(filter_uris=pages, timeout=app.config.nb_execution_timeout)


def docstring_to_rst(app, what, name, obj, options, lines) -> None:
    """Docstrings are written to be read in a terminal; make them valid reStructuredText.

    `*spatial` and `|mean|` would start markup, an indented formula would run together, and `[key]` should be a link.
    """
    out, in_example, in_section = [], False, False
    for i, line in enumerate(lines):
        text = line.strip()
        if re.fullmatch(r"(Args|Attributes|Returns|Yields|Raises|Example|Examples):", text):
            in_section, in_example = True, text.startswith("Example")
        elif text and not line.startswith(" "):
            in_section = in_example = False
        if in_example:
            out.append(line)
            continue
        formula = line.startswith("    ") and not in_section
        starts = formula and i and not lines[i - 1].strip() and not (len(out) > 1 and out[-2].startswith("    "))
        if starts:
            out += ["::", ""]
        if not formula:
            parts = re.split(r"(?<!`)`([^`]+)`(?!`)", line)  # text and code in turns
            parts = (f"``{p}``" if k % 2 else re.sub(r"([*|])", r"\\\1", p) for k, p in enumerate(parts))
            line = "".join(parts)
            line = _CITED.sub(r":cite:`\1`", line)
        out.append(line)
    lines[:] = out


def join_streams(outputs):
    """Put the pieces of a cell's printed text together before myst-nb does.

    The kernel sends what is printed in pieces, cut wherever its clock says. myst-nb ends each piece with a line
    break, so that a page would differ from build to build.
    """
    joined = []
    for output in outputs:
        last = joined[-1] if joined else {}
        if output["output_type"] == last.get("output_type") == "stream" and output["name"] == last["name"]:
            last["text"] += output["text"]
        else:
            joined.append(output)
    return _coalesce_streams(joined)


def list_works_as_a_list(app, pagename, templatename, context, doctree):
    """Make the references the items of their list: docutils gives them a role that ARIA has given up."""
    context["body"] = context.get("body", "").replace('role="doc-biblioentry"', 'role="listitem"')


def keep_formulas_and_punctuation_together(app, pagename, templatename, context, doctree):
    """Let no line end between a formula and its comma: browsers break lines on both sides of what is drawn inline."""

    def together(found):
        before, _, after = found.groups()
        return f'<span class="together">{found[0]}</span>' if before or after else found[0]

    context["body"] = _FORMULA.sub(together, context.get("body", ""))


def setup(app):
    render.coalesce_streams = join_streams
    # Before myst-nb reads the path, and before napoleon rewrites the sections.
    app.connect("config-inited", place_cache, priority=100)
    app.connect("env-before-read-docs", execute_side_by_side)
    app.connect("autodoc-process-docstring", docstring_to_rst, priority=400)
    app.connect("html-page-context", list_works_as_a_list)
    app.connect("html-page-context", keep_formulas_and_punctuation_together)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
