// The metric against training time: a line a method through the means, a mark a seed. A method can be switched off in the
// legend; pointer and touch show the nearest run, the arrow keys walk from run to run.

const MARKS = {
  o: 'M4.5 0A4.5 4.5 0 1 1-4.5 0A4.5 4.5 0 1 1 4.5 0Z',
  s: 'M-4-4H4V4H-4Z',
  D: 'M0-5.6L5.6 0L0 5.6L-5.6 0Z',
  '^': 'M0-5L5 4H-5Z',
  v: 'M0 5L5-4H-5Z',
  P: 'M-1.8-5H1.8V-1.8H5V1.8H1.8V5H-1.8V1.8H-5V-1.8H-1.8Z',
  X: 'M0-2.4L2.6-5L5-2.6L2.4 0L5 2.6L2.6 5L0 2.4L-2.6 5L-5 2.6L-2.4 0L-5-2.6L-2.6-5Z',
  '*': 'M0-6L1.6-2H5.8L2.4.8L3.6 5L0 2.5L-3.6 5L-2.4.8L-5.8-2H-1.6Z',
};

function metricChart(holder, data) {
  const hidden = new Set();
  const legend = element('div', { class: 'legend', role: 'group', 'aria-label': 'Methods' });
  const stage = element('div');
  holder.append(legend, stage);
  data.curves.forEach((curve, i) => {
    const sign = svg('svg', { viewBox: '-13 -7 26 14', 'aria-hidden': 'true' });
    const colour = `var(--series-${curve.series})`;
    sign.append(svg('line', { x1: -13, x2: 13, y1: 0, y2: 0, stroke: colour, 'stroke-width': 2 }));
    sign.append(svg('path', { d: MARKS[curve.marker], fill: colour }));
    const button = element('button', { type: 'button', 'aria-pressed': 'true' }, sign, `${curve.label} (n = ${curve.seeds})`);
    button.addEventListener('click', () => {
      if (!hidden.delete(i)) hidden.add(i);
      button.setAttribute('aria-pressed', String(!hidden.has(i)));
      draw(stage.clientWidth);
    });
    legend.append(button);
  });

  function draw(width) {
    const curves = data.curves.filter((_, i) => !hidden.has(i));
    const runs = curves.flatMap((curve) => curve.stages.flatMap((at) => at.points.map(([seed, time, value]) => (
      { curve, seed, epoch: at.epoch, time, value }
    )))).filter((run) => run.time !== null && run.value !== null);
    const frame = { left: 46, right: width - 14, top: 26, bottom: (width < 520 ? 260 : 340) - 48 };
    const values = runs.map((run) => run.value);
    const [lowest, highest] = runs.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
    const margin = (highest - lowest) * 0.08 || Math.abs(highest) * 0.05 || 1;
    const longest = Math.max(...runs.map((run) => run.time), 1e-9);
    const x = scaled(0, longest * 1.03, frame.left, frame.right);
    const y = scaled(lowest - margin, highest + margin, frame.bottom, frame.top);
    const drawing = svg('svg', {
      height: frame.bottom + 48, tabindex: 0, role: 'group',
      'aria-label': `${data.title}. Arrow keys go from run to run.`,
    });
    drawing.append(axes(
      frame,
      { scale: x, ticks: ticks(0, longest, width < 520 ? 4 : 7), title: data.x },
      { scale: y, ticks: ticks(lowest - margin, highest + margin, 5), title: data.y },
    ));
    for (const curve of curves) {
      const means = curve.stages.map(({ mean }) => (mean.includes(null) ? [NaN, NaN] : [x(mean[0]), y(mean[1])]));
      drawing.append(svg('path', { d: path(means), fill: 'none', stroke: `var(--series-${curve.series})`, 'stroke-width': 2 }));
    }
    runs.sort((a, b) => a.time - b.time);
    for (const run of runs) {
      drawing.append(svg('path', {
        class: 'run', d: MARKS[run.curve.marker], transform: `translate(${x(run.time)} ${y(run.value)})`,
        fill: `var(--series-${run.curve.series})`, stroke: 'var(--page)', 'stroke-width': 1,
      }));
    }
    const ring = svg('circle', { r: 9, fill: 'none', stroke: 'var(--ink)', 'stroke-width': 2, visibility: 'hidden' });
    drawing.append(ring);
    let at = -1;

    function show(index) {
      at = index;
      const run = runs[at];
      const [left, top] = [x(run.time), y(run.value)];
      ring.setAttribute('cx', left);
      ring.setAttribute('cy', top);
      ring.setAttribute('visibility', 'visible');
      showTip(() => around(drawing, left, top), `${run.curve.label}, seed ${run.seed}`, [
        `${data.y}: ${shortNumber(run.value)}`,
        `after ${shortNumber(run.time)} ${data.unit}, epoch ${shortNumber(run.epoch)}`,
      ]);
    }
    function leave() {
      ring.setAttribute('visibility', 'hidden');
      hideTip();
    }
    function nearest(event) {
      const [left, top] = pointer(drawing, event);
      const far = runs.map((run) => Math.hypot(x(run.time) - left, y(run.value) - top));
      const index = far.indexOf(Math.min(...far));
      if (far[index] < 40) show(index);
      else leave();
    }
    if (runs.length) {
      drawing.addEventListener('pointermove', nearest);
      drawing.addEventListener('pointerdown', nearest);
      drawing.addEventListener('keydown', (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        show((at + step + runs.length) % runs.length);
      });
    }
    drawing.addEventListener('pointerleave', (event) => event.pointerType === 'touch' || leave());
    drawing.addEventListener('blur', leave);
    stage.replaceChildren(drawing);
  }
  redrawn(stage, draw);
}
