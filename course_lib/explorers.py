"""Explorers: drawings with sliders that need no kernel. A cell brings the data, a script of the book draws them."""

import json
from dataclasses import dataclass
from html import escape
from typing import Any

__all__ = ["Explorer"]


@dataclass(frozen=True)
class Explorer:
    """Data on their way into the page, drawn there by the script that has added this kind (`chapters/_static`).

    Args:
        kind: of explorer, as the script names it.
        data: whatever JSON can say.
        without: what stands there when there is no JavaScript: one sentence that names the static figure.

    Example:
        >>> print(Explorer("ema", [1, 2], "The figure above shows some settings.")._repr_html_())
        <div class="explorer" data-explorer="ema"><noscript><p>The figure above shows some settings.</p></noscript>\
<script type="application/json">[1,2]</script></div>
    """

    kind: str
    data: Any
    without: str

    def _repr_html_(self) -> str:
        # In JSON "<" stands inside strings only, where it may be written like this; "</script>" would end the data.
        text = json.dumps(self.data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        without = f"<noscript><p>{escape(self.without)}</p></noscript>"
        data = f'<script type="application/json">{text}</script>'
        return f'<div class="explorer" data-explorer="{escape(self.kind)}">{without}{data}</div>'
