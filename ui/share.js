// A run in the fragment of the page's address: prompt, weights, answers and their scores, compressed. The browser sends
// a fragment to no server. What comes in by one is anyone's claim: it is checked part by part, and the page says that
// it is unverified until the scores were computed again here.

const Share = (() => {
  const KEY = "r";
  const MOST = { characters: 200_000, answers: 8, objectives: 40, turns: 50, packed: 2_000_000 };
  const round = (v) => Math.round(v * 1000) / 1000;

  // The turns that the page shows. It shows no system prompt, so a link carries none, neither out nor in.
  const seen = (messages) => messages.filter(({ role }) => role !== "system");

  function pack({ run, values }) {
    const answers = run.candidates.map(({ text, z }) => [text, z ? z.map((v) => (v === null ? null : round(v))) : null]);
    const weights = run.predicted ? run.predicted.map(round) : null;
    const { messages, objectives, model = "", date = "" } = run;
    const turns = seen(messages).map(({ role, content }) => [role, content]);
    const added = objectives.length - Objectives.ofPanel(run).length; // the last ones; their sentences stay here
    return [1, turns, objectives, values, weights, answers, model, date, added];
  }

  async function through(bytes, stream) {
    const pieces = [];
    let size = 0;
    const reader = new Blob([bytes]).stream().pipeThrough(stream).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return new Uint8Array(await new Blob(pieces).arrayBuffer());
      size += value.length;
      if (size > MOST.packed) throw new Error("the shared run is too long");
      pieces.push(value);
    }
  }

  // Throws an Error if no page could open the link.
  async function fragment(state) {
    const packed = pack(state);
    unpack(packed, null);
    const bytes = new TextEncoder().encode(JSON.stringify(packed));
    expect(bytes.length <= MOST.packed, "room");
    const small = await through(bytes, new CompressionStream("deflate-raw"));
    let text = "";
    for (let i = 0; i < small.length; i += 8192) text += String.fromCharCode(...small.subarray(i, i + 8192));
    return `#${KEY}=${btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`;
  }

  // ---- reading
  function expect(right, what) {
    if (!right) throw new Error(`the shared run has no ${what}`);
  }
  const isText = (v, most = MOST.characters) => typeof v === "string" && v.length <= most;
  const isRow = (v, K, low, high) =>
    Array.isArray(v) && v.length === K && v.every((x) => typeof x === "number" && x >= low && x <= high);
  const isList = (v, most) => Array.isArray(v) && v.length >= 1 && v.length <= most;

  // The run in a fragment's data, or an error. `known`: the run that the page opened with, whose words for the same
  // objectives count: `about`, `accuracy` and the owner's floors are never taken from a link.
  function unpack(data, known) {
    expect(Array.isArray(data) && data[0] === 1, "version that this page knows");
    const [, turns, objectives, values, weights, answers, model, date, added = 0] = data;
    expect(isList(turns, MOST.turns) && turns.every((t) => Array.isArray(t) && isText(t[0], 20) && isText(t[1])), "messages");
    const messages = seen(turns.map(([role, content]) => ({ role, content })));
    expect(messages.every(({ role }) => ["user", "assistant"].includes(role)), "roles");
    expect(messages.at(-1)?.role === "user" && messages.at(-1).content.trim(), "question");
    expect(isList(objectives, MOST.objectives) && objectives.every((o) => isText(o, 60) && o), "objectives");
    const K = objectives.length;
    expect(new Set(objectives).size === K, "objectives");
    expect(isRow(values, K, 0, 100) && values.every(Number.isInteger), "weights");
    expect(values.reduce((a, b) => a + b, 0) === 100, "weights");
    expect(weights === null || isRow(weights, K, 0, 1), "guess");
    expect(isList(answers, MOST.answers), "answers");
    const candidates = answers.map((answer) => {
      expect(Array.isArray(answer) && isText(answer[0]), "answers");
      const [text, z] = answer;
      expect(z === null || (Array.isArray(z) && isRow(z.map((v) => v ?? 0), K, -1e6, 1e6)), "scores");
      return { text, reasoning: "", finish: null, style: null, z, raw: z, members: null, error: null };
    });
    expect(isText(model, 200) && isText(date, 20), "model");
    expect(Number.isInteger(added) && added >= 0 && added < K, "added objectives");
    const elsewhere = added ? { elsewhere: objectives.slice(K - added) } : {};
    const same = known?.objectives.join("\n") === objectives.slice(0, K - added).join("\n");
    const longer = (row) => objectives.map((_, k) => row[k] ?? 0);
    const floors = longer(same ? known.floors : []);
    const own = same ? {
      about: known.about,
      accuracy: known.accuracy,
      presets: Object.fromEntries(Object.entries(known.presets ?? {}).map(([name, row]) => [name, longer(row)])),
    } : {};
    const run = { id: `shared-${Date.now()}`, phase: "shared", busy: false, tone: "", messages, objectives };
    const note = "Somebody shared these answers and scores: unverified until you score them again here.";
    return { run: { ...run, note, floors, predicted: weights, candidates, model, date, ...elsewhere, ...own }, values };
  }

  // The shared run of an address, null without one. Throws an Error if it is not one.
  async function read(hash, known) {
    const packed = new URLSearchParams(hash.slice(1)).get(KEY);
    if (packed === null) return null;
    const text = atob(packed.replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(text, (c) => c.charCodeAt(0));
    const whole = await through(bytes, new DecompressionStream("deflate-raw"));
    return unpack(JSON.parse(new TextDecoder().decode(whole)), known);
  }

  return { pack, unpack, fragment, read };
})();
