// "Which do you prefer?": the visitor's clicks, what they say about the visitor's weights, and the next question that
// would tell most. The clicks are kept in this browser only.

class Preferred {
  static KEY = "pro-choices";
  static MOST = { choices: 100, characters: 2_000_000 };
  static PAUSE = 500; // ms after a choice; then the buttons may be others, and a double click meant the first

  constructor(parent, state) {
    this.state = state;
    this.made = this.load() ?? [];
    this.unkept = false; // whether the last write failed, so that `made` is newer than what is stored
    this.chose = -Infinity; // when the last choice was made
    this.learned = null; // [what it was learned from, the posterior]
    this.box = Dom.el("section", "prefer", parent);
    this.box.setAttribute("aria-label", "Which do you prefer?");
    Dom.el("h2", "", this.box, "Which do you prefer?");
    this.first = new Toolbar(Dom.el("div", "ask-row", this.box), "The answer you prefer");
    this.second = Dom.el("div", "ask-row", this.box);
    this.asks = Dom.el("span", "", this.second);
    this.asks.setAttribute("role", "status");
    this.pair = new Toolbar(Dom.el("div", "ask-row", this.second), "The better of two answers");
    this.summary = Dom.el("p", "", this.box);
    this.summary.setAttribute("role", "status");
    this.weights = Dom.el("p", "", this.box);
    this.tools = new Toolbar(Dom.el("div", "ask-row", this.box), "Your choices");
    this.use = Dom.button("small", null, () => state.set(this.yours), "Use my learned weights");
    this.tools.fill([
      this.use,
      Dom.button("small", null, () => this.download(), "Download as pairs"),
      Dom.button("small", null, () => this.forget(), "Forget my choices"),
    ]);
    const small = "Your choices stay in this browser. You see the ranks while you choose, so this is no blind test.";
    Dom.el("p", "soft", this.box, small);
    this.drawn = "";
    window.addEventListener("storage", ({ key }) => this.changedElsewhere(key));
  }

  // ---- the choices
  // Those that are stored; null if there is no storage here, or what it holds is not ours.
  load() {
    try {
      const made = JSON.parse(localStorage.getItem(Preferred.KEY) ?? "[]");
      return Array.isArray(made) ? made.filter(Preferred.isChoice) : [];
    } catch {
      return null;
    }
  }

  // Another tab changed what is stored; it sets the key to null when it clears all.
  changedElsewhere(key) {
    if (key !== null && key !== Preferred.KEY) return;
    this.made = this.load() ?? this.made;
    this.unkept = false;
    if (this.state.run) this.state.changed();
  }

  static isChoice(one) {
    const isRow = (row, K) => Array.isArray(row) && row.length === K && row.every(Number.isFinite);
    const K = one?.objectives?.length;
    if (!Array.isArray(one?.objectives) || !isRow(one.predicted, K)) return false;
    const { z, answers, picked, messages } = one;
    const whole = Array.isArray(z) && z.length > 1 && z.every((row) => isRow(row, K)) && Array.isArray(messages);
    const texts = Array.isArray(answers) && answers.length === z?.length && answers.every((a) => typeof a === "string");
    return whole && texts && (picked === null || (Number.isInteger(picked) && picked >= 0 && picked < z.length));
  }

  keep() {
    const { choices, characters } = Preferred.MOST;
    this.made = this.made.slice(-choices);
    while (this.made.length > 1 && JSON.stringify(this.made).length > characters) this.made.shift();
    try {
      localStorage.setItem(Preferred.KEY, JSON.stringify(this.made));
      this.unkept = false;
    } catch {
      this.unkept = true; // without storage, they last as long as the page
    }
  }

  // The answers (indices) that can be chosen: those with a text and all scores. None while answers are written, and
  // none with scores that a link claims.
  get offered() {
    const { run } = this.state;
    if (run.busy || run.phase === "shared") return [];
    const whole = ({ text, z }) => text.trim() && z?.every(Number.isFinite);
    return [...run.candidates.keys()].filter((i) => whole(run.candidates[i]));
  }

  // A choice among these answers, not made yet. Python reads the system prompt nowhere, so none is kept.
  question(among) {
    const { run, predicted } = this.state;
    const candidates = among.map((i) => run.candidates[i]);
    return {
      objectives: run.objectives,
      messages: run.messages.filter(({ role }) => role !== "system"),
      answers: candidates.map(({ text }) => text),
      z: candidates.map(({ z }) => z),
      picked: null,
      predicted,
    };
  }

  static key = ({ objectives, messages, answers }) => JSON.stringify([objectives, messages, answers]);

  // What was chosen among these answers; undefined if nothing was.
  answered(among) {
    const key = Preferred.key(this.question(among));
    return this.made.find((choice) => Preferred.key(choice) === key);
  }

  // `picked`: a place in `among`, or null. The same choice once more takes it back.
  choose(among, picked) {
    const now = performance.now();
    if (now - this.chose < Preferred.PAUSE) return;
    this.chose = now;
    const asked = this.question(among);
    const old = this.answered(among);
    this.made = (this.unkept ? null : this.load()) ?? this.made; // another tab may have added some
    this.made = this.made.filter((choice) => Preferred.key(choice) !== Preferred.key(asked));
    if (old?.picked !== picked) this.made.push({ ...asked, picked });
    this.keep();
    this.state.changed();
  }

  forget() {
    this.made = [];
    this.keep();
    this.state.changed();
    this.first.buttons[0]?.focus({ preventScroll: true });
  }

  // The choices over this run's objectives.
  get counted() {
    const names = this.state.run.objectives.join("\n");
    return this.made.filter(({ objectives }) => objectives.join("\n") === names);
  }

  get posterior() {
    const { counted } = this;
    const from = JSON.stringify([this.state.run.objectives, counted.map(({ z, picked, predicted }) => [z, picked, predicted])]);
    if (this.learned?.[0] !== from) this.learned = [from, Choices.posterior(counted, this.state.run.objectives.length)];
    return this.learned[1];
  }

  // The visitor's learned weights for this prompt.
  get yours() {
    return Simplex.applyFloors(Choices.tilted(this.state.predicted, this.posterior.tilt), this.state.run.floors);
  }

  // The two answers to ask about next, or null: the first question comes first.
  get next() {
    const { offered } = this;
    if (offered.length < 3 || !this.answered(offered)) return null;
    const pairs = offered.flatMap((i, a) => offered.slice(a + 1).map((j) => [i, j]));
    const told = new Set(this.made.map((choice) => Preferred.key(choice)));
    const open = pairs.filter((pair) => !told.has(Preferred.key(this.question(pair))));
    const z = this.state.run.candidates.map((candidate) => candidate.z);
    return Choices.nextPair(this.posterior, z, this.state.predicted, open);
  }

  // ---- what is drawn
  draw() {
    const { run, predicted } = this.state;
    const { offered } = this;
    const drawn = JSON.stringify([run.id, run.objectives, predicted, offered, offered.map((i) => run.candidates[i].text)]);
    if (this.drawn === drawn && this.shown === this.made) return;
    [this.drawn, this.shown] = [drawn, this.made];
    this.box.hidden = offered.length < 2 && this.made.length === 0;
    this.fill(this.first, offered.length < 2 ? [] : offered, "None of them");
    const { next } = this;
    this.second.hidden = !next;
    const letters = (next ?? []).map((i) => Dom.LETTERS[i]).join(" or ");
    Dom.write(this.asks, next ? `And of these two, ${letters}? This would tell PRO most.` : "");
    this.fill(this.pair, next ?? [], "No difference");
    this.drawLearned();
  }

  // Buttons for a question: one for each answer, and one for none of them.
  fill(toolbar, among, none) {
    const focused = toolbar.buttons.indexOf(document.activeElement);
    const old = among.length ? this.answered(among) : undefined;
    const button = (picked, text, label) => {
      const one = Dom.button("small", null, () => this.choose(among, picked), text);
      one.setAttribute("aria-pressed", String(old?.picked === picked));
      if (label) one.setAttribute("aria-label", label);
      return one;
    };
    const letters = among.map((i, place) => button(place, Dom.LETTERS[i], `I prefer ${Dom.LETTERS[i]}`));
    toolbar.fill(among.length ? [...letters, button(null, none)] : []);
    if (focused >= 0) (toolbar.buttons[focused] ?? this.first.buttons[0])?.focus({ preventScroll: true });
  }

  drawLearned() {
    const { counted } = this;
    const { run, uniform } = this.state;
    const [guess, made] = Choices.agreement(counted, ({ predicted }) => predicted);
    const [equal] = Choices.agreement(counted, () => uniform);
    const said = `You agreed with PRO’s guess ${guess} of ${made}, with all equal ${equal} of ${made}.`;
    Dom.write(this.summary, made ? said : "");
    const learned = made ? this.yours.map((w, k) => `${run.objectives[k]} ${Dom.percent(w)}%`) : [];
    Dom.write(this.weights, made ? `Your choices fit these weights best here: ${learned.join(", ")}.` : "");
    this.tools.box.hidden = this.made.length === 0;
    this.use.disabled = made === 0;
    this.tools.refresh();
  }

  download() {
    Export.download(Choices.asPairs(this.made), "application/jsonl", "pro-pairs.jsonl");
  }
}
