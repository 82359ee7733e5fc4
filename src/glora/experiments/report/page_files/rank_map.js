// The rank of every matrix as a table of coloured cells, layers by matrix types: neutral is uniform LoRA's rank. One cell is
// in the tab order, the arrow keys, Home and End go on from there; pointer, touch and focus show whose rank it is.

function luminance([red, green, blue]) {
  const linear = (value) => (value <= 0.04045 * 255 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
}

function rankMap(holder, data) {
  const cells = new Map(data.cells.map((cell) => [cell.at.join(), cell]));
  const head = element('tr', {}, element('td', { class: 'corner' }, data.rowTitle));
  for (const column of data.columns) head.append(element('th', { scope: 'col', title: column }, element('span', {}, column)));
  const body = element('tbody');
  const places = [];
  data.rows.forEach((label, row) => {
    const line = element('tr', {}, element('th', { scope: 'row', title: label }, label));
    places.push(data.columns.map((column, at) => {
      const cell = cells.get(`${row},${at}`);
      const place = element('td', cell ? { tabindex: -1 } : { class: 'empty' }, cell ? cell.text : '');
      if (cell) place.setAttribute('aria-label', describe(cell, label, column).flat().join(', '));
      line.append(place);
      return cell ? place : null;
    }));
    body.append(line);
  });
  const table = element('table', { role: 'grid', 'aria-label': data.title, 'aria-readonly': 'true' }, element('thead', {}, head), body);
  const scale = element(
    'div', { class: 'scale', 'aria-hidden': 'true' },
    element('i'), element('span', {}, 'rank 0'), element('span', {}, `${data.uniform}, uniform`), element('span', {}, `${data.highest}`),
  );
  holder.append(element('div', { class: 'scroll' }, table), scale);

  function describe(cell, label, column) {
    const several = cell.matrices > 1;
    const where = label === '–' ? column : `${data.rowTitle} ${label}, ${column}`;
    const title = several ? `${where}: ${cell.matrices} matrices` : cell.name;
    const lines = [`${several ? 'mean rank' : 'rank'} ${cell.text} (uniform LoRA: ${data.uniform})`];
    if (data.seeds.length > 1) lines.push(`seeds ${data.seeds.join(', ')}: ${cell.bySeed.join(', ')}`);
    return [title, lines];
  }
  function at(place) {
    return [place.parentNode.rowIndex - 1, place.cellIndex - 1];
  }
  function show(place) {
    const [row, column] = at(place);
    const cell = cells.get(`${row},${column}`);
    showTip(() => place.getBoundingClientRect(), ...describe(cell, data.rows[row], data.columns[column]));
  }
  function paint() {
    const [less, neutral, more] = ['less', 'neutral', 'more'].map(themed);
    for (const [key, cell] of cells) {
      const [row, column] = key.split(',').map(Number);
      const share = cell.rank < data.uniform
        ? (data.uniform - cell.rank) / data.uniform
        : (cell.rank - data.uniform) / (data.highest - data.uniform);
      const colour = mixed(neutral, cell.rank < data.uniform ? less : more, Math.min(1, share));
      const light = luminance(colour.match(/\d+/g).map(Number));
      places[row][column].style.background = colour;
      places[row][column].style.color = 1.05 / (light + 0.05) > (light + 0.05) / 0.05 ? '#ffffff' : '#000000';
    }
  }
  function go(row, column, down, across) {
    let [to, aside] = [row + down, column + across];
    while (places[to] && aside in places[to] && !places[to][aside]) [to, aside] = [to + down, aside + across];
    return (places[to] && places[to][aside]) || null;
  }

  let current = places.flat().find(Boolean);
  if (current) current.tabIndex = 0;
  table.addEventListener('focusin', ({ target }) => {
    if (!target.matches('tbody td')) return;
    current.tabIndex = -1;
    current = target;
    current.tabIndex = 0;
    show(current);
  });
  table.addEventListener('focusout', hideTip);
  table.addEventListener('keydown', (event) => {
    if (!event.target.matches('tbody td')) return;
    const [row, column] = at(event.target);
    const there = places[row].filter(Boolean);
    const next = {
      ArrowRight: () => go(row, column, 0, 1),
      ArrowLeft: () => go(row, column, 0, -1),
      ArrowDown: () => go(row, column, 1, 0),
      ArrowUp: () => go(row, column, -1, 0),
      Home: () => there[0],
      End: () => there[there.length - 1],
    }[event.key];
    if (!next) return;
    event.preventDefault();
    const place = next();
    if (place) place.focus();
  });
  for (const kind of ['pointerover', 'pointerdown']) {
    table.addEventListener(kind, ({ target }) => {
      const place = target.closest('tbody td:not(.empty)');
      if (place) show(place);
    });
  }
  table.addEventListener('pointerleave', (event) => event.pointerType === 'touch' || hideTip());
  dark.addEventListener('change', paint);
  paint();
}
