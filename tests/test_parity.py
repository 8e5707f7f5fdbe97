"""Every row of the parity page, from both sides: ours keeps the limit, and torch's misses it where the page says so."""

import pytest
import torch

from course_lib.parity import ROWS, Row, Table
from tests.devices import DEVICES


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_ours_is_right_and_torchs_is_as_the_page_says(row, device):
    with torch.device(device):
        torchs, ours = row.probe()
    assert row.holds(ours)
    # The page is about the CPU: torch has other kernels elsewhere.
    assert device != "cpu" or row.holds(torchs) != row.ahead


def test_every_row_says_what_it_measures():
    assert len({row.claim for row in ROWS}) == len({row.name for row in ROWS}) == len(ROWS)
    assert all(row.claim.endswith(".") for row in ROWS)


def test_a_table_shows_measured_values_beside_the_limit():
    html = Table([(Row("r", "a < b.", 1e-5, True, None), 0.1234, 0.0)])._repr_html_()
    assert "<td>a &lt; b.</td><td>0.12</td><td>0</td><td>≤ 1e-05</td>" in html
