// The board puts the parts in the other files together, in one gr.HTML component.
//
// Gradio runs these files as one text (see board.py), with `element`, `props` and `watch`. `props.value` is the run
// that Python streams. Sliders, locks and the picked answer exist only in the page, in `State`.

class Board {
  constructor(root) {
    this.root = root;
    this.state = new State(() => this.draw());
    this.note = Dom.el("div", "note", root);
    this.note.setAttribute("role", "status");
    this.conversation = new Conversation(root, this.state);
    const grid = Dom.el("div", "grid", root);
    const side = Dom.el("div", "side", grid);
    this.sliders = new Sliders(side, this.state, this.conversation.summary);
    this.scatter = new Scatter(side, this.state);
    this.cards = new Cards(grid, this.state);
    this.winner = Dom.el("div", "unseen", root); // for those who do not see the cards move
    this.winner.setAttribute("aria-live", "polite");
  }

  // Show the next piece of a run, or a new run. Returns false if it came too late.
  receive(run) {
    if (this.state.isLate(run)) return false;
    if (this.state.take(run)) {
      for (const part of [this.sliders, this.scatter, this.cards]) part.build();
    }
    this.say(run.note ?? "", run.tone ?? "");
    this.draw();
    return true;
  }

  draw() {
    const { run, unwritten } = this.state;
    const rankings = this.state.rankings();
    const letter = (i) => (i === null ? "-" : Dom.LETTERS[i]);
    Object.assign(this.root.dataset, {
      phase: run.phase ?? "",
      busy: Boolean(run.busy),
      run: run.id ?? "",
      unwritten,
      order: rankings.yours.order.map(letter).join(""),
      winners: Object.values(rankings).map(({ best }) => letter(best)).join(""),
    });
    this.conversation.draw();
    this.sliders.draw();
    this.cards.draw(rankings);
    this.scatter.draw(rankings.yours.best);
    if (run.busy) return;
    const { best, close } = rankings.yours;
    const wins = close.length
      ? `Answer ${letter(best)} leads under your weights, too close to call against ${close.map(letter).join(", ")}`
      : `Answer ${letter(best)} wins under your weights`;
    Dom.write(this.winner, best === null ? "" : wins);
  }

  say(text, tone = "") {
    Dom.write(this.note, text);
    this.note.className = `note ${tone}`;
    this.note.hidden = !text;
  }

  // After a request that failed, or an answer that broke off: what is on the page stays usable.
  fail(text) {
    const { run } = this.state;
    if (run.busy) this.receive({ ...run, busy: false });
    this.say(text, "error");
  }

  // What the page's buttons send: the visitor's weights (null: the predicted ones count), and for a follow-up the
  // answer that becomes the assistant's turn (-1: none).
  weights() {
    const { touched, locked, yours } = this.state;
    return touched || locked.some(Boolean) ? yours : null;
  }
  pick() {
    return this.state.pick ?? this.state.rankings().yours.best ?? -1;
  }
}

const board = new Board(element.querySelector(".board"));
window.proBoard = board;

function receive() {
  const { run } = board.state;
  if (Array.isArray(props.value?.objectives)) {
    // What is shown is also what the next request sends.
    if (!board.receive(props.value)) props.value = run;
  } else if (run && props.value?.note) {
    // A sentence instead of a run, such as that this page is too old for the server.
    board.fail(props.value.note);
  }
}
watch("value", receive);
receive();
