"use strict";
// Keeps the page fresh, and tells values under the pointer. Without it the pages are whole, only still.
(() => {
  const EVERY = 3000;
  const body = document.body;
  const lamp = document.getElementById("live");

  const say = (state, text) => {
    if (!lamp || lamp.dataset.state === state) return;
    lamp.dataset.state = state;
    lamp.classList.toggle("on", state === "on");
    lamp.classList.toggle("off", state === "off");
    document.getElementById("live-text").textContent = text;
  };

  // Values under the pointer, or where the arrow keys lead.
  const short = (value) => Number(value.toPrecision(4)).toLocaleString("en");
  const at = (series, x) => {
    const points = series.points;
    if (!points.length || x < points[0][0] || x > points[points.length - 1][0]) return null;
    let place = 0;
    while (place + 1 < points.length && points[place + 1][0] <= x) place += 1;
    if (!series.step && place + 1 < points.length && points[place + 1][0] - x < x - points[place][0]) place += 1;
    const band = series.band[place];
    const range = band && band[0] !== band[1] ? ` (${short(band[0])} to ${short(band[1])})` : "";
    return `${series.name} ${short(points[place][1])}${range}`;
  };

  const prepare = (figure) => {
    const data = JSON.parse(figure.querySelector("script.data").textContent);
    const plot = figure.querySelector(".plot");
    const readout = figure.querySelector(".readout");
    let share = 1;
    const show = () => {
      const x = share * data.far;
      const found = data.series.map((series) => at(series, x)).filter(Boolean);
      readout.textContent = `${data.xName} ${Math.round(x).toLocaleString("en")}: ${found.join("; ") || "nothing yet"}`;
      for (const chart of plot.querySelectorAll(".chart")) {
        const left = Number(chart.dataset.left);
        const place = left + share * (Number(chart.dataset.right) - left);
        const cursor = chart.querySelector(".cursor");
        cursor.setAttribute("x1", place);
        cursor.setAttribute("x2", place);
        cursor.classList.add("shown");
      }
    };
    const hide = () => {
      readout.textContent = "";
      for (const cursor of plot.querySelectorAll(".cursor")) cursor.classList.remove("shown");
    };
    for (const chart of plot.querySelectorAll(".chart")) {
      chart.addEventListener("pointermove", (event) => {
        const box = chart.getBoundingClientRect();
        const x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
        const left = Number(chart.dataset.left);
        share = Math.min(1, Math.max(0, (x - left) / (Number(chart.dataset.right) - left)));
        show();
      });
      chart.addEventListener("pointerleave", hide);
    }
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -0.02, ArrowRight: 0.02, Home: -1, End: 1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      share = Math.min(1, Math.max(0, share + step));
      show();
    });
    plot.addEventListener("blur", hide);
  };
  const prepareAll = () => document.querySelectorAll("figure.lines").forEach(prepare);
  prepareAll();

  // Filters take effect when they are changed; the button is for keyboards and for pages without script.
  document.addEventListener("change", (event) => {
    if (event.target.matches(".filters select")) event.target.form.requestSubmit();
  });

  // The new page's content takes the old one's place; what the reader opened, scrolled or focused stays.
  const swap = (fresh) => {
    const main = document.getElementById("main");
    const open = [...main.querySelectorAll("details[id]")].map((one) => [one.id, one.open]);
    const scrolled = [...main.querySelectorAll(".scroll[id]")].map((one) => [one.id, one.scrollLeft]);
    const focused = main.contains(document.activeElement) ? path(document.activeElement, main) : null;
    main.replaceChildren(...document.adoptNode(fresh.getElementById("main")).childNodes);
    for (const [id, value] of open) { const one = document.getElementById(id); if (one) one.open = value; }
    for (const [id, value] of scrolled) { const one = document.getElementById(id); if (one) one.scrollLeft = value; }
    if (focused) {
      const again = focused.reduce((node, place) => (node ? node.children[place] : null), main);
      if (again) again.focus({ preventScroll: true });
    }
    prepareAll();
  };
  const path = (node, root) => {
    const places = [];
    for (; node !== root; node = node.parentElement) places.unshift([...node.parentElement.children].indexOf(node));
    return places;
  };

  const busy = () => document.hidden || (document.activeElement && document.activeElement.matches("select"));

  const look = async () => {
    if (!busy()) {
      try {
        const answer = await fetch(body.dataset.poll, {
          cache: "no-store", headers: { "If-None-Match": `"${body.dataset.version}"` },
        });
        if (answer.status === 200) {
          const page = await fetch(location.pathname + location.search, { cache: "no-store" });
          if (page.ok) {
            const fresh = new DOMParser().parseFromString(await page.text(), "text/html");
            swap(fresh);
            body.dataset.version = fresh.body.dataset.version;
          }
        }
        if (answer.status === 200 || answer.status === 304) say("on", "live");
        else say("off", "the server has trouble");
      } catch {
        say("off", "no answer");
      }
    }
    setTimeout(look, EVERY);
  };
  if (body.dataset.poll) look();
})();
