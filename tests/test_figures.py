"""What the chapters draw: every figure renders, shows what it was given, and is the same for the same input."""

import itertools
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from course_lib import figures

RUNS = {"first": np.array([[3.0, 2.0, 1.0], [3.0, 2.5, 2.0], [3.0, 1.0, 0.5]]), "second": np.ones((3, 3))}
EXAMPLES = {
    "backward_graph": (),
    "book_map": (),
    "channel_axes": (),
    "channel_ranges": ({"before": [[-1.0, 2.0], [-0.5, 0.5]], "after": [[-2.0, 4.0], [-0.2, 0.2]]},),
    "collectives": (),
    "curves": (RUNS,),
    "dot_rows": ({"blurred": {"frozen": [0.9, 0.8], "not": [0.5, 0.4]}, "turned": {"frozen": [0.7], "not": [0.2]}},),
    "error_maps": ({"padded": [[1.0, 0.5], [0.0, 0.0]], "not": [[0.0, 0.0], [0.0, 0.0]]},),
    "fusion_patterns": (),
    "gradient_geometry": ([3.0, 0.0, 0.5], [2.5, 0.5, -1.5]),
    "heaps": ({"before": {0: [1.0, 3.0], 1: [8.0]}, "round 1": {0: [1.0, 3.0, 8.0]}},),
    "matrices": ({"one": [[1.0, -0.5], [0.0, 2.0]], "other": [[0.0, 0.0], [0.0, 0.5]]},),
    "in_out": ({"train": {"batch 1": ([0.0, 1.0], [-1.0, 1.0])}, "eval": {"batch 1": ([0.0, 1.0], [0.0, 0.5])}},),
    "number_lines": ({"before": {"x": [1.0, 3.0], "y": [-1.0, 1.0]}, "after": {"x": [1.0, 5.0], "y": [-2.0, 2.0]}},),
    "placements": (),
    "running_averages": ([1.0, 3.0], [0.5, 3.5], {"momentum 0.1": [0.1, 0.4]}),
    "shards": ({"rank 0": [1.0, 3.0], "rank 1": [], "all": [1.0, 3.0]},),
    "shared_values": ({"all": np.ones((2, 3, 1, 2)), "one": np.arange(12).reshape(2, 3, 1, 2) == 9}, (1, 1, 0, 1)),
    "statistic_clouds": ({"n = 4": {"batch": [[0.9, 0.4], [9.0, 9.0]], "buffer": [[0.1, 1.1]]}},),
    "sweep": ([0.1, 1.0, 10.0], RUNS),
    "three_steps": ({"x": [1.0, 2.0, 4.0], "x - mean": [-1.3, -0.3, 1.7]},),
}


def draw(name):
    labels = {
        "sweep": {"xlabel": "setting", "ylabel": "result"},
        "dot_rows": {"xlabel": "result"},
        "number_lines": {"moved": 1},
    }
    return getattr(figures, name)(*EXAMPLES[name], **labels.get(name, {}))


def test_every_public_drawing_function_is_tried_here():
    assert set(EXAMPLES) == set(figures.__all__) - {"COLORS", "Drawing"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_figure_shows_itself_as_svg(name):
    svg = ET.fromstring(draw(name)._repr_svg_())
    assert svg.tag.endswith("svg")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_same_results_give_the_same_bytes(name):
    assert draw(name)._repr_svg_() == draw(name)._repr_svg_()


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_text_is_smaller_than_eight_points(name):
    texts = [t for t in draw(name).findobj(Text) if t.get_text()]
    assert texts
    assert min(t.get_fontsize() for t in texts) >= 8


@pytest.mark.parametrize(
    "name", ["backward_graph", "book_map", "channel_axes", "collectives", "fusion_patterns", "placements"]
)
def test_labels_of_a_diagram_do_not_overlap(name):
    figure = draw(name)
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.axes[0].texts if t.get_text()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_curves_draw_the_median_and_the_range():
    [ax] = figures.curves(RUNS).axes
    assert ax.lines[0].get_ydata().tolist() == [3.0, 2.0, 1.0]
    band = ax.collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == (0.5, 3.0)


def test_curves_draw_what_is_not_finite_at_the_top():
    [ax] = figures.curves({"diverged": [[1.0, np.nan, np.inf, 9.0]]}, top=4).axes
    assert ax.lines[0].get_ydata().tolist() == [1.0, 4.0, 4.0, 4.0]


def test_lines_differ_in_more_than_colour():
    [ax] = figures.curves(RUNS).axes
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()


def test_a_sweep_names_every_setting():
    [ax] = figures.sweep([2, 4, 8], RUNS, xlabel="n", ylabel="noise").axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["2", "4", "8"]


def test_a_sweep_draws_its_reference():
    [ax] = figures.sweep([2, 4, 8], RUNS, xlabel="n", ylabel="noise", reference=("theory", [3, 2, 1])).axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["first", "second", "theory"]


def test_only_the_tangent_part_of_the_gradient_survives():
    # A gradient along x̂ and one along (1, 1, 1): nothing is left, so the last arrow has no length.
    x = np.array([3.0, 0.0, 0.5])
    [ax] = figures.gradient_geometry(x, (x - x.mean()) + 1).axes
    *_, rest = [patch for patch in ax.patches if hasattr(patch, "_posA_posB")]
    start, end = np.array(rest._posA_posB)
    assert np.allclose(start, end)


def test_every_sample_is_followed_from_line_to_line():
    before, after = draw("number_lines").axes
    assert [line.get_xdata().tolist() for line in before.lines[1:]] == [[1.0, -1.0], [3.0, 1.0]]
    assert [tick.get_text() for tick in before.get_yticklabels()] == ["x", "y"]
    assert before.get_xlim() == after.get_xlim()


def test_rings_show_where_the_other_samples_were():
    before, after = draw("number_lines").axes
    assert (len(before.lines), len(after.lines)) == (3, 4)
    assert after.lines[-1].get_xydata().tolist() == [[-1.0, 1.0]]


def test_the_geometry_needs_three_values():
    with pytest.raises(ValueError, match="shape"):
        figures.gradient_geometry([1.0, 2.0], [1.0, 2.0])


# --- chapter 2, running statistics


def test_running_averages_stand_beside_what_they_average():
    [ax] = draw("running_averages").axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [[1.0, 3.0], [0.5, 3.5], [0.1, 0.4]]


def test_points_outside_a_cloud_are_drawn_on_its_edge():
    [ax] = draw("statistic_clouds").axes
    batch, buffer, *_ = ax.lines
    assert batch.get_xydata().tolist() == [[0.9, 0.4], [1.5, 3.0]]
    assert buffer.get_xydata().tolist() == [[0.1, 1.1]]


def test_matrices_share_a_scale_where_one_is_shown():
    grids = EXAMPLES["matrices"][0]
    for colorbar, limits in ((True, [2.0, 2.0]), (False, [2.0, 0.5])):
        figure = figures.matrices(grids, colorbar=colorbar)
        images = [ax.images[0] for ax in figure.axes[:2]]
        assert [image.get_clim() for image in images] == [(-limit, limit) for limit in limits]
        assert all(np.array_equal(image.get_array(), grid) for image, grid in zip(images, grids.values(), strict=True))


def test_matrices_draw_zero_in_white():
    image = figures.matrices({"nothing": np.zeros((2, 2))}).axes[0].images[0]
    assert np.allclose(image.cmap(image.norm(0.0)), 1, atol=0.01)


# --- chapter 6, fusion


def test_the_panels_of_a_layer_share_their_axes():
    left, right = draw("in_out").axes
    assert left.get_xlim() == right.get_xlim()
    assert left.get_ylim() == right.get_ylim()


def test_errors_are_written_on_their_places():
    left, right = draw("error_maps").axes
    assert [text.get_text() for text in left.texts] == ["1.0", "0.5", "0.0", "0.0"]
    assert {text.get_text() for text in right.texts} == {"0.0"}


def test_maps_without_errors_can_be_drawn():
    assert figures.error_maps({"none": [[0.0]]})._repr_svg_()


def test_a_channel_reaches_from_its_lowest_to_its_highest_weight():
    left, _ = figures.channel_ranges({"a": [[-1.0, 2.0]], "b": [[-2.0, 4.0]]}, ends=(-1.5, 1.5)).axes
    [bar] = left.patches
    assert (bar.get_y(), bar.get_y() + bar.get_height()) == (-1.0, 2.0)
    assert {line.get_ydata()[0] for line in left.lines} == {0, -1.5, 1.5}


# --- chapter 4, fine-tuning


def test_every_method_has_a_row_with_a_dot_for_every_seed():
    left, right = draw("dot_rows").axes
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["frozen", "not"]
    assert [line.get_xydata().tolist() for line in left.lines] == [[[0.9, 0], [0.8, 0]], [[0.5, 1], [0.4, 1]]]
    assert left.get_xlim() == right.get_xlim()


def test_dots_are_compared_with_a_guess():
    [ax] = figures.dot_rows({"task": {"one": [0.9]}}, xlabel="accuracy", guess=0.1).axes
    assert list(ax.lines[-1].get_xdata()) == [0.1, 0.1]


# --- chapter 5, sync


def test_a_shard_is_drawn_with_its_mean_and_standard_deviation():
    [ax] = draw("shards").axes
    assert [len(line.get_xdata()) for line in ax.lines] == [2, 2, 1, 0, 2, 2, 1]
    assert ax.lines[1].get_xdata().tolist() == [1.0, 3.0]
    assert ax.lines[2].get_xdata().tolist() == [2.0]


def test_a_merged_heap_lies_in_the_row_of_the_rank_that_holds_it():
    before, after = draw("heaps").axes
    assert [tick.get_text() for tick in before.get_yticklabels()] == ["rank 0", "rank 1"]
    assert after.lines[0].get_xydata().tolist() == [[1.0, 0.0], [3.0, 0.0], [8.0, 0.0]]
    assert after.lines[2].get_xdata().tolist() == [4.0]


# --- alternatives


def test_values_that_matter_are_coloured_and_the_output_is_framed():
    both, one = draw("shared_values").axes
    assert [ax.get_title() for ax in (both, one)] == ["all", "one"]
    for ax, used in ((both, 12), (one, 1)):
        fills = [to_hex(patch.get_facecolor()).upper() for patch in ax.patches if patch.get_fill()]
        assert (len(fills), fills.count(figures.COLORS[0])) == (12, used)
        [frame] = [patch for patch in ax.patches if not patch.get_fill()]
        last_of_its_plane = ax.patches[ax.patches.index(frame) - 1]
        assert frame.get_xy() == last_of_its_plane.get_xy()
    [coloured] = [p for p in one.patches if p.get_fill() and to_hex(p.get_facecolor()).upper() == figures.COLORS[0]]
    assert coloured.get_xy() == frame.get_xy()


def test_samples_go_down_and_channels_to_the_right():
    used = np.zeros((2, 2, 1, 1))
    used[0, 1] = 1
    [ax] = figures.shared_values({"second channel of the first sample": used}, (0, 0, 0, 0)).axes
    [coloured] = [p for p in ax.patches if to_hex(p.get_facecolor()).upper() == figures.COLORS[0]]
    x, y = ax.transData.transform(coloured.get_xy()) - ax.transAxes.transform((0.5, 0.5))
    assert x > 0
    assert y > 0
