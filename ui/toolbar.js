// A row of buttons that is a single stop for Tab; the arrow keys, Home and End move inside it.

class Toolbar {
  constructor(box, label) {
    this.box = box;
    box.setAttribute("role", "toolbar");
    box.setAttribute("aria-label", label);
    box.addEventListener("keydown", (event) => this.press(event));
    box.addEventListener("focusin", ({ target }) => this.stopAt(target));
  }

  // Replace the buttons.
  fill(buttons) {
    this.box.replaceChildren(...buttons);
    this.stopAt(buttons[0]);
  }

  get buttons() {
    return [...this.box.querySelectorAll("button")].filter((button) => !button.hidden && !button.disabled);
  }

  stopAt(stop) {
    const { buttons } = this;
    const one = buttons.includes(stop) ? stop : buttons[0];
    for (const button of this.box.querySelectorAll("button")) button.tabIndex = button === one ? 0 : -1;
  }

  // A button that held the stop may have been hidden or disabled since.
  refresh() {
    this.stopAt(this.buttons.find((button) => button.tabIndex === 0));
  }

  press(event) {
    const { buttons } = this;
    const here = buttons.indexOf(document.activeElement);
    const n = buttons.length;
    const steps = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: n - 1 };
    if (here < 0 || !(event.key in steps)) return;
    event.preventDefault();
    buttons[(steps[event.key] + n) % n].focus();
  }
}
