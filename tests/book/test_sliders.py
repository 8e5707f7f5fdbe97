"""Explorers: sliders over drawings, without a kernel."""

import json
import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from course_lib import algorithm
from course_lib.running_stats import update_running_stats
from tests.book.pages import NAMES, address, opened, soup

EXPLORERS = {"normalise": "01-algorithm", "ema": "02-running-stats", "clouds": "02-running-stats", "merge": "05-sync"}
by_explorer = pytest.mark.parametrize("kind", EXPLORERS)


class Sliders:
    """An explorer of an open page, moved by keyboard."""

    def __init__(self, page, kind):
        self.page, self.root = page, page.locator(f".explorer[data-explorer={kind}]")
        self.controls = self.root.locator("input[type=range], select").all()

    def press(self, control, key, times=1):
        """Focus a control, given by its id or itself, and press a key."""
        control = self.root.locator(f"#{control}") if isinstance(control, str) else control
        control.focus()
        for _ in range(times):
            self.page.keyboard.press(key)

    def said(self):
        return self.root.locator("[aria-live]").inner_text()

    def numbers(self):
        """The numbers in what it says."""
        return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", self.said())]

    def data(self):
        """What the page brought along."""
        return json.loads(self.root.locator("script").inner_text())


@contextmanager
def explorer(site, browser, kind, width=1280, theme="light"):
    with opened(browser, address(site, EXPLORERS[kind]), width, theme, formulas=False) as page:
        yield Sliders(page, kind)


def test_every_explorer_is_tested_here(built):
    found = {(root["data-explorer"], name) for name in NAMES for root in soup(built, name).select(".explorer")}
    assert found == set(EXPLORERS.items())


@by_explorer
def test_without_javascript_an_explorer_is_a_sentence_below_a_figure(built, kind):
    [root] = soup(built, EXPLORERS[kind]).select(f".explorer[data-explorer={kind}]")
    assert "figure above" in root.select_one("noscript").get_text()
    assert root.find_parent("section").find("figure").sourceline < root.sourceline


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@by_explorer
def test_every_slider_moves_its_drawing_by_keyboard(site, browser, kind, width, theme):
    with explorer(site, browser, kind, width, theme) as sliders:
        assert sliders.controls
        for control in sliders.controls:
            assert sliders.root.locator(f"label[for={control.get_attribute('id')}]").is_visible()
            drawing = sliders.root.locator("svg")
            drawn, said = drawing.inner_html(), sliders.said()
            sliders.press(control, "ArrowRight")
            assert drawing.inner_html() != drawn
            assert sliders.said() != said


@by_explorer
def test_the_tab_key_leads_from_slider_to_slider(site, browser, kind):
    with explorer(site, browser, kind) as sliders:
        sliders.controls[0].focus()
        for control in sliders.controls:
            assert control.evaluate("one => one === document.activeElement")
            sliders.page.keyboard.press("Tab")


def normalised(batch, gamma, beta):
    y, _ = algorithm.batch_norm_forward(batch[:, None], np.array([gamma]), np.array([beta]))
    return y[:, 0]


def test_a_moved_sample_is_normalised_as_by_the_library(site, browser):
    with explorer(site, browser, "normalise") as sliders:
        data = sliders.data()
        before = np.array(data["batch"])
        for sample, gamma, beta in [(0, 0, 0), (12, 2, -2), (-20, -10, 1), (4, 0, 2)]:
            sliders.page.reload()
            for name, steps in {"sample": sample, "gamma": gamma, "beta": beta}.items():
                sliders.press(f"normalise-{name}", "ArrowRight" if steps > 0 else "ArrowLeft", abs(steps))
            now = before.copy()
            now[data["moved"]] += sample / 2
            scale, shift = data["gamma"] + gamma / 4, data["beta"] + beta / 2
            y_before, y = (normalised(batch, scale, shift) for batch in (before, now))
            change = np.delete(y - y_before, data["moved"])
            own = now[data["moved"]], y[data["moved"]]
            expected = [now.mean(), now.var(), *own, len(now) - 1, abs(change).max()]
            assert np.allclose(sliders.numbers(), expected, atol=0.0051), sliders.said()


@pytest.mark.parametrize("momentum, steps", [(0.1, 0), (0.5, 3), (0.02, -3)])
def test_the_running_average_of_the_sliders_is_the_layers(site, browser, momentum, steps):
    with explorer(site, browser, "ema") as sliders:
        sliders.press("ema-momentum", "ArrowRight" if steps > 0 else "ArrowLeft", abs(steps))
        level, errors = (np.array(sliders.data()[name]) for name in ("level", "errors"))
        mean, var = torch.zeros(1), torch.ones(1)
        for value in level + 0.6 * errors:
            update_running_stats(mean, var, torch.full((2, 1), value), momentum)
        *_, wobble_of_a_batch, off = sliders.numbers()
        assert abs(wobble_of_a_batch - 0.6 * errors.std()) < 0.0051
        assert abs(off - abs(mean.item() - level[-1])) < 0.0051


@pytest.mark.parametrize("order", [0, 1])
def test_every_round_of_merging_is_that_of_the_values(site, browser, order):
    with explorer(site, browser, "merge") as sliders:
        sliders.press("merge-order", "ArrowDown", order)
        data = sliders.data()
        values = [np.array(of_rank) for of_rank in data["values"]]
        rounds = list(data["orders"].values())[order]["rounds"]
        held = {rank: [rank] for rank in range(len(values))}
        for done in range(len(rounds) + 1):
            if done:
                sliders.press("merge-round", "ArrowRight")
                for into, start in rounds[done - 1]:
                    held[into] += held.pop(start)
            expected = []
            for ranks in held.values():
                together = np.concatenate([values[rank] for rank in ranks])
                m2 = ((together - together.mean()) ** 2).sum()
                averaged = np.average([values[r].var() for r in ranks], weights=[len(values[r]) for r in ranks])
                expected.append([len(together), together.mean(), m2, together.var(), averaged])
            rows = sliders.root.locator("tbody tr").all()
            shown = [[float(cell) for cell in row.locator("td").all_inner_texts()] for row in rows]
            assert np.allclose(shown, expected, atol=0.0051)
            assert sliders.numbers()[-5:] == shown[0]
            assert sliders.root.locator("svg circle").count() == sum(map(len, values))
        sliders.press("merge-round", "ArrowRight", 9)  # after the last round there is none
        assert sliders.numbers()[-5:] == shown[0]


def test_a_shorter_order_of_merging_ends_at_its_last_round(site, browser):
    with explorer(site, browser, "merge") as sliders:
        sliders.press("merge-round", "End")
        assert sliders.said().startswith("After 7 of 7 rounds")
        sliders.press("merge-order", "ArrowDown")
        assert sliders.said().startswith("After 3 of 3 rounds")
        assert sliders.root.locator("output").inner_text() == "3"
