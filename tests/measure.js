// Measures every frame of the document, and leaves what it found as JSON. Run by tests/browser.py.
const SLACK = 1, UPON = 3; // pixels: beyond an edge; two texts in each other before they count as overlapping

function asOnPaper(doc) {
  for (const sheet of doc.styleSheets)
    for (const rule of sheet.cssRules)
      if (rule.media && rule.media.mediaText === "print") rule.media.mediaText = "all";
}

// [{text, box, node}]: a line of text each
function lines(doc) {
  const found = [], walker = doc.createTreeWalker(doc.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (!node.data.trim() || node.parentElement.closest("style, title")) continue;
    const range = doc.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects())
      if (box.width > 0 && box.height > 0) found.push({ text: node.data.trim().slice(0, 40), box, node });
  }
  return found;
}

// whether a word does, not only the space that hangs behind a line's last one
function wordsLeave(node, leaves) {
  return [...node.data.matchAll(/\S+/g)].some(({ index, 0: word }) => {
    const range = node.ownerDocument.createRange();
    range.setStart(node, index);
    range.setEnd(node, index + word.length);
    return [...range.getClientRects()].some(leaves);
  });
}

function overlapping(all) {
  const found = [], order = [...all].sort((a, b) => a.box.top - b.box.top);
  order.forEach((a, at) => {
    for (const b of order.slice(at + 1)) {
      if (b.box.top >= a.box.bottom - UPON) break;
      const across = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
      if (a.node !== b.node && across > UPON) found.push(`${a.text} | ${b.text}`);
    }
  });
  return found;
}

function measured(frame) {
  const doc = frame.contentDocument, asked = JSON.parse(frame.dataset.asked);
  if (asked.printed) asOnPaper(doc);
  const width = doc.documentElement.clientWidth, all = lines(doc);
  const leaves = ({ left, right }) => left < -SLACK || right > width + SLACK;
  const scrollable = node => node.closest(".scroll") && !asked.printed;
  const texts = all.filter(line => leaves(line.box) && !scrollable(line.node.parentElement) && wordsLeave(line.node, leaves));
  const pictures = [...doc.querySelectorAll("svg")].filter(one => leaves(one.getBoundingClientRect()));
  const boxes = [...doc.querySelectorAll(asked.selector)].map(one => {
    const { top, bottom, left, right } = one.getBoundingClientRect();
    return { text: one.innerText ?? one.textContent, classes: one.getAttribute("class") ?? "", top, bottom, left, right };
  });
  const wide = [...doc.querySelectorAll(".scroll")].filter(one => one.scrollWidth > one.clientWidth + SLACK);
  return {
    boxes,
    width: doc.documentElement.scrollWidth,
    beyond: [...texts.map(line => line.text), ...pictures.map(() => "a picture")],
    overlaps: overlapping(all),
    scrolled: wide.map(one => `${one.scrollWidth} in ${one.clientWidth}: ${one.innerText.slice(0, 60)}`),
  };
}

addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(measured);
  document.body.innerHTML = "<pre id='measured'></pre>";
  document.getElementById("measured").textContent = JSON.stringify(found);
});
