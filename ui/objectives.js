// Objectives that the visitor added: sentences by which a chat model judges. They are the last ones of a run.

const Objectives = (() => {
  const named = (run, name) => run.added?.find((one) => one.name === name);
  // Added on the page that shared the run; a link holds their names alone (`elsewhere`).
  const isForeign = (run, name) => Boolean(run.elsewhere?.includes(name));
  const ofPanel = (run) => run.objectives.filter((name) => !named(run, name) && !isForeign(run, name));
  const { sum } = Simplex;

  // The weights `yours` (K) of one run for another run of the same conversation and panel, after an objective came or
  // went: a new one gets an equal share, those that stay share the rest as before. null for other runs.
  function carried(old, run, yours) {
    const same = (read) => JSON.stringify(read(old)) === JSON.stringify(read(run));
    if (!old || !same(ofPanel) || !same(({ messages }) => messages)) return null;
    const before = new Map(old.objectives.map((name, k) => [name, yours[k]]));
    const mass = sum(run.objectives.map((name) => before.get(name) ?? 0));
    if (mass <= 0) return null;
    const share = 1 / run.objectives.length;
    const rest = 1 - share * run.objectives.filter((name) => !before.has(name)).length;
    return run.objectives.map((name) => (before.has(name) ? (before.get(name) / mass) * rest : share));
  }

  // The locked sliders (hundredths by name) that stay locked in the other run: none if they would leave no slider free to
  // bring the sum to 100.
  function held(old, run, values, locked) {
    const all = new Map(old.objectives.map((name, k) => [name, k]).filter(([, k]) => locked[k]));
    const stay = run.objectives.filter((name) => all.has(name));
    return new Map(stay.length < run.objectives.length ? stay.map((name) => [name, values[all.get(name)]]) : []);
  }

  // {objective: weight} of the panel's objectives alone, which is what scripts may ask for; null if they have none.
  function panelWeights(run, weights) {
    const kept = ofPanel(run);
    const parts = weights.slice(0, kept.length);
    const mass = kept.length === weights.length ? 1 : sum(parts);
    return mass > 0 ? Object.fromEntries(kept.map((name, k) => [name, parts[k] / mass])) : null;
  }

  return { named, isForeign, ofPanel, carried, held, panelWeights };
})();
