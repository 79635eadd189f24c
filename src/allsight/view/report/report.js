"use strict";
// Values under the pointer on charts, and tables sorted by a click on a heading. The page reads fine without.
(() => {
  const tip = document.body.appendChild(Object.assign(document.createElement("div"), { id: "tip", hidden: true }));
  const written = (v) => (v === null ? "not finite" : Math.abs(v) >= 1e-3 && Math.abs(v) < 1e7 || v === 0
    ? v.toLocaleString("en", { maximumSignificantDigits: 4 }) : v.toExponential(2));
  const nearest = (xs, x) => xs.reduce((best, value, i) => Math.abs(value - x) < Math.abs(xs[best] - x) ? i : best, 0);
  for (const svg of document.querySelectorAll("svg[data-chart]")) {
    const chart = JSON.parse(svg.dataset.chart);
    const [low, high, start, end] = chart.x;
    const rule = svg.appendChild(svg.querySelector("line.axis").cloneNode());
    for (const [k, v] of Object.entries({ y1: 10, y2: 166, stroke: "#6a727a", "stroke-width": 0.8, visibility: "hidden" })) rule.setAttribute(k, v);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const px = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
      const x = low + (px - start) / (end - start) * (high - low);
      if (px < start - 6 || px > end + 6 || !chart.lines.length) return hide();
      const at = chart.lines[0].x[nearest(chart.lines[0].x, x)];
      const place = start + (at - low) / (high - low) * (end - start);
      rule.setAttribute("x1", place); rule.setAttribute("x2", place); rule.setAttribute("visibility", "visible");
      tip.replaceChildren(...[[`at ${at.toLocaleString("en")}`], ...chart.lines.map((line) =>
        [line.name, line.y[nearest(line.x, x)], line.color])].map(([name, value, color]) => {
        const row = document.createElement("div");
        if (color) row.appendChild(document.createElement("i")).style.background = color;
        row.append(name);
        if (value !== undefined) row.appendChild(document.createElement("b")).textContent = written(value);
        return row;
      }));
      tip.hidden = false;
      tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 6)}px`;
      tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 6)}px`;
    });
    const hide = () => { tip.hidden = true; rule.setAttribute("visibility", "hidden"); };
    svg.addEventListener("pointerleave", hide);
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    table.classList.add("live");
    table.querySelectorAll("thead th").forEach((head, column) => head.addEventListener("click", () => {
      const body = table.tBodies[0];
      const upward = head.dataset.up !== "1";
      head.dataset.up = upward ? "1" : "0";
      const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const order = (a, b) => isNaN(key(a)) ? key(a).localeCompare(key(b)) : key(a) - key(b);
      body.append(...[...body.rows].sort((a, b) => upward ? order(a, b) : order(b, a)));
    }));
  }
})();
