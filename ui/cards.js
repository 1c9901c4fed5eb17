// The deck of answers: one card per answer, ordered by the visitor's weights, with its text, one score per objective,
// and its totals under the three weightings.

class Cards {
  static PLACES = ["1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th"];
  static CUT = { length: "Cut at the token limit.", filter: "Cut by the server's filter." };

  constructor(parent, state) {
    this.state = state;
    this.cards = [];
    this.order = ""; // as last drawn; a new order slides the cards
    this.deck = Dom.el("section", "deck", parent);
    this.deck.setAttribute("aria-label", "Answers, best first under your weights");
  }

  build() {
    for (const { card } of this.cards.splice(0)) card.remove();
  }

  buildCard(i) {
    const { run } = this.state;
    const letter = Dom.LETTERS[i];
    const card = Dom.el("article", "card", this.deck);
    const head = Dom.el("div", "card-head", card);
    Dom.el("b", "letter", head, letter);
    const rank = Dom.el("span", "rank", head);
    const style = Dom.el("span", "style", head);
    const total = Dom.el("span", "total", head);
    total.title = "Weighted total under your weights";
    const badges = Dom.el("div", "badges", card);
    const text = this.buildText("text", card, `Answer ${letter}`);
    const cut = Dom.el("div", "cut", card);
    const error = Dom.el("div", "error", card);
    const thought = Dom.el("details", "thought", card);
    Dom.el("summary", "", thought, "Reasoning");
    const about = `Reasoning of answer ${letter}, not scored`;
    const reasoning = this.buildText("reasoning", thought, about);
    const scores = Dom.el("div", "scores", card);
    scores.tabIndex = 0;
    const cells = run.objectives.map((name) => {
      const line = Dom.el("div", "score", scores);
      Dom.el("span", "name", line, Dom.title(name)).title = run.about?.[name] ?? "";
      const z = Dom.el("span", "z", line);
      const spread = Dom.el("span", "spread", line);
      const pull = Dom.el("span", "pull", line);
      return { z, spread, pull, bar: Dom.el("i", "", pull), raw: Dom.el("span", "raw", line) };
    });
    const row = Dom.el("div", "sums", card);
    const sums = ["predicted", "yours", "uniform"].map((name) => {
      const box = Dom.el("div", "sum", row);
      Dom.el("span", "", box, name);
      return { name, box, value: Dom.el("b", "", box) };
    });
    const use = Dom.button("small use", card, () => this.state.togglePick(i));
    const parts = { card, rank, style, total, badges, text, cut, error, thought, reasoning };
    return { ...parts, scores, cells, sums, use };
  }

  // A box that scrolls, for a text in any script.
  buildText(className, parent, label) {
    const box = Dom.el("div", className, parent);
    Object.assign(box, { dir: "auto", tabIndex: 0 });
    box.setAttribute("aria-label", label);
    return box;
  }

  // `rankings`: from `State.rankings`.
  draw(rankings) {
    const { candidates } = this.state.run;
    while (this.cards.length < candidates.length) {
      this.cards.push(this.buildCard(this.cards.length));
    }
    while (this.cards.length > candidates.length) this.cards.pop().card.remove();
    this.deck.dataset.count = candidates.length;
    const before = this.cards.map(({ card }) => card.getBoundingClientRect());
    const sizes = candidates.flatMap(({ z }) => (z ?? []).map(Math.abs));
    const strongest = Math.max(0.5, ...sizes);
    this.cards.forEach((card, i) => {
      this.drawPlace(card, i, rankings);
      this.drawAnswer(card, candidates[i]);
      this.drawScores(card, i, strongest);
      this.drawUse(card, i, rankings.yours.best);
    });
    const order = rankings.yours.order.join();
    const reordered = this.order !== order && this.order.length === order.length;
    this.order = order;
    if (reordered) this.slide(before);
  }

  // An answer's place under the visitor's weights, and the weightings under which it is the best.
  drawPlace({ card, rank, total, badges, sums }, i, rankings) {
    const { run } = this.state;
    const { order, best, totals, close } = rankings.yours;
    const place = order.indexOf(i);
    card.style.order = place === 0 ? -1 : place + 1;
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
    badges.replaceChildren(...(wins.length ? ["best by"] : []));
    for (const [n, name] of wins.entries()) {
      const badge = Dom.el("span", `badge ${marks[n]}`, badges, name);
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
    if (candidate.z) return `${near ? "close " : ""}${Cards.PLACES[place]}`;
    if (candidate.error || !this.state.run.busy) return "";
    return candidate.reasoning && !candidate.text ? "thinking…" : "writing…";
  }

  drawAnswer({ style, text, cut, error, thought, reasoning }, candidate) {
    Dom.write(style, candidate.style ?? "");
    Dom.write(text, candidate.text);
    Dom.write(cut, candidate.error ? "" : (Cards.CUT[candidate.finish] ?? ""));
    Dom.write(error, candidate.error ?? "");
    thought.hidden = !candidate.reasoning;
    Dom.write(reasoning, candidate.reasoning ?? "");
  }

  // Each objective's score z, and its share of the total under the visitor's weights: a bar to the left or right,
  // of full length at a third of the strongest score. Where the objective has several members, their spread stands
  // beside the score, as a number and as a whisker below it that is as wide as the score's box at ±2.
  drawScores({ scores, cells }, i, strongest) {
    const { run, yours } = this.state;
    const { z, raw, members } = run.candidates[i];
    scores.classList.toggle("uncertain", Boolean(members));
    scores.hidden = !z;
    if (!z) {
      scores.setAttribute("aria-label", "");
      return;
    }
    const spreads = z.map((_, k) => (members ? Simplex.deviation(members[k]) : null));
    const spoken = run.objectives.map((name, k) => {
      const spread = spreads[k] === null ? "" : `uncertain by ${spreads[k].toFixed(2)}, `;
      return `${name} ${Dom.signed(z[k])} (${spread}raw ${raw[k].toFixed(2)})`;
    });
    scores.setAttribute("aria-label", `Scores of answer ${Dom.LETTERS[i]}: ${spoken.join(", ")}`);
    cells.forEach((cell, k) => {
      const pull = z[k] * yours[k];
      const spread = spreads[k];
      const tone = (v) => (v < 0 ? "low" : "high");
      Dom.write(cell.z, Dom.signed(z[k]));
      cell.z.style.setProperty("--strength", Dom.clamp(Math.abs(z[k]) / 2, 0.06, 1).toFixed(3));
      cell.z.className = `z ${tone(z[k])} ${spread === null ? "" : "unsure"}`;
      Dom.write(cell.raw, `raw ${raw[k].toFixed(2)}`);
      const width = Dom.clamp((3 * Math.abs(pull)) / strongest, 0, 1) * 50;
      cell.bar.style.width = `${width}%`;
      cell.bar.style.left = `${pull < 0 ? 50 - width : 50}%`;
      cell.bar.className = tone(pull);
      const weight = Dom.percent(yours[k]);
      const unsure = (share) => (spread === null ? "" : ` ${Dom.unsure(share * spread)}`);
      cell.pull.title = `${Dom.signed(z[k])} × ${weight}% = ${Dom.signed(pull)}${unsure(yours[k])}`;
      Dom.write(cell.spread, unsure(1).trim());
      const why = "uncertain: the panel's members disagree by this much (one standard deviation)";
      cell.z.title = spread === null ? "" : `${Dom.signed(z[k])}${unsure(1)}, ${why}`;
      const reach = Dom.clamp((spread ?? 0) / 2, 0.05, 1);
      cell.z.style.setProperty("--reach", `${(100 * reach).toFixed(1)}%`);
    });
  }

  drawUse({ use }, i, best) {
    const { run, pick } = this.state;
    const chosen = (pick ?? best) === i;
    use.hidden = !run.candidates[i].text || Boolean(run.busy);
    use.setAttribute("aria-pressed", String(chosen));
    Dom.write(use, chosen ? "A follow-up continues from here" : "Continue from this answer");
  }

  slide(before) {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    const timing = { duration: 260, easing: "ease-out" };
    this.cards.forEach(({ card }, i) => {
      const now = card.getBoundingClientRect();
      const [dx, dy] = [before[i].left - now.left, before[i].top - now.top];
      if (dx || dy) card.animate([{ transform: `translate(${dx}px, ${dy}px)` }, {}], timing);
    });
  }
}
