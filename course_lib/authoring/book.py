"""`course build`: the HTML book, rebuilt when anything it shows has changed."""

import hashlib
import subprocess
import sys

from course_lib.authoring.paths import BOOK, BUILD, ROOT, ZIP

__all__ = ["BuildError", "build_book"]

_STAMP = BUILD / "book.sha256"
#: The command `jupyter-book`, with the imports that this package spares every process.
_JUPYTER_BOOK = "import course_lib.authoring; from jupyter_book.cli.main import main; main()"


class BuildError(RuntimeError):
    """The book has errors or warnings; they have been printed."""


def build_book(*, force=False):
    """Build the book with every warning an error.

    Executed pages are cached under a digest of the library (`chapters/_ext/book.py`). A book of which neither
    page nor library has changed is not built again.

    Args:
        force: build in any case.

    Returns:
        True if it was built, False if it was current.

    Raises:
        BuildError: the build failed.
    """
    single = (ROOT / name for name in ("_config.yml", "_toc.yml", "references.bib", "requirements.txt"))
    shown = [*ROOT.glob("chapters/**/*"), *ROOT.glob("course_lib/**/*.py"), *ROOT.glob("benchmarks/results/*")]
    sources = [*shown, ZIP, *single]
    whole = _digest(path for path in sources if "__pycache__" not in path.parts)
    index = BOOK / "index.html"
    if not force and index.is_file() and _STAMP.is_file() and _STAMP.read_text() == whole:
        return False
    _STAMP.unlink(missing_ok=True)
    # -n: unknown references are warnings; --all: an incremental build hides the warnings of unchanged pages.
    options = ["-W", "-n", "--keep-going", "--all", "--path-output", str(BUILD.parent)]
    if subprocess.run([sys.executable, "-P", "-c", _JUPYTER_BOOK, "build", str(ROOT), *options], cwd=ROOT).returncode:
        raise BuildError("the book was not built: see the messages above")
    _STAMP.write_text(whole)
    return True


def _digest(paths):
    digest = hashlib.sha256()
    for path in sorted(paths):
        if path.is_file():
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
