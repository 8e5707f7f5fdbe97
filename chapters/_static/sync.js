/* The explorer of chapter 5: heaps of values merged round by round. The numbers come from the page. */
"use strict";

(() => {
  const { add, element, controls, says, slider, choice, plot, legend, path, fixed } = explorers;
  const range = (count) => Array.from({ length: count }, (_, i) => i);

  /* Which ranks each heap holds after so many rounds: the first rank of a heap → its ranks. */
  function members(rounds, ranks) {
    const held = new Map(range(ranks).map((rank) => [rank, [rank]]));
    for (const [into, from] of rounds.flat()) {
      held.set(into, [...held.get(into), ...held.get(from)]);
      held.delete(from);
    }
    return held;
  }

  add("merge", (root, { values, orders }) => {
    const ranks = values.length;
    const [low, high] = [2 * Math.floor(Math.min(...values.flat()) / 2), 2 * Math.ceil(Math.max(...values.flat()) / 2)];
    const longest = Math.max(...Object.values(orders).map(({ rounds }) => rounds.length));
    const rows = controls(root);
    const order = choice(rows, "merge-order", "order of merging", Object.keys(orders), () => draw());
    const done = slider(rows, "merge-round", "rounds done", range(longest + 1), 0, String, () => draw());
    const { group, px, py, right } = plot(root, {
      width: 640, height: 400, left: 76, margin: 118, name: "The heaps on their number lines, and who merges with whom",
      x: { low, high, ticks: range((high - low) / 2 + 1).map((i) => low + 2 * i) },
      y: { low: ranks - 0.4, high: -0.4, ticks: range(ranks), show: (rank) => `rank ${rank}` }, xlabel: "value",
    });
    legend(root, [
      ["dot batch", "a value"], ["solid", "mean ± standard deviation"],
      ["dash second", "with the averaged variance instead"],
    ]);
    const table = element(root, "table", { class: "explorer-table" });
    const head = element(element(table, "thead"), "tr");
    for (const name of ["ranks", "n", "mean", "M₂", "variance", "averaged variance"]) {
      element(head, "th", { scope: "col" }, name);
    }
    const body = element(table, "tbody");
    const told = says(root);

    function bar(kind, mean, deviation, y) {
      element(group, "line", { class: kind, x1: px(mean - deviation), x2: px(mean + deviation), y1: y, y2: y });
      element(group, "line", { class: kind, x1: px(mean), x2: px(mean), y1: y - 5, y2: y + 5 });
    }

    function tree(rounds, count) {
      const ends = range(ranks).map(() => right + 8);
      rounds.forEach((pairs, k) => {
        const x = right + 8 + ((k + 1) * 100) / (rounds.length + 0.5);
        for (const [into, from] of pairs) {
          const points = [[ends[into], py(into)], [x, py(into)], [x, py(from)], [ends[from], py(from)]];
          element(group, "path", { class: k < count ? "average" : "planned", d: path(points) });
          ends[into] = x;
        }
      });
    }

    function draw() {
      const { rounds, heaps } = orders[order()];
      done.only(rounds.length + 1);
      const [count, own] = [done(), heaps[0]];
      const found = [...members(rounds.slice(0, count), ranks)].map(([rank, held]) => {
        const [n, mean, m2] = heaps[count][rank];
        const averaged = held.reduce((sum, r) => sum + own[r][2], 0) / n;
        const name = held.length > 1 ? `${held[0]}–${held.at(-1)}` : String(rank);
        return { rank, held, name, n, mean, m2, variance: m2 / n, averaged };
      });
      group.replaceChildren();
      body.replaceChildren();
      tree(rounds, count);
      for (const { rank, held, name, n, mean, m2, variance, averaged } of found) {
        for (const v of held.flatMap((r) => values[r])) {
          element(group, "circle", { class: "batch", cx: px(v), cy: py(rank), r: 3.5 });
        }
        bar("average", mean, Math.sqrt(variance), py(rank + 0.24));
        if (held.length > 1) bar("averaged", mean, Math.sqrt(averaged), py(rank + 0.44));
        const row = element(body, "tr");
        element(row, "th", { scope: "row" }, name);
        for (const text of [String(n), ...[mean, m2, variance, averaged].map(fixed)]) element(row, "td", {}, text);
      }
      const first = found[0];
      const left = found.length > 1 ? `are ${found.length} heaps` : "is one heap";
      told.textContent =
        `After ${count} of ${rounds.length} rounds there ${left}. ` +
        `That of rank 0 has n = ${first.n}, mean = ${fixed(first.mean)} and M₂ = ${fixed(first.m2)}, ` +
        `so its variance is ${fixed(first.variance)}. ` +
        `Averaging the variances of its ranks gives ${fixed(first.averaged)}.`;
    }
    draw();
  });
})();
