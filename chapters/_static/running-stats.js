/* The explorers of chapter 2: a running average, and what batches of several sizes say about a channel. */
"use strict";

(() => {
  const { add, element, controls, says, slider, plot, legend, line, variance } = explorers;
  const std = (values) => Math.sqrt(variance(values));

  add("ema", (root, { level, errors }) => {
    const steps = level.map((_, i) => i + 1);
    const jump = level.findIndex((v) => v !== level[0]);
    const running = (values, m) => {
      let r = 0;
      return values.map((v) => (r = (1 - m) * r + m * v));
    };
    const rows = controls(root);
    const momenta = [0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1];
    const noises = Array.from({ length: 16 }, (_, i) => i / 10);
    const momentum = slider(rows, "ema-momentum", "momentum", momenta, 0.1, (v) => v.toFixed(2), () => draw());
    const noise = slider(rows, "ema-noise", "noise of a batch", noises, 0.6, (v) => v.toFixed(1), () => draw());
    const { group, px, py } = plot(root, {
      width: 640, height: 330, name: "Batch values and their running average, for the settings of the sliders",
      x: { low: 0, high: 160, ticks: [0, 40, 80, 120, 160] }, y: { low: -2, high: 6, ticks: [-2, 0, 2, 4, 6] },
      xlabel: "batch", ylabel: "value",
    });
    legend(root, [["dot batch", "a batch"], ["dash", "true value"], ["solid", "running average"]]);
    const told = says(root);

    function draw() {
      const [m, sigma] = [momentum(), noise()];
      const values = level.map((v, i) => v + sigma * errors[i]);
      const [noisy, clean] = [running(values, m), running(level, m)];
      const inside = (v) => Math.max(-2, Math.min(6, v));
      group.replaceChildren();
      values.forEach((v, i) => {
        element(group, "circle", { class: "batch", cx: px(steps[i]), cy: py(inside(v)), r: 2.2 });
      });
      element(group, "path", { class: "truth", d: line(steps, level, px, py) });
      element(group, "path", { class: "average", d: line(steps, noisy.map(inside), px, py) });
      const half = (clean[jump - 1] + level[jump]) / 2;
      const late = clean.slice(jump).findIndex((v) => v >= half) + 1;
      const wobble = std(noisy.slice(40).map((v, i) => v - clean[i + 40]));
      told.textContent =
        `After the jump it takes ${late} batch${late === 1 ? "" : "es"} to cover half of the way. ` +
        `The average wobbles by ${wobble.toFixed(2)}, a batch by ${(sigma * std(errors)).toFixed(2)}. ` +
        `At the end it is ${Math.abs(noisy.at(-1) - level.at(-1)).toFixed(2)} off.`;
    }
    draw();
  });

  add("clouds", (root, bySize) => {
    const sizes = Object.keys(bySize).map(Number).sort((a, b) => a - b);
    const size = slider(controls(root), "clouds-size", "values per channel, n", sizes, 8, String, () => draw());
    const { group, px, py } = plot(root, {
      width: 640, height: 400, name: "What batches and running statistics say about a channel, for the chosen n",
      x: { low: -1.5, high: 1.5, ticks: [-1.5, -1, -0.5, 0, 0.5, 1, 1.5] }, y: { low: 0, high: 3, ticks: [0, 1, 2, 3] },
      xlabel: "error of the mean, in units of σ", ylabel: "measured / true variance",
    });
    legend(root, [["dot batch", "a batch"], ["dot buffer", "running statistics, momentum 0.1"]]);
    const told = says(root);
    const clip = (v, low, high) => Math.max(low, Math.min(high, v));

    function draw() {
      const found = bySize[size()];
      group.replaceChildren();
      element(group, "line", { class: "truth", x1: px(0), x2: px(0), y1: py(0), y2: py(3) });
      element(group, "line", { class: "truth", x1: px(-1.5), x2: px(1.5), y1: py(1), y2: py(1) });
      for (const kind of ["batch", "buffer"]) {
        for (const [mean, ratio] of found[kind]) {
          element(group, "circle", { class: kind, cx: px(clip(mean, -1.5, 1.5)), cy: py(clip(ratio, 0, 3)), r: 3.5 });
        }
      }
      const spread = (kind) => std(found[kind].map(([mean]) => mean)).toFixed(2);
      told.textContent =
        `With n = ${size()} a batch's mean scatters by ${spread("batch")} σ, ` +
        `the running mean by ${spread("buffer")} σ.`;
    }
    draw();
  });
})();
