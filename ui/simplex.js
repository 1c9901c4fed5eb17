// The arithmetic behind the sliders and the ranking. It needs no page, and tests compare it with Python's.
// Slider weights are whole hundredths (0 to 100, with a sum of 100), so no rounding ever shows.

const Simplex = (() => {
  const sum = (xs) => xs.reduce((a, b) => a + b, 0);
  const indices = (n) => Array.from({ length: n }, (_, i) => i);

  // Share `total` among entries in proportion to `parts`, none below its floor. All are whole, parts >= 0, and the
  // floors sum to at most `total`. Entries below their floor are set to it and the rest is shared again, until none is
  // below. Then the largest remainders get what is left, ties to the first. If all parts are 0, the shares are equal.
  function share(total, parts, floors) {
    const out = parts.map(() => 0);
    let free = indices(parts.length);
    let rest = total;
    for (;;) {
      const none = sum(free.map((k) => parts[k])) === 0;
      const part = (k) => (none ? 1 : parts[k]);
      const whole = sum(free.map(part));
      const low = free.filter((k) => rest * part(k) < floors[k] * whole);
      if (low.length === 0) {
        for (const k of free) out[k] = Math.floor((rest * part(k)) / whole);
        const left = rest - sum(free.map((k) => out[k]));
        const remainder = (k) => (rest * part(k)) % whole;
        const order = [...free].sort((a, b) => remainder(b) - remainder(a) || a - b);
        for (const k of order.slice(0, left)) out[k] += 1;
        return out;
      }
      for (const k of low) {
        out[k] = floors[k];
        rest -= floors[k];
      }
      free = free.filter((k) => !low.includes(k));
    }
  }

  // The owner's floors as hundredths: rounded up, unless they would then sum to more than 100.
  function floorHundredths(floors) {
    const up = floors.map((f) => Math.ceil(Number((f * 100).toFixed(6))));
    return sum(up) <= 100 ? up : share(100, floors.map((f) => Math.round(f * 1e6)), floors.map(() => 0));
  }

  // Set the unlocked sliders to `weights` (real, >= 0); locked ones keep their value. Returns hundredths.
  function setSliders(weights, values, locked, floors) {
    const free = indices(values.length).filter((k) => !locked[k]);
    const rest = 100 - sum(indices(values.length).filter((k) => locked[k]).map((k) => values[k]));
    const pick = (xs) => free.map((k) => xs[k]);
    const shared = share(rest, pick(weights).map((w) => Math.round(w * 1e6)), pick(floors));
    const out = [...values];
    free.forEach((k, i) => { out[k] = shared[i]; });
    return out;
  }

  // Move slider `index` to `target`. The other unlocked sliders share what is left in the proportions of `anchor`: the
  // values when this slider was first touched, so that moving it there and back changes nothing.
  function moveSlider(index, target, values, locked, floors, anchor) {
    const rest = indices(values.length).filter((k) => k !== index);
    const others = rest.filter((k) => !locked[k]);
    if (locked[index] || others.length === 0) return [...values];
    const kept = sum(rest.filter((k) => locked[k]).map((k) => values[k]));
    const highest = 100 - kept - sum(others.map((k) => floors[k]));
    const out = [...values];
    out[index] = Math.max(floors[index], Math.min(highest, Math.round(target)));
    const left = 100 - kept - out[index];
    const shared = share(left, others.map((k) => anchor[k]), others.map((k) => floors[k]));
    others.forEach((k, i) => { out[k] = shared[i]; });
    return out;
  }

  // The owner's floors on real weights, by the same rule as pro_core.weights.apply_floors.
  function applyFloors(weights, floors) {
    const out = [...weights];
    let free = indices(weights.length);
    let rest = 1;
    for (;;) {
      const mass = sum(free.map((k) => weights[k]));
      const scaled = (k) => (mass > 0 ? (weights[k] / mass) * rest : rest / free.length);
      const low = free.filter((k) => scaled(k) < floors[k] - 1e-12);
      if (low.length === 0) {
        for (const k of free) out[k] = scaled(k);
        return out;
      }
      for (const k of low) {
        out[k] = floors[k];
        rest -= floors[k];
      }
      free = free.filter((k) => !low.includes(k));
    }
  }

  // The scores as a ranking counts them: a missing one (null) is the mean of the other answers' scores of its objective,
  // so that it neither helps nor hurts; 0 where nobody has one. The rule is pro_core.rewards.best_of_n.filled.
  function filled(scores) {
    if (!scores.some((z) => z?.includes(null))) return scores;
    const mean = (k) => {
      const known = scores.filter((z) => z && z[k] !== null).map((z) => z[k]);
      return known.length ? sum(known) / known.length : 0;
    };
    return scores.map((z) => z && z.map((v, k) => v ?? mean(k)));
  }

  // sum_k w_k z_k for each answer; null where an answer has no scores yet.
  const totals = (scores, weights) =>
    filled(scores).map((z) => (z ? z.reduce((a, v, k) => a + v * weights[k], 0) : null));

  // The standard deviation of two numbers or more, with the divisor n - 1; null for fewer.
  function deviation(values) {
    if (values.length < 2) return null;
    const mean = sum(values) / values.length;
    return Math.sqrt(sum(values.map((v) => (v - mean) ** 2)) / (values.length - 1));
  }

  // How uncertain the lead of one answer over another is: the deviation of the leads that the panel's members give. An
  // objective without such a member counts with its mean z, one that lacks a score with nothing. null where no
  // objective has several members.
  function leadSpread(best, other, weights) {
    if (!best.members || !other.members) return null;
    const score = ({ z, members }, k, m) => members[k][m] ?? z[k];
    const both = weights.map((_, k) => best.z[k] !== null && other.z[k] !== null);
    const lead = (m) =>
      sum(weights.map((w, k) => (both[k] ? w * (score(best, k, m) - score(other, k, m)) : 0)));
    return deviation(indices(Math.max(...best.members.map((one) => one.length))).map(lead));
  }

  // Indices best first; equal totals keep their order, answers without scores come last.
  function ranking(values) {
    const key = (i) => (values[i] === null ? -Infinity : values[i]);
    return indices(values.length).sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      return x === y ? a - b : y > x ? 1 : -1;
    });
  }

  // Which answer wins at each place of slider `index`, if the visitor moves it there and the other sliders follow by
  // `moveSlider`: stretches { from, to, winner } of whole hundredths, from the lowest place that the floors and locks
  // leave to the highest. Empty if no answer is scored. Equal totals: the first of them wins, as in `ranking`.
  function stretches(index, scores, values, locked, floors, anchor) {
    if (!scores.some(Boolean)) return [];
    const place = (target) => moveSlider(index, target, values, locked, floors, anchor);
    const [low, high] = [place(0)[index], place(100)[index]];
    const known = filled(scores);
    const out = [];
    for (let at = low; at <= high; at += 1) {
      const [winner] = ranking(totals(known, place(at).map((v) => v / 100)));
      const last = out.at(-1);
      if (last?.winner === winner) last.to = at;
      else out.push({ from: at, to: at, winner });
    }
    return out;
  }

  // For each point [x, y] (or null): true when no other is at least as good in both and better in one.
  const nondominated = (points) =>
    points.map((p) => p !== null && !points.some(
      (q) => q !== null && q[0] >= p[0] && q[1] >= p[1] && (q[0] > p[0] || q[1] > p[1])));

  return { sum, indices, floorHundredths, setSliders, moveSlider, applyFloors, totals, deviation, leadSpread, ranking, stretches, nondominated };
})();
