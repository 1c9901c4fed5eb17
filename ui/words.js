// The words behind a weight: a message with its words tinted by what they did to objective `k` of a run. Runs before
// board.js. `run.words` holds them, as `ui.board.Moved`: where each stands in which message, and its effects.

const Words = (() => {
  const title = (name) => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
  // Python counts characters, JavaScript halves of some: an emoji is two.
  const cut = (characters, start, end) => characters.slice(start, end).join("");
  const add = (tag, className, parent, text) => {
    const node = document.createElement(tag);
    node.className = className;
    node.textContent = text;
    parent.append(node);
    return node;
  };

  const least = 0.005; // half a point: less is not worth a tint

  // Fill `node` with message `turn`, its words tinted (k < 0: none). Returns the most effective word there, or null.
  function tint(node, run, turn, k) {
    const characters = [...run.messages[turn].content];
    const words = k < 0 ? [] : run.words;
    const strongest = Math.max(0.05, ...words.map((w) => Math.abs(w.effects[k])));
    let [done, most, found] = [0, 0, null];
    for (const { start, end, effects } of words.filter((w) => w.turn === turn && Math.abs(w.effects[k]) >= least)) {
      const size = Math.abs(effects[k]);
      const [tone, verb] = effects[k] > 0 ? ["high", "raised"] : ["low", "lowered"];
      node.append(cut(characters, done, start));
      const word = add("span", `word ${tone}`, node, cut(characters, start, end));
      word.style.setProperty("--strength", Math.max(0.1, size / strongest).toFixed(3));
      word.title = `${verb} ${run.objectives[k]} by ${(100 * size).toFixed(1)} points`;
      done = end;
      if (size > most) [most, found] = [size, word];
    }
    node.append(cut(characters, done));
    return found;
  }

  // "Harmless was raised or lowered by", and the prompt.
  function line(node, run, k) {
    node.replaceChildren();
    const some = run.words.some((w) => Math.abs(w.effects[k]) >= least);
    add("b", "", node, title(run.objectives[k]));
    node.append(some ? " was " : " was not ");
    add("span", "word high", node, "raised");
    node.append(" or ");
    add("span", "word low", node, "lowered");
    node.append(some ? " by: " : " by any one word: ");
    const said = add("q", "", node, "");
    said.dir = "auto";
    const most = tint(said, run, run.messages.length - 1, k);
    node.scrollTop = most ? most.offsetTop - node.clientHeight / 2 : 0;
  }

  // The same for those who do not see the tints.
  function sentence(run, k) {
    const named = (sign) => run.words.filter((w) => sign * w.effects[k] >= 0.01)
      .sort((a, b) => sign * (b.effects[k] - a.effects[k])).slice(0, 5)
      .map((w) => cut([...run.messages[w.turn].content], w.start, w.end)).join(", ") || "no word";
    return `${title(run.objectives[k])} was raised by ${named(1)} and lowered by ${named(-1)}.`;
  }

  const any = (run) => Boolean(run.predicted && run.words?.some((w) => w.effects.some((e) => Math.abs(e) >= least)));

  return { tint, line, sentence, title, any };
})();
