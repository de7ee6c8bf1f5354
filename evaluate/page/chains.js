// The browser of chains. What a model wrote becomes text nodes alone; formulas are nodes of MathML from the page's own
// lists of elements and attributes. Chains are unpacked block by block, when one of them is shown or searched.
"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const browser = at("chain-browser");
  const LONG = 4000; // characters of a text that are shown at once
  const ROWS = 100; // rows of the list that are made at once
  const MATHML = "http://www.w3.org/1998/Math/MathML";
  const ELEMENTS = new Set(
    ("math mrow mi mn mo mtext mspace mfrac mroot msqrt msub msup msubsup munder mover munderover mstyle menclose " +
      "mtable mtr mtd").split(" "));

  // --- unpacking ---

  const unpack = async (base64) => {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };
  const packed = document.querySelectorAll(".chain-block");
  const blocks = new Map();
  let index = null;
  const perRound = () => Math.ceil(index.questions.length / index.block);
  const blockOf = (round, question) => {
    const number = index.rounds.indexOf(round) * perRound() + Math.floor(question / index.block);
    if (!blocks.has(number)) blocks.set(number, unpack(packed[number].textContent));
    return blocks.get(number);
  };

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
  // Control characters, and those that change the direction of what follows, are drawn instead of obeyed.
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/;
  const HIDDENS = new RegExp(`(${HIDDEN.source})`, "g");
  const sign = (character) => {
    const code = character.charCodeAt(0);
    if (code < 32) return String.fromCharCode(0x2400 + code);
    return code === 127 ? "\u2421" : `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
  };
  const visible = (text) => text.split(HIDDENS).filter((part) => part !== "").map((part) =>
    part.length === 1 && HIDDEN.test(part)
      ? make("span", { class: "chain-sign", title: `character ${part.charCodeAt(0)}` }, sign(part))
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
  const nodes = (text, formulas) => pieces(text).flatMap((piece) => {
    if (typeof piece === "string") return visible(piece);
    if (!at("chain-maths").checked) return visible(piece[0]);
    const node = drawn(formulas[piece[1]]);
    node.setAttribute("title", piece[0]);
    return [node];
  });
  const beginning = (text) => { // without cutting a formula, or the halves of a character
    const kept = [];
    let room = LONG;
    for (const piece of pieces(text)) {
      if (typeof piece === "string") {
        const end = /[\ud800-\udbff]/.test(piece[room - 1] ?? "") ? room - 1 : room;
        kept.push(piece.slice(0, end));
      } else kept.push(piece);
      room -= typeof piece === "string" ? piece.length : piece[0].length;
      if (room <= 0) break;
    }
    return kept;
  };
  const told = (text, formulas, kind = "chain-text") => {
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
    const icon = make("span", { class: `chain-icon ${right ? "yes" : "no"}`, "aria-hidden": "true" }, right ? "✓" : "✗");
    return make("span", { class: "chain-verdict" }, icon, right ? " right" : " wrong");
  };
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
    told(row.text, formulas));

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
    const none = chain.training.length ? "There is none." : "This round has no scores yet.";
    const gold = chain.gold === null ? null : make("p", {}, "Gold answer: ", inline(chain.gold, formulas));
    return make("div", { class: "chain-part" }, make("h4", {}, "Label"),
      ...(lines.length ? lines : [make("p", {}, none)]),
      make("p", { class: "chain-quiet" }, `It is ${chain.label_from}.`), gold, votes(chain, formulas));
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
      if (row.kept !== null) return row.kept ? "1 (gold chose it)" : "not chosen by gold";
      return row.dropped === null ? number(row.weight, 2) : `not trained: ${row.dropped}`;
    };
    const rows = chain.training.map((row) => [
      peerName(row.peer), source(row), row.measured === null ? "–" : placeOf(chain.responses[row.measured]),
      row.agrees === null ? "–" : row.agrees ? "yes" : "no",
      number(row.pmi, 2), number(row.pmi_per_token, 4), weight(row)]);
    const heads = ["peer", "trains on the text of", "its own response", "has the label", "PMI (nats)", "per token", "weight"];
    const apart = chain.training.filter((row) => row.text !== null);
    return make("div", { class: "chain-part" }, make("h4", {}, "Training"), table(heads, rows, [4, 5], "Training"),
      ...apart.map((row) => make("div", {}, make("p", {}, `Text for ${row.peer}:`), told(row.text, formulas))));
  };

  const shown = ({ chains, formulas }, question, round) => {
    const chain = chains[question % index.block];
    const link = make("a", { href: address(round, question) }, "Link to this chain");
    if (!chain) return [make("p", {}, `Round ${round} has no chain for this question. `, link)];
    const main = chain.responses.filter((row) => row.role !== "sample");
    const others = chain.responses.filter((row) => row.role === "sample");
    return [
      make("p", { class: "chain-head" }, make("span", {}, `Round ${round}`), make("code", {}, chain.id), link),
      make("h3", { class: "away" }, `Question ${chain.id}`),
      told(chain.question, formulas, "chain-question"),
      labels(chain, formulas),
      make("div", { class: "chain-part" }, make("h4", {}, main.length ? "Responses, in their order" : "Responses"),
        main.length ? make("ol", { class: "chain-responses" }, ...main.map((row) => response(row, formulas))) : null,
        others.length ? samples(others, formulas, !main.length) : null),
      training(chain, formulas)].filter(Boolean);
  };

  // --- filters ---

  const state = { round: null, question: null, found: [], texts: new Map() };
  const address = (round, question) => `#round=${round}&id=${index.questions[question][0]}`;
  const peerRows = (row, peer) => (peer === "" ? row.peers : [row.peers[Number(peer)]]).filter(Boolean);
  const best = (row, peer, column, least) => {
    const values = peerRows(row, peer).map((each) => each[column]).filter((value) => value !== null);
    return values.length ? (least ? Math.min(...values) : Math.max(...values)) : null;
  };
  const labelRight = (row, peer) => {
    const known = peer === "" ? [row.right] : peerRows(row, peer).map((each) => each[2]);
    return known.length ? known[0] : null;
  };
  const TESTS = {
    wrong: (row, peer) => labelRight(row, peer) === false,
    right: (row, peer) => labelRight(row, peer) === true,
    differ: (row) => row.differ,
    cut: (row) => row.cut,
    untrained: (row, peer) => peerRows(row, peer).every((each) => !each[0]),
  };
  const textsOf = async (round) => {
    if (!state.texts.has(round)) {
      const starts = [...Array(perRound()).keys()].map((n) => n * index.block);
      const found = (await Promise.all(starts.map((start) => blockOf(round, start)))).flatMap(({ chains }) => chains);
      state.texts.set(round, found.map((chain) => !chain ? "" : [
        chain.id, plain(chain.question), ...chain.responses.map((row) => plain(row.text)),
        ...chain.labels.map((row) => plain(row.answer))].join("\n").toLowerCase()));
    }
    return state.texts.get(round);
  };
  const find = async () => {
    const peer = at("chain-peer").value, order = at("chain-order").value, rows = index.rows[state.round];
    const wanted = [...at("chain-filters").querySelectorAll("fieldset input:checked")].map((box) => TESTS[box.value]);
    const sought = at("chain-search").value.trim().toLowerCase();
    const texts = sought ? await textsOf(state.round) : null;
    const fits = (row, question) => row !== null && wanted.every((test) => test(row, peer)) &&
      (peer === "" || row.peers[Number(peer)] !== null) && (!texts || texts[question].includes(sought));
    const found = [...rows.keys()].filter((question) => fits(rows[question], question));
    if (order) {
      const column = order === "weight" ? 0 : 1;
      const keys = new Map(found.map((question) => [question, best(rows[question], peer, column, order === "low")]));
      const sign = order === "low" ? 1 : -1;
      found.sort((a, b) => {
        const [x, y] = [keys.get(a), keys.get(b)];
        return x === y ? 0 : x === null ? 1 : y === null ? -1 : sign * (x - y);
      });
    }
    return found;
  };

  // --- list ---

  const list = at("chain-list"), scroll = at("chain-scroll");
  const rowOf = (question) => {
    const row = index.rows[state.round][question], peer = at("chain-peer").value;
    const right = index.gold ? labelRight(row, peer) : null;
    const mark = right === null ? null : make("span", { class: `chain-icon ${right ? "yes" : "no"}` }, right ? "✓" : "✗");
    if (mark) mark.append(make("span", { class: "away" }, right ? " label right" : " label wrong"));
    const label = row.label === null ? "no label" : row.labels > 1 ? `${row.labels} labels` : row.label;
    const weight = best(row, peer, 0);
    return make("li", {}, make("a", { href: address(state.round, question), "data-question": question },
      make("bdi", { class: "chain-preview" }, ...visible(index.questions[question][1])),
      make("span", { class: "chain-facts" }, mark, make("bdi", {}, ...visible(label)),
        weight === null ? make("span", {}, "not trained") : make("span", {}, `weight ${number(weight, 2)}`))));
  };
  const more = make("li", { class: "chain-more" },
    make("button", { type: "button", onclick: () => grow() }, "Show more"));
  const grow = (upTo = 0) => {
    more.remove();
    const from = list.children.length, end = Math.max(from + ROWS, upTo + 1);
    list.append(...state.found.slice(from, end).map(rowOf));
    if (list.children.length < state.found.length) list.append(more);
  };
  new IntersectionObserver((seen) => { if (seen.some((each) => each.isIntersecting)) grow(); },
    { root: scroll, rootMargin: "300px" }).observe(more);

  const status = () => {
    const place = state.found.indexOf(state.question), total = index.rows[state.round].filter(Boolean).length;
    const which = place < 0 ? "" : `, number ${place + 1} shown`;
    at("chain-count").textContent = `${state.found.length.toLocaleString("en")} of ${total.toLocaleString("en")} chains${which}`;
    at("chain-previous").disabled = place <= 0;
    at("chain-next").disabled = place >= state.found.length - 1;
  };
  const select = () => {
    for (const old of list.querySelectorAll("[aria-current]")) old.removeAttribute("aria-current");
    const place = state.found.indexOf(state.question);
    if (place < 0) return;
    if (place >= list.querySelectorAll("a").length) grow(place);
    const link = list.children[place].firstChild;
    link.setAttribute("aria-current", "true");
    const { offsetTop, offsetHeight } = link.parentNode;
    if (offsetTop < scroll.scrollTop) scroll.scrollTop = offsetTop;
    else if (offsetTop + offsetHeight > scroll.scrollTop + scroll.clientHeight) {
      scroll.scrollTop = offsetTop + offsetHeight - scroll.clientHeight;
    }
  };

  // --- showing and moving ---

  let asked = 0;
  const show = async (question) => {
    const turn = ++asked;
    state.question = question;
    select();
    status();
    const block = await blockOf(state.round, question);
    if (turn !== asked) return;
    const one = at("chain-one"), top = browser.querySelector(".chain-panes").getBoundingClientRect().top;
    one.replaceChildren(...shown(block, question, state.round));
    one.scrollTop = 0;
    const bar = document.querySelector(".bar")?.offsetHeight ?? 0;
    if (one.getBoundingClientRect().top < bar && top < bar) one.scrollIntoView();
    browser.dataset.shown = `${state.round}/${index.questions[question][0]}`;
  };
  const go = (question) => {
    history.replaceState(null, "", address(state.round, question));
    return show(question);
  };
  const step = (by) => {
    const place = state.found.indexOf(state.question) + by;
    if (place >= 0 && place < state.found.length) go(state.found[place]);
  };
  let finding = 0;
  const filter = async (keep = true) => {
    const turn = ++finding;
    const found = await find();
    if (turn !== finding) return;
    state.found = found;
    list.replaceChildren();
    scroll.scrollTop = 0;
    grow();
    if (keep && found.length && !found.includes(state.question)) await show(found[0]);
    else { select(); status(); }
    if (!found.length) at("chain-one").replaceChildren(make("p", { class: "chain-quiet" }, "No chain is like that."));
    else if (keep && browser.dataset.shown !== `${state.round}/${index.questions[state.question][0]}`) await show(state.question);
  };
  const follow = async () => { // the address names a chain: true if it was shown
    const given = new URLSearchParams(location.hash.slice(1));
    const round = Number(given.get("round")), id = given.get("id");
    const question = index.questions.findIndex(([known]) => known === id);
    if (id !== null && (question < 0 || !index.rounds.includes(round))) {
      at("chain-trouble").hidden = false;
      at("chain-trouble").textContent = `The address names a chain that this page does not have: round ${given.get("round")}, ${id}`;
    } else at("chain-trouble").hidden = true;
    if (question < 0 || !index.rounds.includes(round)) return false;
    if (round !== state.round) {
      state.round = round;
      at("chain-round").value = String(round);
      await filter(false);
    }
    await show(question);
    return true;
  };

  const typing = (target) => target.closest("input, select, textarea, [contenteditable]") !== null;
  const inView = () => {
    const { top, bottom } = browser.getBoundingClientRect();
    return top < window.innerHeight && bottom > 0;
  };
  const listen = () => {
    at("chain-filters").addEventListener("submit", (event) => event.preventDefault());
    at("chain-filters").addEventListener("input", (event) => {
      if (event.target.id === "chain-maths") { if (state.question !== null) show(state.question); return; }
      if (event.target.id === "chain-round") state.round = Number(event.target.value);
      filter();
    });
    at("chain-previous").addEventListener("click", () => step(-1));
    at("chain-next").addEventListener("click", () => step(1));
    window.addEventListener("hashchange", follow);
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Escape" && event.target === at("chain-search")) { at("chain-search").blur(); return; }
      if (typing(event.target) || !inView()) return;
      const does = { j: () => step(1), k: () => step(-1), "/": () => at("chain-search").focus() }[event.key];
      if (does) { event.preventDefault(); does(); }
    });
  };
  const begin = async () => {
    index = await unpack(at("chain-index").textContent);
    state.round = index.rounds[index.rounds.length - 1];
    browser.hidden = false;
    listen();
    await filter(false);
    if (await follow()) browser.scrollIntoView();
    else if (state.found.length) await show(state.found[0]);
    browser.dataset.ready = "yes";
    performance.mark("chains-ready");
  };
  begin().catch((error) => {
    at("chain-trouble").hidden = false;
    at("chain-trouble").textContent = typeof DecompressionStream === "undefined"
      ? "This browser cannot unpack the chains: it takes one of 2023 or later (Chrome 80, Safari 16.4, Firefox 113)."
      : "The chains of this page are damaged; `make report` writes it again.";
    if (typeof DecompressionStream !== "undefined") console.error(error);
  });
})();
