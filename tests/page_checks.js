"use strict";
// What the tests of the explorer ask of the page itself; they put this script beside its own.

/** Texts that are cut or lie over each other in a picture, numbers that are none, and a page that scrolls sideways. */
function faults() {
  const bad = [], box = (element) => element.getBoundingClientRect(), none = /NaN|undefined|Infinity/;
  for (const svg of document.querySelectorAll("svg[role=img]")) {
    const edge = box(svg), texts = [...svg.querySelectorAll("text")].map((text) => [text.textContent, box(text)]);
    if (none.test(svg.outerHTML)) bad.push(`${svg.id}: no number`);
    if (!svg.getAttribute("aria-label")) bad.push(`${svg.id}: no description`);
    texts.forEach(([text, one], i) => {
      const wideEnough = one.left > edge.left - 1 && one.right < edge.right + 1;
      if (!wideEnough || one.top < edge.top - 1 || one.bottom > edge.bottom + 1) bad.push(`${svg.id}: ${text} is cut`);
      for (const [other, two] of texts.slice(i + 1)) {
        const wide = Math.min(one.right, two.right) - Math.max(one.left, two.left);
        const high = Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top);
        if (wide > 1 && high > 4) bad.push(`${svg.id}: ${text} and ${other} collide`);
      }
    });
  }
  if (document.documentElement.scrollWidth > innerWidth) bad.push("the page scrolls sideways");
  for (const text of document.querySelectorAll("output, td, #summary, figcaption")) {
    if (none.test(text.textContent)) bad.push(text.textContent);
  }
  return bad;
}

/** The faults of every network and scheme at both ends of the sliders, at the first, an inner and the last place. */
function faultsEverywhere() {
  const bad = new Set();
  for (const network of NETWORKS) {
    for (const scheme of SCHEMES) {
      for (const [compression, kernel] of [[0, 0], [COMPRESSIONS.length - 1, KERNELS.length - 1]]) {
        const setting = { network: network.name, scheme: scheme.name, compression, kernel };
        for (const [id, value] of Object.entries(setting)) byId(id).value = value;
        for (const place of [0, 3, 999]) {
          byId("place").value = place;
          update();
          for (const fault of faults()) bad.add(`${Object.values(setting)}: ${fault}`);
        }
      }
    }
  }
  return [...bad];
}

function parseColor(color) {
  const [red, green, blue, opacity = 1] = color.match(/[\d.]+/g).map(Number);
  return { rgb: [red, green, blue], opacity };
}

/** Relative luminance (WCAG 2.2). */
function luminance(rgb) {
  const linear = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const [red, green, blue] = rgb.map((value) => linear(value / 255));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

/** What stands behind an element's text: its background and those of what is around it, one through the other, on white. */
function colorBehind(element) {
  const layers = [];
  for (let at = element; at; at = at.parentElement) layers.push(parseColor(getComputedStyle(at).backgroundColor));
  return layers.reverse().reduce(
    (below, { rgb, opacity }) => below.map((value, i) => value + opacity * (rgb[i] - value)), [255, 255, 255]);
}

/** The contrast of every text on the page with what is behind it; in pictures, with their darkest box. */
function contrasts() {
  const texts = [...document.querySelectorAll("body *")].filter((element) => !element.closest("script, noscript, option") &&
    [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim()));
  return texts.map((element) => {
    const style = getComputedStyle(element), drawn = element instanceof SVGElement;
    const front = luminance(parseColor(drawn ? style.fill : style.color).rgb);
    const back = luminance(drawn ? [212, 212, 212] : colorBehind(element));
    return [(Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05), element.textContent.trim().slice(0, 40)];
  });
}
