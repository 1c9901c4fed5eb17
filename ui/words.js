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

  // Fill `node` with a text, its words tinted by their effect on objective `k`, called `name`, where that is at least
  // `least`. `strongest`: the effect with the full tint. `amount`: an effect's size in words. Returns the most effective
  // word, or null.
  function tint(node, text, words, k, { name, least, strongest, amount }) {
    const characters = [...text];
    let [done, most, strongestWord] = [0, 0, null];
    for (const { start, end, effects } of words) {
      const size = Math.abs(effects[k]);
      if (size < least) continue;
      node.append(cut(characters, done, start));
      const [tone, verb] = effects[k] > 0 ? ["high", "raised"] : ["low", "lowered"];
      const word = Dom.el("span", `word ${tone}`, node, cut(characters, start, end));
      word.style.setProperty("--strength", Math.max(0.1, size / strongest).toFixed(3));
      word.title = `${verb} ${name} by ${amount(size)}`;
      done = end;
      if (size > most) [most, strongestWord] = [size, word];
    }
    node.append(cut(characters, done));
    return strongestWord;
  }

  // Fill `node` with message `turn` of a run (no tint if k < 0).
  function message(node, run, turn, k) {
    const all = k < 0 ? [] : run.words;
    const strongest = Math.max(0.05, ...all.map((w) => Math.abs(w.effects[k])));
    const words = all.filter((w) => w.turn === turn);
    const amount = (size) => `${(100 * size).toFixed(1)} points`;
    const how = { name: run.objectives[k], least: LEAST, strongest, amount };
    return tint(node, run.messages[turn].content, words, k, how);
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
    const most = message(quote, run, run.messages.length - 1, k);
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

  return { any, tint, message, line, sentence };
})();
