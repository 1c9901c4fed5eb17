// "Code for this": Python and curl that ask the server for the run that is shown.

class Code {
  constructor(parent, state) {
    this.state = state;
    this.box = Dom.el("section", "code", parent);
    this.box.setAttribute("aria-label", "Code for this run");
    this.box.hidden = true;
    this.parts = [["Python", Export.python], ["curl", Export.curl]].map(([name, write]) => {
      const part = Dom.el("div", "", this.box);
      const head = Dom.el("div", "code-head", part);
      Dom.el("b", "", head, name);
      const pre = Dom.el("pre", name.toLowerCase(), part);
      Dom.button("small", head, () => Dom.copy(pre.textContent), `Copy ${name}`);
      return { pre, write };
    });
  }

  toggle() {
    this.box.hidden = !this.box.hidden;
    this.draw();
  }

  draw() {
    if (this.box.hidden) return;
    const address = location.origin + location.pathname;
    for (const { pre, write } of this.parts) Dom.write(pre, write(this.state, address));
  }
}
