// "What would change the winner?" For each slider, a strip under its thumb with a colour and a letter for the answer
// that wins at each place, and a sentence: "D wins if harmless falls below 41%."

const Switches = (() => {
  const LETTERED = 7; // hundredths: a stretch that is shorter has no room for its letter

  // Fill `strip` with stretches of `Simplex.stretches`.
  function draw(strip, stretches) {
    const drawn = stretches.map(({ from, to, winner }) => `${from}-${to}${Dom.LETTERS[winner]}`).join();
    if (strip.dataset.drawn === drawn) return;
    strip.dataset.drawn = drawn;
    strip.replaceChildren();
    for (const { from, to, winner } of stretches) {
      const letter = Dom.LETTERS[winner];
      // A thumb at `v` hundredths stands in the middle of v's own piece of the strip.
      const [left, right] = [Math.max(0, from - 0.5), Math.min(100, to + 0.5)];
      const part = Dom.el("i", `of-${letter}`, strip, right - left < LETTERED ? "" : letter);
      Object.assign(part.style, { left: `${left}%`, width: `${right - left}%` });
    }
  }

  // What the nearest changes below and above `value` are, in words.
  function sentence(name, value, stretches) {
    const here = stretches.findIndex(({ from, to }) => from <= value && value <= to);
    if (here < 0) return "";
    const [below, above] = [stretches[here - 1], stretches[here + 1]];
    const { from, to, winner } = stretches[here];
    const wins = (stretch, when) => `${Dom.LETTERS[stretch.winner]} wins if ${name} ${when}%`;
    const changes = [];
    if (below) changes.push(wins(below, `falls below ${from}`));
    if (above) changes.push(wins(above, `rises above ${to}`));
    if (changes.length) return `${changes.join("; ")}.`;
    return `${Dom.LETTERS[winner]} wins wherever ${name} stands.`;
  }

  return { draw, sentence };
})();
