// The reuse map while it grows: a row per chunk, a column per step; dark is computed, striped is advanced from memory.

const CELL = 6;
const MOST_ROWS = 24;

export class ReuseMap {
  constructor(canvas) {
    this.canvas = canvas;
    this.steps = [];
    this.waiting = false;
  }

  clear() {
    this.steps = [];
    this.draw();
  }

  add(step) {
    this.steps.push(step);
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  draw() {
    const width = Math.max(60, this.canvas.clientWidth || 600);
    const columns = Math.floor(width / CELL);
    this.steps = this.steps.slice(-4 * columns);
    const visible = this.steps.slice(-columns);
    const chunks = visible.flatMap((step) => [...step.computed, ...step.reused]);
    const last = chunks.length ? Math.max(...chunks) : 0;
    const first = chunks.length ? Math.max(Math.min(...chunks), last - MOST_ROWS + 1) : 0;
    const rows = Math.max(4, last - first + 1);
    Object.assign(this.canvas, { width, height: rows * CELL });
    const pen = this.canvas.getContext("2d");
    const colours = getComputedStyle(this.canvas);
    pen.fillStyle = pen.strokeStyle = colours.getPropertyValue("--deep");
    visible.forEach((step, column) => {
      for (const chunk of step.computed) if (chunk >= first) pen.fillRect(column * CELL, (chunk - first) * CELL, CELL - 1, CELL - 1);
    });
    pen.fillStyle = pen.strokeStyle = colours.getPropertyValue("--light");
    visible.forEach((step, column) => {
      for (const chunk of step.reused) if (chunk >= first) this.stripe(pen, column * CELL, (chunk - first) * CELL);
    });
    const computed = visible.reduce((sum, step) => sum + step.computed.length, 0);
    const reused = visible.reduce((sum, step) => sum + step.reused.length, 0);
    this.canvas.setAttribute("aria-label", `of the last ${visible.length} steps ${computed} chunk forwards were computed and ${reused} advanced from memory`);
  }

  stripe(pen, x, y) {
    pen.strokeRect(x + 0.5, y + 0.5, CELL - 2, CELL - 2);
    pen.beginPath();
    pen.moveTo(x, y + CELL - 1);
    pen.lineTo(x + CELL - 1, y);
    pen.stroke();
  }
}
