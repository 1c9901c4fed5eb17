// One button asks and stops, so that it keeps the focus. It stops only once it says so, a moment after it was pressed:
// three quick clicks are one question.

class Asking {
  static PAUSE = 800; // ms

  // `isBusy`: whether answers are being written. `running`: the prompt that was asked last.
  constructor(isBusy, running) {
    this.isBusy = isBusy;
    this.running = running;
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
    return this.isBusy() && !this.paused;
  }

  draw() {
    const { button } = this;
    if (!button) return;
    Dom.write(button, this.stops ? "Stop" : "Ask");
    button.classList.toggle("stops", this.stops);
  }

  // Whether the prompt is the one that was just asked.
  get same() {
    return document.querySelector("#prompt textarea")?.value.trim() === this.running().trim();
  }

  click(event) {
    const chip = event.target.closest("#examples, #score-own");
    if (!chip && !event.target.closest("#ask")) return;
    if (!this.isBusy() && !(this.paused && this.same)) return;
    this.swallow(event);
    if (!chip && this.stops) document.querySelector("#stop").click();
  }

  // Enter on the prompt that is being answered asks nothing new.
  enter(event) {
    if (event.key !== "Enter" || !event.target.closest?.("#prompt") || !this.same) return;
    if (this.paused || this.isBusy()) this.swallow(event);
  }

  swallow(event) {
    event.stopImmediatePropagation();
    event.preventDefault();
  }
}
