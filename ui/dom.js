// What all parts of the board share: functions that make page elements, and a few texts.
// Everything that a model or a visitor wrote reaches the page through textContent, never as HTML.

const Dom = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  function el(tag, className, parent, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  }

  function button(className, parent, onClick, text) {
    const node = el("button", className, parent, text);
    node.type = "button";
    node.addEventListener("click", onClick);
    return node;
  }

  function svg(tag, attributes, parent) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
    parent.append(node);
    return node;
  }

  // A text that is already there is not written again: a visitor may have selected it, and a live region would be
  // read out again.
  const write = (node, text) => {
    if (node.textContent !== text) node.textContent = text;
  };

  // Put a text on the clipboard. Returns whether that worked: pages without a secure connection have only the old way.
  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const box = el("textarea", "unseen", document.body, text);
      box.select();
      const done = document.execCommand("copy");
      box.remove();
      return done;
    }
  }

  // Call `then` with the element of a selector, once Gradio has built it.
  function when(selector, then, tries = 100) {
    const node = document.querySelector(selector);
    if (node) then(node);
    else if (tries) setTimeout(() => when(selector, then, tries - 1), 50);
  }

  // Whether the visitor wants no movement.
  const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

  const LETTERS = "ABCDEFGH"; // the names of the answers
  const title = (name) => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
  const signed = (v) => (v < 0 ? "−" : "+") + Math.abs(v).toFixed(2);
  const unsure = (v) => `±${v.toFixed(2)}`;
  const percent = (share) => Math.round(100 * share);
  const clamp = (v, low, high) => Math.max(low, Math.min(high, v));

  return { el, button, svg, write, copy, when, calm, LETTERS, title, signed, unsure, percent, clamp };
})();
