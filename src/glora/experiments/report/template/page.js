'use strict';
// Charts: embedded at the width that there is, in the colors of the scheme, and again when either changes.
const { charts, light, dark } = JSON.parse(document.getElementById('charts').textContent);
const scheme = matchMedia('(prefers-color-scheme: dark)');
const drawn = new Map();

async function draw(holder) {
  const spec = structuredClone(charts[holder.dataset.section][holder.dataset.index]);
  const width = holder.clientWidth;
  delete spec.title; // the page has it as text
  if (spec.usermeta) spec.width = 'container';
  if (spec.facet) spec.columns = Math.max(1, Math.min(spec.columns, Math.floor((width - 40) / (spec.spec.width + 25))));
  const config = structuredClone(scheme.matches ? dark : light);
  config.background = null;
  if (width < 520) config.legend.columns = 2;
  const options = { actions: false, ast: true, renderer: spec.facet ? 'canvas' : 'svg', config };
  (await drawn.get(holder))?.finalize();
  drawn.set(holder, vegaEmbed(holder, spec, { ...options, defaultStyle: false, tooltip: { disableDefaultStyle: true } }));
}
const widths = new WeakMap();
const watch = new ResizeObserver((entries) => entries.forEach(({ target, contentRect }) => {
  if (widths.get(target) !== contentRect.width) draw(target);
  widths.set(target, contentRect.width);
}));
const holders = document.querySelectorAll('[data-index]');
holders.forEach((holder) => watch.observe(holder));
// Vega shows values under a pointer that moves. A touch does not move: tell Vega it did, and keep the values until the next touch.
holders.forEach((holder) => {
  holder.addEventListener('pointerout', (event) => event.pointerType === 'touch' && event.stopPropagation(), true);
  holder.addEventListener('pointerdown', (event) => event.target.dispatchEvent(new PointerEvent('pointermove', event)), true);
});
const hideValues = () => document.getElementById('vg-tooltip-element')?.classList.remove('visible');
for (const kind of ['pointerdown', 'scroll']) addEventListener(kind, hideValues, true);
scheme.addEventListener('change', () => holders.forEach(draw));

// Tables: a click on a column's button sorts upwards, then downwards; what is missing stays last.
const words = new Intl.Collator('en', { numeric: true, sensitivity: 'base' });
document.querySelectorAll('table').forEach((table) => [...table.tHead.rows[0].cells].forEach((head, column) => {
  head.firstElementChild.addEventListener('click', () => {
    const down = head.ariaSort === 'ascending';
    for (const other of head.parentNode.cells) other.ariaSort = 'none';
    head.ariaSort = down ? 'descending' : 'ascending';
    const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
    const compare = head.className ? words.compare : (a, b) => a - b;
    const rows = [...table.tBodies[0].rows].sort((a, b) => (
      (key(a) === '') - (key(b) === '') || (down ? -1 : 1) * compare(key(a), key(b))
    ));
    table.tBodies[0].append(...rows);
  });
}));
