"""Pages run side by side before the book is read; those that fail are left to myst-nb, which says why."""

import importlib.util
from types import SimpleNamespace

import pytest
from jupyter_cache import get_cache

from course_lib.authoring.paths import ROOT

PAGE = """---
kernelspec: {{name: python3, display_name: Python 3, language: python}}
{more}
---
# A page

```{{code-cell}} ipython3
{code}
```
"""
PAGES = {
    "works": PAGE.format(code="print(6 * 7)", more=""),
    "fails": PAGE.format(code="raise ValueError", more=""),
    "always": PAGE.format(code="print('again')", more="mystnb: {execution_mode: force}"),
    "text": "# Nothing to run\n",
}


@pytest.fixture(scope="module")
def extension():
    spec = importlib.util.spec_from_file_location("book_extension", ROOT / "chapters" / "_ext" / "book.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_that_work_are_kept_and_run_once(extension, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    for name, text in PAGES.items():
        (tmp_path / f"{name}.md").write_text(text)
    app = SimpleNamespace(config=SimpleNamespace(nb_execution_cache_path=tmp_path / "cache", nb_execution_timeout=60))
    env = SimpleNamespace(doc2path=lambda name: str(tmp_path / f"{name}.md"))
    extension.execute_side_by_side(app, env, list(PAGES))
    cache = get_cache(tmp_path / "cache")
    kept = cache.list_cache_records()
    assert [record.uri.rsplit("/", 1)[1] for record in kept] == ["works.md"]
    [output] = cache.get_cache_bundle(kept[0].pk).nb.cells[-1].outputs
    assert output.text == "42\n"
    before = kept[0].created
    extension.execute_side_by_side(app, env, ["works"])
    assert [record.created for record in cache.list_cache_records()] == [before]
