// The deck of answers: one card per answer with its text, a bar for each objective's score, and what can be done with it.
// Cards stand still: the rank is a badge, and they move only when the visitor asks for it.

class Cards {
  static RANKS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"];
  static CUT = { length: "Cut at the token limit.", filter: "Cut by the server's filter." };
  static NAMES = { predicted: "PRO’s guess", yours: "yours", uniform: "all equal" };
  static WIDEST = 2; // a bar of full length: two standard deviations from the average

  // `actions`: what the server is asked for: `rewrite(i)` and `goOn(i)`.
  constructor(parent, state, actions) {
    this.state = state;
    this.actions = actions;
    this.cards = [];
    this.places = ""; // as last drawn
    this.deck = Dom.el("section", "deck", parent);
    this.deck.setAttribute("aria-label", "Answers");
    new ResizeObserver(() => this.measure()).observe(this.deck);
  }

  build() {
    for (const { card } of this.cards.splice(0)) card.remove();
    this.places = "";
  }

  buildCard(i) {
    const { state, actions } = this;
    const letter = Dom.LETTERS[i];
    const card = Dom.el("article", "card", this.deck);
    card.setAttribute("aria-label", `Answer ${letter}`);
    const head = Dom.el("div", "card-head", card);
    Dom.el("b", `letter of-${letter}`, head, letter);
    const rank = Dom.el("span", "rank", head);
    const style = Dom.el("span", "style", head);
    const total = Dom.el("span", "total figure", head);
    total.title = "Weighted total under your weights";
    const badges = Dom.el("div", "badges", card);
    const text = Dom.el("div", "text", card);
    text.dir = "auto";
    const more = Dom.button("small more", card, () => this.unfold(i));
    const cut = Dom.el("div", "cut", card);
    const cutText = Dom.el("span", "", cut);
    const goOn = Dom.button("small", cut, () => actions.goOn(i), "Continue");
    goOn.setAttribute("aria-label", `Continue answer ${letter}`);
    const error = Dom.el("div", "error", card);
    const thought = Dom.el("details", "thought", card);
    Dom.el("summary", "", thought, "Reasoning (not scored)");
    const reasoning = Dom.el("div", "reasoning", thought);
    reasoning.dir = "auto";
    const scores = this.buildScores(card);
    const row = Dom.el("div", "sums figure", card);
    const sums = Object.entries(Cards.NAMES).map(([name, label]) => {
      const box = Dom.el("div", "sum", row);
      Dom.el("span", "", box, label);
      return { name, box, value: Dom.el("b", "", box) };
    });
    const tools = new Toolbar(Dom.el("div", "actions", card), `Answer ${letter}`);
    const copy = Dom.button("small", null, () => this.copy(i, copy), "Copy");
    const rewrite = Dom.button("small rewrite", null, () => actions.rewrite(i), "Rewrite");
    const pin = Dom.button("small pin", null, () => state.togglePin(i), "Pin");
    pin.title = "“Write again” keeps this answer";
    const use = Dom.button("small use", null, () => state.togglePick(i));
    tools.fill([copy, rewrite, pin, use]);
    const reasons = new Reasons(card, state, i);
    const parts = { card, rank, style, total, badges, text, more, cut, cutText, goOn, error };
    const rest = { reasons, thought, reasoning, ...scores, sums, tools, copy, rewrite, pin, use };
    return { ...parts, ...rest, shown: null, open: false };
  }

  buildScores(card) {
    const { run } = this.state;
    const scores = Dom.el("div", "scores", card);
    scores.setAttribute("role", "img"); // its label says all of it, also what the page shows as bars
    const scale = Dom.el("div", "scale", scores);
    Dom.el("span", "", scale, "below average");
    Dom.el("span", "", scale, "above average");
    const cells = run.objectives.map((name) => {
      const line = Dom.el("div", "score", scores);
      Dom.el("span", "name", line, Dom.title(name)).title = run.about?.[name] ?? "";
      const pull = Dom.el("span", "pull", line);
      const bar = Dom.el("i", "", pull);
      const z = Dom.el("span", "z figure", line);
      const spread = Dom.el("span", "spread figure", line);
      return { line, z, spread, pull, bar, raw: Dom.el("span", "raw figure", line) };
    });
    return { scores, cells };
  }

  // `rankings`: from `State.rankings`.
  draw(rankings) {
    const { run, places } = this.state;
    const { candidates } = run;
    while (this.cards.length < candidates.length) {
      this.cards.push(this.buildCard(this.cards.length));
    }
    while (this.cards.length > candidates.length) this.cards.pop().card.remove();
    this.deck.dataset.count = candidates.length;
    this.cards.forEach((card, i) => {
      this.drawPlace(card, i, rankings);
      this.drawAnswer(card, i);
      this.drawScores(card, i);
      this.drawTools(card, i, rankings.yours.best);
      card.reasons.draw();
    });
    this.arrange(places);
  }

  // Put the cards where `places` says. The order of the elements is the order on the screen.
  arrange(places) {
    const wanted = places.join();
    if (this.places === wanted) return;
    const moved = this.places.length === wanted.length;
    const before = this.cards.map(({ card }) => card.getBoundingClientRect());
    this.places = wanted;
    this.deck.append(...places.map((i) => this.cards[i].card));
    if (moved) this.slide(before);
  }

  // An answer's rank under the visitor's weights, and the weightings under which it is the best.
  drawPlace({ card, rank, total, badges, sums }, i, rankings) {
    const { run } = this.state;
    const { order, best, totals, close } = rankings.yours;
    const place = order.indexOf(i);
    card.classList.toggle("winner", best === i);
    card.dataset.place = place + 1;
    const near = close.includes(i) || (best === i && close.length > 0);
    card.classList.toggle("near", near);
    Dom.write(rank, this.rankText(run.candidates[i], place, best === i, near));
    rank.title = near ? this.leads(rankings.yours).join("\n") : "";
    Dom.write(total, totals[i] === null ? "" : Dom.signed(totals[i]));
    for (const { name, box, value } of sums) {
      const sum = rankings[name].totals[i];
      Dom.write(value, sum === null ? "–" : Dom.signed(sum));
      box.classList.toggle("best", rankings[name].best === i);
    }
    const wins = Object.keys(rankings).filter((name) => rankings[name].best === i);
    const marks = wins.map((name) => (rankings[name].close.length ? `${name} near` : name));
    if (badges.dataset.wins === marks.join()) return;
    badges.dataset.wins = marks.join();
    badges.replaceChildren();
    if (wins.length) Dom.el("span", "unseen", badges, "best by ");
    for (const [n, name] of wins.entries()) {
      const badge = Dom.el("span", `badge ${marks[n]}`, badges, Cards.NAMES[name]);
      if (marks[n] !== name) Dom.el("span", "unseen", badge, ", too close to call");
    }
  }

  // How far the best answer leads those that are too close to call, and how uncertain that is.
  leads({ best, close, totals }) {
    const { run, yours } = this.state;
    return close.map((i) => {
      const spread = Simplex.leadSpread(run.candidates[best], run.candidates[i], yours);
      const lead = `${(totals[best] - totals[i]).toFixed(2)} ${Dom.unsure(spread)}`;
      return `${Dom.LETTERS[best]} leads ${Dom.LETTERS[i]} by ${lead}: within the panel's uncertainty.`;
    });
  }

  // `near`: too close to call, as the winner or against it.
  rankText(candidate, place, wins, near) {
    if (candidate.z && wins) return near ? "too close to call" : "winner";
    if (candidate.z) return `${near ? "close " : ""}${Cards.RANKS[place]}`;
    if (candidate.error || !this.state.run.busy) return "";
    return candidate.reasoning && !candidate.text ? "thinking…" : "writing…";
  }

  drawAnswer(parts, i) {
    const { run } = this.state;
    const candidate = run.candidates[i];
    const { style, text, cut, cutText, goOn, error, thought, reasoning } = parts;
    Dom.write(style, candidate.style ?? "");
    // A text that is already there is not written again: the visitor may have selected it.
    if (parts.shown !== candidate.text) {
      parts.shown = candidate.text;
      Markdown.write(text, candidate.text);
      this.measure();
    }
    Dom.write(cutText, candidate.error ? "" : (Cards.CUT[candidate.finish] ?? ""));
    cut.hidden = !cutText.textContent;
    goOn.hidden = candidate.finish !== "length" || Boolean(run.busy);
    Dom.write(error, candidate.error ?? "");
    thought.hidden = !candidate.reasoning;
    Dom.write(reasoning, candidate.reasoning ?? "");
  }

  // The first card whose details are open without words, or -1.
  get unexplained() {
    return this.cards.findIndex(({ reasons }) => reasons.wanted);
  }

  unfold(i) {
    this.cards[i].open = !this.cards[i].open;
    this.measure();
  }

  // Offer to unfold the texts that are longer than their place; once a frame, because it needs the layout.
  measure() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => {
      const long = this.cards.map(({ text, open }) => open || text.scrollHeight > text.clientHeight + 4);
      this.cards.forEach(({ card, more, open }, i) => {
        more.hidden = !long[i];
        card.classList.toggle("open", open);
        card.classList.toggle("long", long[i] && !open);
        more.setAttribute("aria-expanded", String(open));
        Dom.write(more, open ? "Show less" : "Show all");
      });
    });
  }

  // Each objective's score z as a bar from the average to the left or right, of full length at WIDEST; and as numbers,
  // which the visitor may show: z, the spread of the objective's members (also as a whisker below z, as wide as its box
  // at ±2), and the raw score.
  drawScores({ scores, cells }, i) {
    const { run, yours } = this.state;
    const { z, raw, members } = run.candidates[i];
    scores.classList.toggle("uncertain", Boolean(members));
    scores.classList.toggle("none", !z);
    if (!z) {
      scores.setAttribute("aria-label", `Answer ${Dom.LETTERS[i]} has no scores yet`);
      return;
    }
    const spreads = z.map((_, k) => (members ? Simplex.deviation(members[k]) : null));
    const spoken = run.objectives.map((name, k) => {
      if (z[k] === null) return `${name} missing`;
      const spread = spreads[k] === null ? "" : `uncertain by ${spreads[k].toFixed(2)}, `;
      return `${name} ${Dom.signed(z[k])} (${spread}raw ${raw[k].toFixed(2)})`;
    });
    scores.setAttribute("aria-label", `Scores of answer ${Dom.LETTERS[i]}: ${spoken.join(", ")}`);
    cells.forEach((cell, k) => {
      cell.line.classList.toggle("missing", z[k] === null);
      if (z[k] === null) {
        Cards.drawMissing(cell);
        return;
      }
      const spread = spreads[k];
      const tone = z[k] < 0 ? "low" : "high";
      Dom.write(cell.z, Dom.signed(z[k]));
      cell.z.style.setProperty("--strength", Dom.clamp(Math.abs(z[k]) / 2, 0.06, 1).toFixed(3));
      cell.z.className = `z figure ${tone} ${spread === null ? "" : "unsure"}`;
      Dom.write(cell.raw, `raw ${raw[k].toFixed(2)}`);
      const width = Dom.clamp(Math.abs(z[k]) / Cards.WIDEST, 0.02, 1) * 50;
      cell.bar.style.width = `${width}%`;
      cell.bar.style.left = `${z[k] < 0 ? 50 - width : 50}%`;
      cell.bar.className = tone;
      const weight = Dom.percent(yours[k]);
      const unsure = (share) => (spread === null ? "" : ` ${Dom.unsure(share * spread)}`);
      cell.pull.title = `${Dom.signed(z[k])} × ${weight}% = ${Dom.signed(z[k] * yours[k])}${unsure(yours[k])}`;
      Dom.write(cell.spread, unsure(1).trim());
      const why = "uncertain: the panel's members disagree by this much (one standard deviation)";
      cell.z.title = spread === null ? "" : `${Dom.signed(z[k])}${unsure(1)}, ${why}`;
      const reach = Dom.clamp((spread ?? 0) / 2, 0.05, 1);
      cell.z.style.setProperty("--reach", `${(100 * reach).toFixed(1)}%`);
    });
  }

  // The judge gave no verdict: no bar, and no number that could be taken for one.
  static drawMissing({ z, spread, pull, bar, raw }) {
    Dom.write(z, "–");
    z.className = "z figure";
    z.title = pull.title = "No score: it counts as the mean of the other answers";
    for (const node of [spread, raw]) Dom.write(node, "");
    bar.style.width = "0";
  }

  drawTools({ tools, copy, rewrite, pin, use }, i, best) {
    const { run, pick, pins } = this.state;
    const idle = !run.busy;
    copy.hidden = use.hidden = !run.candidates[i].text;
    for (const button of [rewrite, use]) button.disabled = !idle;
    pin.setAttribute("aria-pressed", String(pins.includes(i)));
    Dom.write(pin, pins.includes(i) ? "Pinned" : "Pin");
    const chosen = (pick ?? best) === i;
    use.setAttribute("aria-pressed", String(chosen));
    use.title = chosen ? "A follow-up continues from this answer" : "Let a follow-up continue from this answer";
    Dom.write(use, "Follow up on this");
    tools.refresh();
  }

  async copy(i, button) {
    const done = await Dom.copy(this.state.run.candidates[i].text);
    Dom.write(button, done ? "Copied" : "Not copied");
    setTimeout(() => Dom.write(button, "Copy"), 1500);
  }

  // Bring the winner into view.
  show(i) {
    this.cards[i].card.scrollIntoView({ block: "nearest", behavior: Dom.calm() ? "auto" : "smooth" });
  }

  slide(before) {
    if (Dom.calm()) return;
    const timing = { duration: 260, easing: "ease-out" };
    this.cards.forEach(({ card }, i) => {
      const now = card.getBoundingClientRect();
      const [dx, dy] = [before[i].left - now.left, before[i].top - now.top];
      if (dx || dy) card.animate([{ transform: `translate(${dx}px, ${dy}px)` }, {}], timing);
    });
  }
}
