/* The explorer of chapter 1: a batch of one channel on its way through the layer, with one sample that moves. */
"use strict";

(() => {
  const { add, element, controls, says, slider, plot, legend, line, average, variance, fixed } = explorers;
  const EPS = 1e-5;
  const STAGES = ["input", "centred", "scaled", "output"];

  /* The batch at every stage. */
  function through(batch, gamma, beta) {
    const [mean, std] = [average(batch), Math.sqrt(variance(batch) + EPS)];
    const centred = batch.map((v) => v - mean);
    const scaled = centred.map((v) => v / std);
    return [batch, centred, scaled, scaled.map((v) => gamma * v + beta)];
  }

  add("normalise", (root, { batch, moved, gamma: startGamma, beta: startBeta }) => {
    const own = batch[moved];
    const rows = controls(root);
    const places = Array.from({ length: 35 }, (_, i) => own + (i - 20) / 2);
    const gammas = Array.from({ length: 17 }, (_, i) => (i - 8) / 4);
    const betas = Array.from({ length: 13 }, (_, i) => (i - 6) / 2);
    const short = (v) => v.toFixed(1);
    const place = slider(rows, "normalise-sample", "value of one sample", places, own, short, () => draw());
    const gamma = slider(rows, "normalise-gamma", "scale γ", gammas, startGamma, fixed, () => draw());
    const beta = slider(rows, "normalise-beta", "shift β", betas, startBeta, short, () => draw());
    const { group, px, py } = plot(root, {
      width: 640, height: 330, left: 84, name: "The batch on four number lines, for the settings of the sliders",
      x: { low: -9, high: 13, ticks: [-8, -4, 0, 4, 8, 12] },
      y: { low: 3.3, high: -0.3, ticks: [0, 1, 2, 3], show: (i) => STAGES[i] }, xlabel: "value",
    });
    legend(root, [
      ["dot moved", "the moved sample"], ["dot buffer", "the others"], ["dot ring", "their outputs before the move"],
    ]);
    const told = says(root);
    const heights = [0, 1, 2, 3];

    function draw() {
      const now = through(batch.map((v, i) => (i === moved ? place() : v)), gamma(), beta());
      const before = through(batch, gamma(), beta());
      group.replaceChildren();
      element(group, "line", { class: "truth", x1: px(0), x2: px(0), y1: py(-0.3), y2: py(3.3) });
      const others = batch.map((_, i) => i).filter((i) => i !== moved);
      for (const i of [...others, moved]) {
        const kind = i === moved ? "moved" : "buffer";
        element(group, "path", { class: `way ${kind}`, d: line(now.map((stage) => stage[i]), heights, px, py) });
        for (const k of heights) {
          element(group, "circle", { class: kind, cx: px(now[k][i]), cy: py(k), r: i === moved ? 6 : 4 });
        }
      }
      for (const i of others) element(group, "circle", { class: "ring", cx: px(before[3][i]), cy: py(3), r: 7.5 });
      const furthest = Math.max(...others.map((i) => Math.abs(now[3][i] - before[3][i])));
      told.textContent =
        `The batch has mean ${fixed(average(now[0]))} and variance ${fixed(variance(now[0]))}. ` +
        `The moved sample comes in as ${fixed(now[0][moved])} and leaves as ${fixed(now[3][moved])}. ` +
        `The other ${others.length} come in as before, and leave up to ${fixed(furthest)} from where they did.`;
    }
    draw();
  });
})();
