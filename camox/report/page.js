"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const preference = window.matchMedia("(prefers-color-scheme: dark)");
  let asked = null;
  try { asked = localStorage.getItem("camox-scheme"); } catch (error) { /* a page without storage forgets the choice */ }

  function applyScheme() {
    root.dataset.scheme = asked || (preference.matches ? "dark" : "light");
  }

  // "@0" … "@7", "@ink" and "@quiet" are names of colours of the scheme.
  function coloured(value, style) {
    if (typeof value === "string" && /^@[a-z0-9]+$/.test(value)) {
      const name = value.slice(1);
      return style.getPropertyValue(/^\d$/.test(name) ? `--c${name}` : `--${name}`).trim();
    }
    if (Array.isArray(value)) {
      const isNumbers = value.length > 2 && typeof value[0] === "number";
      return isNumbers ? value : value.map(child => coloured(child, style));
    }
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, child]) => [key, coloured(child, style)]));
    }
    return value;
  }

  function axis(given, style) {
    const line = style.getPropertyValue("--line").trim();
    const title = given && given.title ? {...given.title, standoff: 4, font: {size: 11}} : undefined;
    return {gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, ...given, title};
  }

  function layoutOf(figure, style, width) {
    const given = coloured(figure.layout, style);
    const ink = style.getPropertyValue("--ink").trim();
    const paper = style.getPropertyValue("--paper").trim();
    return {
      ...given,
      height: given.height || 300,
      margin: {l: 52, r: 12, b: 40, t: 12, ...given.margin},
      font: {color: ink, size: 12, family: "system-ui, -apple-system, Segoe UI, Roboto, Noto Sans, sans-serif"},
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: {bgcolor: paper, bordercolor: ink, font: {color: ink, size: 12}, align: "left", namelength: 30},
      legend: {orientation: "h", y: -0.24, yanchor: "top", x: 0, font: {size: 11}},
      // On a phone a finger that scrolls the page must not zoom a plot.
      dragmode: width < 640 ? false : "zoom",
      xaxis: axis(given.xaxis, style), yaxis: axis(given.yaxis, style),
    };
  }

  function draw(place) {
    place.dataset.scheme = root.dataset.scheme;
    const figure = figures[place.dataset.figure];
    place.style.minHeight = `${figure.layout.height || 300}px`;
    const style = getComputedStyle(root);
    const data = coloured(figure.data, style);
    for (const trace of data) if (trace.name && trace.name.length > 40) trace.name = trace.name.slice(0, 39) + "…";
    const options = {responsive: true, displaylogo: false, displayModeBar: false};
    return Plotly.react(place, data, layoutOf(figure, style, window.innerWidth), options);
  }

  // What is folded has no width to draw into: it is drawn when it is opened.
  const places = [...document.querySelectorAll(".drawing")];
  const isDue = place => place.offsetParent !== null && place.dataset.scheme !== root.dataset.scheme;
  let turn = 0;
  async function drawAll() {
    const mine = ++turn;
    delete root.dataset.drawn;
    for (const place of places) {
      if (mine !== turn) return; // the scheme changed, or more was opened meanwhile
      if (!isDue(place)) continue;
      await draw(place);
      await new Promise(resolve => setTimeout(resolve, 0)); // the page stays alive between two plots
    }
    root.dataset.drawn = String(places.filter(place => place.dataset.scheme === root.dataset.scheme).length);
  }

  const contents = document.getElementById("contents");
  const toc = document.getElementById("toc");
  const links = new Map([...toc.querySelectorAll("a")].map(link => [link.hash.slice(1), link]));
  function openContents(open) {
    toc.classList.toggle("open", open);
    contents.setAttribute("aria-expanded", String(open));
  }
  contents.addEventListener("click", () => openContents(!toc.classList.contains("open")));
  document.addEventListener("keydown", event => { if (event.key === "Escape") openContents(false); });
  document.addEventListener("click", event => { if (!event.target.closest(".bar")) openContents(false); });

  // The section whose heading has last passed below the bar.
  function markHere() {
    let here = null;
    for (const key of links.keys()) {
      const section = document.getElementById(key);
      if (section && section.getBoundingClientRect().top < 120) here = key;
    }
    for (const [key, link] of links) {
      if (key === here) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    }
    document.getElementById("here").textContent = here ? links.get(here).textContent : "Contents";
  }

  function reveal(hash) {
    const target = document.getElementById(decodeURIComponent(hash.slice(1)));
    if (!target) return;
    const inside = target.querySelector(":scope > details.part");
    if (inside) inside.open = true;
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    target.scrollIntoView();
  }
  document.addEventListener("click", event => {
    const link = event.target.closest('a[href^="#"]');
    if (!link) return;
    openContents(false);
    setTimeout(() => reveal(link.hash), 0); // after the browser's own jump
  });
  window.addEventListener("scroll", markHere, {passive: true});
  window.addEventListener("resize", markHere);

  document.getElementById("scheme").addEventListener("click", () => {
    asked = root.dataset.scheme === "dark" ? "light" : "dark";
    try { localStorage.setItem("camox-scheme", asked); } catch (error) { /* as above */ }
    applyScheme();
    drawAll();
  });
  preference.addEventListener("change", () => { applyScheme(); drawAll(); });
  for (const details of document.querySelectorAll("details")) {
    details.addEventListener("toggle", () => {
      if (details.open) drawAll();
    });
  }
  root.classList.add("script");
  applyScheme();
  markHere();
  drawAll();
  if (location.hash) reveal(location.hash);
})();
