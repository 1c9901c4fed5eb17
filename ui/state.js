// What the board shows: the run that Python streams, and what the visitor did to it, which only this file knows. It
// touches no element of the page. Every change of the state calls `changed`, which draws.

class State {
  constructor(changed) {
    this.changed = changed;
    this.run = null; // see `Run` in board.py
    this.values = []; // the sliders, in whole hundredths
    this.locked = [];
    this.floors = []; // the owner's minimum weights, in whole hundredths
    this.touched = false; // whether the visitor set weights, which requests then send
    this.pick = null; // the answer from which a follow-up continues; null: the winner
    this.pins = []; // the answers (indices) that "Write again" keeps
    this.places = []; // the answers (indices) as their cards stand; they move only when the visitor asks for it
    this.keep = false; // whether the next question keeps the sliders as they are
    this.numbers = false; // whether scores, sums and ranges are shown as numbers
    this.pointed = null; // the objective whose words are shown; null: the largest predicted weight
    this.moving = null; // the slider that is moving
    this.anchor = null; // all values before it moved
    this.reasons = new Map(); // the words behind an answer's scores, by `reasonKey`; see `Scoring.why` in scoring.py
    this.shown = ""; // the run and the floors for which the sliders were last set
  }

  // A run's answers change only with its id, once they are written.
  reasonKey(i) {
    return `${this.run.id} ${i}`;
  }

  // Three weightings, each with K real weights.
  get uniform() {
    return this.run.objectives.map(() => 1 / this.run.objectives.length);
  }
  get predicted() {
    return Simplex.applyFloors(this.run.predicted ?? this.uniform, this.run.floors);
  }
  get yours() {
    return this.values.map((v) => v / 100);
  }

  // The weights of the run, K real numbers, and whether the sliders show others.
  get told() {
    return this.run.used ?? this.predicted;
  }
  get differs() {
    const unlocked = this.run.objectives.map(() => false);
    const written = Simplex.setSliders(this.told, this.values, unlocked, this.floors);
    return this.values.some((v, k) => v !== written[k]);
  }

  // True if a policy that reads weights wrote the answers under other weights than the sliders show. These rank the
  // answers at once, but only new answers would follow them.
  get unwritten() {
    return Boolean(this.run.conditioned) && this.differs;
  }

  // The answers under each of the three weightings: their totals (null: not scored yet), their order, best first, the
  // best one (null: none is scored), and those too close to call against it: it leads them by no more than the panel's
  // members disagree about this.
  rankings() {
    const { candidates } = this.run;
    const ranking = (weights) => {
      const totals = Simplex.totals(candidates.map((c) => c.z), weights);
      const order = Simplex.ranking(totals);
      const best = totals.some((v) => v !== null) ? order[0] : null;
      const isClose = (i) => {
        if (i === best || totals[i] === null) return false;
        const spread = Simplex.leadSpread(candidates[best], candidates[i], weights);
        return spread !== null && totals[best] - totals[i] <= spread;
      };
      return { totals, order, best, close: order.filter(isClose) };
    };
    return {
      predicted: ranking(this.predicted),
      yours: ranking(this.yours),
      uniform: ranking(this.uniform),
    };
  }

  // A piece is late if it was under way when the visitor pressed Stop. Of two runs at once (Enter while an example's
  // answers are written) the earlier one is late; ids are times.
  isLate(run) {
    const old = this.run;
    const stopped = old?.phase === "stopped" && run.phase === "writing" && run.id === old.id;
    return stopped || Number(run.id) < Number(old?.id);
  }

  // Take the next piece of a run, or a new run. Returns whether its objectives differ from those before.
  take(run) {
    const old = this.run;
    this.run = run;
    const renamed = !old || old.objectives.join("\n") !== run.objectives.join("\n");
    const mine = this.touched || this.locked.some(Boolean);
    const carried = renamed && mine ? Objectives.carried(old, run, this.yours) : null;
    if (renamed) {
      const held = carried ? Objectives.held(old, run, this.values, this.locked) : new Map();
      this.locked = run.objectives.map((name) => held.has(name));
      this.values = run.objectives.map((name) => held.get(name) ?? 0);
      this.shown = "";
    }
    // New weights for a new prompt move the unlocked sliders; afterwards only the visitor moves them.
    const floors = Simplex.floorHundredths(run.floors);
    const shown = JSON.stringify([run.id, floors]);
    if (this.shown !== shown) {
      this.shown = shown;
      this.floors = floors;
      if (old?.id !== run.id) [this.pick, this.pointed] = [null, null];
      const sameMessages = JSON.stringify(old?.messages) === JSON.stringify(run.messages);
      if (!sameMessages) {
        this.pins = [];
        this.places = [];
      }
      // Answers that a policy wrote under the visitor's weights are shown with those weights. `used` is null where a
      // policy read PRO's guess, because the same question was asked anew.
      const again = sameMessages && run.used !== null;
      const kept = this.touched && !renamed && (this.keep || again) ? this.yours : null;
      const given = carried ?? run.used ?? kept;
      this.setAll(given ?? this.predicted, Boolean(given));
    }
    if (this.places.length !== run.candidates.length) this.places = [...run.candidates.keys()];
    return renamed;
  }

  // What a page keeps of itself for reload, back and forward, and the way back.
  saved() {
    const { run, values, locked, touched, pick, pins, places, keep, numbers } = this;
    return { run, values, locked, touched, pick, pins, places, keep, numbers };
  }
  restore({ run, ...mine }) {
    this.take(run);
    Object.assign(this, mine);
    this.moving = null;
    // A link's sliders may stand below the owner's floors.
    const none = this.values.map(() => false);
    this.values = Simplex.setSliders(this.yours, this.values, none, this.floors);
  }

  // The weights that a request sends. A new question gets PRO's guess beside the locked sliders (null: PRO's guess
  // counts), unless the visitor keeps the sliders; answers to the same question are written under all of them.
  weights(again) {
    const { touched, locked, yours, keep } = this;
    if (again || keep) return touched || locked.some(Boolean) ? yours : null;
    return locked.some(Boolean) ? yours.map((w, k) => (locked[k] ? w : null)) : null;
  }

  // Which answers "Write again" writes (null: all): those that are not pinned.
  get unpinned() {
    if (this.pins.length === 0) return null;
    return [...this.run.candidates.keys()].filter((i) => !this.pins.includes(i));
  }

  // The winner at each place of slider k; see `Simplex.stretches`.
  stretches(k) {
    const { values, locked, floors, run } = this;
    const anchor = this.moving === k ? this.anchor : values;
    return Simplex.stretches(k, run.candidates.map(({ z }) => z), values, locked, floors, anchor);
  }

  setAll(weights, touched) {
    this.touched = touched;
    this.moving = null;
    this.values = Simplex.setSliders(weights, this.values, this.locked, this.floors);
  }

  // ---- what the visitor does
  reset() {
    this.setAll(this.predicted, false);
    this.changed();
  }
  // `weights`: K real weights, such as a preset's.
  set(weights) {
    this.setAll(weights, true);
    this.changed();
  }
  move(k, target) {
    if (this.moving !== k) {
      this.moving = k;
      this.touched = true;
      this.anchor = [...this.values];
    }
    const { values, locked, floors, anchor } = this;
    this.values = Simplex.moveSlider(k, target, values, locked, floors, anchor);
    this.changed();
  }
  toggleLock(k) {
    this.locked[k] = !this.locked[k];
    this.moving = null;
    this.changed();
  }
  togglePick(i) {
    this.pick = this.pick === i ? null : i;
    this.changed();
  }
  togglePin(i) {
    this.pins = this.pins.includes(i) ? this.pins.filter((j) => j !== i) : [...this.pins, i];
    this.changed();
  }
  // Cards stand best first, or, if they do already, in the order of their letters.
  arrange() {
    const { order } = this.rankings().yours;
    this.places = this.places.join() === order.join() ? [...this.places].sort() : order;
    this.changed();
  }
  toggle(name) {
    this[name] = !this[name];
    this.changed();
  }
  point(k) {
    this.pointed = k;
    this.changed();
  }
}
