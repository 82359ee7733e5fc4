// One tip for all charts: what stands under the pointer, or at the place that the keyboard has gone to. It is a live region,
// so that a screen reader says what changes. After a touch it stays until something else is touched. Texts are set as text,
// never as HTML.

const tip = document.getElementById('tip');
let anchor = null;

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// `where` gives the box on the screen that the tip belongs to, now and after scrolling.
function showTip(where, title, lines) {
  tip.replaceChildren(element('strong', {}, title), ...lines.map((line) => element('span', {}, line)));
  tip.hidden = false;
  anchor = where;
  placeTip();
}

function placeTip() {
  if (tip.hidden) return;
  const box = anchor();
  const [width, height, gap] = [tip.offsetWidth, tip.offsetHeight, 10];
  if (box.bottom < 0 || box.top > innerHeight) {
    hideTip();
    return;
  }
  const room = document.documentElement.clientWidth - width - 8;
  const above = box.top - height - gap;
  tip.style.left = `${Math.max(8, Math.min(room, (box.left + box.right - width) / 2))}px`;
  tip.style.top = `${above >= 8 ? above : box.bottom + gap}px`;
}

function hideTip() {
  tip.hidden = true;
}

addEventListener('keydown', (event) => {
  if (event.key === 'Escape') hideTip();
});
addEventListener('pointerdown', hideTip, { capture: true });
addEventListener('scroll', placeTip, { passive: true, capture: true });
