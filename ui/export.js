// The run as files, made in the browser: JSON with what the page shows of the answers, CSV with one line per answer; and code that asks the
// same again.

const Export = (() => {
  const named = (names, values) =>
    values ? Object.fromEntries(names.map((name, k) => [name, values[k]])) : null;

  function record(state) {
    const { run, yours, predicted, uniform } = state;
    const rankings = state.rankings();
    const names = run.objectives;
    return {
      messages: run.messages,
      model: run.model ?? null,
      date: run.date ?? null,
      panel: run.panel ?? null,
      added: run.added ?? [],
      asked: run.asked ?? null,
      scored_here: run.phase !== "shared",
      weights: {
        yours: named(names, yours),
        predicted: run.predicted ? named(names, predicted) : null,
        uniform: named(names, uniform),
        used: named(names, run.used),
      },
      answers: run.candidates.map((c, i) => ({
        letter: Dom.LETTERS[i],
        text: c.text,
        reasoning: c.reasoning ?? "",
        error: c.error ?? null,
        style: c.style,
        finish: c.finish ?? null,
        z: named(names, c.z),
        raw: named(names, c.raw),
        members: named(names, c.members),
        totals: Object.fromEntries(Object.entries(rankings).map(([name, r]) => [name, r.totals[i]])),
      })),
    };
  }

  // A cell of CSV (RFC 4180). A text that a spreadsheet would take for a formula gets an apostrophe before it.
  function cell(value) {
    if (typeof value === "number" || value === null || value === undefined) return String(value ?? "");
    const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  }

  function csv(state) {
    const { answers, messages } = record(state);
    const names = state.run.objectives;
    const head = ["answer", "place", "prompt", "text", ...names, "total"];
    const { order } = state.rankings().yours;
    const lines = answers.map(({ letter, text, z, totals }, i) => [
      letter, order.indexOf(i) + 1, messages.at(-1).content, text,
      ...names.map((name) => z?.[name]), totals.yours,
    ]);
    return [head, ...lines].map((line) => `${line.map(cell).join(",")}\r\n`).join("");
  }

  function save(state, kind) {
    const text = kind === "csv" ? csv(state) : `${JSON.stringify(record(state), null, 1)}\n`;
    download(text, kind === "csv" ? "text/csv" : "application/json", `pro-answers.${kind}`);
  }

  function download(text, type, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // What `/generate` takes for this run, under the visitor's weights. Sliders show whole hundredths; as long as they
  // show the run's own weights, those go out as they are, because a policy that reads weights read these.
  function request({ run, yours, told, differs }) {
    const [only] = run.messages;
    const { n = run.candidates.length, tokens = 192, temperature, seed, strength } = run.asked ?? {};
    const prompt = run.messages.length === 1 ? only.content : run.messages;
    const asked = { prompt, weights: Objectives.panelWeights(run, differs ? yours : told), n, max_new_tokens: tokens };
    if (typeof temperature === "number") asked.temperature = temperature;
    if (typeof seed === "number") asked.seed = seed;
    if (typeof strength === "number") asked.strength = strength;
    return asked;
  }

  // JSON texts, numbers, lists and objects are Python's, too.
  function python(state, address) {
    const lines = Object.entries(request(state)).map(([name, v]) => `    ${name}=${JSON.stringify(v)},\n`);
    const call = `client.predict(\n${lines.join("")}    api_name="/generate",\n)`;
    return (
      `from gradio_client import Client\n\nclient = Client(${JSON.stringify(address)})\n` +
      `result = ${call}\nprint(result["candidates"][0]["text"])\n`
    );
  }

  // Gradio's API answers the first request with a number, and the second one with the news until the end.
  function curl(state, address) {
    const url = `${address.replace(/\/$/, "")}/gradio_api/call/v2/generate`;
    const data = JSON.stringify(request(state)).replaceAll("'", "'\\''");
    return (
      `id=$(curl -s '${url}' -H 'Content-Type: application/json' -d '${data}' | grep -o '[0-9a-f]\\{32\\}')\n` +
      `curl -sN "${url}/$id"\n`
    );
  }

  return { record, csv, save, download, python, curl };
})();
