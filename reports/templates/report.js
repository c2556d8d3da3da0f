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

  const role = (name) => colour(`--role-${name}`) || colour("--role-other");

  function themedTrace(trace) {
    const own = role(trace.meta || "other");
    const themed = { ...trace };
    if (trace.marker) {
      const edge = /thin|line-/.test(trace.marker.symbol) ? own : colour("--ground");
      themed.marker = { ...trace.marker, color: own, line: { ...trace.marker.line, color: edge } };
      const pattern = trace.marker.pattern;
      if (pattern) themed.marker.pattern = { ...pattern, fillmode: "overlay", fgcolor: colour(trace.text === undefined ? "--ground" : "--soft"), fgopacity: 0.75 };
    }
    if (/lines/.test(trace.mode || "")) themed.line = { ...trace.line, color: own };
    for (const bars of ["error_x", "error_y"]) {
      if (trace[bars]) themed[bars] = { ...trace[bars], color: trace.type === "bar" ? colour("--ink") : own };
    }
    if (trace.text !== undefined) themed.textfont = { ...trace.textfont, color: trace.type === "bar" ? colour("--ink") : own };
    return themed;
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
          ? { ...shape, fillcolor: shapeColours[shape.name] || role(shape.name) }
          : { ...shape, line: { ...shape.line, color: shapeColours[shape.name] || role(shape.name) } }),
      annotations: (layout.annotations || []).map((note) => ({
        ...note,
        font: { size: 12, ...note.font, color: note.name === "roof" ? colour("--link") : colour(`--role-${note.name}`) || ink },
        bgcolor: colour("--ground"),
      })),
    };
    for (const name of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(name)) themed[name] = themedAxis(layout[name]);
    }
    return themed;
  }

  const shown = (element) => element.getClientRects().length > 0;

  function draw(chart) {
    chart.stale = false;
    chart.spec = chart.spec || JSON.parse(chart.querySelector("script").textContent);
    const data = chart.spec.data.map(themedTrace);
    const layout = themedLayout(JSON.parse(JSON.stringify(chart.spec.layout)));
    return Plotly.react(chart, data, layout, CONFIG).then(() => {
      if (!chart.dataset.drawn) linked(chart);
      chart.dataset.drawn = "true";
    });
  }

  // A chart out of sight has no width to be drawn in: it is drawn when it comes near the screen, and again where
  // window or colours have changed meanwhile.

  const charts = [...document.querySelectorAll(".chart")];
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && entry.target.stale !== false) draw(entry.target);
    }
  }, { rootMargin: "400px" });
  charts.forEach((chart) => watcher.observe(chart));

  const drawn = () => charts.filter((chart) => chart.dataset.drawn);
  const redraw = () => drawn().forEach((chart) => { if (shown(chart)) draw(chart); else chart.stale = true; });
  const print = matchMedia("print");
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  print.addEventListener("change", () => (print.matches ? charts.filter(shown).forEach(draw) : redraw()));
  addEventListener("resize", () => drawn().forEach((chart) => { chart.stale = chart.stale || !shown(chart); }));

  const plain = (text) => new DOMParser().parseFromString(text.replaceAll("<br>", ", "), "text/html").body.textContent;

  // Points that lead somewhere: customdata is [fragment, name of the line that the point is judged by].

  function linked(chart) {
    const traceOf = (group) => group.__data__[0].trace;
    const groups = () => [...chart.querySelectorAll(".scatterlayer .trace")];
    const follow = (goal) => { if (goal && goal.startsWith("#")) go(goal); };

    function judge(name) {
      for (const group of groups()) {
        const mine = traceOf(group).name || "";
        const roof = name && mine.startsWith("roof ");
        group.style.opacity = roof && mine !== name ? 0.2 : "";
        group.classList.toggle("judging", Boolean(roof && mine === name));
      }
    }

    // One stop of the Tab key for all marks of a chart; arrow keys go from one to the next.
    function name() {
      const marks = [];
      for (const group of groups()) {
        const { customdata: goals, hovertext, index } = traceOf(group);
        if (!goals) continue;
        for (const mark of group.querySelectorAll("path.point")) {
          const at = mark.__data__.i;
          if (!goals[at] || !goals[at][0]) continue;
          marks.push(mark);
          if (mark.getAttribute("role")) continue;
          mark.setAttribute("role", "link");
          mark.setAttribute("tabindex", "-1");
          mark.setAttribute("aria-label", plain(hovertext[at]));
          mark.addEventListener("focus", () => {
            Plotly.Fx.hover(chart, [{ curveNumber: index, pointNumber: at }]);
            judge(goals[at][1]);
          });
          mark.addEventListener("blur", () => { Plotly.Fx.unhover(chart); judge(null); });
          mark.addEventListener("keydown", (event) => {
            const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
            if (event.key === "Enter") follow(goals[at][0]);
            if (!step) return;
            event.preventDefault();
            const all = chart.marks;
            const next = all[(all.indexOf(mark) + step + all.length) % all.length];
            all.forEach((other) => other.setAttribute("tabindex", other === next ? "0" : "-1"));
            next.focus();
          });
        }
      }
      chart.marks = marks;
      if (!marks.some((mark) => mark.getAttribute("tabindex") === "0")) marks[0]?.setAttribute("tabindex", "0");
    }

    if (!chart.spec.data.some((trace) => trace.customdata)) return;
    chart.on("plotly_click", (event) => follow((event.points[0].customdata || [])[0]));
    chart.on("plotly_hover", (event) => {
      const [goal, roof] = event.points[0].customdata || [];
      chart.classList.toggle("leads", Boolean(goal));
      judge(roof);
    });
    chart.on("plotly_unhover", () => { chart.classList.remove("leads"); judge(null); });
    chart.on("plotly_afterplot", name);
    name();
  }

  // Tabs: one is shown, by its own name or by that of anything within it; all are printed.

  const bar = document.querySelector(".tabs");
  const tabs = bar ? [...bar.querySelectorAll("a")] : [];
  const panels = tabs.map((tab) => document.getElementById(tab.hash.slice(1)));

  function show(panel) {
    panels.forEach((other, at) => {
      const chosen = other === panel;
      other.hidden = !chosen;
      tabs[at].setAttribute("aria-selected", String(chosen));
      tabs[at].tabIndex = chosen ? 0 : -1;
    });
  }

  if (bar) {
    bar.setAttribute("role", "tablist");
    tabs.forEach((tab, at) => {
      tab.id = `tab-${panels[at].id}`;
      tab.setAttribute("role", "tab");
      tab.setAttribute("aria-controls", panels[at].id);
      panels[at].setAttribute("role", "tabpanel");
      panels[at].setAttribute("aria-labelledby", tab.id);
    });
    // A link to a part of the page would take the focus from the tab.
    bar.addEventListener("click", (event) => {
      const tab = event.target.closest("a");
      if (!tab || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      history.pushState(null, "", tab.hash);
      tab.focus();
      reveal();
    });
    bar.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -tabs.length, End: tabs.length };
      const at = tabs.indexOf(document.activeElement);
      if (at < 0 || !(event.key in steps)) return;
      event.preventDefault();
      const step = steps[event.key];
      const next = Math.abs(step) === 1 ? (at + step + tabs.length) % tabs.length : step < 0 ? 0 : tabs.length - 1;
      tabs[next].focus();
      history.replaceState(null, "", tabs[next].hash);
      reveal();
    });
    show(panels[0]);
    let chosen = panels[0];
    addEventListener("beforeprint", () => {
      chosen = panels.find((panel) => !panel.hidden);
      panels.forEach((panel) => { panel.hidden = false; });
      charts.filter(shown).forEach(draw);
    });
    addEventListener("afterprint", () => { show(chosen); redraw(); });
  }

  // Select boxes: each shows one of several panels, by the panel's id. Links into a hidden panel choose it.

  const pickers = [...document.querySelectorAll("select[data-panels]")];

  function pick(select) {
    for (const option of select.options) document.getElementById(option.value).hidden = option.value !== select.value;
  }

  for (const select of pickers) {
    select.addEventListener("change", () => pick(select));
    pick(select);
  }

  function choose(id) {
    const select = pickers.find((other) => [...other.options].some((option) => option.value === id));
    if (!select) return;
    select.value = id;
    pick(select);
  }

  // Links into a closed section open it. Every row of the verdict table is such a link.

  function reveal() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    const panel = panels.find((other) => other.contains(target));
    if (panel) show(panel);
    const hidden = target.closest(".panel[hidden]");
    if (hidden) choose(hidden.id);
    const section = target.closest("details");
    if (section && !section.open) section.open = true;
    if (panel === target) scrollTo(0, 0);
    else target.scrollIntoView();
  }

  function go(hash) {
    if (location.hash === hash) reveal();
    else location.hash = hash;
  }
  addEventListener("hashchange", reveal);
  if (location.hash) reveal();

  for (const row of document.querySelectorAll("tr[data-href]")) {
    row.addEventListener("click", (event) => {
      if (event.target.closest("a") || String(getSelection())) return;
      go(row.dataset.href);
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

  // A head's data-name is the column's name in the file; a cell of several figures, as an interval, has
  // several of them, with | between.

  function tableCsv(table) {
    const figure = (text) => (text === "" || Number.isNaN(Number(text)) ? text : Number(text));
    const values = (cell) => {
      if (cell.dataset.value === undefined) return [cell.textContent.trim().replace(/\s+/g, " ")];
      return [cell.dataset.value, cell.dataset.second, cell.dataset.third].filter((text) => text !== undefined).map(figure);
    };
    const names = [...table.tHead.rows[0].cells].flatMap((cell) => (cell.dataset.name || cell.textContent.trim()).split("|"));
    const lines = [...table.tBodies].flatMap((body) => [...body.rows]).map((row) => [...row.cells].flatMap(values));
    return `${[names, ...lines].map((line) => line.map(csvCell).join(",")).join("\r\n")}\r\n`;
  }

  for (const button of document.querySelectorAll("button[data-csv]")) {
    button.addEventListener("click", () => {
      save(button.dataset.file, "text/csv", tableCsv(document.getElementById(button.dataset.csv)));
    });
  }

  for (const button of document.querySelectorAll("button[data-grid]")) {
    button.addEventListener("click", () => {
      const { grid } = JSON.parse(document.getElementById("data").textContent).study.pages[button.dataset.grid];
      const names = Object.keys(grid[0]);
      const lines = [names, ...grid.map((point) => names.map((name) => point[name] ?? ""))];
      save("forward-grid.csv", "text/csv", `${lines.map((line) => line.map(csvCell).join(",")).join("\r\n")}\r\n`);
    });
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
