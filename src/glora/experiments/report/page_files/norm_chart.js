// Gradient norms over the warm-up, a panel a matrix type: its own matrices from pale (first layer) to strong (last), thick
// their median, all others behind them in grey. Pointer and touch show the nearest matrix, the arrow keys go along the
// steps and from matrix to matrix.

function normChart(holder, data) {
  const seen = data.values.flat().filter((value) => value !== null && (!data.logarithmic || value > 0));
  const lowest = seen.reduce((a, b) => Math.min(a, b), Infinity);
  const highest = seen.reduce((a, b) => Math.max(a, b), -Infinity);
  const panels = element('div', { class: 'panels' });
  const scale = data.logarithmic ? ' (log scale)' : '';
  holder.append(element('p', { class: 'note' }, `Averaged gradient norm${scale} by optimiser step of the warm-up`), panels);
  if (!seen.length) return;
  const [low, high] = data.logarithmic ? [lowest, highest] : [Math.min(0, lowest), highest];
  const [first, last] = [data.steps[0], data.steps[data.steps.length - 1]];
  const greys = Math.ceil(data.values.length / 150);

  data.panels.forEach((panel, position) => {
    const stage = element('div');
    panels.append(element('div', {}, element('h4', {}, panel.title), stage));
    redrawn(stage, (width) => draw(stage, width, panel, position));
  });

  function draw(stage, width, panel, position) {
    const frame = { left: 44, right: width - 6, top: 8, bottom: 150 };
    const x = scaled(first, last, frame.left, frame.right);
    const y = scaled(low, high, frame.bottom, frame.top, data.logarithmic);
    const place = (values) => values.map((value, i) => (
      [x(data.steps[i]), value === null || (data.logarithmic && value <= 0) ? NaN : y(value)]
    ));
    const drawing = svg('svg', {
      height: frame.bottom + 26, tabindex: 0, role: 'group',
      'aria-label': `Gradient norms of ${panel.title} by optimiser step. Left and right: step. Up and down: matrix.`,
    });
    drawing.append(axes(
      frame,
      { scale: x, ticks: ticks(first, last, 4).filter(Number.isInteger) },
      { scale: y, ticks: data.logarithmic ? logTicks(low, high) : ticks(low, high, 4) },
    ));
    const behind = data.values.filter((_, i) => i % greys === 0).map((values) => path(place(values))).join('');
    drawing.append(svg('path', { d: behind, fill: 'none', stroke: 'var(--faint)', 'stroke-width': 0.6, opacity: 0.6 }));
    const colour = themed(`series-${position % 8}`);
    const [page, ink] = [themed('page'), themed('ink')];
    panel.lines.forEach((line, depth) => {
      const share = panel.lines.length > 1 ? depth / (panel.lines.length - 1) : 0.5;
      const stroke = share < 0.5 ? mixed(colour, page, 0.55 - 1.1 * share) : mixed(colour, ink, 0.8 * share - 0.4);
      const own = { d: path(place(data.values[line])), fill: 'none', stroke, 'stroke-width': 1.2 };
      drawing.append(svg('path', own));
      if (data.steps.length === 1) drawing.append(svg('circle', { cx: x(first), cy: y(data.values[line][0]), r: 3, fill: stroke }));
    });
    if (panel.lines.length > 1) {
      drawing.append(svg('path', { d: path(place(panel.median)), fill: 'none', stroke: 'var(--ink)', 'stroke-width': 2.4 }));
    }
    const chosen = svg('path', { fill: 'none', stroke: 'var(--accent)', 'stroke-width': 2.6, visibility: 'hidden' });
    const dot = svg('circle', { r: 4.5, fill: 'var(--accent)', stroke: 'var(--page)', 'stroke-width': 1.5, visibility: 'hidden' });
    drawing.append(chosen, dot);
    let [row, step] = [-1, data.steps.length - 1];

    function show() {
      const line = panel.lines[row];
      const value = data.values[line][step];
      const places = place(data.values[line]);
      const [left, top] = Number.isFinite(places[step][1]) ? places[step] : [places[step][0], frame.bottom];
      chosen.setAttribute('d', path(places));
      dot.setAttribute('cx', left);
      dot.setAttribute('cy', top);
      for (const mark of [chosen, dot]) mark.setAttribute('visibility', 'visible');
      showTip(() => around(drawing, left, top), data.names[line], [
        `step ${data.steps[step]}: norm ${value === null ? 'not a number' : shortNumber(value)}`,
      ]);
    }
    function leave() {
      for (const mark of [chosen, dot]) mark.setAttribute('visibility', 'hidden');
      hideTip();
    }
    function nearest(event) {
      const [left, top] = pointer(drawing, event);
      const closest = (far) => far.indexOf(Math.min(...far));
      step = closest(data.steps.map((at) => Math.abs(x(at) - left)));
      row = closest(panel.lines.map((line) => {
        const [, height] = place(data.values[line])[step];
        return Number.isFinite(height) ? Math.abs(height - top) : Infinity;
      }));
      show();
    }
    drawing.addEventListener('pointermove', nearest);
    drawing.addEventListener('pointerdown', nearest);
    drawing.addEventListener('pointerleave', (event) => event.pointerType === 'touch' || leave());
    drawing.addEventListener('blur', leave);
    drawing.addEventListener('keydown', (event) => {
      const [lines, steps] = [panel.lines.length, data.steps.length];
      if (event.key === 'ArrowLeft') step = Math.max(0, step - 1);
      else if (event.key === 'ArrowRight') step = Math.min(steps - 1, step + 1);
      else if (event.key === 'ArrowDown') row = (row + 1) % lines;
      else if (event.key === 'ArrowUp') row = (row - 1 + lines) % lines;
      else return;
      event.preventDefault();
      row = Math.max(row, 0);
      show();
    });
    stage.replaceChildren(drawing);
  }
}
