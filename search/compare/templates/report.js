"use strict";
// Draws each figure when it comes near the window, in the colours of the reader's scheme.
(() => {
  performance.mark("shoal:begin");
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const config = { displaylogo: false, responsive: true, displayModeBar: "hover",
                   modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };
  const root = document.documentElement;
  const elements = [...document.querySelectorAll("[data-plot]")];

  // Colours stand as `var(--name)` in the data; the style sheet decides what they are now.
  const resolved = (value, style) => {
    if (typeof value === "string") {
      const match = /^var\((--[\w-]+)\)$/.exec(value);
      return match ? style.getPropertyValue(match[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((entry) => resolved(entry, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, resolved(entry, style)]));
    }
    return value;
  };

  // A figure may have several views: traces of the others, named by `meta`, are hidden.
  const chosen = (key) => document.querySelector(`input[data-view="${key}"]:checked`)?.value;

  const draw = (element) => {
    const plot = resolved(plots[element.dataset.plot], getComputedStyle(root));
    const view = chosen(element.dataset.of);
    for (const trace of plot.data) {
      if (view && trace.meta && trace.meta !== "always") trace.visible = trace.meta === view;
    }
    return Plotly.react(element, plot.data, plot.layout, config).then(() => {
      if (!root.dataset.drawn) { root.dataset.drawn = "yes"; performance.mark("shoal:first-figure"); }
      element.dataset.drawn = "yes";
    });
  };

  const drawn = () => elements.filter((element) => element.dataset.drawn);
  const redraw = () => Promise.all(drawn().map(draw));

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "400px 0px" });
  for (const element of elements) watcher.observe(element);
  if (elements.length) draw(elements[0]); else root.dataset.drawn = "yes";

  for (const input of document.querySelectorAll("[data-view]")) {
    input.addEventListener("change", () => elements
      .filter((element) => element.dataset.of === input.dataset.view && element.dataset.drawn).forEach(draw));
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  // Paper is light, has all figures drawn, and the verdict's parts unfolded.
  addEventListener("beforeprint", () => {
    root.dataset.print = "yes";
    for (const part of document.querySelectorAll("#verdict details")) part.open = true;
    elements.forEach((element) => { watcher.unobserve(element); draw(element); });
  });
  addEventListener("afterprint", () => { delete root.dataset.print; redraw(); });
})();
