// A small, safe part of Markdown: paragraphs, headings, lists, bold, italics and code. Everything else stays the text it
// is, links and HTML too: each piece reaches the page through textContent.

const Markdown = (() => {
  const FENCE = /^ {0,3}```[^`]*$/; // a line with more backticks is text
  const HEADING = /^ {0,3}#{1,6} +/;
  const ITEM = /^\s*(?:[-*+•]|(\d{1,3})[.)])\s+/;
  const INLINE = /`([^`\n]+)`|\*\*(?=\S)([^\n]*?\S)\*\*|(?<![\w*])\*(?=[^\s*])([^*\n]*[^\s*])\*/g;
  const LONGEST = 5_000; // characters of a line: a longer one is no prose, and searching it would take long

  // Add a line's text to `node`: `code`, **bold** and *italics*, not nested.
  function inline(node, text) {
    let done = 0;
    for (const match of text.length > LONGEST ? [] : text.matchAll(INLINE)) {
      const [whole, code, bold, italics] = match;
      const [tag, inside] = code ? ["code", code] : bold ? ["strong", bold] : ["em", italics];
      node.append(text.slice(done, match.index));
      Dom.el(tag, "", node, inside);
      done = match.index + whole.length;
    }
    node.append(text.slice(done));
  }

  // Replace what `node` holds by the text.
  function write(node, text) {
    node.replaceChildren();
    let block = null; // the open paragraph, list or code
    const close = () => { block = null; };
    const open = (tag) => {
      if (block?.localName !== tag) block = Dom.el(tag, "", node);
      return block;
    };
    let fenced = false;
    for (const line of text.split("\n")) {
      if (FENCE.test(line)) {
        fenced = !fenced;
        close();
        if (fenced) open("pre");
      } else if (fenced) {
        block.append(`${line}\n`);
      } else if (!line.trim()) {
        close();
      } else if (HEADING.test(line)) {
        close();
        inline(Dom.el("strong", "", Dom.el("p", "", node)), line.replace(HEADING, ""));
      } else if (ITEM.test(line)) {
        const number = line.match(ITEM)[1];
        const list = open(number ? "ol" : "ul");
        if (number && !list.hasChildNodes()) list.start = Number(number);
        inline(Dom.el("li", "", list), line.replace(ITEM, ""));
      } else {
        const inItem = block?.localName === "ul" || block?.localName === "ol";
        const target = inItem ? block.lastChild : open("p");
        if (target.hasChildNodes()) target.append("\n");
        inline(target, line);
      }
    }
  }

  return { write };
})();
