"use strict";

(function () {
  // Charts: drawn when first near the screen, coloured by role from the page's style.

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const CONFIG = {
    responsive: true,
    displaylogo: false,
    // Named one by one: plotly's own choice has a button that uploads the chart.
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtons: [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]],
    toImageButtonOptions: { format: "svg", filename: "griffin-kernels" },
  };

  function themedTrace(trace) {
    const own = colour(`--role-${trace.meta || "other"}`);
    const edge = /thin|line-/.test(trace.marker.symbol) ? own : colour("--ground");
    const marker = { ...trace.marker, color: own, line: { ...trace.marker.line, color: edge } };
    return { ...trace, marker, ...(trace.error_x ? { error_x: { ...trace.error_x, color: own } } : {}) };
  }

  function themedAxis(axis) {
    const title = axis.title && { ...axis.title, font: { size: 13, color: colour("--soft") } };
    return { ...axis, ...(title ? { title } : {}), gridcolor: colour("--hair"), linecolor: colour("--rule"), tickcolor: colour("--rule"), zeroline: false };
  }

  function themedLayout(layout) {
    const ink = colour("--ink");
    const shapeColours = { roof: colour("--bar"), one: colour("--soft"), strip: colour("--raised") };
    const themed = {
      ...layout,
      autosize: true,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: ink },
      hoverlabel: { bgcolor: colour("--ground"), bordercolor: colour("--rule"), font: { color: ink }, align: "left" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: ink },
      shapes: (layout.shapes || []).map((shape) =>
        shape.type === "rect"
          ? { ...shape, fillcolor: shapeColours[shape.name] }
          : { ...shape, line: { ...shape.line, color: shapeColours[shape.name] } }),
      annotations: (layout.annotations || []).map((note) => ({
        ...note, font: { color: colour("--link"), size: 12 }, bgcolor: colour("--ground"),
      })),
    };
    for (const name of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(name)) themed[name] = themedAxis(layout[name]);
    }
    return themed;
  }

  function draw(chart) {
    chart.spec = chart.spec || JSON.parse(chart.querySelector("script").textContent);
    const data = chart.spec.data.map(themedTrace);
    const layout = themedLayout(JSON.parse(JSON.stringify(chart.spec.layout)));
    return Plotly.react(chart, data, layout, CONFIG).then(() => { chart.dataset.drawn = "true"; });
  }

  const charts = [...document.querySelectorAll(".chart")];
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        watcher.unobserve(entry.target);
        draw(entry.target);
      }
    }
  }, { rootMargin: "400px" });
  charts.forEach((chart) => watcher.observe(chart));

  const redraw = () => charts.filter((chart) => chart.dataset.drawn).forEach(draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  matchMedia("print").addEventListener("change", redraw);

  // Links into a closed section open it. Every row of the verdict table is such a link.

  function reveal() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    const section = target.closest("details");
    if (section && !section.open) section.open = true;
    target.scrollIntoView();
  }
  addEventListener("hashchange", reveal);
  if (location.hash) reveal();

  for (const row of document.querySelectorAll("tr[data-href]")) {
    row.addEventListener("click", (event) => {
      if (event.target.closest("a") || String(getSelection())) return;
      if (location.hash === row.dataset.href) reveal();
      else location.hash = row.dataset.href;
    });
  }
  for (const button of document.querySelectorAll("button[data-open]")) {
    button.addEventListener("click", () => {
      document.querySelectorAll("details.case").forEach((section) => { section.open = button.dataset.open === "true"; });
    });
  }

  // Sorting: by a cell's data-value where it has one, as numbers where all are; cells without a value stay last.

  const valueOf = (cell) => (cell.dataset.value !== undefined ? cell.dataset.value : cell.textContent.trim());

  function sortBy(table, index, descending) {
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => ({ row, value: row.cells[index] ? valueOf(row.cells[index]) : "" }));
    const numeric = keyed.every(({ value }) => value === "" || value === "inf" || !Number.isNaN(Number(value)));
    const number = (value) => (value === "inf" ? Infinity : Number(value));
    keyed.sort((a, b) => {
      if (a.value === "" || b.value === "") return (a.value === "") - (b.value === "");
      const order = numeric ? number(a.value) - number(b.value) : a.value.localeCompare(b.value, "en", { numeric: true });
      return descending ? -order : order;
    });
    body.append(...keyed.map(({ row }) => row));
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sortBy(table, index, descending);
      });
    });
  }

  // All candidates: the rows of the cases' tables, copied when the section is first near the screen.

  const raw = document.getElementById("raw-table");

  const threeDigits = (value) =>
    value.toLocaleString("en", { minimumSignificantDigits: 3, maximumSignificantDigits: 3 }).replaceAll(",", "\u202f");

  function fillRaw() {
    if (raw.tBodies[0].rows.length) return;
    const rows = [];
    for (const section of document.querySelectorAll("details.case")) {
      for (const row of section.querySelectorAll("table.candidates tbody tr")) {
        const copy = row.cloneNode(true);
        copy.dataset.key = row.id;
        copy.removeAttribute("id");
        for (const text of [section.dataset.case, section.dataset.op]) {
          const cell = document.createElement("td");
          cell.textContent = text;
          copy.prepend(cell);
        }
        const time = copy.cells[4];
        if (time.dataset.value) time.textContent = threeDigits(Number(time.dataset.value) * 1e6);
        copy.searchText = `${copy.dataset.key} ${copy.textContent}`.toLowerCase();
        rows.push(copy);
      }
    }
    raw.tBodies[0].append(...rows);
    filterRaw();
  }

  function filterRaw() {
    const words = document.getElementById("raw-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of raw.tBodies[0].rows) {
      row.hidden = !words.every((word) => row.searchText.includes(word));
      if (!row.hidden) shown += 1;
    }
    document.getElementById("raw-count").textContent = `${shown} of ${raw.tBodies[0].rows.length} shown`;
  }

  if (raw) {
    const near = new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) {
        near.disconnect();
        fillRaw();
      }
    }, { rootMargin: "800px" });
    near.observe(document.getElementById("raw"));
    document.getElementById("raw-filter").addEventListener("input", () => { fillRaw(); filterRaw(); });
    document.getElementById("save-csv").addEventListener("click", () => {
      fillRaw();
      save("candidates.csv", "text/csv", csv());
    });
  }

  function csvCell(value) {
    // A spreadsheet would run a text that begins like a formula.
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  function csv() {
    const names = ["key", "op", "case", "variant", "config", "median_s", "ratio_to_winner", "spread", "rel_norm", "worst", "status", "problem"];
    const lines = [names.join(",")];
    for (const row of raw.tBodies[0].rows) {
      if (row.hidden) continue;
      const values = [...row.cells].map((cell, index) => {
        const value = valueOf(cell);
        return index >= 4 && index <= 8 && value !== "" ? Number(value === "inf" ? Infinity : value) : value;
      });
      lines.push([row.dataset.key, ...values].map(csvCell).join(","));
    }
    return `${lines.join("\r\n")}\r\n`;
  }

  function save(name, type, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  document.getElementById("save-json").addEventListener("click", () => {
    save("report-data.json", "application/json", document.getElementById("data").textContent);
  });
})();
