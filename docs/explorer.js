"use strict";
// Counts adapters by the closed forms of minica.counting, from the shapes in explorer_data.js, and draws them.
// Parts in order: counts, records, drawing, the three pictures, the tables, the page.

const { schemes: SCHEMES, networks: NETWORKS, records: RECORDS, compressions: COMPRESSIONS, kernels: KERNELS } = EXPLORER;

// ---------------------------------------------------------------- counts

/** The largest divisor of `channels` that is not above channels / gamma, and at least 1. */
function bottleneck(channels, gamma) {
  let width = Math.max(1, Math.floor(channels / gamma));
  while (channels % width) width -= 1;
  return width;
}

/** The adapters that a scheme puts into a network; `kernel` is K, or null for each place's own. */
function adapters(network, scheme, kernel) {
  const chosen = network.places.filter(([, kind]) => kind === scheme.part || kind === "downsample" || kind === "pool");
  return chosen.map(([name, kind, before, after, own, stride, height, width]) => {
    // ConvNeXt's convolutions between stages are read in parallel but for one scheme, and keep their kernel.
    const behind = kind === "downsample" ? scheme.name === "residual_sequential" : scheme.reads === "output";
    const fixed = kind === "pool" ? own : kind === "downsample" ? (behind ? 1 : own) : null;
    return {
      name, kind, behind, height, width, own,
      reads: behind ? after : before,
      adds: after,
      kernel: fixed ?? kernel ?? own,
      stride: behind ? 1 : stride,
      step: network.size[1] / (behind ? width : width * stride), // pixels of the image a pixel of what is read
    };
  });
}

/** Parameters and multiply-accumulates of one adapter. */
function size(adapter, gamma) {
  const width = bottleneck(adapter.reads, gamma);
  const kernels = adapter.kind === "pool" ? adapter.reads * width : adapter.kernel ** 2 * adapter.reads;
  const spread = width * adapter.adds;
  return {
    width, down: kernels + width, up: spread + adapter.adds, alpha: adapter.adds,
    macs: (kernels + spread) * adapter.height * adapter.width,
  };
}

/** Everything that a setting costs; `field` is how wide a square of the image the adapters see through each other. */
function count(network, scheme, gamma, kernel) {
  const found = { down: 0, up: 0, alpha: 0, macs: 0, field: 0 };
  const placed = adapters(network, scheme, kernel);
  for (const adapter of placed) {
    const one = size(adapter, gamma);
    for (const key of ["down", "up", "alpha", "macs"]) found[key] += one[key];
    if (adapter.kind !== "pool") found.field += (adapter.kernel - 1) * adapter.step;
  }
  found.field += placed[0].step;
  found.adapters = found.down + found.up + found.alpha;
  found.head = (network.features + 1) * EXPLORER.classes;
  found.trainable = found.adapters + found.head;
  found.total = found.trainable + network.parameters;
  return found;
}

// ---------------------------------------------------------------- records

/** The records of a setting.  K = 3 and "own" are one setting where every own kernel is 3. */
function recorded(network, scheme, gamma, kernel) {
  const kernels = (size) => adapters(network, scheme, size).map((adapter) => adapter.kernel).join();
  return RECORDS.filter((record) =>
    record.network === network.name && record.scheme === scheme.name && record.compression === gamma &&
    kernels(record.kernel) === kernels(kernel));
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const percent = (value) => `${(100 * value).toFixed(1)}\u00a0%`;

/** Mean and range of the runs that learned; those that did not are counted beside them. */
function outcome(group) {
  const values = group.runs.map(([, value]) => value);
  const said = [];
  if (values.length > 1) {
    said.push(`mean ${percent(mean(values))} of ${values.length} seeds (${percent(Math.min(...values))} to ${percent(Math.max(...values))})`);
  } else said.push(values.length ? `${percent(values[0])} with one seed` : "no run learned");
  if (group.failed) said.push(`${group.failed} more gave every image the same answer`);
  if (group.broken) said.push(`${group.broken} more ended with an error`);
  if (group.missing) said.push(`${group.missing} more not run yet`);
  return said.join("; ");
}

// ---------------------------------------------------------------- drawing

const byId = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en-US");
const share = (value) => `${Number((100 * value).toPrecision(3))}\u00a0%`;
const kernelText = (kernel) => `${kernel}\u00a0×\u00a0${kernel}`;

function rounded(value) {
  for (const [unit, name] of [[1e9, "billion"], [1e6, "million"], [1e3, "thousand"]]) {
    if (value >= unit) return `${Number((value / unit).toPrecision(3))} ${name}`;
  }
  return String(value);
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** An empty picture as wide as its place on the page, so that text has the same size on every screen. */
class Picture {
  constructor(svg, height, described) {
    this.width = Math.max(280, Math.round(svg.parentElement.clientWidth));
    this.svg = svg;
    svg.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
    svg.setAttribute("height", height);
    svg.setAttribute("aria-label", described);
    svg.replaceChildren();
  }
  add(tag, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    this.svg.append(made);
    return made;
  }
  text(x, y, text, options = {}) {
    String(text).split("\n").forEach((line, i) => this.add("text", { x, y: y + 15 * i, "text-anchor": "middle", ...options }, line));
  }
  line(points, color, width, options = {}) {
    this.add("polyline", { points: points.map((point) => point.join()).join(" "), fill: "none", stroke: color, "stroke-width": width, ...options });
  }
  arrow(from, to, color, width) {
    this.line([from, to], color, width);
    const [x, y] = to;
    const [dx, dy] = [Math.sign(x - from[0]), Math.sign(y - from[1])];
    const points = [[x + 2 * dx, y + 2 * dy], [x - 7 * dx - 5 * dy, y - 7 * dy - 5 * dx], [x - 7 * dx + 5 * dy, y - 7 * dy + 5 * dx]];
    this.add("polygon", { points: points.map((point) => point.join()).join(" "), fill: color });
  }
  box(x, y, width, height, fill, label, options = {}) {
    this.add("rect", { x: x - width / 2, y: y - height / 2, width, height, fill, stroke: LINE, ...options });
    const lines = label.split("\n").length;
    this.text(x, y + 4.5 - 7.5 * (lines - 1), label);
  }
  sum(x, y, color) {
    this.add("circle", { cx: x, cy: y, r: 8, fill: "#fff", stroke: color, "stroke-width": 2 });
    this.line([[x - 5, y], [x + 5, y]], color, 2);
    this.line([[x, y - 5], [x, y + 5]], color, 2);
  }
}

const LINE = "#767676", PALE = "#ececec", BAND = "#bdbdbd", ADAPTER = "#d55e00", TINT = "#f6c9a6", DOWN = "#0072b2", UP = "#d55e00", ALPHA = "#1b1b1b";

// ---------------------------------------------------------------- picture 1: the scheme

const HOSTS = {
  downsample: "a down-sampling convolution between stages",
  pool: "the attention pool",
};

function drawScheme(network, scheme, adapter, gamma, widest) {
  const { width: bottle } = size(adapter, gamma);
  const what = HOSTS[adapter.kind] ?? `the ${scheme.part}`;
  const described = `The adapter reads the ${adapter.behind ? "output" : "input"} of ${what}, ${adapter.reads} channels, ` +
    `squeezes them to ${bottle} and adds ${adapter.adds} channels to the output.`;
  const picture = new Picture(byId("scheme-drawing"), 286, described);
  const W = picture.width, at = (part) => part * W, main = 92, low = 208;
  const band = (channels) => Math.max(1.5, 36 * channels / widest);
  const ribbon = (from, to, channels) => picture.add("rect", {
    x: at(from), y: main - band(channels) / 2, width: at(to - from), height: band(channels), fill: BAND,
  });
  let read, write;
  if (HOSTS[adapter.kind]) {
    const place = network.places.find(([name]) => name === adapter.name);
    ribbon(0, 0.36, place[2]);
    ribbon(0.64, 1, place[3]);
    picture.text(at(0.13), main - 26, `${place[2]}`);
    picture.text(at(0.93), main - 26, `${place[3]}`);
    const label = adapter.kind === "pool" ? "attention\npool" : `${kernelText(place[4])}\nstride ${place[5]}`;
    picture.box(at(0.5), main, at(0.28), 58, "#d4d4d4", label);
    picture.text(at(0.5), main - 56, adapter.kind === "pool" ? "attention pool" : "between stages", { class: "quiet" });
    [read, write] = adapter.behind ? [0.7, 0.82] : [0.24, 0.76];
  } else {
    const index = network.places.findIndex(([name]) => name === adapter.name);
    const near = network.places.slice(Math.max(0, index - 1), index + 2);
    const unit = adapter.kind === "unit" ? network.places[index] : near.filter(([, kind]) => kind === "unit")[0];
    const block = adapter.kind === "block" ? network.places[index] : near.filter(([, kind]) => kind === "block").at(-1);
    const first = network.before ? 0.13 : 0.34;
    ribbon(0, first, block[2]);
    if (network.before) ribbon(0.27, 0.34, unit[2]);
    ribbon(0.54, 0.66, unit[3]);
    ribbon(0.8, 1, block[3]);
    // The shortcut, and where it is added.
    picture.line([[at(0.06), main], [at(0.06), 30], [at(0.84), 30], [at(0.84), main - 8]], LINE, 1.5);
    picture.text(at(0.45), 24, "shortcut", { class: "quiet" });
    const kernel = network.unit === "attention" ? "attention" : `${kernelText(unit[4])}\n${network.unit === "convolution" ? "conv." : network.unit}`;
    if (network.before) picture.box(at(0.2), main, at(0.14), 44, PALE, network.before);
    picture.box(at(0.44), main, at(0.2), 58, "#d4d4d4", kernel);
    picture.box(at(0.73), main, at(0.14), 44, PALE, network.after);
    picture.sum(at(0.84), main, LINE);
    const labels = [[network.before ? 0.1 : 0.2, block[2]], ...(network.before ? [[0.305, unit[2]]] : []), [0.6, unit[3]]];
    for (const [x, channels] of labels) picture.text(at(x), main - 26, channels, { class: "halo" });
    picture.text(W - 2, main - 26, block[3], { class: "halo", "text-anchor": "end" });
    const [begin, end, top] = scheme.part === "unit" ? [0.315, 0.565, 44] : [0.03, 0.875, 40];
    picture.add("rect", {
      x: at(begin), y: top, width: at(end - begin), height: 136 - top, fill: "none", stroke: LINE, "stroke-dasharray": "3 3",
    });
    picture.text(at(end) - 8, 150, scheme.part, { class: "quiet", "text-anchor": "end" });
    if (scheme.part === "unit") [read, write] = adapter.behind ? [0.565, 0.625] : [0.325, 0.6];
    else [read, write] = adapter.behind ? [0.9, 0.96] : [0.045, 0.93];
  }
  // The adapter: a bow tie as thick at its ends as the maps, and in its middle as the bottleneck.
  const half = Math.min(70, W / 6), middle = Math.min(Math.max(at((read + write) / 2), half + 60), W - half - 60);
  const turn = 160, from = middle - half, to = middle + half, left = Math.min(at(read), from - 12), right = Math.max(at(write), to + 12);
  const tall = (channels) => Math.max(1, 72 * channels / widest / 2);
  picture.line([[at(read), main], [at(read), turn], [left, turn], [left, low], [from, low]], ADAPTER, 2.5);
  picture.add("circle", { cx: at(read), cy: main, r: 5, fill: ADAPTER });
  picture.line([[to, low], [right, low], [right, turn], [at(write), turn]], ADAPTER, 2.5);
  picture.arrow([at(write), turn], [at(write), main + 11], ADAPTER, 2.5);
  picture.sum(at(write), main, ADAPTER);
  const edge = (x, channels) => [[x, low - tall(channels)], [x, low + tall(channels)]];
  const [a, b, c] = [edge(from, adapter.reads), edge(middle, bottle), edge(to, adapter.adds)];
  const outline = [a[0], b[0], c[0], c[1], b[1], a[1]];
  picture.add("polygon", { points: outline.map((point) => point.join()).join(" "), fill: TINT, stroke: ADAPTER, "stroke-width": 1.5 });
  picture.line(b, ADAPTER, 2.5);
  picture.text(from - 4, low + 48, `reads ${number(adapter.reads)}`, { class: "hot" });
  picture.text(middle, low + 66, `bottleneck w = ${number(bottle)}`, { class: "hot" });
  picture.text(to + 4, low + 48, `adds ${number(adapter.adds)}`, { class: "hot" });
}

// ---------------------------------------------------------------- picture 2: one adapter

function drawAdapter(adapter, gamma, widest) {
  const one = size(adapter, gamma);
  const grouped = adapter.kind !== "pool";
  const described = `${adapter.reads} channels in, ${one.width} in the bottleneck, ${adapter.adds} out; one output pixel sees ` +
    `${kernelText(adapter.kernel)} pixels of what is read.`;
  const wide = byId("adapter-drawing").parentElement.clientWidth >= 520;
  const picture = new Picture(byId("adapter-drawing"), wide ? 236 : 380, described);
  const span = wide ? picture.width - 180 : picture.width, tallest = 150, center = 134;
  const xs = [0.14, 0.5, 0.86].map((part) => part * span), counts = [adapter.reads, one.width, adapter.adds];
  const tall = (channels) => Math.max(1.5, tallest * channels / widest);
  const edges = counts.map((channels) => [center - tall(channels) / 2, center + tall(channels) / 2]);
  let drawn = grouped ? Math.min(one.width, 24) : 1;
  while (one.width % drawn) drawn -= 1;
  const polygon = (points, fill, options = {}) =>
    picture.add("polygon", { points: points.map((point) => point.join()).join(" "), fill, ...options });
  for (let group = 0; group < drawn; group += 1) { // a channel of the bottleneck sees only its own group
    const at = (edge, part) => edge[0] + (edge[1] - edge[0]) * part / drawn;
    polygon([[xs[0], at(edges[0], group)], [xs[1], at(edges[1], group)], [xs[1], at(edges[1], group + 1)], [xs[0], at(edges[0], group + 1)]],
      group % 2 ? "#9ecbe6" : "#d3e8f5");
  }
  polygon([[xs[1], edges[1][0]], [xs[2], edges[2][0]], [xs[2], edges[2][1]], [xs[1], edges[1][1]]], TINT);
  const bars = [[0, LINE], [1, ADAPTER], [2, LINE]];
  for (const [i, fill] of bars) picture.add("rect", { x: xs[i] - 5, y: edges[i][0], width: 10, height: edges[i][1] - edges[i][0], fill });
  const names = ["in", "bottleneck", "out"];
  names.forEach((name, i) => picture.text(xs[i], 18, `${name}\n${number(counts[i])}`, i === 1 ? { class: "hot" } : {}));
  picture.text((xs[0] + xs[1]) / 2, 18, grouped ? `${kernelText(adapter.kernel)},\nin groups` : "1 × 1,\nlinear", { class: "quiet" });
  picture.text((xs[1] + xs[2]) / 2, 18, "1 × 1,\nall to all", { class: "quiet" });

  // What one output pixel sees: K x K of 9 x 9 pixels.
  const cell = 13, x0 = wide ? picture.width - 74 - 4.5 * cell : picture.width / 2 - 4.5 * cell, y0 = wide ? 60 : 240;
  const start = 4 - Math.floor((adapter.kernel - 1) / 2);
  for (let i = 0; i < 81; i += 1) {
    const [row, column] = [Math.floor(i / 9), i % 9];
    const seen = [row, column].every((at) => at >= start && at < start + adapter.kernel);
    picture.add("rect", { x: x0 + column * cell, y: y0 + row * cell, width: cell - 1, height: cell - 1, fill: seen ? ADAPTER : PALE });
  }
  picture.text(x0 + 4.5 * cell, y0 - 8, `one output sees ${kernelText(adapter.kernel)}`);
  return { one, drawn };
}

function adapterText(adapter, one, drawn) {
  const { reads, adds, kernel } = adapter;
  const all = one.down + one.up + one.alpha;
  const kernels = adapter.kind === "pool" ? `${number(reads)} · ${number(one.width)}` : `${kernel}² · ${number(reads)}`;
  const groups = one.width / drawn;
  const places = adapter.kind === "pool" ? `On ${adapter.height} tokens, without groups. ` : `${number(one.width)} ${one.width === 1 ? "group" : "groups"}` +
    `${groups > 1 ? ` (each wedge stands for ${number(groups)} of them)` : ""}; stride ${adapter.stride}, on maps of ${adapter.height} × ${adapter.width} pixels. `;
  return places +
    `Down ${kernels} + ${number(one.width)} = ${number(one.down)}, up ${number(one.width)} · ${number(adds)} + ${number(adds)} = ` +
    `${number(one.up)}, alpha ${number(one.alpha)}: ${number(all)} parameters and ${rounded(one.macs)} MACs in this adapter. ` +
    "Heights are in proportion to channels.";
}

// ---------------------------------------------------------------- picture 3: how parameters divide, and against compression

const PARTS = [["down", "K × K down", DOWN], ["up", "1 × 1 up", UP], ["alpha", "alpha", ALPHA]];

function drawParts(found) {
  const described = PARTS.map(([key, name]) => `${name} ${share(found[key] / found.adapters)}`).join(", ");
  const picture = new Picture(byId("parts-drawing"), 76, described);
  let x = 0;
  PARTS.forEach(([key, name, fill], i) => {
    const width = picture.width * found[key] / found.adapters;
    picture.add("rect", { x, y: 0, width, height: 26, fill, stroke: "#fff" });
    x += width;
    const left = picture.width * i / 3;
    picture.add("rect", { x: left, y: 38, width: 12, height: 12, fill });
    picture.text(left + 18, 49, name, { "text-anchor": "start" });
    picture.text(left + 18, 66, share(found[key] / found.adapters), { "text-anchor": "start" });
  });
}

const STYLES = [["", "circle"], ["7 4", "square"], ["2 3", "triangle"], ["10 3 2 3", "diamond"]];

function mark(picture, shape, x, y, color) {
  const r = 5;
  if (shape === "circle") picture.add("circle", { cx: x, cy: y, r, fill: color });
  else {
    const points = { square: [[-r, -r], [r, -r], [r, r], [-r, r]], triangle: [[0, -r], [r, r], [-r, r]], diamond: [[0, -7], [7, 0], [0, 7], [-7, 0]] }[shape];
    picture.add("polygon", { points: points.map(([dx, dy]) => `${x + dx},${y + dy}`).join(" "), fill: color });
  }
}

/** The powers of ten between which all counts of each backbone lie, whatever scheme and knobs. */
const LIMITS = new Map();

function limits(network) {
  if (!LIMITS.has(network)) {
    const all = SCHEMES.flatMap((scheme) => COMPRESSIONS.flatMap((gamma) => KERNELS.map((kernel) => count(network, scheme, gamma, kernel).adapters)));
    LIMITS.set(network, [Math.floor(Math.log10(Math.min(...all))), Math.ceil(Math.log10(Math.max(...all)))]);
  }
  return LIMITS.get(network);
}

function drawCurve(network, chosen, gamma, kernel) {
  const [least, most] = limits(network);
  const here = SCHEMES.map((scheme) => count(network, scheme, gamma, kernel).adapters);
  const described = `Parameters of all adapters at compression ${gamma}: ` + SCHEMES.map((scheme, i) => `${scheme.name} ${number(here[i])}`).join(", ");
  const picture = new Picture(byId("curve-drawing"), 280, described);
  const [left, right, top, bottom] = [92, picture.width - 16, 14, 232];
  const x = (i) => left + 10 + (right - left - 20) * i / (COMPRESSIONS.length - 1);
  const y = (value) => bottom - (bottom - top) * (Math.log10(value) - least) / (most - least);
  for (let power = least; power <= most; power += 1) {
    picture.line([[left, y(10 ** power)], [right, y(10 ** power)]], "#d9d9d9", 1);
    picture.text(left - 6, y(10 ** power) + 4, number(10 ** power).replace(/,000,000,000$/, " billion").replace(/,000,000$/, " million"), { "text-anchor": "end", class: "quiet" });
  }
  const whole = Math.log10(network.parameters);
  if (whole < most) {
    picture.line([[left, y(network.parameters)], [right, y(network.parameters)]], LINE, 1, { "stroke-dasharray": "4 4" });
    picture.text(right, y(network.parameters) - 5, "the whole backbone", { "text-anchor": "end", class: "quiet" });
  }
  COMPRESSIONS.forEach((value, i) => picture.text(x(i), bottom + 18, value, value === gamma ? { class: "hot" } : { class: "quiet" }));
  picture.text((left + right) / 2, bottom + 38, "compression (gamma)", { class: "quiet" });
  const i = COMPRESSIONS.indexOf(gamma);
  picture.line([[x(i), top], [x(i), bottom]], "#e9b48c", 1.5);
  const order = [...SCHEMES.keys()].sort((a, b) => (SCHEMES[a] === chosen) - (SCHEMES[b] === chosen)); // the chosen one on top
  for (const at of order) {
    const color = SCHEMES[at] === chosen ? ADAPTER : "#6b6b6b", [dash, shape] = STYLES[at];
    const points = COMPRESSIONS.map((value, j) => [x(j), y(count(network, SCHEMES[at], value, kernel).adapters)]);
    picture.line(points, color, SCHEMES[at] === chosen ? 3 : 1.5, { "stroke-dasharray": dash });
    mark(picture, shape, ...points[i], color);
  }
  byId("curve-legend").replaceChildren(...SCHEMES.map((scheme, at) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 44 16");
    svg.setAttribute("aria-hidden", "true");
    const item = element("li", scheme === chosen ? { class: "chosen" } : {}, svg, scheme.name, element("span", { class: "number" }, number(here[at])));
    const color = scheme === chosen ? ADAPTER : "#6b6b6b";
    const sample = Object.create(Picture.prototype, { svg: { value: svg } });
    sample.line([[0, 8], [44, 8]], color, scheme === chosen ? 3 : 1.5, { "stroke-dasharray": STYLES[at][0] });
    mark(sample, STYLES[at][1], 22, 8, color);
    return item;
  }));
}

// ---------------------------------------------------------------- tables and records

function showCosts(network, found) {
  const rows = [
    ["Down-projections, K\u00a0×\u00a0K, with biases", number(found.down), "part"],
    ["Up-projections, 1\u00a0×\u00a01, with biases", number(found.up), "part"],
    ["Alpha, one factor a channel", number(found.alpha), "part"],
    ["Adapters together", number(found.adapters), "sum"],
    ["as a share of the backbone", share(found.adapters / network.parameters), "part"],
    [`Classifier of ${EXPLORER.classes} classes (trains as well)`, number(found.head)],
    ["All that trains", number(found.trainable), "sum"],
    ["Backbone, frozen", number(network.parameters)],
    [`MACs of the adapters, one image of ${kernelText(network.size[0])}`, number(found.macs)],
    ["MACs of the backbone and its classifier", number(network.macs)],
    ["the adapters' as a share of it", share(found.macs / network.macs), "part"],
    ["Adapters see, through each other", found.field > network.size[0]
      ? `${number(found.field)} pixels: more than the image's ${network.size[0]}` : `${kernelText(found.field)} pixels`],
  ];
  byId("costs").tBodies[0].replaceChildren(...rows.map(([name, value, kind]) =>
    element("tr", kind === "sum" ? { class: "sum" } : {}, element("th", kind === "part" ? { scope: "row", class: "part" } : { scope: "row" }, name), element("td", {}, value))));
}

const METHODS = {
  conv_adapter: ["Conv-Adapter", "#d55e00"], linear: ["Linear probe (no adapters)", "#56b4e9"], full: ["Full fine-tuning", "#009e73"],
};

/** The runs of one method on a line from 0 to 100 %: a dot each, a stroke at their mean. */
function strip(group, color) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 1000 14");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true"); // the text beside it says the same
  const picture = Object.create(Picture.prototype, { svg: { value: svg } });
  for (let tick = 0; tick <= 1000; tick += 250) picture.line([[tick, 0], [tick, 14]], "#c4c4c4", 1, { "vector-effect": "non-scaling-stroke" });
  picture.line([[0, 7], [1000, 7]], LINE, 1, { "vector-effect": "non-scaling-stroke" });
  const values = group.runs.map(([, value]) => 1000 * value);
  for (const [fill, wide] of [["#444", 10.5], [color, 8]]) {
    for (const x of values) picture.line([[x, 7], [x, 7.01]], fill, wide, { "vector-effect": "non-scaling-stroke", "stroke-linecap": "round" });
  }
  if (values.length) picture.line([[mean(values), 0], [mean(values), 14]], "#1b1b1b", 2, { "vector-effect": "non-scaling-stroke" });
  return svg;
}

function recordCard(record) {
  const metric = record.metric.replace("_", " "), images = record.runs.map(([, , n]) => n);
  const [least, most] = [Math.min(...images), Math.max(...images)];
  const rows = [{ ...record, method: "conv_adapter" }, ...record.beside].map((group) => {
    const [name, color] = METHODS[group.method];
    return element("li", {}, element("b", {}, name), `: ${outcome(group)}`, strip(group, color));
  });
  const seeds = record.runs.map(([seed, value, , low, high]) =>
    `${seed}: ${percent(value)}${low === undefined ? "" : ` (${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)})`}`).join(", ");
  const interval = record.runs.some((run) => run.length > 3) ? " (95\u00a0% interval over the test images)" : "";
  return element("article", { class: "record" }, element("h4", {}, record.task),
    element("p", {}, `Test ${metric}, each line from 0 to 100\u00a0%:`), element("ul", {}, ...rows),
    element("p", { class: "small" }, record.runs.length ? `By seed${interval}: ${seeds}; on ${least === most ? number(least) : `${number(least)} to ${number(most)}`} test images. ` : "",
      `${record.classes} classes, ${number(record.trainable)} trained parameters with the classifier, pictures of ${record.size} pixels, ${record.epochs} epochs, `,
      `learning rate ${record.lr}, ${record.init} start. Recorded in `, element("code", {}, `minica/results/${record.file}`), ` as “${record.method}”.`));
}

const settingText = (record) =>
  `${record.scheme}, compression ${record.compression}, ${record.kernel === null ? "own kernels" : `K = ${record.kernel}`}`;

function showRecords(network, scheme, gamma, kernel) {
  const here = recorded(network, scheme, gamma, kernel), own = RECORDS.filter((record) => record.network === network.name);
  const none = element("p", { class: "note" }, element("b", {}, "Not recorded. "), own.length
    ? "The costs above hold; no training with this setting is among the committed records. Those below are."
    : "The costs above hold; no training on this backbone is among the committed records.");
  byId("records").replaceChildren(...(here.length ? here.map(recordCard) : [none]));
  const groups = new Map();
  for (const record of own) groups.set(settingText(record), [...(groups.get(settingText(record)) ?? []), record]);
  const items = [...groups].map(([text, records]) => {
    const { compression, kernel: size } = records[0], reachable = COMPRESSIONS.includes(compression) && KERNELS.includes(size);
    const label = `${text}: ${records.length} ${records.length === 1 ? "record" : "records"}`;
    if (!reachable) return element("li", {}, `${label}, between the sliders' stops. ${records.map((record) => `${record.task}: ${outcome(record)}.`).join(" ")}`);
    const button = element("button", { type: "button", "aria-pressed": String(here.includes(records[0])) }, label);
    button.addEventListener("click", () => {
      byId("scheme").value = records[0].scheme;
      byId("compression").value = COMPRESSIONS.indexOf(compression);
      byId("kernel").value = KERNELS.indexOf(size);
      update();
      [...byId("recorded").querySelectorAll("button")].find((one) => one.textContent === label).focus(); // it was drawn anew
    });
    return element("li", {}, button);
  });
  byId("recorded").replaceChildren(items.length ? element("ul", { class: "settings" }, ...items) : element("p", {}, "None yet."));
}

// ---------------------------------------------------------------- the page

const SCHEME_TEXTS = {
  conv_parallel: "The adapter stands beside each unit, the block's spatial convolution with its norm and activation: it reads what the unit reads and adds to what the unit gives.",
  conv_sequential: "The adapter stands behind each unit, the block's spatial convolution with its norm and activation: it reads what the unit gives and adds to it.",
  residual_parallel: "The adapter stands beside each residual block: it reads what the block reads and adds to what the block gives.",
  residual_sequential: "The adapter stands behind each residual block: it reads what the block gives and adds to it.",
};

function networkText(network) {
  const size = `${rounded(network.parameters)} parameters, images of ${kernelText(network.size[0])} pixels`;
  if (network.packaged) return `${size}. Its weights come with the course.`;
  return `${size}. ${network.weights.length ? `In the paper: ${network.weights.join(", ")}.` : "The trunk of a detector, in the course's records."}`;
}

function chosen() {
  return {
    network: NETWORKS.find((one) => one.name === byId("network").value),
    scheme: SCHEMES.find((one) => one.name === byId("scheme").value),
    gamma: COMPRESSIONS[byId("compression").value],
    kernel: KERNELS[byId("kernel").value],
  };
}

function say(id, text) {
  byId(`${id}-value`).textContent = text;
  byId(id).setAttribute("aria-valuetext", text);
}

function update() {
  const { network, scheme, gamma, kernel } = chosen();
  const placed = adapters(network, scheme, kernel), found = count(network, scheme, gamma, kernel);
  byId("place").max = placed.length - 1;
  const at = Math.min(byId("place").value, placed.length - 1), adapter = placed[at];
  const widest = Math.max(...SCHEMES.flatMap((other) => { const one = adapters(network, other, kernel)[at]; return [one.reads, one.adds]; }));
  const owns = [...new Set(placed.filter((one) => one.kind === scheme.part).map((one) => one.own))].sort();

  say("compression", `gamma = ${gamma}`);
  say("kernel", kernel === null ? `own: ${owns.map(kernelText).join(", ")}` : `K = ${kernel}`);
  say("place", `${at + 1} of ${placed.length}`);
  byId("place-name").textContent = adapter.name;
  byId("summary").replaceChildren(element("b", {}, `${number(found.adapters)} parameters`), ` in ${placed.length} adapters, ${share(found.adapters / network.parameters)} of ${network.title}`);
  byId("network-text").textContent = networkText(network);
  byId("scheme-text").textContent = SCHEME_TEXTS[scheme.name] + (HOSTS[adapter.kind] ? ` The one drawn, at ${HOSTS[adapter.kind]}, is there in every scheme.` : "");

  drawScheme(network, scheme, adapter, gamma, widest);
  const { one, drawn } = drawAdapter(adapter, gamma, widest);
  byId("adapter-text").textContent = adapterText(adapter, one, drawn);
  drawParts(found);
  drawCurve(network, scheme, gamma, kernel);
  showCosts(network, found);
  showRecords(network, scheme, gamma, kernel);
}

function begin() {
  for (const one of NETWORKS) {
    byId("network").append(element("option", { value: one.name }, one.title));
  }
  for (const { name } of SCHEMES) byId("scheme").append(element("option", { value: name }, name));
  byId("compression").max = COMPRESSIONS.length - 1;
  byId("kernel").max = KERNELS.length - 1;
  const first = RECORDS.find((record) => record.network === NETWORKS[0].name && KERNELS.includes(record.kernel) && COMPRESSIONS.includes(record.compression));
  byId("scheme").value = first?.scheme ?? SCHEMES[0].name;
  byId("compression").value = COMPRESSIONS.indexOf(first?.compression ?? 4);
  byId("kernel").value = KERNELS.indexOf(first?.kernel ?? null);
  byId("place").value = 0;
  byId("notebooks").append(...EXPLORER.notebooks.map(({ number: at, title, link }) => element("li", {}, `${at} `, element("a", { href: link }, title))));
  for (const id of ["network", "scheme", "compression", "kernel", "place"]) byId(id).addEventListener("input", update);
  let width = byId("shown").clientWidth;
  new ResizeObserver(() => { // pictures are as wide as their place; its height follows from them
    if (byId("shown").clientWidth === width) return;
    width = byId("shown").clientWidth;
    update();
  }).observe(byId("shown"));
  update();
}

begin();
