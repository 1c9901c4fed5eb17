// The board puts the parts in the other files together, in one gr.HTML component.
//
// Gradio runs these files as one text (see board.py), with `element`, `props` and `watch`. `props.value` is the run
// that Python streams. Sliders, locks and the picked answer exist only in the page, in `State`.

class Board {
  // `publish`: makes a run the one that requests send. `recorded`: the recorded runs, one for each chip.
  constructor(root, publish, recorded) {
    this.root = root;
    this.publish = publish;
    this.recorded = recorded;
    this.state = new State(() => this.draw());
    this.which = null; // the answers (indices) that the next request writes; null: all
    this.waiting = null; // the prompt of a request that the server has not answered yet
    this.scoring = null; // the id of the run that was shown when scores were asked for (Add, pasted answers, and so on)
    this.asked = ""; // the prompt of the last request
    this.abandoned = new Set(); // the ids of runs that were being written when the visitor went back or forward
    this.opening = false; // whether a link is being read
    this.explaining = ""; // the answer whose words were asked for, see `State.reasonKey`; "": none
    this.dropped = ""; // the objective that `#drop` takes away; its handler reads it, see objectives.py
    this.asking = new Asking(this);
    const actions = {
      show: () => this.cards.show(this.state.rankings().yours.best),
      rescore: () => this.press("#rescore"),
      link: () => this.link(),
      code: () => this.code.toggle(),
      rewrite: (i) => this.press("#again", [i]),
      goOn: (i) => this.press("#continue", [i]),
      drop: (name) => this.drop(name),
    };
    this.note = Dom.el("div", "note", root);
    this.note.setAttribute("role", "status");
    this.conversation = new Conversation(root, this.state);
    this.verdict = new Verdict(root, this.state, actions);
    this.code = new Code(root, this.state);
    const grid = Dom.el("div", "grid", root);
    const side = Dom.el("div", "side", grid);
    this.sliders = new Sliders(side, this.state, this.conversation.summary, actions.drop);
    this.sliders.change.after(this.conversation.why);
    this.cards = new Cards(grid, this.state, actions);
    this.scatter = new Scatter(grid, this.state);
    this.preferred = new Preferred(root, this.state);
    this.spoken = Dom.el("div", "unseen", root); // for those who do not see the page change
    this.spoken.setAttribute("aria-live", "polite");
    this.memory = new Memory(this);
  }

  // Whether answers are being written, and whether any request is under way: there is one at a time, because each
  // begins with the run that is shown, and its reply takes that run's place.
  get writing() {
    return this.waiting !== null || Boolean(this.state.run?.busy);
  }
  get busy() {
    return this.writing || this.scoring !== null;
  }

  // Show the next piece of a run, or a new run. Returns false if it came too late.
  receive(run) {
    if (this.abandoned.has(run.id)) return false;
    const left = this.scoring !== null && this.scoring !== this.state.run.id; // the visitor went back or forward
    if (!run.busy) this.scoring = null;
    if (left) this.draw();
    if (left || this.state.isLate(run)) return false;
    this.waiting = null;
    if (this.state.take(run)) this.build();
    this.say(run.note ?? "", run.tone ?? "");
    this.draw();
    return true;
  }

  // Show what the memory or a link holds, see `State.saved`.
  show(saved) {
    const { writing } = this;
    if (this.state.run?.busy) this.abandoned.add(this.state.run.id);
    this.abandoned.delete(saved.run.id);
    this.waiting = null;
    this.state.restore(saved);
    this.build();
    this.publish(saved.run);
    this.say(saved.run.note ?? "");
    this.draw();
    // Gradio's page asks nothing new while the same button's answers are written.
    if (writing) document.querySelector("#stop").click();
  }

  // Switch to a recorded run, here in the browser.
  example(i) {
    if (this.busy) return;
    const run = this.recorded[i];
    this.memory.leave();
    this.memory.fill(run.messages.at(-1).content);
    this.receive(run);
    this.publish(run);
  }

  build() {
    const focused = this.sliders.focused; // such as the button that took an objective away
    for (const part of [this.sliders, this.scatter, this.cards]) part.build();
    this.sliders.focus(focused);
  }

  draw() {
    const { run, unwritten, pins, numbers } = this.state;
    const rankings = this.state.rankings();
    const letter = (i) => (i === null ? "-" : Dom.LETTERS[i]);
    Object.assign(this.root.dataset, {
      phase: run.phase ?? "",
      busy: this.busy,
      run: run.id ?? "",
      unwritten: unwritten || pins.length > 0,
      order: rankings.yours.order.map(letter).join(""),
      winners: Object.values(rankings).map(({ best }) => letter(best)).join(""),
    });
    this.root.classList.toggle("numbers", numbers);
    this.conversation.draw();
    this.verdict.draw(rankings.yours);
    this.code.draw();
    this.sliders.draw();
    this.cards.draw(rankings);
    this.scatter.draw(rankings.yours.best);
    this.preferred.draw();
    this.asking.draw();
    this.drawExamples();
    this.speak(rankings.yours);
    this.memory.soon();
    this.explain();
  }

  // Mark the chip whose run is shown.
  drawExamples() {
    const shown = this.recorded.findIndex(({ id }) => id === this.state.run.id);
    for (const [i, chip] of document.querySelectorAll("#examples button").entries()) {
      chip.setAttribute("aria-pressed", String(i === shown));
    }
  }

  // Say that the weights are ready, and who wins; that the work has begun is the note's text.
  speak({ best, close }) {
    const { run } = this.state;
    const letter = (i) => Dom.LETTERS[i];
    if (run.busy) {
      if (!run.predicted) return;
      const most = run.objectives[run.predicted.indexOf(Math.max(...run.predicted))];
      Dom.write(this.spoken, `The weights are ready: ${most} counts most. Answers are being written.`);
      return;
    }
    const wins = close.length
      ? `Answer ${letter(best)} leads under your weights, too close to call against ${close.map(letter).join(", ")}`
      : `Answer ${letter(best)} wins under your weights`;
    Dom.write(this.spoken, best === null ? "" : wins);
  }

  // An error stands beside what caused it.
  say(text, tone = "") {
    if (tone === "error") this.asking.failed();
    const place = tone === "error" ? document.querySelector(`#${this.from}-note p`) : null;
    const seen = place?.checkVisibility() ? place : null; // not in a section that is closed
    for (const node of document.querySelectorAll(".beside")) Dom.write(node, node === seen ? text : "");
    Dom.write(this.note, seen ? "" : text);
    this.note.className = `note ${tone}`;
    this.note.style.visibility = this.note.textContent ? "" : "hidden";
  }

  // A request leaves. `from`: what asks: "ask", "again", "rescore", "paste" or "own".
  begin(from, prompt = "") {
    this.from = from;
    this.stopped = false;
    this.memory.leave();
    if (from === "ask" || from === "again") {
      const { messages } = this.state.run;
      this.waiting = from === "ask" ? prompt : messages.at(-1).content;
      this.asked = this.waiting;
      this.asking.begin();
      this.draw();
      this.say("Asking…");
      return;
    }
    this.scoring = this.state.run.id;
    this.draw();
    this.say("Scoring…");
  }

  // The visitor pressed Stop. Before the first piece there is nothing to score.
  stop() {
    this.stopped = true;
    if (this.waiting === null) return;
    this.waiting = null;
    this.draw();
    this.say("Stopped.");
  }

  // After a request that failed, or an answer that broke off: what is on the page stays usable.
  fail(text) {
    const { run } = this.state;
    this.waiting = this.scoring = null;
    const phase = run.phase === "writing" ? "stopped" : run.phase; // what there is can be scored
    if (run.busy) this.receive({ ...run, busy: false, phase });
    this.draw();
    this.say(text, "error");
  }

  // Press one of the page's own buttons, for some of the answers.
  press(button, which = null) {
    if (this.busy) return;
    this.which = which;
    document.querySelector(button).click();
  }

  // Take an added objective away.
  drop(name) {
    if (this.busy) return;
    if (!document.querySelector("#drop")) {
      // A restored run may have an objective that a visitor added before its owner turned that off.
      this.say("Nothing can be added or removed here any more: ask a new question.", "error");
      return;
    }
    this.dropped = name;
    this.press("#drop");
  }

  // What the page's buttons send: the visitor's weights, the answers to write, and for a follow-up the answer that
  // becomes the assistant's turn (-1: none).
  weights(again = false) {
    return this.state.weights(again);
  }
  wanted() {
    const which = this.which ?? this.state.unpinned;
    this.which = null;
    return which;
  }
  pick() {
    return this.state.pick ?? this.state.rankings().yours.best ?? -1;
  }

  // Ask for the words behind the scores of an answer whose details are open, one answer after the other.
  explain() {
    const i = this.cards.unexplained;
    if (i < 0 || this.explaining || this.busy) return;
    this.explaining = this.state.reasonKey(i);
    this.press("#why", [i]);
  }

  // `found`: from `Scoring.why`; it may be of a run that is no longer shown.
  explained(found) {
    this.state.reasons.set(this.explaining, found);
    this.explaining = "";
    this.draw();
  }

  fragment() {
    return Share.fragment(this.state);
  }

  async link() {
    const { origin, pathname } = location;
    let fragment;
    try {
      fragment = await this.fragment();
    } catch {
      this.say("No link can hold this run: it has no answers yet, or too long ones.", "error");
      return;
    }
    const done = await Dom.copy(`${origin}${pathname}${fragment}`);
    this.say(done ? "Link copied. It holds the question, the weights and the answers." : "The browser let nothing be copied.");
  }

  // A run that the address shares. `known`: the run that the page opened with.
  async openShared(known) {
    this.opening = true;
    try {
      const shared = await Share.read(location.hash, known);
      if (!shared) return;
      const blank = { locked: shared.values.map(() => false), pins: [], keep: false, numbers: false };
      const places = [...shared.run.candidates.keys()];
      this.opening = false;
      this.show({ ...shared, ...blank, places, touched: true });
      this.memory.fill(shared.run.messages.at(-1).content);
    } catch {
      this.say("The shared run in this address cannot be read.", "error");
    } finally {
      this.opening = false;
      this.memory.soon();
    }
  }
}

const publish = (run) => { props.value = run; };
const board = new Board(element.querySelector(".board"), publish, [props.value, ...props.others]);
window.proBoard = board;

let opened = null; // the run that the page opened with
function receive() {
  const { run } = board.state;
  if (props.value === run) return;
  if (run && run.id !== opened && props.value?.id === opened) {
    props.value = run; // Gradio sends the first run once more, after the memory showed another
  } else if (Array.isArray(props.value?.objectives)) {
    // What is shown is also what the next request sends.
    if (!board.receive(props.value)) props.value = run;
  } else if (run && props.value?.note) {
    // A sentence instead of a run, such as that this page is too old for the server.
    board.fail(props.value.note);
  }
}
watch("value", receive);
receive();

const first = board.state.run;
opened = first.id;
const asked = new URLSearchParams(location.search);
document.body.classList.toggle("pro-embedded", asked.get("embed") === "true");
if (!board.memory.open(window.history.state)) {
  board.openShared(first);
  if (asked.get("prompt")) board.memory.fill(asked.get("prompt").slice(0, 10_000));
}
window.addEventListener("hashchange", () => board.openShared(first));
Dom.when("#examples button", (chip) => {
  new Toolbar(chip.parentElement, "Recorded examples").refresh();
  board.drawExamples();
});
