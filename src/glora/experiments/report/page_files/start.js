const charts = JSON.parse(document.getElementById('charts').textContent);
const draws = {
  metric: (holder, section) => metricChart(holder, section.metric),
  ranks: (holder, section) => rankMap(holder, section.ranks[holder.dataset.index]),
  norms: (holder, section) => normChart(holder, section.norms[holder.dataset.index]),
};
document.querySelectorAll('table.sortable').forEach(sortable);
document.querySelectorAll('[data-chart]').forEach((holder) => {
  draws[holder.dataset.chart](holder, charts[holder.dataset.section]);
});
