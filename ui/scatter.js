// The scatter of the answers over two objectives. The filled points, joined by a dashed line, are the answers that no
// other answer beats on both.

class Scatter {
  constructor(parent, state) {
    this.state = state;
    this.axes = [0, 1]; // the objectives across and up
    this.map = Dom.el("section", "map", parent);
    const head = Dom.el("div", "axes", this.map);
    Dom.el("h2", "", head, "Trade-offs");
    this.selects = ["across", "up"].map((direction, axis) => {
      const select = Dom.el("select", "", Dom.el("label", "", head, `${direction} `));
      select.addEventListener("change", () => {
        this.axes[axis] = Number(select.value);
        state.changed();
      });
      return select;
    });
    this.plot = Dom.svg("svg", { viewBox: "0 0 320 168", role: "img" }, this.map);
    this.caption = Dom.el("p", "legend", this.map);
  }

  build() {
    const { objectives } = this.state.run;
    this.selects.forEach((select, axis) => {
      select.replaceChildren();
      objectives.forEach((name, k) => {
        Dom.el("option", "", select, name).value = k;
      });
      this.axes[axis] = Math.min(axis, objectives.length - 1);
      select.value = this.axes[axis];
    });
  }

  // `winner`: the best answer under the visitor's weights, or null.
  draw(winner) {
    const { run } = this.state;
    const shown = (z) => z && this.axes.every((k) => z[k] !== null);
    const points = run.candidates.map((c) => (shown(c.z) ? this.axes.map((k) => c.z[k]) : null));
    const scored = points.filter((p) => p !== null);
    this.map.hidden = run.objectives.length < 2 || scored.length === 0;
    if (this.map.hidden) return;
    const across = this.scale(scored, 0, 14, 306);
    const up = this.scale(scored, 1, 150, 12);
    const place = (p) => (p === null ? null : [across(p[0]), up(p[1])]);
    const kept = Simplex.nondominated(points);
    this.plot.replaceChildren();
    Dom.svg("path", { d: "M10 6V154H314", class: "axis" }, this.plot);
    this.drawFront(points.filter((_, i) => kept[i]).sort((a, b) => a[0] - b[0]).map(place));
    points.map(place).forEach((at, i) => {
      if (at !== null) this.drawPoint(at, i, kept[i], i === winner);
    });
    const [x, y] = this.axes.map((k) => run.objectives[k]);
    this.drawNames(x, y);
    const names = [...Dom.LETTERS].filter((_, i) => kept[i]).join(", ");
    Dom.write(this.caption, `Filled: no other answer is better on both (${names}).`);
    const description = `Answers by ${x} and ${y}. Not beaten on both: ${names}.`;
    this.plot.setAttribute("aria-label", description);
  }

  // Maps the scores on one axis to [low, high] of the picture, with a margin around them.
  scale(points, axis, low, high) {
    const values = points.map((p) => p[axis]);
    const [least, most] = [Math.min(...values), Math.max(...values)];
    const margin = Math.max(0.25, (most - least) * 0.15);
    const length = most - least + 2 * margin;
    return (v) => low + ((v - least + margin) / length) * (high - low);
  }

  drawFront(places) {
    const steps = places.map(([x, y], i) => `${i ? `V${y}` : `M10 ${y}`}H${x}`).join("");
    Dom.svg("path", { d: `${steps}V154`, class: "front" }, this.plot);
  }

  drawPoint([x, y], i, kept, won) {
    const marks = `dot${kept ? " kept" : ""}${won ? " won" : ""}`;
    const dot = Dom.svg("g", { class: marks, transform: `translate(${x} ${y})` }, this.plot);
    Dom.svg("circle", { r: 9 }, dot);
    Dom.svg("text", { "text-anchor": "middle", dy: "0.35em" }, dot).textContent = Dom.LETTERS[i];
  }
  drawNames(x, y) {
    const name = { class: "axis-name" };
    const right = { ...name, x: 312, y: 165, "text-anchor": "end" };
    Dom.svg("text", right, this.plot).textContent = `${Dom.title(x)} →`;
    Dom.svg("text", { ...name, x: 15, y: 12 }, this.plot).textContent = `↑ ${Dom.title(y)}`;
  }
}
