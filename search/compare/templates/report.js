"use strict";
// Draws the figures of the report, and draws them again when the reader's colour scheme changes.
(() => {
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const config = { displaylogo: false, responsive: true, displayModeBar: "hover",
                   modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };

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

  const draw = (element) => {
    const plot = resolved(plots[element.dataset.figure], getComputedStyle(document.documentElement));
    const box = document.querySelector(`[data-replicates="${element.dataset.figure}"]`);
    for (const trace of plot.data) {
      if (trace.meta === "replicate") trace.visible = Boolean(box && box.checked);
      if (trace.meta === "band") trace.visible = !(box && box.checked);
    }
    return Plotly.react(element, plot.data, plot.layout, config);
  };

  const elements = [...document.querySelectorAll("[data-figure]")];
  const drawAll = () => Promise.all(elements.map(draw));
  for (const box of document.querySelectorAll("[data-replicates]")) box.addEventListener("change", drawAll);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  drawAll().then(() => { document.documentElement.dataset.drawn = "yes"; });
})();
