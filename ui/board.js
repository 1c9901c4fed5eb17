// The board: weight sliders, answer cards and the scatter of the answers, in one gr.HTML component.
//
// Gradio runs this text with `element`, `props` and `watch`, after simplex.js and words.js (see board.py). `props.value`
// is the run that Python streams; sliders, locks and the picked answer live here alone: a new value never resets them.
// Everything that a model or a visitor wrote reaches the page through textContent only.

function mountBoard(element, props, watch) {
  const root = element.querySelector(".board");
  const SVG = "http://www.w3.org/2000/svg";
  const letters = "ABCDEFGH";
  const ordinals = ["1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th"];
  const state = { run: null, values: [], locked: [], touched: false, floors: [], anchor: null, moving: null, pick: null, why: null, axes: [0, 1], shown: "", order: "" };
  const rows = [];
  const cards = [];

  function el(tag, className, parent, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  }
  function svg(tag, attributes, parent) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
    parent.append(node);
    return node;
  }
  const write = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  const signed = (v) => (v < 0 ? "−" : "+") + Math.abs(v).toFixed(2);
  const { title } = Words;
  const CUT = { length: "Cut at the token limit.", filter: "Cut by the server's filter." };
  const writing = (candidate) => (candidate.reasoning && !candidate.text ? "thinking…" : "writing…");
  const clamp = (v, low, high) => Math.max(low, Math.min(high, v));

  // ---- the fixed parts of the page
  const note = el("div", "note", root);
  note.setAttribute("role", "status");
  const thread = el("div", "thread", root);
  thread.tabIndex = 0;
  thread.setAttribute("aria-label", "The conversation so far");
  const [unlike, why, summary] = ["unlike", "why", "unseen"].map((name) => el("p", name, root));
  unlike.textContent = "This prompt is unlike those the adapter learned from: weights are near their average.";
  [why.tabIndex, summary.id] = [0, "why-summary"];
  const grid = el("div", "grid", root);
  const side = el("div", "side", grid);
  const panel = el("section", "weights", side);
  const panelHead = el("div", "panel-head", panel);
  el("h2", "", panelHead, "What counts?");
  const toPredicted = el("button", "small", panelHead, "Reset to predicted");
  const toUniform = el("button", "small", panelHead, "Uniform");
  const legend = el("p", "legend", panel);
  const rowBox = el("div", "rows", panel);
  const map = el("section", "map", side);
  const deck = el("section", "deck", grid);
  deck.setAttribute("aria-label", "Answers, best first under your weights");
  const announce = el("div", "unseen", root);
  announce.setAttribute("aria-live", "polite");
  for (const button of [toPredicted, toUniform]) button.type = "button";
  toPredicted.addEventListener("click", () => reset(predicted(), false));
  toUniform.addEventListener("click", () => reset(uniform(), true));

  const uniform = () => state.run.objectives.map(() => 1 / state.run.objectives.length);
  const predicted = () => Simplex.applyFloors(state.run.predicted ?? uniform(), state.run.floors);
  const yours = () => state.values.map((v) => v / 100);

  function reset(weights, touched) {
    state.touched = touched;
    state.values = Simplex.setSliders(weights, state.values, state.locked, state.floors);
    state.moving = null;
    draw();
  }
  function move(k, target) {
    if (state.moving !== k) {
      state.moving = k;
      state.touched = true;
      state.anchor = [...state.values];
    }
    state.values = Simplex.moveSlider(k, target, state.values, state.locked, state.floors, state.anchor);
    draw();
  }

  // ---- one slider an objective
  function buildRows() {
    rows.length = 0;
    rowBox.replaceChildren();
    state.run.objectives.forEach((name, k) => {
      const row = el("div", "weight", rowBox);
      const head = el("div", "weight-head", row);
      const label = el("label", "", head, title(name));
      const trust = el("span", "trust", head);
      const value = el("output", "", head);
      const lock = el("button", "lock", head);
      lock.type = "button";
      const icon = svg("svg", { viewBox: "0 0 16 16", width: 14, height: 14, "aria-hidden": "true" }, lock);
      const shackle = svg("path", { fill: "none", stroke: "currentColor", "stroke-width": 1.6 }, icon);
      svg("rect", { x: 3, y: 7, width: 10, height: 7, rx: 1.6, fill: "currentColor" }, icon);
      const track = el("div", "track", row);
      const floor = el("i", "floor", track);
      const bar = el("i", "bar", track);
      const range = el("i", "range", track);
      const mark = el("i", "mark", track);
      const slider = el("input", "", row);
      Object.assign(slider, { type: "range", min: 0, max: 100, step: 1, id: `weight-${k}` });
      label.htmlFor = slider.id;
      label.title = state.run.about?.[name] ?? "";
      slider.setAttribute("aria-describedby", summary.id);
      slider.addEventListener("input", () => move(k, Number(slider.value)));
      const point = () => { state.why = k; drawWhy(); };
      for (const event of ["pointerenter", "focusin"]) row.addEventListener(event, point);
      lock.addEventListener("click", () => {
        state.locked[k] = !state.locked[k];
        state.moving = null;
        draw();
      });
      rows.push({ row, trust, value, lock, shackle, floor, bar, range, mark, slider });
    });
  }
  function drawRows() {
    const { run } = state;
    const model = predicted();
    const even = 1 / run.objectives.length;
    const entries = run.predicted ? [["bar", "predicted for this prompt"], ["mark", "uniform"]] : [];
    const sure = Array.isArray(run.lower) && Array.isArray(run.upper);
    if (sure) entries.splice(1, 0, ["range", "likely range"]);
    if (state.floors.some((f) => f > 0)) entries.push(["floor", "owner's minimum"]);
    legend.replaceChildren(...entries.flatMap(([key, text]) => [el("i", `key ${key}`), text]));
    // A policy that reads weights: the answers were written under some; others rank them, until it writes again.
    const told = Simplex.setSliders(run.used ?? model, state.values, run.objectives.map(() => false), state.floors);
    const unwritten = Boolean(run.conditioned) && state.values.some((v, k) => v !== told[k]);
    root.dataset.unwritten = String(unwritten);
    if (run.conditioned) {
      const whose = run.used ? "weights that you set" : run.predicted ? "the predicted weights" : "uniform weights";
      el("span", "written", legend, `Written under ${whose}${unwritten ? "; “Write again” writes under these." : "."}`);
    }
    if (!run.predicted) legend.prepend("No adapter in use: uniform weights stand in for predicted ones.");
    rows.forEach((r, k) => {
      const name = run.objectives[k];
      const v = state.values[k];
      const tested = run.accuracy?.[name];
      const percent = (x) => Math.round(100 * x);
      write(r.trust, tested ? `right ${percent(tested.ci95[0])}–${percent(tested.ci95[1])}% of the time` : "never tested");
      r.trust.title = tested
        ? `On ${tested.n} held-out pairs this score preferred the answer that people preferred ${percent(tested.accuracy)}% of the time` +
          ` (95% interval ${percent(tested.ci95[0])} to ${percent(tested.ci95[1])}; a coin gets 50).`
        : "The panel does not say how often this score agrees with people.";
      write(r.value, `${v}%`);
      r.slider.value = v;
      r.slider.disabled = state.locked[k];
      r.slider.style.setProperty("--v", `${v}%`);
      const minimum = state.floors[k] ? `, at least ${state.floors[k]}%` : "";
      const low = sure && Math.min(Math.max(run.lower[k], run.floors[k]), model[k]);
      const high = sure && Math.max(run.upper[k], model[k]);
      const likely = sure ? `, likely ${percent(low)} to ${percent(high)}%` : "";
      r.range.hidden = !sure;
      r.range.style.left = `${100 * low}%`;
      r.range.style.width = `${100 * (high - low)}%`;
      r.slider.setAttribute("aria-valuetext", `${v}%; predicted ${percent(model[k])}%${likely}${minimum}`);
      r.lock.setAttribute("aria-pressed", String(state.locked[k]));
      r.lock.setAttribute("aria-label", `${state.locked[k] ? "Unlock" : "Lock"} ${name}`);
      r.lock.title = state.locked[k] ? "Locked: other sliders leave it alone" : "Lock this weight";
      r.shackle.setAttribute("d", state.locked[k] ? "M5 8V5a3 3 0 0 1 6 0v3" : "M5 8V4.5a3 3 0 0 1 5.6-1.5");
      r.row.classList.toggle("locked", state.locked[k]);
      r.bar.style.width = `${100 * model[k]}%`;
      r.bar.parentElement.title = `predicted ${percent(model[k])}%${likely}`;
      r.bar.classList.toggle("absent", !run.predicted);
      r.mark.style.left = `${100 * even}%`;
      r.floor.style.width = `${state.floors[k]}%`;
      r.floor.title = `the owner's minimum: ${state.floors[k]}%`;
    });
  }

  // ---- one card an answer
  function buildCard(i) {
    const card = el("article", "card", deck);
    const head = el("div", "card-head", card);
    el("b", "letter", head, letters[i]);
    const rank = el("span", "rank", head);
    const style = el("span", "style", head);
    const total = el("span", "total", head);
    const badges = el("div", "badges", card);
    const text = el("div", "text", card);
    Object.assign(text, { dir: "auto", tabIndex: 0 });
    text.setAttribute("aria-label", `Answer ${letters[i]}`);
    const cut = el("div", "cut", card);
    const error = el("div", "error", card);
    const thought = el("details", "thought", card);
    el("summary", "", thought, "Reasoning");
    const reasoning = el("div", "reasoning", thought);
    Object.assign(reasoning, { dir: "auto", tabIndex: 0 });
    reasoning.setAttribute("aria-label", `Reasoning of answer ${letters[i]}, not scored`);
    const scores = el("div", "scores", card);
    scores.tabIndex = 0;
    const cells = state.run.objectives.map((name) => {
      const line = el("div", "score", scores);
      el("span", "name", line, title(name)).title = state.run.about?.[name] ?? "";
      const z = el("span", "z", line);
      const pull = el("span", "pull", line);
      return { z, bar: el("i", "", pull), raw: el("span", "raw", line) };
    });
    const sums = el("div", "sums", card);
    const sum = ["predicted", "yours", "uniform"].map((name) => {
      const box = el("div", "sum", sums);
      el("span", "", box, name);
      return { box, value: el("b", "", box) };
    });
    const use = el("button", "small use", card, "Continue with this answer");
    use.type = "button";
    use.addEventListener("click", () => {
      state.pick = state.pick === i ? null : i;
      draw();
    });
    cards[i] = { card, rank, style, total, badges, text, cut, error, thought, reasoning, scores, cells, sum, use };
  }
  function drawCards() {
    const { run } = state;
    const scores = run.candidates.map((c) => c.z);
    const weights = [predicted(), yours(), uniform()];
    const sums = weights.map((w) => Simplex.totals(scores, w));
    const orders = sums.map(Simplex.ranking);
    const best = sums.map((s, j) => (s.some((v) => v !== null) ? orders[j][0] : null));
    const order = orders[1];
    const strongest = Math.max(0.5, ...scores.flatMap((z) => (z ?? []).map(Math.abs)));
    const before = cards.map((c) => c.card.getBoundingClientRect());
    const reordered = state.order && state.order !== order.join() && state.order.length === order.join().length;
    state.order = order.join();
    deck.dataset.count = run.candidates.length;
    run.candidates.forEach((candidate, i) => {
      const c = cards[i];
      const place = order.indexOf(i);
      const wins = ["predicted", "yours", "uniform"].filter((_, j) => best[j] === i);
      c.card.style.order = place === 0 ? -1 : place + 1;
      c.card.classList.toggle("winner", best[1] === i);
      c.card.dataset.place = place + 1;
      write(c.rank, candidate.z ? (best[1] === i ? "winner" : ordinals[place]) : candidate.error ? "" : run.busy ? writing(candidate) : "");
      write(c.style, candidate.style ?? "");
      write(c.total, sums[1][i] === null ? "" : signed(sums[1][i]));
      c.total.title = "Weighted total under your weights";
      if (c.badges.dataset.wins !== wins.join()) {
        c.badges.dataset.wins = wins.join();
        c.badges.replaceChildren(...(wins.length ? ["best by"] : []), ...wins.map((w) => el("span", `badge ${w}`, null, w)));
      }
      write(c.text, candidate.text);
      write(c.cut, candidate.error ? "" : CUT[candidate.finish] ?? "");
      write(c.error, candidate.error ?? "");
      c.thought.hidden = !candidate.reasoning;
      write(c.reasoning, candidate.reasoning ?? "");
      c.scores.hidden = !candidate.z;
      c.scores.setAttribute("aria-label", candidate.z ? `Scores of answer ${letters[i]}: ` + run.objectives
        .map((name, k) => `${name} ${signed(candidate.z[k])} (raw ${candidate.raw[k].toFixed(2)})`).join(", ") : "");
      if (candidate.z) c.cells.forEach((cell, k) => {
        const z = candidate.z[k];
        const pull = z * weights[1][k];
        write(cell.z, signed(z));
        cell.z.style.setProperty("--strength", clamp(Math.abs(z) / 2, 0.06, 1).toFixed(3));
        cell.z.className = z < 0 ? "z low" : "z high";
        write(cell.raw, `raw ${candidate.raw[k].toFixed(2)}`);
        const width = clamp((3 * Math.abs(pull)) / strongest, 0, 1) * 50;
        cell.bar.style.width = `${width}%`;
        cell.bar.style.left = `${pull < 0 ? 50 - width : 50}%`;
        cell.bar.className = pull < 0 ? "low" : "high";
        cell.bar.parentElement.title = `${signed(z)} × ${Math.round(100 * weights[1][k])}% = ${signed(pull)}`;
      });
      c.sum.forEach((box, j) => {
        write(box.value, sums[j][i] === null ? "–" : signed(sums[j][i]));
        box.box.classList.toggle("best", best[j] === i);
      });
      const chosen = state.pick === null ? best[1] === i : state.pick === i;
      c.use.hidden = !candidate.text || Boolean(run.busy);
      c.use.setAttribute("aria-pressed", String(chosen));
      write(c.use, chosen ? "A follow-up continues from here" : "Continue from this answer");
    });
    if (reordered) slide(before);
    const winner = best[1] === null ? "" : `Answer ${letters[best[1]]} wins under your weights`;
    if (!run.busy) write(announce, winner);
    root.dataset.order = order.map((i) => letters[i]).join("");
    root.dataset.winners = best.map((i) => (i === null ? "-" : letters[i])).join("");
  }
  function slide(before) {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    cards.forEach((c, i) => {
      const now = c.card.getBoundingClientRect();
      const [dx, dy] = [before[i].left - now.left, before[i].top - now.top];
      if (dx || dy) c.card.animate([{ transform: `translate(${dx}px, ${dy}px)` }, {}], { duration: 260, easing: "ease-out" });
    });
  }

  // ---- the scatter over two objectives
  const axisBox = el("div", "axes", map);
  el("h2", "", axisBox, "Trade-offs");
  const selects = [0, 1].map((axis) => {
    const label = el("label", "", axisBox, axis ? " up " : "across ");
    const select = el("select", "", label);
    select.addEventListener("change", () => {
      state.axes[axis] = Number(select.value);
      drawMap();
    });
    return select;
  });
  const plot = svg("svg", { viewBox: "0 0 320 168", role: "img" }, map);
  const caption = el("p", "legend", map);
  function buildAxes() {
    selects.forEach((select, axis) => {
      select.replaceChildren();
      state.run.objectives.forEach((name, k) => { el("option", "", select, name).value = k; });
      state.axes[axis] = Math.min(axis, state.run.objectives.length - 1);
      select.value = state.axes[axis];
    });
  }
  function drawMap() {
    const { run } = state;
    const [x, y] = state.axes;
    const points = run.candidates.map((c) => (c.z ? [c.z[x], c.z[y]] : null));
    const kept = Simplex.nondominated(points);
    const shown = points.filter((p) => p !== null);
    map.hidden = run.objectives.length < 2 || shown.length === 0;
    if (map.hidden) return;
    const scale = (axis, low, high) => {
      const values = shown.map((p) => p[axis]);
      const [least, most] = [Math.min(...values), Math.max(...values)];
      const margin = Math.max(0.25, (most - least) * 0.15);
      return (v) => low + ((v - least + margin) / (most - least + 2 * margin)) * (high - low);
    };
    const [px, py] = [scale(0, 14, 306), scale(1, 150, 12)];
    plot.replaceChildren();
    svg("path", { d: "M10 6V154H314", class: "axis" }, plot);
    const front = points.filter((_, i) => kept[i]).sort((a, b) => a[0] - b[0] || b[1] - a[1]);
    const steps = front.map((p, i) => (i ? `V${py(p[1])}` : `M10 ${py(p[1])}`) + `H${px(p[0])}`).join("");
    svg("path", { d: `${steps}V154`, class: "front" }, plot);
    points.forEach((p, i) => {
      if (p === null) return;
      const won = cards[i].card.classList.contains("winner");
      const dot = svg("g", { class: `dot${kept[i] ? " kept" : ""}${won ? " won" : ""}`, transform: `translate(${px(p[0])} ${py(p[1])})` }, plot);
      svg("circle", { r: 9 }, dot);
      svg("text", { "text-anchor": "middle", dy: "0.35em" }, dot).textContent = letters[i];
    });
    svg("text", { x: 312, y: 165, "text-anchor": "end", class: "axis-name" }, plot).textContent = `${title(run.objectives[x])} →`;
    svg("text", { x: 15, y: 12, class: "axis-name" }, plot).textContent = `↑ ${title(run.objectives[y])}`;
    const names = points.map((_, i) => letters[i]).filter((_, i) => kept[i]).join(", ");
    write(caption, `Filled: no other answer is better on both (${names}).`);
    plot.setAttribute("aria-label", `Answers by ${run.objectives[x]} and ${run.objectives[y]}. Not beaten on both: ${names}.`);
  }

  // ---- the words behind one weight (that of the objective pointed at, else the largest), and the earlier turns
  function drawWhy() {
    const { run } = state;
    const k = Words.any(run) ? state.why ?? run.predicted.indexOf(Math.max(...run.predicted)) : -1;
    unlike.hidden = typeof run.known !== "number" || run.known >= 0.5;
    const shown = JSON.stringify([run.id, k]);
    if (why.dataset.shown === shown) return;
    const fresh = JSON.parse(why.dataset.shown ?? "[]")[0] !== run.id;
    why.dataset.shown = shown;
    why.hidden = k < 0;
    write(summary, k < 0 ? "" : Words.sentence(run, k));
    if (k >= 0) Words.line(why, run, k);
    const earlier = run.messages.map((m, turn) => ({ ...m, turn })).slice(0, -1).filter((m) => m.role !== "system");
    thread.hidden = earlier.length === 0;
    thread.replaceChildren(...earlier.map((m) => {
      const line = el("p", m.role);
      el("b", "", line, m.role === "user" ? "You " : "Answer kept ");
      Words.tint(Object.assign(el("span", "", line), { dir: "auto" }), run, m.turn, k);
      return line;
    }));
    if (fresh) thread.scrollTop = thread.scrollHeight;
  }

  function draw() {
    drawRows();
    drawCards();
    drawMap();
  }
  const receive = () => receiveRun(props.value);
  function receiveRun(run) {
    const old = state.run;
    if (!Array.isArray(run?.objectives)) {
      // No run but a sentence on why there is none, such as that this page is too old for the server.
      if (old && run?.note) window.proBoard.fail(run.note);
      return;
    }
    // Too late comes a piece that was under way when the visitor pressed Stop, and of two runs at once (Enter while an
    // example's answers are written) the earlier one: ids are times. What is shown is also what the next request sends.
    const stopped = old?.phase === "stopped" && run.phase === "writing" && run.id === old.id;
    if (stopped || Number(run.id) < Number(old?.id)) {
      props.value = old;
      return;
    }
    state.run = run;
    if (!old || old.objectives.join("\n") !== run.objectives.join("\n")) {
      Object.assign(state, { locked: run.objectives.map(() => false), values: run.objectives.map(() => 0), floors: run.objectives.map(() => 0) });
      cards.splice(0).forEach((c) => c.card.remove());
      buildRows();
      buildAxes();
      state.shown = "";
    }
    while (cards.length < run.candidates.length) buildCard(cards.length);
    while (cards.length > run.candidates.length) cards.pop().card.remove();
    const floors = Simplex.floorHundredths(run.floors);
    // New weights for a new prompt move the sliders that are not locked; afterwards they are the visitor's.
    const shown = JSON.stringify([run.id, floors]);
    if (state.shown !== shown) {
      const changed = !old || old.id !== run.id;
      state.shown = shown;
      state.floors = floors;
      if (changed) Object.assign(state, { pick: null, why: null });
      // Answers that a policy wrote under the visitor's weights stand beside those weights.
      if (run.used) reset(run.used, true);
      else reset(predicted(), false);
    }
    write(note, run.note ?? "");
    note.className = `note ${run.tone ?? ""}`;
    note.hidden = !run.note;
    root.dataset.phase = run.phase ?? "";
    root.dataset.busy = String(Boolean(run.busy));
    root.dataset.run = run.id ?? "";
    drawWhy();
    draw();
  }

  // What the page's buttons send: the weights of a visitor who set some (else the predicted ones count), and with a
  // follow-up the answer that becomes the assistant's turn.
  const say = (text, tone = "") => {
    write(note, text);
    note.className = `note ${tone}`;
    note.hidden = false;
  };
  window.proBoard = {
    say,
    // A request that never came through, or an answer that broke off: what is on the page stays, and can be used.
    fail: (text) => {
      if (state.run.busy) receiveRun({ ...state.run, busy: false });
      say(text, "error");
    },
    weights: () => (state.touched || state.locked.some(Boolean) ? yours() : null),
    pick: () => state.pick ?? (root.dataset.winners?.[1] ? letters.indexOf(root.dataset.winners[1]) : -1),
  };
  watch("value", receive);
  receive();
}

mountBoard(element, props, watch);
