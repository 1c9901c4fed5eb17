// One button asks and stops, so that it keeps the focus. It stops only once it says so, a moment after it was pressed:
// three quick clicks are one question.

class Asking {
  static PAUSE = 800; // ms

  // What waits until the request that is under way is answered.
  static WAITS = "#examples, #own button:not(.label-wrap), .drop, #score-own";

  // `board`: knows whether answers are written (`writing`) or anything is asked for (`busy`), and the prompt that was
  // asked last (`asked`).
  constructor(board) {
    this.board = board;
    this.began = -Infinity;
    document.addEventListener("click", (event) => this.click(event), { capture: true });
    document.addEventListener("keypress", (event) => this.enter(event), { capture: true });
  }

  get button() {
    return document.querySelector("#ask");
  }

  begin() {
    this.began = performance.now();
    // What was pressed may be hidden while answers are written.
    const gone = "#follow, #again, .actions, .cut, .tools";
    if (document.activeElement?.closest(gone)) this.button?.focus({ preventScroll: true });
    setTimeout(() => this.draw(), Asking.PAUSE);
    this.draw();
  }

  // What was asked failed: the next click may come at once.
  failed() {
    this.began = -Infinity;
  }

  get paused() {
    return performance.now() - this.began < Asking.PAUSE;
  }
  get stops() {
    return this.board.writing && !this.paused;
  }

  draw() {
    const { button } = this;
    if (!button) return;
    Dom.write(button, this.stops ? "Stop" : "Ask");
    button.classList.toggle("stops", this.stops);
  }

  // Whether the prompt is the one that was just asked.
  get same() {
    return document.querySelector("#prompt textarea")?.value.trim() === this.board.asked.trim();
  }

  click(event) {
    const waits = event.target.closest(Asking.WAITS);
    if (!waits && !event.target.closest("#ask")) return;
    if (!this.board.busy && !(this.paused && this.same)) return;
    this.swallow(event);
    if (!waits && this.stops) document.querySelector("#stop").click();
  }

  // Enter on the prompt that is being answered asks nothing new. Another prompt takes the place of answers that are
  // written, but scores are waited for.
  enter(event) {
    if (event.key !== "Enter") return;
    const { busy, writing } = this.board;
    const asks = event.target.closest?.("#prompt");
    const waits = asks ? (busy && !writing) || (this.same && (busy || this.paused)) : busy;
    if (waits && (asks || event.target.closest?.("#sentence"))) this.swallow(event);
  }

  swallow(event) {
    event.stopImmediatePropagation();
    event.preventDefault();
  }
}
