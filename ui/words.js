// The words behind a weight: messages whose words are tinted by their effect on objective `k`. `run.words` holds each
// word's place and effects (`Moved` in board.py).

const Words = (() => {
  const LEAST = 0.005; // half a point: less is not worth a tint

  // Python counts characters. JavaScript counts UTF-16 units: an emoji has two.
  const cut = (characters, start, end) => characters.slice(start, end).join("");
  const counts = (word, k) => Math.abs(word.effects[k]) >= LEAST;

  // Whether any word moved any weight of the run.
  function any(run) {
    const moved = (word) => run.objectives.some((_, k) => counts(word, k));
    return Boolean(run.predicted && run.words?.some(moved));
  }

  // Fill `node` with message `turn`, its words tinted (none if k < 0). Returns its most effective word, or null.
  function tint(node, run, turn, k) {
    const characters = [...run.messages[turn].content];
    const words = k < 0 ? [] : run.words;
    const strongest = Math.max(0.05, ...words.map((w) => Math.abs(w.effects[k])));
    let [done, most, strongestWord] = [0, 0, null];
    for (const { start, end, effects } of words.filter((w) => w.turn === turn && counts(w, k))) {
      const size = Math.abs(effects[k]);
      const [tone, verb] = effects[k] > 0 ? ["high", "raised"] : ["low", "lowered"];
      node.append(cut(characters, done, start));
      const word = Dom.el("span", `word ${tone}`, node, cut(characters, start, end));
      word.style.setProperty("--strength", Math.max(0.1, size / strongest).toFixed(3));
      word.title = `${verb} ${run.objectives[k]} by ${(100 * size).toFixed(1)} points`;
      done = end;
      if (size > most) [most, strongestWord] = [size, word];
    }
    node.append(cut(characters, done));
    return strongestWord;
  }

  // "Harmless was raised or lowered by: ", and the prompt.
  function line(node, run, k) {
    const some = run.words.some((w) => counts(w, k));
    node.replaceChildren();
    Dom.el("b", "", node, Dom.title(run.objectives[k]));
    node.append(some ? " was " : " was not ");
    Dom.el("span", "word high", node, "raised");
    node.append(" or ");
    Dom.el("span", "word low", node, "lowered");
    node.append(some ? " by: " : " by any one word: ");
    const quote = Dom.el("q", "", node);
    quote.dir = "auto";
    const most = tint(quote, run, run.messages.length - 1, k);
    node.scrollTop = most ? most.offsetTop - node.clientHeight / 2 : 0;
  }

  // The same for visitors who do not see the tints: the five words that did most in each direction.
  function sentence(run, k) {
    const named = (sign) => {
      const words = run.words.filter((w) => sign * w.effects[k] >= 0.01);
      words.sort((a, b) => sign * (b.effects[k] - a.effects[k]));
      const text = (w) => cut([...run.messages[w.turn].content], w.start, w.end);
      return words.slice(0, 5).map(text).join(", ") || "no word";
    };
    const name = Dom.title(run.objectives[k]);
    return `${name} was raised by ${named(1)} and lowered by ${named(-1)}.`;
  }

  return { any, tint, line, sentence };
})();
