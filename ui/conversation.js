// Above the grid: the earlier turns, and a warning if the prompt is strange. Under the sliders: the prompt, whose words
// are tinted by their effect on one weight: that of the objective pointed at, else the largest.

class Conversation {
  constructor(parent, state) {
    this.state = state;
    this.shown = []; // the id of the run and the objective that were drawn last
    this.thread = Dom.el("div", "thread", parent);
    this.thread.tabIndex = 0;
    this.thread.setAttribute("role", "group");
    this.thread.setAttribute("aria-label", "The conversation so far");
    const warning =
      "This prompt is unlike those the adapter learned from, so its weights are near the average.";
    this.unlike = Dom.el("p", "unlike", parent, warning);
    this.why = Dom.el("div", "why");
    this.why.tabIndex = 0;
    this.why.setAttribute("role", "group");
    this.why.setAttribute("aria-label", "The words behind a weight");
    this.summary = Dom.el("p", "unseen", parent); // describes the sliders
    this.summary.id = "why-summary";
  }

  draw() {
    const { run, pointed } = this.state;
    this.unlike.hidden = typeof run.known !== "number" || run.known >= 0.5;
    const largest = () => run.predicted.indexOf(Math.max(...run.predicted));
    const k = Words.any(run) ? (pointed ?? largest()) : -1;
    const [shownRun, shownObjective] = this.shown;
    if (shownRun === run.id && shownObjective === k) return;
    this.shown = [run.id, k];
    this.why.hidden = k < 0;
    Dom.write(this.summary, k < 0 ? "" : Words.sentence(run, k));
    if (k >= 0) Words.line(this.why, run, k);
    this.drawThread(k);
    if (shownRun !== run.id) this.thread.scrollTop = this.thread.scrollHeight;
  }

  drawThread(k) {
    const { run } = this.state;
    this.thread.replaceChildren();
    run.messages.slice(0, -1).forEach(({ role }, turn) => {
      if (role === "system") return;
      const line = Dom.el("p", role, this.thread);
      Dom.el("b", "", line, role === "user" ? "You " : "Answer ");
      const text = Dom.el("span", "", line);
      text.dir = "auto";
      Words.message(text, run, turn, k);
    });
    this.thread.hidden = !this.thread.hasChildNodes();
  }
}
