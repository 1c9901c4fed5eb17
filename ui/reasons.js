// "Why these scores": the words of an answer that moved one objective's score. They are asked for when a card's details
// are opened, and kept in this page only, in `State.reasons`.

class Reasons {
  static LEAST = 0.03; // of a score's standard deviation: less is not worth a tint
  static NAMED = 3; // as many words are left out together, see pro_core/rewards/explanations.py

  constructor(parent, state, i) {
    this.state = state;
    this.i = i;
    this.chosen = null; // the objective that the visitor chose; null: the one that counts most for this answer
    this.drawn = ""; // what is shown
    const letter = Dom.LETTERS[i];
    this.box = Dom.el("details", "thought reasons", parent);
    Dom.el("summary", "", this.box, "Why these scores");
    this.select = Dom.el("select", "", this.box);
    this.select.setAttribute("aria-label", `Objective of answer ${letter}`);
    this.select.addEventListener("change", () => {
      this.chosen = Number(this.select.value);
      this.draw();
    });
    this.says = Dom.el("p", "", this.box);
    this.says.setAttribute("role", "status");
    this.text = Dom.el("div", "reason-text", this.box);
    this.text.dir = "auto";
    this.text.tabIndex = 0;
    this.text.setAttribute("role", "group");
    this.text.setAttribute("aria-label", `Words of answer ${letter}`);
    this.box.addEventListener("toggle", () => {
      if (this.box.open && this.known?.error) this.state.reasons.delete(this.state.reasonKey(this.i)); // try once more
      this.state.changed(); // which asks for the words that are wanted
    });
  }

  get known() {
    return this.state.reasons.get(this.state.reasonKey(this.i));
  }
  // Whether the visitor wants words that nobody has asked for yet.
  get wanted() {
    return this.box.open && !this.box.hidden && !this.known;
  }

  draw() {
    const { run, yours } = this.state;
    const { z, text } = run.candidates[this.i];
    this.box.hidden = !z || Boolean(run.busy);
    if (this.box.hidden || !this.box.open) return;
    const { known } = this;
    const found = known?.words ? known : null;
    const K = found?.words[0]?.effects.length ?? z.length; // an added objective has no words
    const counts = z.slice(0, K).map((v, k) => Math.abs(v * yours[k]));
    const most = counts.indexOf(Math.max(...counts));
    const k = this.chosen !== null && this.chosen < K ? this.chosen : most;
    const drawn = JSON.stringify([this.state.reasonKey(this.i), k, known ?? null]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const options = run.objectives.slice(0, K).map((name, j) => {
      const option = Dom.el("option", "", null, Dom.title(name));
      option.value = j;
      return option;
    });
    this.select.replaceChildren(...options);
    this.select.value = k;
    Dom.write(this.says, known ? (known.error ?? Reasons.sentence(run, this.i, known, k)) : "Looking…");
    this.text.hidden = this.select.hidden = !found;
    this.text.replaceChildren();
    if (found) {
      const strongest = Math.max(...found.words.map(({ effects }) => Math.abs(effects[k])));
      const how = { name: run.objectives[k], least: Reasons.LEAST, strongest, amount: (size) => size.toFixed(2) };
      Words.tint(this.text, text, found.words, k, how);
    }
  }

  // "Humor falls by 0.62 without “Tell”, “joke”, “cat”; it falls by 0.08 without three random words."
  static sentence(run, i, { words, named, random }, k) {
    const { text, z } = run.candidates[i];
    const name = Dom.title(run.objectives[k]);
    const known = (v) => typeof v === "number";
    if (known(z[k]) && !named.some(known)) return `${name}: this answer has too few words to compare.`;
    if (!known(named[k]) || !known(random[k])) return `${name}: a score is missing, so there is nothing to compare.`;
    const best = words.toSorted((a, b) => b.effects[k] - a.effects[k]).slice(0, Reasons.NAMED);
    const characters = [...text];
    const said = best.map(({ start, end }) => `“${characters.slice(start, end).join("")}”`).join(", ");
    const moves = (by) => `${by < 0 ? "rises" : "falls"} by ${Math.abs(by).toFixed(2)}`;
    return `${name} ${moves(named[k])} without ${said}; it ${moves(random[k])} without three random words.`;
  }
}
