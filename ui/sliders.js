// The panel of weights: one slider per objective, with PRO's guess and its likely range, the owner's minimum, a lock,
// how often the objective's score agrees with people, and who wins at each place of the slider.

class Sliders {
  static TENTHS = 10;

  // `summary`: the element whose text describes every slider to visitors who do not see the page.
  // `drop`: takes an added objective (its name) away.
  constructor(parent, state, summary, drop) {
    this.drop = drop;
    this.state = state;
    this.summary = summary;
    this.rows = [];
    const panel = Dom.el("section", "weights", parent);
    panel.setAttribute("aria-label", "Weights");
    Dom.el("h2", "", panel, "How much should each count?");
    this.presets = Dom.el("div", "presets", panel);
    this.presetBar = new Toolbar(this.presets, "Set all weights");
    this.legend = Dom.el("p", "legend", panel);
    this.box = Dom.el("div", "rows", panel);
    this.change = Dom.el("p", "change", panel);
    this.written = Dom.el("p", "written", panel);
    const keep = Dom.el("label", "keep", panel);
    this.keep = Dom.el("input", "", keep);
    this.keep.type = "checkbox";
    this.keep.addEventListener("change", () => state.toggle("keep"));
    keep.append("Keep my weights for the next question");
  }

  build() {
    const { run } = this.state;
    this.box.replaceChildren();
    this.rows = run.objectives.map((name, k) => this.buildRow(name, k));
    const presets = { "All equal": this.state.uniform, ...run.presets };
    this.presetBar.fill([
      Dom.button("small", null, () => this.state.reset(), "PRO’s guess"),
      ...Object.entries(presets).map(([name, weights]) =>
        Dom.button("small", null, () => this.state.set(weights), name),
      ),
    ]);
  }

  // The row (its number) that has the focus, -1 for none; and the focus for a row, or for the last one if it is gone.
  get focused() {
    return this.rows.findIndex(({ row }) => row.contains(document.activeElement));
  }
  focus(k) {
    if (k < 0) return;
    const { slider, lock } = this.rows[Math.min(k, this.rows.length - 1)];
    (slider.disabled ? lock : slider).focus({ preventScroll: true });
  }

  buildRow(name, k) {
    const { state } = this;
    const row = Dom.el("div", "weight", this.box);
    const head = Dom.el("div", "weight-head", row);
    const label = Dom.el("label", "", head, Dom.title(name));
    const trust = Dom.el("span", "trust", head);
    if (Objectives.named(state.run, name)) {
      const drop = Dom.button("small drop", head, () => this.drop(name), "×");
      drop.title = "Remove";
      drop.setAttribute("aria-label", `Remove ${Dom.title(name)}`);
    }
    const value = Dom.el("output", "", head);
    const body = Dom.el("div", "weight-body", row);
    const line = Dom.el("div", "line", body);
    const track = Dom.el("div", "track", line);
    const [floor, bar, range, mark] = ["floor", "bar", "range", "mark"].map((part) =>
      Dom.el("i", part, track),
    );
    const strip = Dom.el("div", "strip", line);
    strip.setAttribute("aria-hidden", "true"); // `says` says the same
    const slider = Dom.el("input", "", line);
    Object.assign(slider, { type: "range", min: 0, max: 100, step: 1, id: `weight-${k}` });
    const says = Dom.el("span", "unseen says", row);
    says.id = `change-${k}`;
    slider.setAttribute("aria-describedby", `${says.id} ${this.summary.id}`);
    slider.addEventListener("input", () => state.move(k, Number(slider.value)));
    const lock = Dom.button("lock", body, () => state.toggleLock(k));
    const view = { viewBox: "0 0 16 16", width: 14, height: 14, "aria-hidden": "true" };
    const icon = Dom.svg("svg", view, lock);
    const stroke = { fill: "none", stroke: "currentColor", "stroke-width": 1.6 };
    const shackle = Dom.svg("path", stroke, icon);
    Dom.svg("rect", { x: 3, y: 7, width: 10, height: 7, rx: 1.6, fill: "currentColor" }, icon);
    label.htmlFor = slider.id;
    label.title = state.run.about?.[name] ?? "";
    for (const event of ["pointerenter", "focusin"]) {
      row.addEventListener(event, () => state.point(k));
    }
    return { row, trust, value, lock, shackle, track, floor, bar, range, mark, strip, slider, says };
  }

  draw() {
    this.drawLegend();
    this.drawWritten();
    this.keep.checked = this.state.keep;
    this.rows.forEach((row, k) => {
      this.drawTrust(row, k);
      this.drawTrack(row, k);
      this.drawLock(row, k);
    });
    // Who wins elsewhere takes a hundred rankings for each slider: once a frame, however fast the slider moves.
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.drawChanges());
  }

  drawChanges() {
    const { run, values, locked, pointed } = this.state;
    this.rows.forEach(({ strip, says }, k) => {
      const stretches = this.state.stretches(k);
      Switches.draw(strip, stretches);
      const said = Switches.sentence(run.objectives[k], values[k], stretches);
      Dom.write(says, locked[k] ? "Locked." : said);
    });
    const scored = run.candidates.some(({ z }) => z);
    const hint = scored ? "Letters on a slider: the answer that wins there." : "";
    Dom.write(this.change, pointed === null || !scored ? hint : this.rows[pointed].says.textContent);
  }

  // The runs of an adapter with a single head have no likely range.
  get hasRange() {
    return Array.isArray(this.state.run.lower) && Array.isArray(this.state.run.upper);
  }

  drawLegend() {
    const { run, floors, numbers } = this.state;
    const entries = [];
    if (run.predicted) entries.push(["bar", "PRO’s guess"]);
    if (this.hasRange && numbers) entries.push(["range", "likely range"]);
    if (run.predicted) entries.push(["mark", "all equal"]);
    if (floors.some((f) => f > 0)) entries.push(["floor", "owner's minimum"]);
    const drawn = entries.join();
    if (this.legend.dataset.drawn === drawn) return;
    this.legend.dataset.drawn = drawn;
    const keys = entries.flatMap(([key, text]) => [Dom.el("i", `key ${key}`), text]);
    this.legend.replaceChildren(...keys);
    if (!run.predicted) this.legend.prepend("PRO has no guess here: all weights start equal.");
  }

  drawWritten() {
    const { run, unwritten } = this.state;
    if (!run.conditioned) return Dom.write(this.written, "");
    const guess = run.predicted ? "PRO’s guess" : "equal weights";
    const whose = run.used ? "weights of yours" : guess;
    const then = unwritten ? "; “Write again” writes under these." : ".";
    return Dom.write(this.written, `Written under ${whose}${then}`);
  }

  drawTrust({ trust }, k) {
    const { run } = this.state;
    const name = run.objectives[k];
    const added = Objectives.named(run, name);
    if (added || Objectives.isForeign(run, name)) {
      Dom.write(trust, "not measured");
      trust.title = added
        ? `A chat model judges by: “${added.sentence}” Nobody measured how often it agrees with people.`
        : "A sentence that somebody added where this run was shared. The link holds its name alone.";
      return;
    }
    const tested = run.accuracy?.[name];
    if (!tested) {
      Dom.write(trust, "never tested");
      trust.title = "The panel does not say how often this score agrees with people.";
      return;
    }
    const tenths = Math.round(Sliders.TENTHS * tested.accuracy);
    const often = tenths === Sliders.TENTHS ? "nearly always" : `${tenths} times in 10`;
    const [low, high] = tested.ci95.map(Dom.percent);
    Dom.write(trust, `agrees with people ${often}`);
    trust.title =
      `On ${tested.n} held-out pairs this score preferred the answer that people preferred ` +
      `${Dom.percent(tested.accuracy)}% of the time` +
      ` (95% interval ${low} to ${high}; a coin gets 50).`;
  }

  drawTrack({ row, value, track, floor, bar, range, mark, slider }, k) {
    const { run, values, locked, floors, predicted, uniform, numbers } = this.state;
    const { percent } = Dom;
    let likely = "";
    range.hidden = !this.hasRange || !numbers;
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
    const minimum = floors[k] ? `, at least ${floors[k]}%` : "";
    const description = `${values[k]}%; PRO's guess ${percent(predicted[k])}%${likely}${minimum}`;
    slider.setAttribute("aria-valuetext", description);
    row.classList.toggle("locked", locked[k]);
    track.title = `PRO's guess ${percent(predicted[k])}%${likely}`;
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
