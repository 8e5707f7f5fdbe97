"""`course build`: the HTML book, rebuilt when anything it shows has changed."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from course_lib.authoring.paths import BOOK, BUILD, ROOT

__all__ = ["BuildError", "build_book"]

_STAMP = BUILD / "book.sha256"
_LIBRARY_STAMP = BUILD / "library.sha256"
_EXECUTED = BUILD / ".jupyter_cache"


class BuildError(RuntimeError):
    """The book has errors or warnings; they have been printed."""


def build_book(*, force=False):
    """Build the book with every warning an error.

    Executed pages are cached; the cache is dropped when the library has changed, because it does not see that.
    A book whose sources have not changed is not built again.

    Args:
        force: build in any case.

    Returns:
        True if it was built, False if it was current.

    Raises:
        BuildError: the build failed.
    """
    library = _digest([*ROOT.glob("course_lib/**/*.py"), ROOT / "requirements.txt"])
    sources = [*ROOT.glob("chapters/**/*"), ROOT / "_config.yml", ROOT / "_toc.yml", ROOT / "references.bib"]
    whole = library + _digest([path for path in sources if "__pycache__" not in path.parts])
    index = BOOK / "chapters" / "intro.html"
    if not force and index.is_file() and _STAMP.is_file() and _STAMP.read_text() == whole:
        return False
    _STAMP.unlink(missing_ok=True)
    if not _LIBRARY_STAMP.is_file() or _LIBRARY_STAMP.read_text() != library:
        shutil.rmtree(_EXECUTED, ignore_errors=True)
    # -n: unknown references are warnings; --all: an incremental build hides the warnings of unchanged pages.
    program = Path(sys.executable).with_name("jupyter-book")
    command = [
        str(program),
        "build",
        str(ROOT),
        "-W",
        "-n",
        "--keep-going",
        "--all",
        "--path-output",
        str(BUILD.parent),
    ]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise BuildError("the book was not built: see the messages above")
    _LIBRARY_STAMP.write_text(library)
    _STAMP.write_text(whole)
    return True


def _digest(paths):
    digest = hashlib.sha256()
    for path in sorted(paths):
        if path.is_file():
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
