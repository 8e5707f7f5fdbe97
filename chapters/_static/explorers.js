/* What the book's explorers share: sliders over a drawing of data that the page brings along. Every topic adds its own
   (algorithm.js, running-stats.js, sync.js). Without these files a page keeps its static figures. Colours come from
   course.css. */
"use strict";

const explorers = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  /* Makes `make(root, data)` draw every explorer of this kind once the page is there. */
  function add(kind, make) {
    const start = () => {
      for (const root of document.querySelectorAll(`.explorer[data-explorer="${kind}"]`)) {
        make(root, JSON.parse(root.querySelector("script[type='application/json']").textContent));
      }
    };
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
    else start();
  }

  function element(parent, name, attributes = {}, text = "") {
    const svg = parent.namespaceURI === SVG || name === "svg";
    const made = svg ? document.createElementNS(SVG, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    parent.append(made);
    return made;
  }

  const controls = (root) => element(root, "div", { class: "explorer-controls" });
  const says = (root) => element(root, "p", { class: "explorer-says", "aria-live": "polite" });

  /* A labelled slider over a list of settings; arrow keys move it. Returns a function that gives the setting. */
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
    const setting = () => settings[input.value];
    setting.only = (count) => { input.max = count - 1; tell(); };  // the first `count` settings; the browser moves it
    return setting;
  }

  /* A labelled choice between a few names. Returns a function that gives the name. */
  function choice(parent, id, label, names, changed) {
    const row = element(parent, "div", { class: "explorer-row" });
    element(row, "label", { for: id }, label);
    const select = element(row, "select", { id });
    for (const name of names) element(select, "option", { value: name }, name);
    select.addEventListener("change", () => changed());
    return () => select.value;
  }

  /* Axes with ticks; returns the group that is drawn anew, the two scales and the right edge. */
  function plot(parent, { width, height, x, y, xlabel, ylabel, name, left = 52, margin = 24 }) {
    const svg = element(parent, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": name });
    const [right, top, bottom] = [width - margin, 12, height - 56];  // room for the larger letters of a phone
    const px = (v) => left + ((v - x.low) / (x.high - x.low)) * (right - left);
    const py = (v) => bottom - ((v - y.low) / (y.high - y.low)) * (bottom - top);
    for (const v of y.ticks) {
      element(svg, "line", { class: "grid", x1: left, x2: right, y1: py(v), y2: py(v) });
      element(svg, "text", { x: left - 7, y: py(v) + 5, "text-anchor": "end" }, (y.show ?? String)(v));
    }
    for (const v of x.ticks) {
      element(svg, "line", { class: "grid", x1: px(v), x2: px(v), y1: top, y2: bottom });
      element(svg, "text", { x: px(v), y: bottom + 23, "text-anchor": "middle" }, String(v));
    }
    element(svg, "text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, xlabel);
    if (ylabel) {
      const middle = (top + bottom) / 2;
      const turned = { x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` };
      element(svg, "text", turned, ylabel);
    }
    return { group: element(svg, "g"), px, py, right };
  }

  function legend(parent, entries) {
    const list = element(parent, "p", { class: "explorer-legend" });
    for (const [kind, text] of entries) {
      const entry = element(list, "span");
      element(entry, "span", { class: `key ${kind}`, "aria-hidden": "true" });
      entry.append(text);
    }
  }

  const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  const line = (xs, ys, px, py) => path(ys.map((v, i) => [px(xs[i]), py(v)]));
  const average = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const variance = (values) => {  // biased
    const mean = average(values);
    return average(values.map((v) => (v - mean) ** 2));
  };
  const fixed = (v) => (Math.round(v * 100) / 100 + 0).toFixed(2);  // + 0: no "-0.00"

  return { add, element, controls, says, slider, choice, plot, legend, path, line, average, variance, fixed };
})();
