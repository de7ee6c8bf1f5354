// Draws the plots, toggles light and dark, and marks the section in view. Nothing here fetches anything.
"use strict";
(() => {
  const root = document.documentElement;

  // Plots are SVG whose colours are the style sheet's variables, so a change of theme redraws nothing.
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const options = { actions: false, renderer: "svg", ast: true, tooltip: { theme: "custom" } };
  const draw = async (place) => {
    try {
      await window.vegaEmbed(place, specs[place.dataset.spec], options);
      // Screen readers get the description and the table's numbers, not every mark.
      for (const svg of place.querySelectorAll("svg")) svg.setAttribute("aria-hidden", "true");
    } catch (error) {
      place.textContent = "This plot could not be drawn; its numbers are in the table.";
      console.error(error);
    }
  };
  // What is behind a click has no width until it is opened.
  const drawIn = (part) => [...part.querySelectorAll(".vega:empty")].filter((each) => each.offsetParent).map(draw);
  Promise.all(drawIn(document)).then(() => { root.dataset.drawn = "yes"; });
  for (const each of document.querySelectorAll("details.more")) each.addEventListener("toggle", () => drawIn(each));

  const button = document.getElementById("theme");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return window.localStorage.getItem("theme"); } catch { return null; } };
  const now = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const name = () => { button.setAttribute("aria-label", now() === "dark" ? "Switch to light" : "Switch to dark"); };
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = now() === "dark" ? "light" : "dark";
    try { window.localStorage.setItem("theme", root.dataset.theme); } catch { /* a page without storage */ }
    name();
  });
  dark.addEventListener("change", name);
  name();

  // Nobody can open tables on paper.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll(".plot details:not([open])")];
    for (const each of opened) each.open = true;
  });
  window.addEventListener("afterprint", () => { for (const each of opened) each.open = false; });

  const links = new Map([...document.querySelectorAll(".bar a")].map((each) => [each.hash.slice(1), each]));
  const sections = [...document.querySelectorAll("main > section")];
  const mark = () => {
    const seen = sections.filter((each) => each.getBoundingClientRect().top < window.innerHeight / 3).pop();
    for (const [id, link] of links) {
      if (seen && id === seen.id) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    }
  };
  document.addEventListener("scroll", mark, { passive: true });
  mark();
})();
