// PSNR to the uncached video, a point a second: a curve, and the same in words.

const WIDTH = 600, HEIGHT = 120, LEFT = 44, BOTTOM = 18;
const SAME = 60; // where what is the same is drawn, dB

function part(kind, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

export function drawLikeness(figure, curve, words, found) {
  figure.hidden = false;
  const values = found.map((psnr) => Math.min(psnr ?? SAME, SAME));
  const low = Math.min(20, Math.floor(Math.min(...values) / 10) * 10);
  const x = (second) => LEFT + (second + 0.5) * (WIDTH - LEFT - 8) / Math.max(values.length, 10);
  const y = (psnr) => 8 + (SAME - psnr) * (HEIGHT - BOTTOM - 8) / (SAME - low);
  const marks = [];
  for (let level = low; level <= SAME; level += 20) {
    marks.push(part("line", { x1: LEFT, x2: WIDTH, y1: y(level), y2: y(level) }), part("text", { x: 4, y: y(level) + 4 }, `${level} dB`));
  }
  const path = values.map((psnr, second) => `${second ? "L" : "M"}${x(second).toFixed(1)} ${y(psnr).toFixed(1)}`).join("");
  const points = values.map((psnr, second) => part("circle", { cx: x(second), cy: y(psnr), r: 3 }));
  curve.replaceChildren(...marks, part("path", { d: path }), ...points, part("text", { x: LEFT, y: HEIGHT - 4 }, "seconds of the video"));
  const spoken = found.map((psnr, second) => `second ${second + 1}: ${psnr === null ? "the same" : `${psnr.toFixed(1)} dB`}`);
  words.textContent = `PSNR to the uncached video of the same noise, frames before the file's encoding. ${spoken.slice(-1)[0]}; lowest ${Math.min(...values).toFixed(1)} dB`;
  curve.setAttribute("aria-label", spoken.join(", "));
}
