// The bar above the answers: who wins and how clearly, or how far the writing is; and the tools for the whole run.

class Verdict {
  static NARROW = 0.25; // of a score's standard deviation: a smaller lead is called narrow
  static CHARACTERS = 4; // per token, about

  constructor(parent, state, actions) {
    this.state = state;
    this.bar = Dom.el("div", "bar-row", parent);
    this.text = Dom.button("verdict", this.bar, actions.show);
    this.tools = new Toolbar(Dom.el("div", "tools", this.bar), "Tools for these answers");
    this.sort = Dom.button("small", null, () => state.arrange(), "Best first");
    this.numbers = Dom.button("small", null, () => state.toggle("numbers"), "Numbers");
    this.rescore = Dom.button("small rescore", null, actions.rescore, "Score again here");
    this.tools.fill([
      this.rescore,
      this.sort,
      this.numbers,
      Dom.button("small", null, actions.link, "Copy link"),
      Dom.button("small", null, () => Export.save(state, "json"), "JSON"),
      Dom.button("small", null, () => Export.save(state, "csv"), "CSV"),
      Dom.button("small", null, actions.code, "Code for this"),
    ]);
    this.began = null; // [run, when its first text came]
  }

  draw(ranking) {
    const { run, places, numbers } = this.state;
    Dom.write(this.text, run.busy ? this.progress(run) : Verdict.sentence(ranking));
    this.text.disabled = ranking.best === null;
    const winner = ranking.best === null ? "" : Dom.LETTERS[ranking.best];
    this.text.className = `verdict of-${winner}${ranking.close.length ? " near" : ""}`;
    const best = places.join() === ranking.order.join();
    Dom.write(this.sort, best ? "A to Z" : "Best first");
    this.sort.disabled = ranking.best === null || (best && places.every((i, n) => i === n));
    this.numbers.setAttribute("aria-pressed", String(numbers));
    const asked = Boolean(run.busy) || !["shared", "stopped"].includes(run.phase) || !run.candidates.length;
    // A button that hides itself hands the focus on.
    if (asked && document.activeElement === this.rescore) {
      (this.text.disabled ? this.numbers : this.text).focus({ preventScroll: true });
    }
    this.rescore.hidden = asked;
    this.tools.refresh();
  }

  // "A wins", "A wins, narrowly", or "Too close to call: A or D".
  static sentence({ best, order, totals, close }) {
    if (best === null) return "No answer is scored yet.";
    const letter = Dom.LETTERS[best];
    if (close.length) return `Too close to call: ${[best, ...close].map((i) => Dom.LETTERS[i]).join(" or ")}`;
    const second = order[1] === undefined ? null : totals[order[1]];
    const narrow = second !== null && totals[best] - second < Verdict.NARROW;
    return `${letter} wins${narrow ? ", narrowly" : ""}`;
  }

  // After the first second of writing: about how many tokens there are, and how long the rest may take.
  progress(run) {
    const tokens = Math.max(0, ...run.candidates.map(Verdict.tokens));
    if (tokens === 0) return "Waiting for the first words…";
    if (this.began?.[0] !== run.id) this.began = [run.id, performance.now(), tokens];
    const seconds = (performance.now() - this.began[1]) / 1000;
    const written = tokens - this.began[2];
    const most = run.asked?.tokens;
    if (seconds < 1 || written <= 0 || !most) return "Writing…";
    const left = Math.ceil((Math.max(0, most - tokens) * seconds) / written);
    return `Writing: about ${tokens} of at most ${most} tokens, at most ${left} s more`;
  }

  static tokens = ({ text, reasoning }) =>
    Math.round((text.length + (reasoning ?? "").length) / Verdict.CHARACTERS);
}
