// What the board shows: the run that Python streams, and what the visitor did to it, which lives here alone. No element
// of the page is touched here. Whatever changes the state calls `changed`, which draws.

class State {
  constructor(changed) {
    this.changed = changed;
    this.run = null; // see `Run` in board.py
    this.values = []; // the sliders, in whole hundredths
    this.locked = [];
    this.floors = []; // the owner's least weights, in whole hundredths
    this.touched = false; // the visitor set weights, so requests send them
    this.pick = null; // the answer that a follow-up continues from; null: the winner
    this.pointed = null; // the objective whose words are shown; null: the largest predicted weight
    this.moving = null; // the slider that moves, and all the values from before it moved
    this.anchor = null;
    this.shown = ""; // the run and the floors that the sliders were last set for
  }

  // Three real weights of K objectives each.
  get uniform() {
    return this.run.objectives.map(() => 1 / this.run.objectives.length);
  }
  get predicted() {
    return Simplex.applyFloors(this.run.predicted ?? this.uniform, this.run.floors);
  }
  get yours() {
    return this.values.map((v) => v / 100);
  }

  // A policy that reads weights wrote the answers under some. True when the sliders say others: these rank the
  // answers at once, but it would have to write again to follow them.
  get unwritten() {
    const { run } = this;
    const unlocked = run.objectives.map(() => false);
    const told = run.used ?? this.predicted;
    const written = Simplex.setSliders(told, this.values, unlocked, this.floors);
    return Boolean(run.conditioned) && this.values.some((v, k) => v !== written[k]);
  }

  // The answers under each of the three weights: their totals (null: not scored yet), their order, best first, and
  // the best one (null: none is scored).
  rankings() {
    const scores = this.run.candidates.map((c) => c.z);
    const ranking = (weights) => {
      const totals = Simplex.totals(scores, weights);
      const order = Simplex.ranking(totals);
      return { totals, order, best: totals.some((v) => v !== null) ? order[0] : null };
    };
    return {
      predicted: ranking(this.predicted),
      yours: ranking(this.yours),
      uniform: ranking(this.uniform),
    };
  }

  // Too late comes a piece that was under way when the visitor pressed Stop, and of two runs at once (Enter while
  // an example's answers are written) the earlier one: ids are times.
  isLate(run) {
    const old = this.run;
    const stopped = old?.phase === "stopped" && run.phase === "writing" && run.id === old.id;
    return stopped || Number(run.id) < Number(old?.id);
  }

  // Take the next piece of a run, or a new run. Returns whether its objectives are others than before.
  take(run) {
    const old = this.run;
    this.run = run;
    const renamed = !old || old.objectives.join("\n") !== run.objectives.join("\n");
    if (renamed) {
      this.locked = run.objectives.map(() => false);
      this.values = run.objectives.map(() => 0);
      this.shown = "";
    }
    // New weights for a new prompt move the sliders that are not locked; afterwards they are the visitor's.
    const floors = Simplex.floorHundredths(run.floors);
    const shown = JSON.stringify([run.id, floors]);
    if (this.shown !== shown) {
      this.shown = shown;
      this.floors = floors;
      if (old?.id !== run.id) [this.pick, this.pointed] = [null, null];
      // Answers that a policy wrote under the visitor's weights stand beside those weights.
      this.setAll(run.used ?? this.predicted, Boolean(run.used));
    }
    return renamed;
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
  level() {
    this.setAll(this.uniform, true);
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
  point(k) {
    this.pointed = k;
    this.changed();
  }
}
