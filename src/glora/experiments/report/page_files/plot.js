// What the line charts share: colours of the theme, ticks, scales, axes, and finding a point by pointer or keyboard.

const SVG = 'http://www.w3.org/2000/svg';
const dark = matchMedia('(prefers-color-scheme: dark)');

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function themed(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function channels(colour) {
  return [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
}

function mixed(colour, other, share) {
  const [a, b] = [channels(colour), channels(other)];
  return `rgb(${a.map((value, i) => Math.round(value + (b[i] - value) * share)).join(' ')})`;
}

// Draws now, and again when the width or the colour scheme changes.
function redrawn(holder, draw) {
  let width = 0;
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now && now !== width) draw(width = now);
  }).observe(holder);
  dark.addEventListener('change', () => width && draw(width));
}

function ticks(low, high, wanted) {
  const rough = (high - low || Math.abs(high) || 1) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(i * step);
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const factor of [1, 3]) {
      const value = factor * 10 ** power;
      if (value >= low && value <= high) found.push(value);
    }
  }
  return found.length > 1 ? found : ticks(low, high, 3);
}

function shortNumber(value) {
  return Number(value.toPrecision(4)).toString();
}

function scaled(low, high, from, to, logarithmic = false) {
  const of = logarithmic ? Math.log10 : (value) => value;
  const span = of(high) - of(low) || 1;
  return (value) => from + ((of(value) - of(low)) / span) * (to - from);
}

// Grid lines and labels for both axes; x and y are { scale, ticks, title }.
function axes(frame, x, y) {
  const group = svg('g', { 'aria-hidden': 'true' });
  for (const value of y.ticks) {
    const at = y.scale(value);
    group.append(svg('line', { class: 'grid', x1: frame.left, x2: frame.right, y1: at, y2: at }));
    group.append(svg('text', { x: frame.left - 8, y: at + 4, 'text-anchor': 'end' }, shortNumber(value)));
  }
  for (const value of x.ticks) {
    const at = x.scale(value);
    group.append(svg('line', { class: 'grid', x1: at, x2: at, y1: frame.bottom, y2: frame.bottom + 5 }));
    group.append(svg('text', { x: at, y: frame.bottom + 19, 'text-anchor': 'middle' }, shortNumber(value)));
  }
  if (x.title) {
    const middle = (frame.left + frame.right) / 2;
    group.append(svg('text', { class: 'axis-title', x: middle, y: frame.bottom + 38, 'text-anchor': 'middle' }, x.title));
  }
  if (y.title) group.append(svg('text', { class: 'axis-title', x: 0, y: 12 }, y.title));
  return group;
}

function path(points) {
  let text = '';
  let pen = 'M';
  for (const [x, y] of points) {
    if (Number.isFinite(x) && Number.isFinite(y)) {
      text += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
      pen = 'L';
    } else {
      pen = 'M';
    }
  }
  return text;
}

// Where the pointer is in the drawing, and the box around a place of the drawing on the screen.
function pointer(drawing, event) {
  const box = drawing.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function around(drawing, x, y) {
  const box = drawing.getBoundingClientRect();
  return { left: box.left + x - 6, right: box.left + x + 6, top: box.top + y - 6, bottom: box.top + y + 6 };
}
