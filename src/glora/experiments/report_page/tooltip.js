// One tip for all charts: what stands under the pointer, or at the place that the keyboard has gone to. It is a live region,
// so that a screen reader says what changes. After a touch it stays until something else is touched. Texts are set as text,
// never as HTML.

const tip = document.getElementById('tip');

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function showTip(box, title, lines) {
  tip.replaceChildren(element('strong', {}, title), ...lines.map((line) => element('span', {}, line)));
  tip.hidden = false;
  const [width, height, gap] = [tip.offsetWidth, tip.offsetHeight, 10];
  const room = document.documentElement.clientWidth - width - 8;
  const left = Math.max(8, Math.min(room, (box.left + box.right - width) / 2));
  const above = box.top - height - gap;
  tip.style.left = `${left}px`;
  tip.style.top = `${above >= 8 ? above : box.bottom + gap}px`;
}

function hideTip() {
  tip.hidden = true;
}

addEventListener('keydown', (event) => {
  if (event.key === 'Escape') hideTip();
});
addEventListener('pointerdown', hideTip, { capture: true });
addEventListener('scroll', hideTip, { passive: true, capture: true });
