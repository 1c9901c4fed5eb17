// Weights from clicks: the arithmetic of pro_core/choices.py, draw by draw, and the clicks as preference pairs. It touches no element of the page,
// and tests compare it with Python's. A choice: `z` (N rows of K scores), `picked` (a row, or null for none of them),
// `predicted` (K weights), and with its texts `messages` and `answers`.

const Choices = (() => {
  const MODEL = { temperature: 0.5, lapse: 0.1, spread: 1.5 };
  const DRAWS = 1024;
  const POWERS = [1 / 8, 1 / 4, 1 / 2, 1, 1];
  const LEAST = 0.01;
  const UNIT = Math.sqrt(3) / Math.PI; // a logistic distribution of unit variance has this scale

  const { sum, indices } = Simplex;
  const dot = (a, b) => a.reduce((total, v, k) => total + v * b[k], 0);

  function softmax(logits) {
    const most = Math.max(...logits);
    const odds = logits.map((v) => Math.exp(v - most));
    const all = sum(odds);
    return odds.map((v) => v / all);
  }

  // The weights of a person with this tilt.
  const tilted = (predicted, tilt) =>
    softmax(predicted.map((w, k) => Math.log(Math.max(w, LEAST)) + tilt[k]));

  // The probability of each answer to be preferred, from their totals.
  function chances(totals) {
    const { temperature, lapse } = MODEL;
    return softmax(totals.map((v) => v / temperature)).map((p) => (1 - lapse) * p + lapse / totals.length);
  }

  function points(K) {
    const primes = [];
    for (let number = 2; primes.length < K; number += 1) {
      if (primes.every((prime) => number % prime)) primes.push(number);
    }
    const half = indices(DRAWS / 2).map((s) => primes.map((prime) => {
      const uniform = ((s + 1) * Math.sqrt(prime)) % 1;
      return Math.log(uniform / (1 - uniform)) * UNIT;
    }));
    return [...half, ...half.map((point) => point.map((v) => -v))];
  }

  function logDensity(point) {
    const scaled = point.map((v) => Math.abs(v) / UNIT);
    return -sum(scaled.map((x) => x + 2 * Math.log1p(Math.exp(-x))));
  }

  // The log-likelihood of each tilt. Plain loops over arrays made once: this is nearly all of the work.
  function logLikelihoods(choices, tilts) {
    const { temperature, lapse } = MODEL;
    const out = new Float64Array(tilts.length);
    for (const { z, picked, predicted } of choices) {
      const raised = predicted.map((w) => Math.max(w, LEAST));
      const [N, K] = [z.length, raised.length];
      const totals = new Float64Array(N);
      for (let s = 0; s < tilts.length; s += 1) {
        totals.fill(0);
        let all = 0;
        for (let k = 0; k < K; k += 1) {
          const odds = raised[k] * Math.exp(tilts[s][k]);
          all += odds;
          for (let i = 0; i < N; i += 1) totals[i] += odds * z[i][k];
        }
        let rest = 0;
        for (let i = 0; i < N; i += 1) rest += Math.exp((totals[i] - totals[picked]) / all / temperature);
        out[s] += Math.log((1 - lapse) / rest + lapse / N);
      }
    }
    return out;
  }

  // What is known of a person's tilt: `tilts`, how probable each is (`shares`), and their mean, `tilt`.
  function posterior(choices, K) {
    const made = choices.filter(({ picked }) => picked !== null);
    const draws = points(K);
    const density = draws.map(logDensity);
    let center = draws[0].map(() => 0);
    let width = draws[0].map(() => MODEL.spread);
    let tilts = [];
    let shares = [];
    for (const power of POWERS) {
      tilts = draws.map((point) => point.map((v, k) => center[k] + width[k] * v));
      const prior = (tilt) => dot(tilt, tilt) / (2 * MODEL.spread ** 2);
      const likelihoods = logLikelihoods(made, tilts);
      shares = softmax(tilts.map((tilt, s) => power * likelihoods[s] - prior(tilt) - density[s]));
      const mean = (value) => sum(tilts.map((tilt, s) => shares[s] * value(tilt)));
      center = center.map((_, k) => mean((tilt) => tilt[k]));
      width = center.map((c, k) => Math.sqrt(mean((tilt) => (tilt[k] - c) ** 2)));
    }
    return { tilts, shares, tilt: center };
  }

  const entropy = (p) => -sum(p.map((v) => v * Math.log(Math.max(v, 1e-300))));

  // The nats about the tilt that a choice among these answers is expected to bring.
  function information({ tilts, shares }, z, predicted) {
    const mixed = z.map(() => 0);
    let known = 0;
    for (const [s, tilt] of tilts.entries()) {
      const weights = tilted(predicted, tilt);
      const p = chances(z.map((row) => dot(row, weights)));
      for (const [i, v] of p.entries()) mixed[i] += shares[s] * v;
      known += shares[s] * entropy(p);
    }
    return entropy(mixed) - known;
  }

  // The pair among `pairs` (of rows of z) whose comparison is expected to tell most; null without pairs.
  function nextPair(known, z, predicted, pairs) {
    const told = pairs.map((pair) => information(known, pair.map((i) => z[i]), predicted));
    return pairs[told.indexOf(Math.max(...told))] ?? null;
  }

  // How many of the picked answers are the best one under the weights that `weighting` gives for a choice.
  function agreement(choices, weighting) {
    const made = choices.filter(({ picked }) => picked !== null);
    const agreed = made.filter((choice) => {
      const totals = choice.z.map((row) => dot(row, weighting(choice)));
      return totals.indexOf(Math.max(...totals)) === choice.picked;
    });
    return [agreed.length, made.length];
  }

  const spelled = (text) => text.normalize("NFC").split(/\s+/u).filter(Boolean).join(" ");
  const blank = (text) => /^[\p{Cc}\p{Cf}\p{Z}]*$/u.test(text);

  // The choices as lines of a file of preference pairs: the picked answer is better than each other one.
  function asPairs(choices) {
    const lines = new Set();
    for (const { messages, answers, picked } of choices) {
      if (picked === null) continue;
      const chosen = answers[picked];
      for (const rejected of answers) {
        if (blank(chosen) || blank(rejected) || spelled(chosen) === spelled(rejected)) continue;
        lines.add(JSON.stringify({ objective: "overall", prompt: messages, chosen, rejected, source: "choices" }));
      }
    }
    return [...lines].map((line) => `${line}\n`).join("");
  }

  return { tilted, posterior, information, nextPair, agreement, asPairs };
})();
