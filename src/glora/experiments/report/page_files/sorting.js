// Tables that sort by a click on a column's button: upwards, then downwards. Cells with `data-sort` are numbers, already
// read by Python; an empty one is missing and stays last in both directions. Rows that are equal keep their order.

function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const words = new Intl.Collator('en', { numeric: true, sensitivity: 'base' });

  function compared(a, b, column) {
    const [one, other] = [a.cells[column], b.cells[column]];
    if (heads[column].classList.contains('words')) return words.compare(one.textContent, other.textContent);
    return Number(one.dataset.sort) - Number(other.dataset.sort);
  }
  function missing(row, column) {
    return row.cells[column].dataset.sort === '';
  }

  heads.forEach((head, column) => {
    head.firstElementChild.addEventListener('click', () => {
      const down = head.getAttribute('aria-sort') === 'ascending';
      heads.forEach((other) => other.setAttribute('aria-sort', 'none'));
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const rows = [...body.rows].sort((a, b) => (
        missing(a, column) - missing(b, column) || (down ? -1 : 1) * compared(a, b, column)
      ));
      body.append(...rows);
    });
  });
}
