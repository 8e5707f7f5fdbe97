/* The two explorers of chapter 2: sliders over data that the page brings along. Without this file the page keeps its
   static figures. Colours come from course.css. */
"use strict";

(() => {
  const SVG = "http://www.w3.org/2000/svg";

  function element(parent, name, attributes = {}, text = "") {
    const svg = parent.namespaceURI === SVG || name === "svg";
    const made = svg ? document.createElementNS(SVG, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    parent.append(made);
    return made;
  }

  /* A labelled slider over a list of settings; arrow keys move it. */
  function slider(parent, id, label, settings, start, show, changed) {
    const row = element(parent, "div", { class: "explorer-row" });
    element(row, "label", { for: id }, label);
    const input = element(row, "input", {
      id, type: "range", min: 0, max: settings.length - 1, step: 1, value: settings.indexOf(start),
    });
    const output = element(row, "output", { for: id });
    const tell = () => {
      output.textContent = show(settings[input.value]);
      input.setAttribute("aria-valuetext", output.textContent);
    };
    input.addEventListener("input", () => { tell(); changed(); });
    tell();
    return () => settings[input.value];
  }

  /* Axes with ticks; returns the group that is drawn anew, and the two scales. */
  function plot(parent, { width, height, x, y, xlabel, ylabel, name }) {
    const svg = element(parent, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": name });
    const [left, right, top, bottom] = [52, width - 10, 12, height - 46];
    const px = (v) => left + ((v - x.low) / (x.high - x.low)) * (right - left);
    const py = (v) => bottom - ((v - y.low) / (y.high - y.low)) * (bottom - top);
    for (const v of y.ticks) {
      element(svg, "line", { class: "grid", x1: left, x2: right, y1: py(v), y2: py(v) });
      element(svg, "text", { x: left - 7, y: py(v) + 5, "text-anchor": "end" }, String(v));
    }
    for (const v of x.ticks) {
      element(svg, "line", { class: "grid", x1: px(v), x2: px(v), y1: top, y2: bottom });
      element(svg, "text", { x: px(v), y: bottom + 19, "text-anchor": "middle" }, String(v));
    }
    element(svg, "text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, xlabel);
    const middle = (top + bottom) / 2;
    element(svg, "text", { x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` }, ylabel);
    return { group: element(svg, "g"), px, py };
  }

  const line = (xs, ys, px, py) => ys.map((v, i) => `${i ? "L" : "M"}${px(xs[i]).toFixed(1)} ${py(v).toFixed(1)}`).join("");
  const std = (values) => {
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    return Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length);
  };

  function legend(parent, entries) {
    const list = element(parent, "p", { class: "explorer-legend" });
    for (const [kind, text] of entries) {
      const entry = element(list, "span");
      element(entry, "span", { class: `key ${kind}`, "aria-hidden": "true" });
      entry.append(text);
    }
  }

  function ema(root, { level, errors }) {
    const steps = level.map((_, i) => i + 1);
    const jump = level.findIndex((v) => v !== level[0]);
    const average = (values, m) => {
      let r = 0;
      return values.map((v) => (r = (1 - m) * r + m * v));
    };
    const controls = element(root, "div", { class: "explorer-controls" });
    const momenta = [0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1];
    const noises = Array.from({ length: 16 }, (_, i) => i / 10);
    const momentum = slider(controls, "ema-momentum", "momentum", momenta, 0.1, (v) => v.toFixed(2), () => draw());
    const noise = slider(controls, "ema-noise", "noise of a batch", noises, 0.6, (v) => v.toFixed(1), () => draw());
    const { group, px, py } = plot(root, {
      width: 640, height: 330, name: "Batch values and their running average, for the settings of the sliders",
      x: { low: 0, high: 160, ticks: [0, 40, 80, 120, 160] }, y: { low: -2, high: 6, ticks: [-2, 0, 2, 4, 6] },
      xlabel: "batch", ylabel: "value",
    });
    legend(root, [["dot batch", "a batch"], ["dash", "true value"], ["solid", "running average"]]);
    const says = element(root, "p", { class: "explorer-says", "aria-live": "polite" });

    function draw() {
      const [m, sigma] = [momentum(), noise()];
      const values = level.map((v, i) => v + sigma * errors[i]);
      const [noisy, clean] = [average(values, m), average(level, m)];
      group.replaceChildren();
      values.forEach((v, i) => {
        const inside = Math.max(-2, Math.min(6, v));
        element(group, "circle", { class: "batch", cx: px(steps[i]), cy: py(inside), r: 2.2 });
      });
      element(group, "path", { class: "truth", d: line(steps, level, px, py) });
      element(group, "path", { class: "average", d: line(steps, noisy, px, py) });
      const half = (clean[jump - 1] + level[jump]) / 2;
      const late = clean.slice(jump).findIndex((v) => v >= half) + 1;
      const wobble = std(noisy.slice(40).map((v, i) => v - clean[i + 40]));
      says.textContent =
        `After the jump it takes ${late} batch${late === 1 ? "" : "es"} to cover half of the way. ` +
        `The average wobbles by ${wobble.toFixed(2)}, a batch by ${(sigma * std(errors)).toFixed(2)}. ` +
        `At the end it is ${Math.abs(noisy.at(-1) - level.at(-1)).toFixed(2)} off.`;
    }
    draw();
  }

  function clouds(root, bySize) {
    const sizes = Object.keys(bySize).map(Number).sort((a, b) => a - b);
    const controls = element(root, "div", { class: "explorer-controls" });
    const size = slider(controls, "clouds-size", "values per channel, n", sizes, 8, String, () => draw());
    const { group, px, py } = plot(root, {
      width: 640, height: 400, name: "What batches and running statistics say about a channel, for the chosen n",
      x: { low: -1.5, high: 1.5, ticks: [-1.5, -1, -0.5, 0, 0.5, 1, 1.5] }, y: { low: 0, high: 3, ticks: [0, 1, 2, 3] },
      xlabel: "error of the mean, in units of σ", ylabel: "measured / true variance",
    });
    legend(root, [["dot batch", "a batch"], ["dot buffer", "running statistics, momentum 0.1"]]);
    const says = element(root, "p", { class: "explorer-says", "aria-live": "polite" });
    const clip = (v, low, high) => Math.max(low, Math.min(high, v));

    function draw() {
      const found = bySize[size()];
      group.replaceChildren();
      element(group, "line", { class: "truth", x1: px(0), x2: px(0), y1: py(0), y2: py(3) });
      element(group, "line", { class: "truth", x1: px(-1.5), x2: px(1.5), y1: py(1), y2: py(1) });
      for (const kind of ["batch", "buffer"]) {
        for (const [mean, variance] of found[kind]) {
          element(group, "circle", { class: kind, cx: px(clip(mean, -1.5, 1.5)), cy: py(clip(variance, 0, 3)), r: 3.5 });
        }
      }
      const spread = (kind) => std(found[kind].map(([mean]) => mean)).toFixed(2);
      says.textContent =
        `With n = ${size()} a batch's mean scatters by ${spread("batch")} σ, the running mean by ${spread("buffer")} σ.`;
    }
    draw();
  }

  function start() {
    for (const root of document.querySelectorAll(".explorer[data-explorer]")) {
      const make = { ema, clouds }[root.dataset.explorer];
      const data = root.querySelector("script[type='application/json']");
      if (make && data) make(root, JSON.parse(data.textContent));
    }
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
