// The panel of weights: one slider per objective, with its predicted weight and likely range, the owner's minimum, a
// lock, and how often the objective's score agrees with people.

class Sliders {
  // `summary`: the element whose text describes every slider to visitors who do not see the page.
  constructor(parent, state, summary) {
    this.state = state;
    this.summary = summary;
    this.rows = [];
    const panel = Dom.el("section", "weights", parent);
    const head = Dom.el("div", "panel-head", panel);
    Dom.el("h2", "", head, "What counts?");
    Dom.button("small", head, () => state.reset(), "Reset to predicted");
    Dom.button("small", head, () => state.level(), "Uniform");
    this.legend = Dom.el("p", "legend", panel);
    this.box = Dom.el("div", "rows", panel);
  }

  build() {
    this.box.replaceChildren();
    this.rows = this.state.run.objectives.map((name, k) => this.buildRow(name, k));
  }

  buildRow(name, k) {
    const { state } = this;
    const row = Dom.el("div", "weight", this.box);
    const head = Dom.el("div", "weight-head", row);
    const label = Dom.el("label", "", head, Dom.title(name));
    const trust = Dom.el("span", "trust", head);
    const value = Dom.el("output", "", head);
    const lock = Dom.button("lock", head, () => state.toggleLock(k));
    const view = { viewBox: "0 0 16 16", width: 14, height: 14, "aria-hidden": "true" };
    const icon = Dom.svg("svg", view, lock);
    const stroke = { fill: "none", stroke: "currentColor", "stroke-width": 1.6 };
    const shackle = Dom.svg("path", stroke, icon);
    Dom.svg("rect", { x: 3, y: 7, width: 10, height: 7, rx: 1.6, fill: "currentColor" }, icon);
    const track = Dom.el("div", "track", row);
    const [floor, bar, range, mark] = ["floor", "bar", "range", "mark"].map((part) =>
      Dom.el("i", part, track),
    );
    const slider = Dom.el("input", "", row);
    Object.assign(slider, { type: "range", min: 0, max: 100, step: 1, id: `weight-${k}` });
    slider.setAttribute("aria-describedby", this.summary.id);
    slider.addEventListener("input", () => state.move(k, Number(slider.value)));
    label.htmlFor = slider.id;
    label.title = state.run.about?.[name] ?? "";
    for (const event of ["pointerenter", "focusin"]) {
      row.addEventListener(event, () => state.point(k));
    }
    return { row, trust, value, lock, shackle, track, floor, bar, range, mark, slider };
  }

  draw() {
    this.drawLegend();
    this.rows.forEach((row, k) => {
      this.drawTrust(row, k);
      this.drawTrack(row, k);
      this.drawLock(row, k);
    });
  }

  // The runs of an adapter with a single head have no likely range.
  get hasRange() {
    return Array.isArray(this.state.run.lower) && Array.isArray(this.state.run.upper);
  }

  drawLegend() {
    const { run, floors, unwritten } = this.state;
    const entries = [];
    if (run.predicted) entries.push(["bar", "predicted for this prompt"]);
    if (this.hasRange) entries.push(["range", "likely range"]);
    if (run.predicted) entries.push(["mark", "uniform"]);
    if (floors.some((f) => f > 0)) entries.push(["floor", "owner's minimum"]);
    const keys = entries.flatMap(([key, text]) => [Dom.el("i", `key ${key}`), text]);
    this.legend.replaceChildren(...keys);
    if (!run.predicted) {
      this.legend.prepend("No adapter is in use: the sliders start from uniform weights.");
    }
    if (!run.conditioned) return;
    const adapters = run.predicted ? "the predicted weights" : "uniform weights";
    const whose = run.used ? "weights that you set" : adapters;
    const then = unwritten ? "; “Write again” writes under these." : ".";
    Dom.el("span", "written", this.legend, `Written under ${whose}${then}`);
  }

  drawTrust({ trust }, k) {
    const { run } = this.state;
    const tested = run.accuracy?.[run.objectives[k]];
    if (!tested) {
      Dom.write(trust, "never tested");
      trust.title = "The panel does not say how often this score agrees with people.";
      return;
    }
    const [low, high] = tested.ci95.map(Dom.percent);
    Dom.write(trust, `right ${low}–${high}% of the time`);
    trust.title =
      `On ${tested.n} held-out pairs this score preferred the answer that people preferred ` +
      `${Dom.percent(tested.accuracy)}% of the time` +
      ` (95% interval ${low} to ${high}; a coin gets 50).`;
  }

  drawTrack({ row, value, track, floor, bar, range, mark, slider }, k) {
    const { run, values, locked, floors, predicted, uniform } = this.state;
    const { percent } = Dom;
    let likely = "";
    range.hidden = !this.hasRange;
    if (this.hasRange) {
      const low = Math.min(Math.max(run.lower[k], run.floors[k]), predicted[k]);
      const high = Math.max(run.upper[k], predicted[k]);
      range.style.left = `${100 * low}%`;
      range.style.width = `${100 * (high - low)}%`;
      likely = `, likely ${percent(low)} to ${percent(high)}%`;
    }
    Dom.write(value, `${values[k]}%`);
    slider.value = values[k];
    slider.disabled = locked[k];
    slider.style.setProperty("--v", `${values[k]}%`);
    const minimum = floors[k] ? `, at least ${floors[k]}%` : "";
    const description = `${values[k]}%; predicted ${percent(predicted[k])}%${likely}${minimum}`;
    slider.setAttribute("aria-valuetext", description);
    row.classList.toggle("locked", locked[k]);
    track.title = `predicted ${percent(predicted[k])}%${likely}`;
    bar.style.width = `${100 * predicted[k]}%`;
    bar.classList.toggle("absent", !run.predicted);
    mark.style.left = `${100 * uniform[k]}%`;
    floor.style.width = `${floors[k]}%`;
    floor.title = `the owner's minimum: ${floors[k]}%`;
  }

  drawLock({ lock, shackle }, k) {
    const { run, locked } = this.state;
    lock.setAttribute("aria-pressed", String(locked[k]));
    lock.setAttribute("aria-label", `${locked[k] ? "Unlock" : "Lock"} ${run.objectives[k]}`);
    lock.title = locked[k] ? "Locked: other sliders leave it alone" : "Lock this weight";
    shackle.setAttribute("d", locked[k] ? "M5 8V5a3 3 0 0 1 6 0v3" : "M5 8V4.5a3 3 0 0 1 5.6-1.5");
  }
}
