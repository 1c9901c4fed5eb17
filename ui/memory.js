// What the page keeps for reload, back and forward: each finished run is an entry of the browser's own history, in this
// tab and on this computer only.

class Memory {
  static MOST = 1_000_000; // characters; browsers limit what an entry holds
  static WAIT = 300; // ms without a change before it is kept

  // `board`: shows a run again.
  constructor(board) {
    this.board = board;
    this.entry = null; // the id of the run that the current entry holds
    window.addEventListener("popstate", ({ state }) => this.open(state));
    // Later, browsers keep no more of an entry.
    window.addEventListener("beforeunload", () => this.keep());
    document.addEventListener("input", ({ target }) => {
      if (target.closest?.("#prompt")) this.soon();
    });
  }

  // The element of the prompt, or null while there is none.
  get prompt() {
    return document.querySelector("#prompt textarea");
  }

  // Keep what is shown: a new run at once, as an entry of its own, else after a while without changes. Between a click
  // and the first news of its run there is nothing to keep.
  soon() {
    clearTimeout(this.timer);
    if (this.board.waiting !== null) return;
    if (this.isNew) this.keep();
    else this.timer = setTimeout(() => this.keep(), Memory.WAIT);
  }

  get isNew() {
    return this.entry !== null && this.entry !== this.board.state.run.id;
  }

  // `prompt`: what stands in the prompt when the entry is opened again.
  keep(prompt = this.prompt?.value ?? "") {
    clearTimeout(this.timer);
    if (this.board.opening) return; // the address still holds the only copy
    const saved = this.board.state.saved();
    const { run } = saved;
    const pro = { ...saved, prompt };
    if (!run || JSON.stringify(pro).length > Memory.MOST) return;
    // The address of a shared run stays as long as its run is shown.
    const url = run.phase === "shared" ? location.href : location.pathname + location.search;
    window.history[this.isNew ? "pushState" : "replaceState"]({ ...window.history.state, pro }, "", url);
    this.entry = run.id;
  }

  // A question leaves: the entry of the run that is shown gets its own question back.
  leave() {
    this.keep(this.board.state.run.messages.at(-1).content);
  }

  // Show an entry of the history, or what the address shares. Returns whether there was any.
  open(entry) {
    if (!entry?.pro?.run) return false;
    this.entry = entry.pro.run.id;
    const { prompt, ...saved } = entry.pro;
    if (saved.run.busy) {
      const note = "The page was left while answers were written. Score what there is, or ask again.";
      saved.run = { ...saved.run, busy: false, phase: "stopped", note };
    }
    this.board.show(saved);
    this.fill(prompt);
    return true;
  }

  // Put a text into the prompt.
  fill(text) {
    Dom.when("#prompt textarea", (prompt) => {
      prompt.value = text;
      prompt.dispatchEvent(new Event("input", { bubbles: true }));
    });
  }
}
