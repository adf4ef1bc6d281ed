"use strict";
// Counts adapters by the closed forms of minica.counting, from the shapes in explorer_data.js, and draws them.
// Parts in order: counts, records, drawing, the three pictures, the tables, the page.

const { schemes: SCHEMES, networks: NETWORKS, records: RECORDS, compressions: COMPRESSIONS, kernels: KERNELS } = EXPLORER;

// A place is where some scheme puts an adapter: its map before and after, its own kernel and stride, the size of what it gives.
for (const network of NETWORKS) {
  network.places = network.places.map(([name, kind, before, after, own, stride, height, width]) =>
    ({ name, kind, before, after, own, stride, height, width }));
}

// ---------------------------------------------------------------- counts

/** The largest divisor of `channels` that is not above channels / gamma, and at least 1. */
function bottleneck(channels, gamma) {
  let width = Math.max(1, Math.floor(channels / gamma));
  while (channels % width) width -= 1;
  return width;
}

/** The adapters that a scheme puts into a network; `kernel` is K, or null for each place's own. */
function adapters(network, scheme, kernel) {
  const kinds = [scheme.part, "downsample", "pool"];
  return network.places.filter((place) => kinds.includes(place.kind)).map((place) => {
    const { kind, own, stride, width } = place;
    // ConvNeXt's convolutions between stages are read in parallel but for one scheme, and keep their kernel.
    const behind = kind === "downsample" ? scheme.name === "residual_sequential" : scheme.reads === "output";
    const fixed = kind === "pool" ? own : kind === "downsample" ? (behind ? 1 : own) : null;
    return {
      place,
      behind,
      reads: behind ? place.after : place.before,
      adds: place.after,
      kernel: fixed ?? kernel ?? own,
      stride: behind ? 1 : stride,
      step: network.size[1] / (behind ? width : width * stride), // pixels of the image a pixel of what is read
    };
  });
}

/** Parameters and multiply-accumulates of one adapter. */
function size(adapter, gamma) {
  const width = bottleneck(adapter.reads, gamma);
  const kernels = adapter.place.kind === "pool" ? adapter.reads * width : adapter.kernel ** 2 * adapter.reads;
  const spread = width * adapter.adds;
  return {
    width, down: kernels + width, up: spread + adapter.adds, alpha: adapter.adds,
    macs: (kernels + spread) * adapter.place.height * adapter.place.width,
  };
}

/** Everything that a setting costs; `field` is how wide a square of the image the adapters see through each other. */
function count(network, scheme, gamma, kernel) {
  const found = { down: 0, up: 0, alpha: 0, macs: 0, field: 0 };
  const placed = adapters(network, scheme, kernel);
  for (const adapter of placed) {
    const one = size(adapter, gamma);
    for (const key of ["down", "up", "alpha", "macs"]) found[key] += one[key];
    if (adapter.place.kind !== "pool") found.field += (adapter.kernel - 1) * adapter.step;
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
    const range = `${percent(Math.min(...values))} to ${percent(Math.max(...values))}`;
    said.push(`mean ${percent(mean(values))} of ${values.length} seeds (${range})`);
  } else said.push(values.length ? `${percent(values[0])} with one seed` : "no run learned");
  if (group.failed) said.push(`${group.failed} more gave every image the same answer`);
  if (group.broken) said.push(`${group.broken} more ended with an error`);
  if (group.missing) said.push(`${group.missing} more not run yet`);
  return said.join("; ");
}

// ---------------------------------------------------------------- drawing

const LINE = "#767676", GREY = "#6b6b6b", PALE = "#ececec", SOLID = "#d4d4d4", BAND = "#bdbdbd", DARK = "#1b1b1b";
const ADAPTER = "#d55e00", TINT = "#f6c9a6", DOWN = "#0072b2", WEDGES = ["#d3e8f5", "#9ecbe6"];

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
    for (const [i, line] of String(text).split("\n").entries()) {
      this.add("text", { x, y: y + 15 * i, "text-anchor": "middle", ...options }, line);
    }
  }
  line(points, color, width, options = {}) {
    this.add("polyline", { points: points.join(" "), fill: "none", stroke: color, "stroke-width": width, ...options });
  }
  shape(points, fill, options = {}) {
    this.add("polygon", { points: points.join(" "), fill, ...options });
  }
  arrow(from, to, color, width) {
    this.line([from, to], color, width);
    const [x, y] = to;
    const [dx, dy] = [Math.sign(x - from[0]), Math.sign(y - from[1])];
    const [backX, backY] = [x - 7 * dx, y - 7 * dy];
    this.shape([[x + 2 * dx, y + 2 * dy], [backX - 5 * dy, backY - 5 * dx], [backX + 5 * dy, backY + 5 * dx]], color);
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

// ---------------------------------------------------------------- picture 1: the scheme

const HOSTS = {
  downsample: "a down-sampling convolution between stages",
  pool: "the attention pool",
};
const MAIN = 92; // the height of the line that runs through the block

function drawScheme(network, scheme, adapter, gamma, widest) {
  const { width } = size(adapter, gamma), what = HOSTS[adapter.place.kind] ?? `the ${scheme.part}`;
  const described =
    `The adapter reads the ${adapter.behind ? "output" : "input"} of ${what}, ${adapter.reads} channels, ` +
    `squeezes them to ${width} and adds ${adapter.adds} channels to the output.`;
  const picture = new Picture(byId("scheme-drawing"), 286, described);
  const host = HOSTS[adapter.place.kind] ? drawSingle : drawBlock;
  const [read, write] = host(picture, network, scheme, adapter, widest);
  drawBowTie(picture, adapter, width, read * picture.width, write * picture.width, widest);
}

/** A band as thick as a map has channels, between two parts of the picture's width. */
function ribbon(picture, from, to, channels, widest) {
  const height = Math.max(1.5, (36 * channels) / widest), W = picture.width;
  picture.add("rect", { x: from * W, y: MAIN - height / 2, width: (to - from) * W, height, fill: BAND });
}

/** One layer outside the blocks; where, as parts of the width, its adapter reads and writes. */
function drawSingle(picture, network, scheme, { place, behind }, widest) {
  const W = picture.width, pool = place.kind === "pool";
  ribbon(picture, 0, 0.36, place.before, widest);
  ribbon(picture, 0.64, 1, place.after, widest);
  picture.text(0.13 * W, MAIN - 26, place.before);
  picture.text(0.93 * W, MAIN - 26, place.after);
  const label = pool ? "attention\npool" : `${kernelText(place.own)}\nstride ${place.stride}`;
  picture.box(0.5 * W, MAIN, 0.28 * W, 58, SOLID, label);
  picture.text(0.5 * W, MAIN - 56, pool ? "behind the last stage" : "between two stages", { class: "quiet" });
  return behind ? [0.7, 0.82] : [0.24, 0.76];
}

/** A residual block with its unit; where, as parts of the width, the adapter reads and writes. */
function drawBlock(picture, network, scheme, { place, behind }, widest) {
  const W = picture.width, index = network.places.indexOf(place);
  // A unit stands right before its block.
  const [unit, block] = place.kind === "unit" ? [place, network.places[index + 1]] : [network.places[index - 1], place];
  // Inverted residuals: the first one does not widen, and only where the map keeps its shape there is a shortcut.
  const inverted = network.before && network.unit === "depth-wise";
  const before = inverted && unit.before === block.before ? "" : network.before;
  const shortcut = !inverted || (block.before === block.after && block.stride === 1);
  ribbon(picture, 0, before ? 0.13 : 0.34, block.before, widest);
  if (before) ribbon(picture, 0.27, 0.34, unit.before, widest);
  ribbon(picture, 0.54, 0.66, unit.after, widest);
  ribbon(picture, 0.8, 1, block.after, widest);
  if (shortcut) {
    picture.line([[0.06 * W, MAIN], [0.06 * W, 30], [0.84 * W, 30], [0.84 * W, MAIN - 8]], LINE, 1.5);
    picture.text(0.45 * W, 24, "shortcut", { class: "quiet" });
    picture.sum(0.84 * W, MAIN, LINE);
  }
  const names = { convolution: `${kernelText(unit.own)}\nconv.`, "depth-wise": `${kernelText(unit.own)}\ndepth-wise` };
  if (before) picture.box(0.2 * W, MAIN, 0.14 * W, 44, PALE, before);
  picture.box(0.44 * W, MAIN, 0.2 * W, 58, SOLID, names[network.unit] ?? network.unit);
  picture.box(0.73 * W, MAIN, 0.14 * W, 44, PALE, network.after);
  const labels = [[before ? 0.1 : 0.2, block.before], [0.6, unit.after]];
  if (before) labels.push([0.305, unit.before]);
  for (const [x, channels] of labels) picture.text(x * W, MAIN - 26, channels, { class: "halo" });
  picture.text(W - 2, MAIN - 26, block.after, { class: "halo", "text-anchor": "end" });

  const ofUnit = scheme.part === "unit", [begin, end, y] = ofUnit ? [0.315, 0.565, 44] : [0.03, 0.875, 40];
  const frame = { x: begin * W, y, width: (end - begin) * W, height: 136 - y };
  picture.add("rect", { ...frame, fill: "none", stroke: LINE, "stroke-dasharray": "3 3" });
  picture.text(end * W - 8, 150, scheme.part, { class: "quiet", "text-anchor": "end" });
  if (ofUnit) return behind ? [0.565, 0.625] : [0.325, 0.6];
  return behind ? [0.9, 0.96] : [0.045, 0.93];
}

/** The adapter: as thick at its ends as the maps, and in its middle as the bottleneck. */
function drawBowTie(picture, { reads, adds }, width, read, write, widest) {
  const W = picture.width, low = 208, turn = 160, half = Math.min(70, W / 6);
  const middle = Math.min(Math.max((read + write) / 2, half + 60), W - half - 60);
  const from = middle - half, to = middle + half;
  const left = Math.min(read, from - 12), right = Math.max(write, to + 12);
  picture.line([[read, MAIN], [read, turn], [left, turn], [left, low], [from, low]], ADAPTER, 2.5);
  picture.add("circle", { cx: read, cy: MAIN, r: 5, fill: ADAPTER });
  picture.line([[to, low], [right, low], [right, turn], [write, turn]], ADAPTER, 2.5);
  picture.arrow([write, turn], [write, MAIN + 11], ADAPTER, 2.5);
  picture.sum(write, MAIN, ADAPTER);
  const [a, b, c] = [reads, width, adds].map((channels) => Math.max(1, (36 * channels) / widest));
  const outline = [[from, low - a], [middle, low - b], [to, low - c], [to, low + c], [middle, low + b], [from, low + a]];
  picture.shape(outline, TINT, { stroke: ADAPTER, "stroke-width": 1.5 });
  picture.line([[middle, low - b], [middle, low + b]], ADAPTER, 2.5);
  picture.text(from - 4, low + 48, `reads ${number(reads)}`, { class: "hot" });
  picture.text(middle, low + 66, `bottleneck w = ${number(width)}`, { class: "hot" });
  picture.text(to + 4, low + 48, `adds ${number(adds)}`, { class: "hot" });
}

// ---------------------------------------------------------------- picture 2: one adapter

const WIDE = 520; // pixels from which both halves stand side by side
const DRAWN = 24; // wedges at most

/** The channels of one adapter, and what one output pixel sees of a map. */
function drawAdapter(adapter, gamma, widest) {
  const { width } = size(adapter, gamma), kernel = adapter.kernel;
  const described =
    `${adapter.reads} channels in, ${width} in the bottleneck, ${adapter.adds} out; ` +
    `one output pixel sees ${kernelText(kernel)} pixels of what is read.`;
  const wide = byId("adapter-drawing").parentElement.clientWidth >= WIDE;
  const picture = new Picture(byId("adapter-drawing"), wide ? 236 : 380, described);
  drawChannels(picture, adapter, width, wide ? picture.width - 180 : picture.width, widest);

  const cell = 13, [x, y] = wide ? [picture.width - 74 - 4.5 * cell, 60] : [picture.width / 2 - 4.5 * cell, 240];
  const first = 4 - Math.floor((kernel - 1) / 2), seen = (at) => at >= first && at < first + kernel;
  for (let row = 0; row < 9; row += 1) {
    for (let column = 0; column < 9; column += 1) {
      const square = { x: x + column * cell, y: y + row * cell, width: cell - 1, height: cell - 1 };
      picture.add("rect", { ...square, fill: seen(row) && seen(column) ? ADAPTER : PALE });
    }
  }
  picture.text(x + 4.5 * cell, y - 8, `one output sees ${kernelText(kernel)}`);
}

/** How many wedges are drawn for the groups, the same number of groups in each. */
function wedges(adapter, width) {
  let drawn = adapter.place.kind === "pool" ? 1 : Math.min(width, DRAWN);
  while (width % drawn) drawn -= 1;
  return drawn;
}

/** Input, bottleneck and output as columns, as high as they have channels. */
function drawChannels(picture, adapter, width, span, widest) {
  const channels = [adapter.reads, width, adapter.adds], xs = [0.14, 0.5, 0.86].map((part) => part * span), center = 134;
  const columns = channels.map((count) => {
    const height = Math.max(1.5, (150 * count) / widest);
    return { top: center - height / 2, bottom: center + height / 2, height };
  });
  const [input, middle, output] = columns, drawn = wedges(adapter, width);
  for (let group = 0; group < drawn; group += 1) { // a channel of the bottleneck sees only its own group
    const at = (column, number) => column.top + (column.height * number) / drawn;
    const start = [[xs[0], at(input, group)], [xs[1], at(middle, group)]];
    const end = [[xs[1], at(middle, group + 1)], [xs[0], at(input, group + 1)]];
    picture.shape([...start, ...end], WEDGES[group % 2]);
  }
  picture.shape([[xs[1], middle.top], [xs[2], output.top], [xs[2], output.bottom], [xs[1], middle.bottom]], TINT);
  columns.forEach(({ top, height }, i) => {
    picture.add("rect", { x: xs[i] - 5, y: top, width: 10, height, fill: i === 1 ? ADAPTER : LINE });
    picture.text(xs[i], 18, `${["in", "bottleneck", "out"][i]}\n${number(channels[i])}`, i === 1 ? { class: "hot" } : {});
  });
  const down = adapter.place.kind === "pool" ? "1 × 1,\nlinear" : `${kernelText(adapter.kernel)},\nin groups`;
  picture.text((xs[0] + xs[1]) / 2, 18, down, { class: "quiet" });
  picture.text((xs[1] + xs[2]) / 2, 18, "1 × 1,\nall to all", { class: "quiet" });
}

/** One adapter in words: its groups, its maps, and the closed form with its own numbers. */
function adapterText(adapter, gamma) {
  const { reads, adds, kernel, stride, place } = adapter, one = size(adapter, gamma), pool = place.kind === "pool";
  const [cIn, cOut, w] = [reads, adds, one.width].map(number), each = one.width / wedges(adapter, one.width);
  const several = each > 1 ? ` (each wedge stands for ${number(each)} of them)` : "";
  const groups = one.width === 1 ? "1 group" : `${w} groups${several}`;
  const where = pool
    ? `On ${place.height} tokens, without groups.`
    : `${groups}; stride ${stride}, on maps of ${kernelText(place.height)} pixels.`;
  return [
    where,
    `Down ${pool ? `${cIn} · ${w}` : `${kernel}² · ${cIn}`} + ${w} = ${number(one.down)},`,
    `up ${w} · ${cOut} + ${cOut} = ${number(one.up)}, alpha ${number(one.alpha)}:`,
    `${number(one.down + one.up + one.alpha)} parameters and ${rounded(one.macs)} MACs in this adapter.`,
    "Heights are in proportion to channels.",
  ].join(" ");
}

// ---------------------------------------------------------------- picture 3: how parameters divide, and against compression

const PARTS = [["down", "K × K down", DOWN], ["up", "1 × 1 up", ADAPTER], ["alpha", "alpha", DARK]];

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

const SHAPES = {
  square: [[-5, -5], [5, -5], [5, 5], [-5, 5]],
  triangle: [[0, -5], [5, 5], [-5, 5]],
  diamond: [[0, -7], [7, 0], [0, 7], [-7, 0]],
};

function mark(picture, shape, x, y, color) {
  if (shape === "circle") picture.add("circle", { cx: x, cy: y, r: 5, fill: color });
  else picture.shape(SHAPES[shape].map(([dx, dy]) => [x + dx, y + dy]), color);
}

/** The powers of ten between which all counts of each backbone lie, whatever scheme and knobs. */
const LIMITS = new Map();

function limits(network) {
  if (!LIMITS.has(network)) {
    const all = SCHEMES.flatMap((scheme) => COMPRESSIONS.flatMap((gamma) =>
      KERNELS.map((kernel) => count(network, scheme, gamma, kernel).adapters)));
    LIMITS.set(network, [Math.floor(Math.log10(Math.min(...all))), Math.ceil(Math.log10(Math.max(...all)))]);
  }
  return LIMITS.get(network);
}

function drawCurve(network, chosen, gamma, kernel) {
  const [least, most] = limits(network);
  const here = SCHEMES.map((scheme) => count(network, scheme, gamma, kernel).adapters);
  const said = SCHEMES.map((scheme, i) => `${scheme.name} ${number(here[i])}`).join(", ");
  const described = `Parameters of all adapters at compression ${gamma}: ${said}`;
  const picture = new Picture(byId("curve-drawing"), 280, described);
  const [left, right, top, bottom] = [92, picture.width - 16, 14, 232];
  const x = (i) => left + 10 + (right - left - 20) * i / (COMPRESSIONS.length - 1);
  const y = (value) => bottom - (bottom - top) * (Math.log10(value) - least) / (most - least);
  for (let power = least; power <= most; power += 1) {
    picture.line([[left, y(10 ** power)], [right, y(10 ** power)]], "#d9d9d9", 1);
    const label = number(10 ** power).replace(/,000,000,000$/, " billion").replace(/,000,000$/, " million");
    picture.text(left - 6, y(10 ** power) + 4, label, { "text-anchor": "end", class: "quiet" });
  }
  const whole = Math.log10(network.parameters);
  if (whole < most) {
    picture.line([[left, y(network.parameters)], [right, y(network.parameters)]], LINE, 1, { "stroke-dasharray": "4 4" });
    picture.text(right, y(network.parameters) - 5, "the whole backbone", { "text-anchor": "end", class: "quiet" });
  }
  COMPRESSIONS.forEach((value, i) => picture.text(x(i), bottom + 18, value, { class: value === gamma ? "hot" : "quiet" }));
  picture.text((left + right) / 2, bottom + 38, "compression (gamma)", { class: "quiet" });
  const i = COMPRESSIONS.indexOf(gamma);
  picture.line([[x(i), top], [x(i), bottom]], "#e9b48c", 1.5);
  const order = [...SCHEMES.keys()].sort((a, b) => (SCHEMES[a] === chosen) - (SCHEMES[b] === chosen)); // the chosen one on top
  for (const at of order) {
    const color = SCHEMES[at] === chosen ? ADAPTER : GREY, [dash, shape] = STYLES[at];
    const points = COMPRESSIONS.map((value, j) => [x(j), y(count(network, SCHEMES[at], value, kernel).adapters)]);
    picture.line(points, color, SCHEMES[at] === chosen ? 3 : 1.5, { "stroke-dasharray": dash });
    mark(picture, shape, ...points[i], color);
  }
  byId("curve-legend").replaceChildren(...SCHEMES.map((scheme, at) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 44 16");
    svg.setAttribute("aria-hidden", "true");
    const total = element("span", { class: "number" }, number(here[at]));
    const item = element("li", scheme === chosen ? { class: "chosen" } : {}, svg, scheme.name, total);
    const color = scheme === chosen ? ADAPTER : GREY;
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
  byId("costs").tBodies[0].replaceChildren(...rows.map(([name, value, kind = ""]) => {
    const head = element("th", { scope: "row" }, name), row = element("tr", {}, head, element("td", {}, value));
    head.classList.toggle("part", kind === "part");
    row.classList.toggle("sum", kind === "sum");
    return row;
  }));
}

const METHODS = {
  conv_adapter: ["Conv-Adapter", "#d55e00"],
  linear: ["Linear probe (no adapters)", "#56b4e9"],
  full: ["Full fine-tuning", "#009e73"],
};

/** The runs of one method on a line from 0 to 100 %: a dot each, a stroke at their mean. */
function strip(group, color) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 1000 14");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true"); // the text beside it says the same
  const picture = Object.create(Picture.prototype, { svg: { value: svg } });
  const line = (x, y, to, end, color, width) =>
    picture.line([[x, y], [to, end]], color, width, { "vector-effect": "non-scaling-stroke", "stroke-linecap": "round" });
  for (let tick = 0; tick <= 1000; tick += 250) line(tick, 1, tick, 13, "#c4c4c4", 1);
  line(0, 7, 1000, 7, LINE, 1);
  const values = group.runs.map(([, value]) => 1000 * value);
  for (const [fill, width] of [["#444", 10.5], [color, 8]]) {
    for (const x of values) line(x, 7, x, 7.01, fill, width);
  }
  if (values.length) line(mean(values), 1, mean(values), 13, DARK, 2);
  return svg;
}

function recordCard(record) {
  const rows = [{ ...record, method: "conv_adapter" }, ...record.beside].map((group) => {
    const [name, color] = METHODS[group.method];
    return element("li", {}, element("b", {}, name), `: ${outcome(group)}`, strip(group, color));
  });
  const metric = `Test ${record.metric.replace("_", " ")}, each line from 0 to 100\u00a0%:`;
  const notes = [
    ...(record.runs.length ? [seedsText(record)] : []),
    `${record.classes} classes, ${number(record.trainable)} trained parameters with the classifier,`,
    `pictures of ${record.size} pixels, ${record.epochs} epochs, learning rate ${record.lr}, ${record.init} start.`,
    "Recorded in ",
  ].join(" ");
  const source = [element("code", {}, `minica/results/${record.file}`), ` as “${record.method}”.`];
  return element("article", { class: "record" }, element("h4", {}, record.task), element("p", {}, metric),
    element("ul", {}, ...rows), element("p", { class: "small" }, notes, ...source));
}

/** The run of each seed, with its interval where one was recorded. */
function seedsText({ runs }) {
  const said = runs.map(([seed, value, , ...interval]) => {
    const [low, high] = interval.map((end) => (100 * end).toFixed(1));
    return `${seed}: ${percent(value)}${interval.length ? ` (${low} to ${high})` : ""}`;
  });
  const images = runs.map(([, , count]) => count), [least, most] = [Math.min(...images), Math.max(...images)];
  const interval = runs.some((run) => run.length > 3) ? " (95\u00a0% interval over the test images)" : "";
  const tested = least === most ? number(least) : `${number(least)} to ${number(most)}`;
  return `By seed${interval}: ${said.join(", ")}; on ${tested} test images.`;
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
    if (!reachable) {
      const said = records.map((record) => `${record.task}: ${outcome(record)}.`).join(" ");
      return element("li", {}, `${label}, between the sliders' stops. ${said}`);
    }
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
  const list = items.length ? element("ul", { class: "settings" }, ...items) : element("p", {}, "None yet.");
  byId("recorded").replaceChildren(list);
}

// ---------------------------------------------------------------- the page

const UNIT = "unit, the block's spatial convolution with its norm and activation";
const SCHEME_TEXTS = {
  conv_parallel: `The adapter stands beside each ${UNIT}: it reads what the unit reads and adds to what the unit gives.`,
  conv_sequential: `The adapter stands behind each ${UNIT}: it reads what the unit gives and adds to it.`,
  residual_parallel: "The adapter stands beside each residual block: it reads what the block reads and adds to what it gives.",
  residual_sequential: "The adapter stands behind each residual block: it reads what the block gives and adds to it.",
};

function networkText(network) {
  const size = `${rounded(network.parameters)} parameters, images of ${kernelText(network.size[0])} pixels`;
  if (network.packaged) return `${size}. Its weights come with the course.`;
  if (network.weights.length) return `${size}. In the paper: ${network.weights.join(", ")}.`;
  return `${size}. The trunk of a detector, in the course's records.`;
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
  const alike = SCHEMES.map((other) => adapters(network, other, kernel)[at]);
  const widest = Math.max(...alike.flatMap(({ reads, adds }) => [reads, adds])); // so that the sliders change no scale
  const owns = [...new Set(placed.filter((one) => one.place.kind === scheme.part).map((one) => one.place.own))].sort();

  say("compression", `gamma = ${gamma}`);
  say("kernel", kernel === null ? `own: ${owns.map(kernelText).join(", ")}` : `K = ${kernel}`);
  say("place", `${at + 1} of ${placed.length}`);
  byId("place-name").textContent = adapter.place.name;
  byId("summary").replaceChildren(element("b", {}, `${number(found.adapters)} parameters`),
    ` in ${placed.length} adapters, ${share(found.adapters / network.parameters)} of ${network.title}`);
  byId("network-text").textContent = networkText(network);
  const host = HOSTS[adapter.place.kind];
  const aside = host ? ` The one drawn, at ${host}, is there in every scheme.` : "";
  byId("scheme-text").textContent = SCHEME_TEXTS[scheme.name] + aside;

  drawScheme(network, scheme, adapter, gamma, widest);
  drawAdapter(adapter, gamma, widest);
  byId("adapter-text").textContent = adapterText(adapter, gamma);
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
  const first = RECORDS.find((record) =>
    record.network === NETWORKS[0].name && KERNELS.includes(record.kernel) && COMPRESSIONS.includes(record.compression));
  byId("scheme").value = first?.scheme ?? SCHEMES[0].name;
  byId("compression").value = COMPRESSIONS.indexOf(first?.compression ?? 4);
  byId("kernel").value = KERNELS.indexOf(first?.kernel ?? null);
  byId("place").value = 0;
  for (const { number: at, title, subject, link } of EXPLORER.notebooks) {
    const about = element("span", { class: "small" }, subject);
    byId("notebooks").append(element("li", {}, `${at} `, element("a", { href: link }, title), about));
  }
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
