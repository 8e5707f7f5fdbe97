# like: right_numpy
# %% batch-stats
from IPython.display import HTML, Javascript, Markdown, SVG, display

EVIL = "<script>alert('output')</script><img src=x onerror=alert(3)>"
display(HTML(EVIL), Javascript("alert(4)"), Markdown(EVIL), {"text/plain": EVIL, "image/png": '">' + EVIL}, raw=False)
display({"text/plain": EVIL, "image/png": '">' + EVIL}, raw=True)
display({"text/latex": "$" + EVIL, "image/svg+xml": EVIL, "application/javascript": "alert(5)"}, raw=True)
print(EVIL)
print("\x1b]8;;javascript:alert(6)\x07click\x1b]8;;\x07 \x1b[31m" + EVIL)


def batch_stats(x):
    print(EVIL)
    raise ValueError(EVIL)

# %% own
class Evil(Exception):
    def _render_traceback_(self):
        return [EVIL, "</pre>" + EVIL]


Evil.__name__ = EVIL
raise Evil(EVIL)

# %% own markdown
<script>alert("markdown")</script><img src=x onerror=alert(1)> [x](javascript:alert(2))
<svg/onload=alert(7)> <details open ontoggle=alert(8)> <a href="data:text/html;base64,PHNjcmlwdD4=">y</a>
