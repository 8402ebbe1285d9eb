// All that the page's script does: words beside a point of a chart, and a table of films that can be searched,
// filtered and sorted. Without it the charts have titles and the table is there.
"use strict";
(() => {
  document.documentElement.classList.add("scripted");
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "status");
  document.body.append(tip);

  const say = (point) => {
    document.querySelectorAll(".point.chosen").forEach((other) => other.classList.remove("chosen"));
    tip.hidden = !point;
    if (!point) return;
    point.classList.add("chosen");
    tip.textContent = point.dataset.words;
    const box = point.getBoundingClientRect();
    const left = Math.min(Math.max(box.left + box.width / 2 - tip.offsetWidth / 2, 8), innerWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 10;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(above > 0 ? above : box.bottom + 10) + scrollY}px`;
  };

  for (const chart of document.querySelectorAll("svg.chart")) {
    const points = [...chart.querySelectorAll(".point")];
    points.forEach((point) => point.querySelector("title")?.remove()); // The words are shown here, not twice.
    let at = -1;
    chart.addEventListener("pointermove", (event) => {
      let nearest = null;
      let least = 60;
      for (const point of points) {
        const box = point.getBoundingClientRect();
        const away = Math.hypot(box.left + box.width / 2 - event.clientX, box.top + box.height / 2 - event.clientY);
        if (away < least) [nearest, least] = [point, away];
      }
      at = nearest ? points.indexOf(nearest) : at;
      say(nearest);
    });
    chart.addEventListener("pointerleave", () => say(null));
    chart.addEventListener("blur", () => say(null));
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") say(null);
      if (!step || !points.length) return;
      event.preventDefault();
      at = (at + step + points.length) % points.length;
      say(points[at]);
    });
  }

  const part = document.getElementById("films-table");
  if (!part) return;
  const body = part.querySelector("tbody");
  const rows = [...body.rows];
  const search = document.getElementById("films-search");
  const truth = document.getElementById("films-true");
  const said = document.getElementById("films-said");
  const which = document.getElementById("films-which");
  const count = document.getElementById("films-count");
  const empty = document.getElementById("films-none");

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const fits =
        (!truth.value || row.dataset.true === truth.value) &&
        (!said.value || row.dataset.said === said.value) &&
        (!which.value || row.dataset.right === which.value) &&
        words.every((word) => row.textContent.toLowerCase().includes(word));
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} films`;
    empty.hidden = shown > 0;
  };
  for (const control of [search, truth, said, which]) control.addEventListener("input", filter);
  document.getElementById("films-all").addEventListener("click", () => {
    for (const control of [search, truth, said, which]) control.value = "";
    filter();
    search.focus();
  });

  const heads = [...part.querySelectorAll("thead th")];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.disabled = false;
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const value = (row) => {
        const cell = row.cells[column];
        return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
      };
      const order = new Intl.Collator("en", { numeric: true });
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        return (typeof x === "number" ? x - y : order.compare(x, y)) * (falling ? -1 : 1);
      });
      body.append(...rows);
    });
  });

  for (const cell of document.querySelectorAll("button[data-true]")) {
    cell.disabled = false;
    cell.addEventListener("click", () => {
      search.value = "";
      truth.value = cell.dataset.true;
      said.value = cell.dataset.said;
      which.value = "";
      filter();
      document.getElementById("films").scrollIntoView();
      search.focus({ preventScroll: true });
    });
  }
  filter();
})();
