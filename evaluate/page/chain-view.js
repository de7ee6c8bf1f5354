// Draws one chain. What a model wrote becomes text nodes only; formulas become MathML nodes, whose elements must be on
// the page's list.
"use strict";
window.chainView = (() => {
  let index = null; // the page's: who the peers are, and whether there are gold answers
  const LONG = 4000; // characters of a text that are shown before a click
  const MATHML = "http://www.w3.org/1998/Math/MathML";
  const ELEMENTS = new Set(
    ("math mrow mi mn mo mtext mspace mfrac mroot msqrt msub msup msubsup munder mover munderover mstyle menclose " +
      "mtable mtr mtd").split(" "));

  // --- text as text ---

  const make = (name, properties = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key === "class") node.className = value;
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
    return node;
  };
  // Control characters, and those that change the direction of what follows, are shown as signs, not obeyed.
  const HIDDEN = "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u180e\\u200b\\u200e\\u200f" +
    "\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb\\u{e0000}-\\u{e007f}]";
  const HIDDENS = new RegExp(`(${HIDDEN})`, "u"), ALONE = new RegExp(`^${HIDDEN}$`, "u");
  const CONTROLS = ("NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM " +
    "SUB ESC FS GS RS US").split(" "); // fonts often lack Unicode's own signs for them
  const sign = (character) => {
    const code = character.codePointAt(0);
    return code === 127 ? "DEL" : CONTROLS[code] ?? `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
  };
  const visible = (text) => text.split(HIDDENS).filter((part) => part !== "").map((part) =>
    ALONE.test(part)
      ? make("span", { class: "chain-sign", title: `character ${part.codePointAt(0)}` }, sign(part))
      : document.createTextNode(part));
  const drawn = ([name, attributes, children]) => {
    if (!ELEMENTS.has(name)) return document.createTextNode("");
    const node = document.createElementNS(MATHML, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children.map((child) => (typeof child === "string" ? child : drawn(child))));
    return node;
  };
  const pieces = (text) => (typeof text === "string" ? [text] : text);
  const plain = (text) => pieces(text ?? "").map((piece) => (typeof piece === "string" ? piece : piece[0])).join("");
  const typeset = () => document.getElementById("chain-maths").checked;
  const nodes = (text, formulas) => pieces(text).flatMap((piece, place, all) => {
    const apart = (other) => typeset() && Array.isArray(other) && formulas[other[1]][1].display === "block";
    if (typeof piece === "string") { // a formula on a line of its own needs no line breaks around it
      const start = apart(all[place - 1]) ? piece.replace(/^[ \t]*\n?/, "") : piece;
      return visible(apart(all[place + 1]) ? start.replace(/\n?[ \t]*$/, "") : start);
    }
    if (!typeset()) return visible(piece[0]);
    const node = drawn(formulas[piece[1]]);
    node.setAttribute("title", piece[0]);
    return [node];
  });
  const beginning = (text) => { // cuts no formula, and no surrogate pair
    const kept = [];
    let left = LONG;
    for (const piece of pieces(text)) {
      if (typeof piece === "string") {
        const end = /[\ud800-\udbff]/.test(piece[left - 1] ?? "") ? left - 1 : left;
        kept.push(piece.slice(0, end));
      } else kept.push(piece);
      left -= typeof piece === "string" ? piece.length : piece[0].length;
      if (left <= 0) break;
    }
    return kept;
  };
  const longText = (text, formulas, kind = "chain-text") => {
    const length = plain(text).length;
    if (length === 0) return make("p", { class: `${kind} chain-quiet` }, "(nothing)");
    const body = make("div", { class: kind, dir: "auto" });
    if (length <= LONG * 1.25) body.append(...nodes(text, formulas));
    else {
      const more = make("button", { type: "button", onclick: () => {
        body.replaceChildren(...nodes(text, formulas));
        body.tabIndex = -1;
        body.focus();
      } }, `Show all ${length.toLocaleString("en")} characters`);
      body.append(...nodes(beginning(text), formulas), "… ", more);
    }
    return body;
  };
  const inline = (text, formulas) => make("bdi", { class: "chain-answer" }, ...nodes(text, formulas));

  // --- words ---

  const number = (value, digits) => (value === null ? "–" : value.toFixed(digits).replace("-", "−"));
  const verdict = (right, answer) => {
    if (!index.gold) return null;
    if (answer === null) return make("span", { class: "chain-verdict" }, "no answer");
    if (right === null) return make("span", { class: "chain-verdict" }, "? not compared");
    return make("span", { class: "chain-verdict" }, icon(right), right ? " right" : " wrong");
  };
  const icon = (right) =>
    make("span", { class: `chain-icon ${right ? "yes" : "no"}`, "aria-hidden": "true" }, right ? "✓" : "✗");
  const peerName = (name) => {
    const place = index.peers.indexOf(name);
    return make("span", { class: "chain-peer" },
      make("span", { class: place < 0 ? "mark" : `mark peer-${Math.min(place, 6)}`, "aria-hidden": "true" }), name);
  };
  const placeOf = (row) => {
    if (row.role === "chain") return `position ${row.position}`;
    return row.role === "sample" ? `sample ${row.sample}` : row.role === "solo" ? "alone" : "synthesis";
  };

  // --- one chain ---

  const response = (row, formulas) => make("li", { class: "chain-response" },
    make("p", { class: "chain-head" },
      peerName(row.peer), make("span", {}, placeOf(row)),
      row.is_aggregate ? make("strong", {}, "aggregate") : null,
      row.answer === null ? null : make("span", {}, "answer ", inline(row.answer, formulas)),
      verdict(row.right, row.answer) ?? (row.answer === null ? "no answer" : null),
      make("span", {}, `${row.n_tokens} tokens`),
      row.unfinished ? make("strong", { class: "chain-cut" }, `⚠ ${row.unfinished}`) : null),
    longText(row.text, formulas));

  const samples = (rows, formulas, open) => {
    const list = make("ol", { class: "chain-responses" });
    const fill = () => { if (!list.firstChild) list.append(...rows.map((row) => response(row, formulas))); };
    const box = make("details", { class: "chain-samples", open, ontoggle: fill },
      make("summary", {}, `${rows.length} samples of the question alone`), list);
    if (open) fill();
    return box;
  };

  const labels = (chain, formulas) => {
    const found = chain.labels.filter((label) => label.answer !== null);
    const lines = found.map((label) => make("p", { class: "chain-label" },
      found.length > 1 ? `for ${label.peers.join(", ")}: ` : "", inline(label.answer, formulas), " ",
      verdict(label.right, label.answer),
      label.share === null ? null : ` with ${Math.round(100 * label.share)} % of the votes`));
    const none = chain.training.length ? "There is no label." : "This round has no scores yet.";
    const gold = chain.gold === null ? null : make("p", {}, "Gold answer: ", inline(chain.gold, formulas));
    return make("div", { class: "chain-part" }, make("h4", {}, "Label"),
      ...(lines.length ? lines : [make("p", {}, none)]),
      make("p", { class: "chain-quiet" }, `Where it comes from: ${chain.label_from}.`), gold, votes(chain, formulas));
  };
  const votes = (chain, formulas) => {
    if (!chain.votes.length) return null;
    const count = (vote) => Object.values(vote.by).reduce((sum, n) => sum + n, 0);
    return table(["answer", ...(index.gold ? [""] : []), "votes", "by"], chain.votes.map((vote) => [
      inline(vote.answer, formulas), ...(index.gold ? [verdict(vote.right, vote.answer)] : []), String(count(vote)),
      Object.entries(vote.by).map(([who, n]) => `${who} ${n}`).join(", ")]), [index.gold ? 2 : 1], "Votes");
  };
  const table = (heads, rows, numeric, name) => {
    const cell = (kind, value, place) =>
      make(kind, { class: numeric.includes(place) ? "n" : "", scope: kind === "th" ? "col" : null }, value ?? "");
    return make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": name },
      make("table", {}, make("caption", { class: "away" }, name),
        make("thead", {}, make("tr", {}, ...heads.map((head, place) => cell("th", head, place)))),
        make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((value, n) => cell("td", value, n)))))));
  };

  const training = (chain, formulas) => {
    if (!chain.training.length) return null;
    const source = (row) => {
      if (row.text_by === null) return "–";
      if (row.text_from === null) return row.text_by;
      return make("span", {}, peerName(row.text_by), `, ${placeOf(chain.responses[row.text_from])}`);
    };
    const weight = (row) => {
      if (row.kept !== null) return row.kept ? "1 (chosen by gold)" : "not chosen by gold";
      if (row.dropped === null) return number(row.weight, 2);
      return make("span", { class: "chain-reason" }, `not trained: ${row.dropped}`);
    };
    const rows = chain.training.map((row) => [
      peerName(row.peer), weight(row), number(row.pmi, 2), number(row.pmi_per_token, 4), source(row),
      row.measured === null ? "–" : placeOf(chain.responses[row.measured]),
      row.agrees === null ? "–" : row.agrees ? "yes" : "no"]);
    const heads = [
      "peer", "weight", "PMI (nats)", "per token", "trains on the text of", "its own response", "has the label"];
    const apart = chain.training.filter((row) => row.text !== null);
    return make("div", { class: "chain-part" }, make("h4", {}, "Training"), table(heads, rows, [2, 3], "Training"),
      ...apart.map((row) => make("div", {}, make("p", {}, `Text for ${row.peer}:`), longText(row.text, formulas))));
  };

  const shown = (chain, formulas, href, round) => {
    const link = make("a", { href }, "Link to this chain");
    if (!chain) return [make("p", {}, `Round ${round} has no chain for this question. `, link)];
    const main = chain.responses.filter((row) => row.role !== "sample");
    const others = chain.responses.filter((row) => row.role === "sample");
    return [
      make("p", { class: "chain-head" }, make("span", {}, `Round ${round}`), make("code", {}, chain.id), link),
      make("h3", { class: "away" }, `Question ${chain.id}`),
      longText(chain.question, formulas, "chain-question"),
      labels(chain, formulas),
      make("div", { class: "chain-part" }, make("h4", {}, main.length ? "Responses, in order" : "Responses"),
        main.length ? make("ol", { class: "chain-responses" }, ...main.map((row) => response(row, formulas))) : null,
        others.length ? samples(others, formulas, !main.length) : null),
      training(chain, formulas)].filter(Boolean);
  };

  return { make, visible, plain, number, icon, shown, use: (found) => { index = found; } };
})();
