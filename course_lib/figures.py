"""What the chapters draw: every function takes results, draws them and returns one matplotlib figure.

A figure made here shows itself once in a notebook, as SVG on a white ground, so that it is sharp at every size and
legible on a light page and on a dark one. It belongs to no pyplot state: nothing has to be closed.
"""

import io
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Arc, FancyArrowPatch, FancyBboxPatch, Rectangle
from numpy.typing import ArrayLike

__all__ = [
    "COLORS",
    "Drawing",
    "backward_graph",
    "book_map",
    "channel_axes",
    "channel_ranges",
    "collectives",
    "curves",
    "dot_rows",
    "error_maps",
    "fusion_patterns",
    "gradient_geometry",
    "heaps",
    "in_out",
    "matrices",
    "number_lines",
    "placements",
    "running_averages",
    "shards",
    "shared_values",
    "statistic_clouds",
    "sweep",
    "three_steps",
]

# Okabe and Ito's palette: told apart by colour-blind readers and in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_INK, _MUTED, _PALE = "#222222", "#666666", "#eef2f6"
_MARKERS = "osD^vP"
_LINES = ("-", "--", "-.", ":", "-", "--")  # a second cue beside the colour
_RC = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "svg.hashsalt": "batchnorm",  # the same results give the same bytes
}


class Drawing(Figure):
    """A figure that a notebook shows as SVG, without a pyplot backend.

    Example:
        >>> Drawing(figsize=(2, 1))._repr_svg_().lstrip().startswith("<?xml")
        True
    """

    def _repr_svg_(self) -> str:
        out = io.StringIO()
        with matplotlib.rc_context(_RC):
            self.savefig(
                out, format="svg", facecolor="white", bbox_inches="tight", pad_inches=0.12, metadata={"Date": None}
            )
        return out.getvalue()


def _drawing(width: float, height: float, columns: int = 1, **grid) -> tuple[Drawing, Axes | np.ndarray]:
    """A new figure in the book's style, and its axes."""
    with matplotlib.rc_context(_RC):
        figure = Drawing(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(1, columns, **grid)


def _diagram(width: float, height: float) -> tuple[Drawing, Axes]:
    """A figure for boxes and arrows: one unit is one inch, no axes."""
    figure, ax = _drawing(width, height)
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.axis("off")
    return figure, ax


def _box(ax: Axes, x: float, y: float, text: str, *, width=1.0, height=0.46, fill=_PALE, edge=_MUTED, size=11) -> None:
    """A labelled box centred at (x, y)."""
    shape = FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.08",
        fc=fill,
        ec=edge,
        lw=1.2,
    )
    ax.add_patch(shape)
    ax.text(x, y, text, ha="center", va="center", color=_INK, size=size)


def _arrow(ax: Axes, start, end, *, color=_MUTED, bend=0.0, style="-|>", dashed=False, width=1.5) -> None:
    """An arrow from start to end, curved by `bend`."""
    arrow = FancyArrowPatch(
        start,
        end,
        arrowstyle=style,
        mutation_scale=13,
        color=color,
        lw=width,
        ls="--" if dashed else "-",
        connectionstyle=f"arc3,rad={bend}",
        shrinkA=0,
        shrinkB=0,
    )
    ax.add_patch(arrow)


def _spread(ax: Axes, x: ArrayLike, runs: np.ndarray, label: str, i: int, *, marker: str | None = None) -> None:
    """The median over the last axis as a line, and the range from the lowest to the highest run as a band."""
    ax.plot(x, np.median(runs, axis=-1), color=COLORS[i], ls=_LINES[i], marker=marker, ms=5, lw=1.8, label=label)
    ax.fill_between(x, runs.min(axis=-1), runs.max(axis=-1), color=COLORS[i], alpha=0.2, lw=0)


def curves(
    runs: Mapping[str, ArrayLike],
    *,
    xlabel: str = "training step",
    ylabel: str = "training loss",
    top: float | None = None,
    hline: tuple[float, str] | None = None,
    logy: bool = False,
) -> Drawing:
    """Curves over training steps: the median of several seeds, and a band from the lowest to the highest.

    Args:
        runs: label → (seeds, steps). A value that is not finite is drawn at `top`.
        xlabel: below the horizontal axis.
        ylabel: beside the vertical axis.
        top: upper end of the vertical axis; larger values are drawn on it.
        hline: (height, label) of a dashed line to compare with.
        logy: a logarithmic vertical axis.

    Returns:
        The figure.

    Example:
        >>> figure = curves({"net": [[2.3, 1.0], [2.3, 1.2]]})
        >>> figure.axes[0].get_ylabel()
        'training loss'
    """
    figure, ax = _drawing(5.8, 3.2)
    for i, (label, values) in enumerate(runs.items()):
        values = np.asarray(values, dtype=float).T
        if top is not None:
            values = np.minimum(np.nan_to_num(values, nan=top, posinf=top), top)
        _spread(ax, np.arange(len(values)), values, label, i)
    if hline is not None:
        # Named in the legend: beside the line the legend itself may come to lie.
        ax.axhline(hline[0], color=_MUTED, ls="--", lw=1, label=hline[1])
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if logy:
        ax.set_yscale("log")
    elif top is not None:
        ax.set_ylim(0, top * 1.04)
    ax.legend()
    return figure


def sweep(
    x: ArrayLike,
    runs: Mapping[str, ArrayLike],
    *,
    xlabel: str,
    ylabel: str,
    logy: bool = False,
    reference: tuple[str, ArrayLike] | None = None,
) -> Drawing:
    """A result against one setting on a logarithmic axis: median of the seeds, band from lowest to highest.

    Args:
        x: (k,) the settings tried.
        runs: label → (k, seeds).
        xlabel: the setting.
        ylabel: the result.
        logy: a logarithmic vertical axis.
        reference: (label, (k,)) of a dashed line to compare with.

    Returns:
        The figure.

    Example:
        >>> figure = sweep([0.1, 1], {"net": [[0.9, 0.8], [0.5, 0.4]]}, xlabel="learning rate", ylabel="accuracy")
        >>> figure.axes[0].get_xscale()
        'log'
    """
    figure, ax = _drawing(5.8, 3.4)
    for i, (label, values) in enumerate(runs.items()):
        _spread(ax, x, np.asarray(values, dtype=float), label, i, marker=_MARKERS[i])
    if reference is not None:
        ax.plot(x, reference[1], color=_MUTED, ls="--", lw=1.2, label=reference[0])
    ax.set_xscale("log")
    if max(x) < 1e4:  # there is room to name every setting
        ax.set_xticks(x, [f"{v:g}" for v in x])
        ax.minorticks_off()
    if logy:
        ax.set_yscale("log")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend()
    return figure


def three_steps(stages: Mapping[str, ArrayLike]) -> Drawing:
    """One histogram a stage of the forward pass, under each other on one axis.

    Args:
        stages: label → (n,), the values of one channel after that stage.

    Returns:
        The figure.

    Example:
        >>> len(three_steps({"x": [1.0, 2.0], "x - mean": [-0.5, 0.5]}).axes)
        2
    """
    stages = {label: np.asarray(values, dtype=float) for label, values in stages.items()}
    low, high = (f([f(v) for v in stages.values()]) for f in (np.min, np.max))
    bins = np.linspace(low, high, 70)
    with matplotlib.rc_context(_RC):
        figure = Drawing(figsize=(5.8, 1.1 * len(stages) + 0.5), layout="constrained")
        axes = figure.subplots(len(stages), 1, sharex=True, squeeze=False)[:, 0]
    for i, (ax, (label, values)) in enumerate(zip(axes, stages.items(), strict=True)):
        ax.hist(values, bins, color=COLORS[i % len(COLORS)], alpha=0.85)
        ax.axvline(values.mean(), color=_INK, lw=1.2)
        ax.axvline(0, color=_MUTED, lw=0.8, ls=":")
        ax.set_yticks([])
        ax.set_ylabel(label, rotation=0, ha="right", va="center")
        ax.spines["left"].set_visible(False)
        ax.grid(False)
    axes[-1].set_xlabel("value (black line: the mean; dotted: zero)")
    return figure


def number_lines(panels: Mapping[str, Mapping[str, ArrayLike]], *, moved: int) -> Drawing:
    """A small batch of one channel on a number line for each stage, a line following every sample.

    Args:
        panels: title → label of a stage → (n,) values. Where the first panel's samples end is shown by rings in the
            others.
        moved: the sample to follow, drawn in a colour and shape of its own.

    Returns:
        The figure.

    Example:
        >>> figure = number_lines({"before": {"x": [1, 3], "y": [-1, 1]}}, moved=0)
        >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
        ['x', 'y']
    """
    figure, axes = _drawing(7.2, 2.9, len(panels), squeeze=False, sharex=True, sharey=True)
    before = None
    for ax, (title, stages) in zip(axes[0], panels.items(), strict=True):
        values = np.array(list(stages.values()), dtype=float)
        rows = np.arange(len(values))
        ax.axvline(0, color=_MUTED, lw=0.8, ls=":")
        for i, way in enumerate(values.T):
            color, marker, order = (COLORS[1], "D", 4) if i == moved else (COLORS[0], "o", 3)
            ax.plot(way, rows, marker=marker, color=color, ms=5, lw=1, mec="white", mew=0.4, zorder=order)
        if before is None:
            before = np.delete(values[-1], moved)
        else:
            ax.plot(before, np.full(len(before), rows[-1]), "o", color="none", mec=_INK, ms=8, mew=0.9, zorder=5)
        ax.set(title=title, xlabel="value", ylim=(rows[-1] + 0.35, -0.35))
        ax.set_yticks(rows, list(stages))
    return figure


def channel_axes(samples: int = 3, channels: int = 4, side: int = 3) -> Drawing:
    """The values of an (N, C, H, W) batch, coloured by the mean they share: one colour, one channel.

    Args:
        samples: N, rows of planes.
        channels: C, columns of planes.
        side: H = W of a plane.

    Returns:
        The figure.

    Example:
        >>> len(channel_axes(2, 3, 2).axes[0].patches) > 2 * 3 * 2 * 2
        True
    """
    cell, gap = 0.2, 0.3
    plane = side * cell
    width, height = channels * (plane + gap) + 2.4, samples * (plane + gap) + 1.15
    figure, ax = _diagram(width, height)
    left, bottom = 1.5, 0.75
    for c in range(channels):
        x0 = left + c * (plane + gap)
        color = COLORS[c % len(COLORS)]
        frame = Rectangle(
            (x0 - 0.09, bottom - 0.09),
            plane + 0.18,
            samples * (plane + gap) - gap + 0.18,
            fill=False,
            ec=color,
            lw=1.6,
            ls="--",
        )
        ax.add_patch(frame)
        ax.text(
            x0 + plane / 2, bottom - 0.36, rf"$\mu_{c + 1},\,\sigma^2_{c + 1}$", ha="center", va="center", color=_INK
        )
        ax.text(x0 + plane / 2, height - 0.2, f"channel {c + 1}", ha="center", va="center", color=_INK, size=10)
        for s in range(samples):
            y0 = bottom + (samples - 1 - s) * (plane + gap)
            for i in range(side):
                for j in range(side):
                    corner = (x0 + j * cell, y0 + i * cell)
                    ax.add_patch(Rectangle(corner, cell, cell, fc=color, ec="white", lw=1, alpha=0.8))
    for s in range(samples):
        y = bottom + (samples - 1 - s) * (plane + gap) + plane / 2
        ax.text(left - 0.25, y, f"sample {s + 1}", ha="right", va="center", color=_INK, size=10)
    return figure


def backward_graph() -> Drawing:
    """The computation graph of one channel: forward in grey, and the three ways back from x̂ to x in colour.

    Returns:
        The figure.

    Example:
        >>> len(backward_graph().axes)
        1
    """
    figure, ax = _diagram(7.4, 3.6)
    where = {
        "x": (0.5, 1.9, r"$x$"),
        "mean": (1.6, 3.1, r"$\mu$"),
        "centred": (2.75, 1.9, r"$d=x-\mu$"),
        "var": (3.3, 0.55, r"$\sigma^2$"),
        "invstd": (4.65, 0.55, r"$r=1/\sqrt{\sigma^2+\varepsilon}$"),
        "x_hat": (5.0, 1.9, r"$\hat x=d\,r$"),
        "y": (6.75, 1.9, r"$y=\gamma\hat x+\beta$"),
    }
    wide = {"centred": 1.1, "invstd": 1.75, "x_hat": 1.0, "y": 1.25}
    forward = [
        ((0.78, 1.9), (2.18, 1.9)),
        ((0.62, 2.15), (1.36, 2.92)),
        ((1.85, 2.92), (2.5, 2.15)),
        ((2.85, 1.65), (3.15, 0.8)),
        ((3.6, 0.55), (3.76, 0.55)),
        ((4.75, 0.8), (4.95, 1.65)),
        ((3.32, 1.9), (4.48, 1.9)),
        ((5.52, 1.9), (6.1, 1.9)),
    ]
    for start, end in forward:
        _arrow(ax, start, end, color="#9aa5b1", width=1.3)
    for name, (x, y, text) in where.items():
        _box(ax, x, y, text, width=wide.get(name, 0.55))
    direct, through_mean, through_var = COLORS[0], COLORS[1], COLORS[2]
    _arrow(ax, (4.46, 2.04), (3.34, 2.04), color=direct, width=2)
    _arrow(ax, (2.16, 2.04), (0.8, 2.04), color=direct, width=2)
    _arrow(ax, (2.7, 2.17), (1.9, 3.02), color=through_mean, width=2)
    _arrow(ax, (1.3, 3.08), (0.44, 2.17), color=through_mean, width=2, bend=0.15)
    _arrow(ax, (5.12, 1.65), (4.98, 0.8), color=through_var, width=2)
    _arrow(ax, (3.75, 0.4), (3.6, 0.4), color=through_var, width=2)
    _arrow(ax, (3.0, 0.62), (2.62, 1.65), color=through_var, width=2)
    _arrow(ax, (6.1, 2.04), (5.54, 2.04), color=_INK, width=2)
    ax.text(5.82, 2.24, r"$g=\gamma\,dy$", ha="center", color=_INK)
    ax.text(3.9, 2.2, "(1) direct", ha="center", color=direct)
    ax.text(2.35, 3.1, "(2) through the mean", ha="left", va="center", color=through_mean)
    ax.text(3.25, 0.08, "(3) through the variance", ha="center", va="center", color=through_var)
    return figure


def gradient_geometry(x: ArrayLike, g: ArrayLike) -> Drawing:
    """Three values of one channel, seen along the direction (1, 1, 1): what is left of a gradient.

    The plane of the paper is the plane of vectors whose entries sum to zero. On it x̂ lies on a circle of radius √3,
    and only the part of g along that circle comes back to x.

    Args:
        x: (3,) the values of a channel, not all equal.
        g: (3,) the gradient at x̂.

    Returns:
        The figure.

    Example:
        >>> len(gradient_geometry([1.0, 2.0, 6.0], [1.0, 0.0, 0.5]).axes)
        1
    """
    x, g = np.asarray(x, dtype=float), np.asarray(g, dtype=float)
    if x.shape != (3,) or g.shape != (3,):
        raise ValueError(f"expected x and g of shape (3,), got {x.shape} and {g.shape}")
    basis = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])
    x_hat = basis @ ((x - x.mean()) / x.std())
    flat = basis @ g
    radial = x_hat * (flat @ x_hat) / (x_hat @ x_hat)
    radius = np.sqrt(3)
    tangent = flat - radial
    figure, ax = _drawing(5.4, 4.4)
    ax.set_aspect("equal")
    ax.axis("off")
    ax.add_patch(Arc((0, 0), 2 * radius, 2 * radius, color=_MUTED, lw=1.3))
    ax.plot(0, 0, "o", color=_INK, ms=4)
    arrows = [
        ((0, 0), x_hat, _INK, False, r"$\hat x$: mean 0, length $\sqrt{3}$"),
        (x_hat, x_hat + flat, COLORS[1], False, r"$g$ without its mean"),
        (x_hat, x_hat + radial, COLORS[3], True, r"its part along $\hat x$: removed"),
        (x_hat, x_hat + tangent, COLORS[0], False, r"the rest: what reaches $x$"),
    ]
    for start, end, color, dashed, label in arrows:
        _arrow(ax, start, end, color=color, width=2.2, dashed=dashed)
        ax.plot([], [], color=color, lw=2.2, ls="--" if dashed else "-", label=label)  # a line for the legend
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False, fontsize=10)
    tips = np.stack([x_hat, x_hat + flat, x_hat + radial, x_hat + tangent, [-radius, -radius], [radius, radius]])
    ax.set_xlim(tips[:, 0].min() - 0.2, tips[:, 0].max() + 0.2)
    ax.set_ylim(tips[:, 1].min() - 0.2, tips[:, 1].max() + 0.2)
    return figure


def placements() -> Drawing:
    """Where the layer stands: before the activation, after it, and in a residual block of each kind.

    Returns:
        The figure.

    Example:
        >>> len(placements().axes)
        1
    """
    figure, ax = _diagram(7.4, 4.6)
    fill = {"BN": "#cfe5f5", "ReLU": "#fbe3d2", "conv": _PALE, "+": "white"}
    columns = [
        (0.8, "BN before\nthe activation", ["conv", "BN", "ReLU"], None),
        (2.5, "BN after\nthe activation", ["conv", "ReLU", "BN"], None),
        (4.4, "residual block,\npost-activation", ["conv", "BN", "ReLU", "conv", "BN", "+", "ReLU"], (None, 5)),
        (6.4, "residual block,\npre-activation", ["BN", "ReLU", "conv", "BN", "ReLU", "conv", "+"], (None, 6)),
    ]
    step, top = 0.5, 3.7
    for x, title, blocks, shortcut in columns:
        ax.text(x, 4.35, title, ha="center", va="center", color=_INK, size=10.5)
        for i, name in enumerate(blocks):
            y = top - i * step - 0.12
            _arrow(ax, (x, y + step / 2 + 0.1), (x, y + 0.16), width=1.2)
            _box(ax, x, y, name, width=0.36 if name == "+" else 0.85, height=0.32, fill=fill[name], size=10)
        last = top - (len(blocks) - 1) * step - 0.12
        _arrow(ax, (x, last - 0.16), (x, last - 0.4), width=1.2)
        if shortcut is not None:
            y_add = top - shortcut[1] * step - 0.12
            side = x + 0.72
            ax.plot([x, side, side], [top + 0.22, top + 0.22, y_add], color=COLORS[2], lw=2.2, solid_capstyle="round")
            _arrow(ax, (side, y_add), (x + 0.19, y_add), color=COLORS[2], width=2.2)
    return figure


def book_map() -> Drawing:
    """The seven topics in the order of reading, and what each adds to the layer.

    Returns:
        The figure.

    Example:
        >>> len(book_map().axes)
        1
    """
    figure, ax = _diagram(7.4, 4.5)
    topics = [
        ("1  The algorithm", "forward, backward, numerics", 0, 0),
        ("2  Running statistics", "what inference uses instead", 1, 0),
        ("3  Train and eval", "two modes, and their bugs", 2, 0),
        ("4  Fine-tuning", "frozen, recalibrated, replaced", 0, 1),
        ("5  Several devices", "one batch on many machines", 1, 1),
        ("6  Fusion", "folded into the convolution", 2, 1),
        ("7  On the GPU", "kernels, and their memory traffic", 1, 2),
    ]
    spots = {}
    for i, (title, text, column, row) in enumerate(topics):
        x, y = 1.2 + 2.5 * column, 3.75 - 1.5 * row
        spots[i + 1] = (x, y)
        _box(
            ax,
            x,
            y,
            "",
            width=2.3,
            height=0.86,
            fill="#cfe5f5" if row == 0 else _PALE,
            edge=COLORS[0] if row == 0 else _MUTED,
        )
        ax.text(x, y + 0.15, title, ha="center", va="center", color=_INK, weight="bold", size=11)
        ax.text(x, y - 0.18, text, ha="center", va="center", color=_INK, size=9)
    for a, b in ((1, 2), (2, 3)):
        _arrow(ax, (spots[a][0] + 1.16, spots[a][1]), (spots[b][0] - 1.16, spots[b][1]), color=COLORS[0])
    for b in (4, 5, 6):
        _arrow(ax, (spots[3][0] - 0.25 * (7 - b - 1), spots[3][1] - 0.44), (spots[b][0], spots[b][1] + 0.44))
    _arrow(ax, (spots[5][0], spots[5][1] - 0.44), (spots[7][0], spots[7][1] + 0.44))
    return figure


# --- chapter 2, running statistics


def running_averages(level: ArrayLike, batches: ArrayLike, averages: Mapping[str, ArrayLike]) -> Drawing:
    """A value that the batches see through noise, and what running averages make of it.

    Args:
        level: (steps,) the true value.
        batches: (steps,) what each batch says.
        averages: label → (steps,), a running average after each batch.

    Returns:
        The figure.

    Example:
        >>> len(running_averages([1.0, 1.0], [0.8, 1.3], {"momentum 0.1": [0.1, 0.2]}).axes[0].lines)
        3
    """
    figure, ax = _drawing(7.2, 3.4)
    steps = np.arange(1, len(level) + 1)
    ax.plot(steps, level, color=_INK, ls="--", lw=1.2, label="true value")
    ax.plot(steps, batches, ".", color="#9a9a9a", ms=4, label="a batch")
    for i, (label, values) in enumerate(averages.items()):
        ax.plot(steps, values, color=COLORS[i], ls=_LINES[i], lw=2, label=label)
    ax.set(xlabel="batch", ylabel="value")
    ax.legend(loc="upper left", ncols=2)
    return figure


def statistic_clouds(clouds: Mapping[str, Mapping[str, ArrayLike]]) -> Drawing:
    """What single batches and running statistics say about a channel, one panel a setting.

    Args:
        clouds: title → {"batch": (k, 2), "buffer": (k, 2)}, each row (error of the mean in units of σ, measured
            divided by true variance). Points outside the panel are drawn on its edge.

    Returns:
        The figure.

    Example:
        >>> len(statistic_clouds({"n = 2": {"batch": [[0.9, 0.4]], "buffer": [[0.1, 1.1]]}}).axes)
        1
    """
    figure, axes = _drawing(7.2, 2.9, len(clouds), sharey=True, squeeze=False)
    low, high = np.array([-1.5, 0.0]), np.array([1.5, 3.0])
    styles = {"batch": ("o", "#8c8c8c", "a batch"), "buffer": ("s", COLORS[0], "running")}
    for ax, (title, cloud) in zip(axes[0], clouds.items(), strict=True):
        for name, (marker, color, label) in styles.items():
            x, y = np.clip(np.asarray(cloud[name], dtype=float), low, high).T
            ax.plot(x, y, marker, color=color, ms=3.5, alpha=0.7, label=label, mew=0, clip_on=False)
        ax.axvline(0, color=_INK, lw=0.8)
        ax.axhline(1, color=_INK, lw=0.8)
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), title=title, xlabel="error of the mean, in σ")
    axes[0, 0].set_ylabel("measured / true variance")
    axes[0, -1].legend(loc="upper right")
    return figure


# --- chapter 3, modes


def matrices(grids: Mapping[str, ArrayLike], *, colorbar: bool = True) -> Drawing:
    """Small matrices or pictures side by side: zero is white, blue is positive and orange negative.

    Args:
        grids: title → (rows, columns).
        colorbar: one scale for all, shown beside them; otherwise each has its own, up to its largest value.

    Returns:
        The figure.

    Example:
        >>> figure = matrices({"one": [[1.0, 0.0], [0.0, 1.0]], "two": [[0.5, -0.5], [-0.5, 0.5]]})
        >>> [ax.get_title() for ax in figure.axes[:2]]
        ['one', 'two']
    """
    grids = {title: np.asarray(grid, dtype=float) for title, grid in grids.items()}
    largest = {title: float(np.abs(grid).max()) or 1.0 for title, grid in grids.items()}
    if colorbar:
        largest = dict.fromkeys(largest, max(largest.values()))
    cmap = LinearSegmentedColormap.from_list("signed", [COLORS[1], "white", COLORS[0]])
    figure, axes = _drawing(min(7.4, 2.9 * len(grids)), 3.0 if len(grids) < 4 else 1.9, len(grids), squeeze=False)
    for ax, (title, grid) in zip(axes[0], grids.items(), strict=True):
        image = ax.imshow(grid, cmap=cmap, vmin=-largest[title], vmax=largest[title])
        ax.set_title(title, fontsize=11 if len(grids) < 4 else 9)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(True)
    if colorbar:
        figure.colorbar(image, ax=list(axes[0]), shrink=0.8)
    return figure


# --- chapter 6, fusion


def in_out(panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]]) -> Drawing:
    """What a layer makes of one channel's values: output against input, the values of every batch in a colour.

    Args:
        panels: title → label of a batch → (inputs, outputs), of one length.

    Returns:
        The figure.

    Example:
        >>> len(in_out({"train": {"batch 1": ([0, 1], [-1, 1])}, "eval": {"batch 1": ([0, 1], [0, 1])}}).axes)
        2
    """
    figure, axes = _drawing(7.2, 3.3, len(panels), squeeze=False, sharex=True, sharey=True)
    for ax, (title, batches) in zip(axes[0], panels.items(), strict=True):
        for i, (label, (x, y)) in enumerate(batches.items()):
            ax.plot(x, y, _MARKERS[i], color=COLORS[i], ms=5, mec="white", mew=0.4, label=label)
        ax.set(title=title, xlabel="input $x$")
    axes[0, 0].set_ylabel("output $y$")
    axes[0, 0].legend()
    return figure


def error_maps(panels: Mapping[str, ArrayLike]) -> Drawing:
    """Errors over the places of a feature map, as numbers on a colour, one scale for all panels.

    Args:
        panels: title → (H, W), not negative.

    Returns:
        The figure.

    Example:
        >>> [ax.get_title() for ax in error_maps({"zeros": [[0.0, 1.0]], "none": [[0.0, 0.0]]}).axes]
        ['zeros', 'none']
    """
    panels = {title: np.asarray(values, dtype=float) for title, values in panels.items()}
    highest = max(values.max() for values in panels.values()) or 1.0
    figure, axes = _drawing(3.5 * len(panels), 3.6, len(panels), squeeze=False)
    for ax, (title, values) in zip(axes[0], panels.items(), strict=True):
        ax.pcolormesh(values, cmap="Oranges", vmin=0, vmax=1.8 * highest, edgecolors="white", lw=1)
        for (i, j), value in np.ndenumerate(values):
            ax.text(j + 0.5, i + 0.5, f"{value:.1f}", ha="center", va="center", color=_INK, size=8.5)
        ax.invert_yaxis()
        ax.set(title=title, aspect="equal")
        ax.axis("off")
    return figure


def fusion_patterns() -> Drawing:
    """Where a BatchNorm may be folded into the layer before it, and four places where it may not.

    Returns:
        The figure.

    Example:
        >>> len(fusion_patterns().axes)
        1
    """
    figure, ax = _diagram(7.6, 3.5)
    fill = {"BN": "#cfe5f5", "ReLU": "#fbe3d2"}
    columns = [
        (0.75, ["conv", "BN", "ReLU"], "yes", "BN reads the conv,\nnobody else does"),
        (2.3, ["BN", "conv"], "no", "padding comes\nin between"),
        (3.85, ["conv", "ReLU", "BN"], "no", "a bend comes\nin between"),
        (5.3, ["conv", "BN", "+"], "no", "the branch wants\nthe old output"),
        (6.85, ["conv", "BN", "conv"], "no", "one layer,\ntwo jobs"),
    ]
    step, top = 0.62, 2.75
    for x, blocks, verdict, why in columns:
        color = "#00664a" if verdict == "yes" else "#a34100"  # darker than COLORS: it is text
        ax.text(x, 3.3, f"fold: {verdict}", ha="center", va="center", color=color, weight="bold")
        for i, name in enumerate(blocks):
            y = top - i * step
            _arrow(ax, (x, y + step - 0.16), (x, y + 0.16), width=1.2)
            _box(ax, x, y, name, width=0.36 if name == "+" else 0.8, height=0.32, fill=fill.get(name, _PALE), size=10)
        last = top - (len(blocks) - 1) * step
        _arrow(ax, (x, last - 0.16), (x, last - 0.46), width=1.2)
        ax.text(x, 0.62, why, ha="center", va="center", color=_INK, size=9.5)
    side, below = 5.3 + 0.62, top - step / 2  # the branch that leaves between conv and BN
    ax.plot([5.3, side, side], [below, below, top - 2 * step], color=COLORS[1], lw=2, solid_capstyle="round")
    _arrow(ax, (side, top - 2 * step), (5.3 + 0.19, top - 2 * step), color=COLORS[1], width=2)
    same = 6.85 + 0.42, top, top - 2 * step  # a tie between the two calls of one convolution
    ax.plot(
        [same[0], same[0] + 0.16, same[0] + 0.16, same[0]], [same[1], same[1], same[2], same[2]], color=COLORS[1], lw=2
    )
    return figure


def channel_ranges(
    ranges: Mapping[str, ArrayLike], *, ends: tuple[float, float] | None = None, label: str = "the grid"
) -> Drawing:
    """From where to where the weights of each output channel reach.

    Args:
        ranges: title → (C, 2), lowest and highest weight of a channel.
        ends: two heights to compare with, drawn as dashed lines.
        label: of these lines.

    Returns:
        The figure.

    Example:
        >>> len(channel_ranges({"before": [[-1, 1], [-2, 1]], "after": [[-3, 3], [-1, 1]]}).axes)
        2
    """
    figure, axes = _drawing(7.2, 3.1, len(ranges), squeeze=False, sharey=True)
    for i, (ax, (title, values)) in enumerate(zip(axes[0], ranges.items(), strict=True)):
        low, high = np.asarray(values, dtype=float).T
        ax.bar(np.arange(len(low)), high - low, bottom=low, width=0.7, color=COLORS[i % len(COLORS)])
        ax.axhline(0, color=_INK, lw=0.8)
        for k, end in enumerate(ends or ()):
            ax.axhline(end, color=_INK, ls="--", lw=1.2, label=label if k == 0 else None)
        ax.set(title=title, xlabel="output channel")
        ax.set_axisbelow(True)
        ax.grid(axis="x", visible=False)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.use_sticky_edges = False
        ax.autoscale_view()
    axes[0, 0].set_ylabel("weights")
    if ends is not None:
        axes[0, 0].legend()
    return figure


# --- chapter 4, fine-tuning


def dot_rows(panels: Mapping[str, Mapping[str, ArrayLike]], *, xlabel: str, guess: float | None = None) -> Drawing:
    """Results of several seeds as dots, one row a method and one panel a task, all on one scale.

    Args:
        panels: title → method → (seeds,); the methods are the same in all panels.
        xlabel: the result.
        guess: a result to compare with, drawn as a dotted line.

    Returns:
        The figure.

    Example:
        >>> len(dot_rows({"task": {"one": [0.9, 0.8], "other": [0.5, 0.4]}}, xlabel="accuracy").axes)
        1
    """
    methods = list(next(iter(panels.values())))
    height = 1.3 + 0.32 * len(methods)
    figure, axes = _drawing(7.4, height, len(panels), squeeze=False, sharex=True, sharey=True)
    for ax, (title, rows) in zip(axes[0], panels.items(), strict=True):
        for i, method in enumerate(methods):
            color, marker = COLORS[i % len(COLORS)], _MARKERS[i % len(_MARKERS)]
            ax.plot(rows[method], [i] * len(rows[method]), marker, color=color, ms=6, alpha=0.7, mew=0)
        if guess is not None:
            ax.axvline(guess, color=_MUTED, ls=":", lw=1.2)
        ax.set(title=title, xlabel=xlabel)
    axes[0, 0].set_yticks(range(len(methods)), methods)
    axes[0, 0].set_ylim(len(methods) - 0.5, -0.5)
    return figure


# --- chapter 5, sync


def _heap(ax: Axes, y: float, values: ArrayLike, color: str) -> None:
    """Values as dots, below them their mean and a standard deviation to both sides; nothing for no values."""
    values = np.asarray(values, dtype=float)
    ax.plot(values, np.full(len(values), y), "o", color=color, alpha=0.45, ms=5, mew=0)
    if len(values):
        ax.plot(values.mean() + values.std() * np.array([-1, 1]), [y + 0.28] * 2, color=color, lw=3)
        ax.plot([values.mean()], [y + 0.28], "|", color=_INK, ms=12, mew=2)


def shards(values: Mapping[str, ArrayLike], *, xlabel: str = "value") -> Drawing:
    """Values of one channel, a row for each rank: every value, their mean, and a standard deviation to both sides.

    Args:
        values: label → (n,) of a row; rows are drawn from top to bottom, an empty one without mean.
        xlabel: below the axis.

    Returns:
        The figure.

    Example:
        >>> figure = shards({"rank 0": [1.0, 3.0], "rank 1": [], "all": [1.0, 3.0]})
        >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
        ['rank 0', 'rank 1', 'all']
    """
    figure, ax = _drawing(6.6, 0.6 + 0.5 * len(values))
    for i, row in enumerate(values.values()):
        _heap(ax, i, row, COLORS[i % len(COLORS)])
    ax.set_yticks(range(len(values)), list(values))
    ax.set(xlabel=xlabel, ylim=(len(values) - 0.4, -0.5))
    ax.grid(axis="y", visible=False)
    return figure


def heaps(panels: Mapping[str, Mapping[int, ArrayLike]], *, xlabel: str = "value") -> Drawing:
    """Heaps of one channel's values that are merged round by round: one panel a round, a row for each rank.

    Args:
        panels: title → rank → (n,) values of the heap that this rank holds; the first panel has all ranks.
        xlabel: below each axis.

    Returns:
        The figure.

    Example:
        >>> figure = heaps({"before": {0: [1.0, 3.0], 1: [8.0]}, "round 1": {0: [1.0, 3.0, 8.0]}})
        >>> [len(ax.lines) for ax in figure.axes]
        [6, 3]
    """
    ranks = len(next(iter(panels.values())))
    figure, axes = _drawing(7.4, 1.1 + 0.36 * ranks, len(panels), squeeze=False, sharex=True, sharey=True)
    for ax, (title, held) in zip(axes[0], panels.items(), strict=True):
        for rank, values in held.items():
            _heap(ax, rank, values, COLORS[rank % len(COLORS)])
        ax.set(title=title, xlabel=xlabel, ylim=(ranks - 0.4, -0.5))
        ax.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(range(ranks), [f"rank {rank}" for rank in range(ranks)])
    return figure


def collectives() -> Drawing:
    """What two ranks of a synchronised BatchNorm do, forward and backward, and where they meet.

    Returns:
        The figure.

    Example:
        >>> len(collectives().axes)
        1
    """
    figure, ax = _diagram(7.6, 3.7)
    columns = (1.0, 2.95, 4.9, 6.75)
    for name, y, first, meeting, merged, last in (
        ("forward", 2.75, "x", "all_gather\nn, mean, M₂", "merge", "y"),
        ("backward", 0.8, "dy", "all_reduce\nΣdy, Σdy·x̂", "divide by n", "dx"),
    ):
        ax.text(0.08, y + 0.78, name, color=_INK, weight="bold", va="center")
        _box(ax, columns[1], y, meeting, width=1.5, height=1.3, fill="#fbe3d2", edge=COLORS[1], size=10)
        for rank, lane in ((0, y + 0.4), (1, y - 0.4)):
            _box(ax, columns[0], lane, f"rank {rank}: {first}", width=1.25, height=0.4, size=10)
            _box(ax, columns[2], lane, merged, width=1.25, height=0.4, size=10)
            _box(ax, columns[3], lane, f"rank {rank}: {last}", width=1.25, height=0.4, size=10)
            for start, end in ((1.63, 2.2), (3.7, 4.27), (5.53, 6.12)):
                _arrow(ax, (start, lane), (end, lane), width=1.2)
    return figure


# --- alternatives


def shared_values(panels: Mapping[str, ArrayLike], marked: tuple[int, int, int, int]) -> Drawing:
    """Which values of an (N, C, H, W) batch one output depends on, a panel a layer: rows samples, columns channels.

    Args:
        panels: title → (N, C, H, W), true where the input matters.
        marked: the place of the output, drawn with a frame.

    Returns:
        The figure.

    Example:
        >>> figure = shared_values({"all": np.ones((2, 2, 1, 1)), "its own": np.eye(2)[..., None, None]}, (0, 0, 0, 0))
        >>> [ax.get_title() for ax in figure.axes]
        ['all', 'its own']
    """
    gap = 0.5
    figure, axes = _drawing(min(7.4, 1.55 * len(panels)), 2.0, len(panels), squeeze=False)
    for k, (ax, (title, used)) in enumerate(zip(axes[0], panels.items(), strict=True)):
        used = np.asarray(used, dtype=bool)
        samples, channels, rows, columns = used.shape
        for n, c, h, w in np.ndindex(used.shape):
            corner = (c * (columns + gap) + w, n * (rows + gap) + h)
            color = COLORS[0] if used[n, c, h, w] else "#dde3e9"
            ax.add_patch(Rectangle(corner, 1, 1, fc=color, ec="white", lw=1))
            if (n, c, h, w) == marked:
                ax.add_patch(Rectangle(corner, 1, 1, fill=False, ec=COLORS[4], lw=2.5, zorder=3))
        ax.set(xlim=(-0.2, channels * (columns + gap)), ylim=(samples * (rows + gap), -0.2), aspect="equal")
        ax.set_title(title, fontsize=9)
        ax.set(xticks=[], yticks=[])
        ax.set_xlabel("channels", fontsize=9)
        if k == 0:
            ax.set_ylabel("samples", fontsize=9)
        ax.spines[:].set_visible(False)
        ax.grid(False)
    return figure
