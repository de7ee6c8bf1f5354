// The chain browser: filters, list, keyboard, links. A block of chains is unpacked when one of them is shown or
// searched; chain-view.js draws them.
"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const browser = at("chain-browser");
  const ROWS = 100; // rows of the list that are added at a time
  const { make, visible, plain, number, icon, shown, use } = window.chainView;

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
  const LABEL = {
    wrong: (row, peer) => labelRight(row, peer) === false,
    right: (row, peer) => labelRight(row, peer) === true,
  };
  const TESTS = {
    ...LABEL,
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
    const ticked = [...at("chain-filters").querySelectorAll("fieldset input:checked")].map((box) => box.value);
    const both = ["wrong", "right"].every((each) => ticked.includes(each)); // either: the label is judged
    const judged = (row, peer) => labelRight(row, peer) !== null;
    const wanted = ticked.map((each) => both && each in LABEL ? judged : TESTS[each]);
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
    const mark = right === null ? null
      : make("span", {}, icon(right), make("span", { class: "away" }, right ? " label right" : " label wrong"));
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
    const [some, all] = [state.found.length, total].map((count) => count.toLocaleString("en"));
    at("chain-count").textContent = `${some} of ${all} chains${which}`;
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
    const top = offsetTop - scroll.scrollTop;
    if (top < 0 || top + offsetHeight > scroll.clientHeight) scroll.scrollTop = offsetTop - scroll.clientHeight / 3;
  };

  // --- showing and moving ---

  const name = (question) => `${state.round}/${index.questions[question][0]}`;
  let asked = 0;
  const show = async (question) => {
    const turn = ++asked;
    state.question = question;
    select();
    status();
    const block = await blockOf(state.round, question);
    if (turn !== asked) return;
    const one = at("chain-one"), top = browser.querySelector(".chain-panes").getBoundingClientRect().top;
    const chain = block.chains[question % index.block];
    one.replaceChildren(...shown(chain, block.formulas, address(state.round, question), state.round));
    one.scrollTop = 0;
    const bar = document.querySelector(".bar")?.offsetHeight ?? 0;
    if (one.getBoundingClientRect().top < bar && top < bar) one.scrollIntoView();
    browser.dataset.shown = name(question);
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
  const filter = async (moves = true) => {
    const turn = ++finding;
    const found = await find();
    if (turn !== finding) return;
    state.found = found;
    list.replaceChildren();
    scroll.scrollTop = 0;
    grow();
    select();
    status();
    if (!found.length) {
      browser.dataset.shown = "";
      at("chain-one").replaceChildren(make("p", { class: "chain-quiet" }, "No chain matches."));
    } else if (moves) {
      const question = found.includes(state.question) ? state.question : found[0];
      if (browser.dataset.shown !== name(question)) await go(question);
    }
  };
  const trouble = (text) => {
    at("chain-trouble").hidden = !text;
    at("chain-trouble").textContent = text;
  };
  const follow = async () => { // show the chain that the address names: true if there is one
    const given = new URLSearchParams(location.hash.slice(1));
    const round = Number(given.get("round")), id = given.get("id");
    const question = index.questions.findIndex(([theirs]) => theirs === id);
    const known = question >= 0 && index.rounds.includes(round);
    trouble(known || id === null ? "" : `This page does not have the chain in its address: round ${round}, ${id}.`);
    if (!known) return false;
    if (round !== state.round) {
      state.round = round;
      at("chain-round").value = String(round);
      await filter(false);
    }
    await show(question);
    return true;
  };

  const typing = (target) => target.closest("input:not([type=checkbox]), select, textarea") !== null;
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
      if (event.key === "Escape" && event.target === at("chain-search")) {
        event.preventDefault(); // a browser that empties the field itself does not always send an event
        event.target.value = "";
        event.target.blur();
        filter();
        return;
      }
      if (typing(event.target) || !inView()) return;
      const does = { j: () => step(1), k: () => step(-1), "/": () => at("chain-search").focus() }[event.key];
      if (does) { event.preventDefault(); does(); }
    });
  };
  const begin = async () => {
    index = await unpack(at("chain-index").textContent);
    use(index);
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
    if (typeof DecompressionStream === "undefined") {
      trouble("This browser cannot unpack the chains: use Chrome 80, Safari 16.4, Firefox 113, or a later version.");
      return;
    }
    trouble("The chains of this page are damaged; `make report` writes the page again.");
    console.error(error);
  });
})();
