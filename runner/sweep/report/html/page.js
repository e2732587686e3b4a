// The report in the browser: table, plots and comparisons of the runs in `#data`. Strings of runs are only ever text:
// they reach the page by textContent or as data and titles of plots, never as HTML, as code or as an address.
"use strict";
const D = JSON.parse(document.getElementById("data").textContent);
const N = D.runs.label.length;
const FIRST = 100, CURVES = 50, LINES = 500, TICKED = 1500;
const columns = D.columns.map(readColumn);
const byName = new Map(columns.map((column) => [column.name, column]));
const objective = byName.get(D.objective);
const figures = new Set();
const state = { sort: null, down: false, chosen: new Set(), baseline: null, limit: FIRST, rows: all(), shown: new Set() };

function all() { return Array.from({ length: N }, (_, n) => n); }

function readColumn(given) {
  const texts = given.texts;
  const values = given.values.map((v) => (v === null || (texts && v < 0) ? null : texts ? texts[v] : +v));
  return { name: given.name, group: given.group, numeric: !texts, values, levels: texts ? texts.length : new Set(values).size };
}

// ---- elements

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && key !== "list") element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function choose(label, options, value, onchange) {
  const select = make("select", { onchange: () => onchange(select.value) }, ...options.map(([key, text]) => make("option", { value: key, textContent: text })));
  select.value = value;
  return make("label", {}, label, select);
}

function tick(label, checked, onchange) {
  const input = make("input", { type: "checkbox", checked, onchange: () => onchange(input.checked) });
  return make("label", {}, input, label);
}

function section(id, title, ...children) {
  const made = make("section", { id, "aria-labelledby": `${id}_title` }, make("h2", { id: `${id}_title`, textContent: title }), ...children);
  document.getElementById("main").append(made);
  document.getElementById("sections").append(make("li", {}, make("a", { href: `#${id}`, textContent: title })));
  return made;
}

function say(text) { document.getElementById("said").textContent = text; }

function format(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "∞" : "−∞";
  if (Number.isSafeInteger(value)) return String(value).replace("-", "−");
  const short = Number(value.toPrecision(5));
  return String(Math.abs(short) >= 1e6 || (short !== 0 && Math.abs(short) < 1e-4) ? short.toExponential() : short).replace("-", "−");
}

function lessIsBetter(name) {
  if (name === D.objective || name === `best.${D.objective}`) return D.sign < 0;
  return /(loss|error|perplexity|mae|mse|rmse|nll|seconds)$/.test(name);
}

function isFinal(v) { return v !== null && Number.isFinite(v); }

// ---- which runs

function chosenOrRows() { return state.chosen.size ? state.rows.filter((n) => state.chosen.has(n)) : state.rows; }

function parseFilter(text) {
  const tests = [], wrong = [];
  for (const part of text.match(/(?:[^\s"]|"[^"]*")+/g) || []) {
    const found = part.replaceAll('"', "").match(/^(.+?)(<=|>=|!=|=|<|>)(.*)$/);
    if (!found) { tests.push((n) => matchText(n, part.replaceAll('"', "").toLowerCase())); continue; }
    const [, name, sign, given] = found, column = findColumn(name);
    if (!column) { wrong.push(name); continue; }
    tests.push((n) => compare(column.values[n], sign, given, column.numeric));
  }
  return { test: (n) => tests.every((one) => one(n)), wrong };
}

function findColumn(name) {
  if (byName.has(name)) return byName.get(name);
  const near = columns.filter((column) => column.name.split(/[./]/).pop() === name || column.name.endsWith(name));
  return near.length ? near[0] : null;
}

function matchText(n, text) {
  return D.runs.label[n].toLowerCase().includes(text) || D.runs.path[n].toLowerCase().includes(text) || columns.some((c) => !c.numeric && c.values[n] !== null && c.values[n].toLowerCase().includes(text));
}

function compare(value, sign, given, numeric) {
  if (value === null) return sign === "!=" ? given !== "" : sign === "=" && given === "";
  if (numeric && given.trim() === "") return sign === "!=";
  const [a, b] = numeric ? [value, Number(given)] : [value, given];
  return { "=": a === b, "!=": a !== b, "<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b }[sign];
}

function order(a, b) {
  if (state.sort === null) return a - b;
  const x = state.sort === "" ? D.runs.label[a] : byName.get(state.sort).values[a], y = state.sort === "" ? D.runs.label[b] : byName.get(state.sort).values[b];
  const none = (v) => v === null || Number.isNaN(v);
  if (none(x) || none(y)) return none(x) - none(y) || a - b;
  const way = typeof x === "number" ? x - y : x.localeCompare(y, undefined, { numeric: true });
  return (state.down ? -way : way) || a - b;
}

function update() {
  const { test, wrong } = parseFilter(filter.value);
  state.rows = all().filter((n) => test(n) && (status.value === "" || statuses.values[n] === status.value)).sort(order);
  filter.setAttribute("aria-invalid", wrong.length > 0);
  drawTable();
  const count = `${state.rows.length} of ${N} runs${state.chosen.size ? `, ${state.chosen.size} chosen` : ""}${state.baseline === null ? "" : `, differences to ${D.runs.label[state.baseline]}`}`;
  counted.textContent = wrong.length ? `no column named ${wrong.join(", ")}` : count;
  say(counted.textContent);
  unsettle();
}

// ---- the table

const statuses = byName.get("status") || { values: all().map(() => "") };
const filter = make("input", { type: "search", placeholder: 'accuracy>0.9 lr<=0.1 adam', "aria-describedby": "filter_help", oninput: () => update() });
const status = make("select", { onchange: () => update() }, make("option", { value: "", textContent: "any status" }), ...[...new Set(statuses.values)].filter(Boolean).map((s) => make("option", { value: s, textContent: s })));
const counted = make("p", { className: "soft", id: "counted" });
const table = make("table", { id: "table" });
const more = make("button", { type: "button", id: "more", onclick: () => { state.limit += 1000; drawTable(); } });
for (const c of defaultColumns()) state.shown.add(c);

function defaultColumns() {
  const named = columns.filter((c) => ["rank", "status", D.objective].includes(c.name));
  const settings = columns.filter((c) => c.group === "setting").slice(0, 8);
  const metrics = columns.filter((c) => c.group === "metric" && /^(val|test|train\/loss)/.test(c.name)).slice(0, 6);
  return new Set([...named, ...settings, ...metrics, ...columns.filter((c) => c.name === "seconds" || (c.name === "seed" && c.levels > 1))]);
}

function drawTable() {
  const shown = columns.filter((c) => state.shown.has(c));
  const head = make("tr", {}, make("th", { className: "plain", scope: "col", textContent: "chosen" }), make("th", { className: "plain", scope: "col", textContent: "baseline" }), sortable("", "run"), ...shown.map((c) => sortable(c.name, c.name)));
  const rows = state.rows.slice(0, state.limit).map((n) => drawRow(n, shown));
  const focus = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.key : undefined;
  table.replaceChildren(make("caption", { className: "hidden", textContent: "Runs" }), make("thead", {}, head), make("tbody", {}, ...rows));
  if (focus !== undefined) table.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus();
  more.hidden = state.rows.length <= state.limit;
  more.textContent = `Show more: ${state.limit} of ${state.rows.length} runs are shown`;
}

function sortable(name, text) {
  const sorted = state.sort === name ? (state.down ? "descending" : "ascending") : "none";
  return make("th", { scope: "col", "aria-sort": sorted }, make("button", { type: "button", textContent: text, "data-key": `sort ${name}`, onclick: () => sortBy(name) }));
}

function sortBy(name) {
  const column = byName.get(name);
  const first = Boolean(column && column.numeric && column.group === "metric" && !lessIsBetter(name));
  if (state.sort !== name) [state.sort, state.down] = [name, first];
  else if (state.down === first) state.down = !first;
  else [state.sort, state.down] = [null, false];
  update();
}

function drawRow(n, shown) {
  const label = D.runs.label[n];
  const box = make("input", { type: "checkbox", checked: state.chosen.has(n), "aria-label": `choose ${label}`, "data-key": `choose ${n}`, onchange: () => { state.chosen[box.checked ? "add" : "delete"](n); update(); } });
  const radio = make("input", { type: "radio", name: "baseline", checked: state.baseline === n, "aria-label": `${label} is the baseline`, "data-key": `base ${n}`, onchange: () => setBaseline(n) });
  const row = make("tr", {}, make("td", {}, box), make("td", {}, radio), make("th", { scope: "row", title: D.runs.path[n], textContent: label }), ...shown.map((c) => drawCell(n, c)));
  row.classList.toggle("chosen", state.chosen.has(n));
  row.classList.toggle("baseline", state.baseline === n);
  return row;
}

function drawCell(n, column) {
  const value = column.values[n], base = state.baseline === null || state.baseline === n ? undefined : column.values[state.baseline];
  const cell = make("td", { textContent: format(value), className: column.numeric ? "number" : "" });
  if (!column.numeric && value !== null && value.length > 30) cell.title = value;
  if (base === undefined) return cell;
  if (column.group === "setting") cell.classList.toggle("other", value !== base);
  else if (column.numeric && column.name !== "rank" && isFinal(value) && isFinal(base)) {
    const difference = value - base;
    cell.textContent = (difference > 0 ? "+" : "") + format(difference);
    cell.title = format(value);
    if (column.group === "metric" && difference) cell.classList.add(difference < 0 === lessIsBetter(column.name) ? "better" : "worse");
  }
  return cell;
}

function setBaseline(n) {
  state.baseline = n;
  update();
}

function makeRuns() {
  const list = make("div", { className: "columns" });
  for (const c of columns) list.append(tick(c.name, state.shown.has(c), (on) => { state.shown[on ? "add" : "delete"](c); drawTable(); }));
  section("runs", "Runs",
    make("div", { className: "controls", hidden: N === 1 },
      make("label", { className: "search" }, "Filter", filter), make("label", {}, "Status", status),
      make("button", { type: "button", id: "choose_all", textContent: "Choose these", onclick: () => { state.rows.forEach((n) => state.chosen.add(n)); update(); } }),
      make("button", { type: "button", id: "choose_none", textContent: "Choose none", onclick: () => { state.chosen.clear(); update(); } }),
      make("button", { type: "button", id: "no_baseline", textContent: "No baseline", onclick: () => setBaseline(null) })),
    make("p", { className: "soft noprint", id: "filter_help", hidden: N === 1, textContent: "Words and comparisons that must all hold. Plots below show the chosen runs, or all that the filter leaves." }),
    make("details", { className: "noprint" }, make("summary", { textContent: "Columns" }), list),
    counted,
    make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Table of runs" }, table), more);
}

// ---- plots

function fill(template, places) {
  if (Array.isArray(template)) return template.map((member) => fill(member, places));
  if (template !== null && typeof template === "object") return Object.fromEntries(Object.entries(template).map(([k, v]) => [k, fill(v, places)]));
  return typeof template === "string" && template.startsWith("$") ? places[template] ?? null : template;
}

// A logarithmic axis has no zero, and a linear one of numbers far from it need not show it.
function fit(spec) {
  for (const part of [spec, ...(spec.layer || [])]) for (const channel of Object.values(part.encoding || {})) if (channel.scale && channel.scale.type === "linear") channel.scale.zero = false;
  if (innerWidth < 600) spec.config.legend = { ...spec.config.legend, orient: "bottom", columns: 3 };
  return spec;
}

const watcher = new IntersectionObserver((entries) => entries.forEach((entry) => {
  const figure = [...figures].find((one) => one.element === entry.target);
  if (figure) { figure.near = entry.isIntersecting; if (figure.near && figure.stale) draw(figure); }
}), { rootMargin: "300px" });

// A figure is drawn when it comes near the window, or when nothing else is to be done (so that print has all).
function figure(name, build) {
  const plot = make("div", { className: "plot", tabIndex: 0, role: "group", "aria-label": name });
  const caption = make("figcaption"), numbers = make("div", { className: "scroll" });
  const details = make("details", { className: "noprint", ontoggle: () => details.open && listNumbers(one) }, make("summary", { textContent: "Numbers of this plot" }), numbers);
  const buttons = [["PNG", "Save as PNG", () => save(one, "png")], ["SVG", "Save as SVG", () => save(one, "svg")], ["+", "Zoom in", () => zoom(one, 0.6)], ["−", "Zoom out", () => zoom(one, 1 / 0.6)], ["Reset", "Reset zoom", () => draw(one)]];
  const tools = make("div", { className: "tools" }, ...buttons.map(([text, label, onclick]) => make("button", { type: "button", textContent: text, "aria-label": `${label}: ${name}`, onclick })));
  const element = make("figure", {}, caption, plot, tools, details);
  const one = { name, build, element, plot, caption, numbers, details, tools, stale: true, near: false, view: null, turn: 0 };
  plot.addEventListener("keydown", (event) => pressed(one, event));
  figures.add(one);
  watcher.observe(element);
  return element;
}

function drop(elements) {
  for (const one of figures) if (elements.includes(one.element)) { one.view?.finalize(); watcher.unobserve(one.element); figures.delete(one); }
}

function unsettle() {
  for (const one of figures) { one.stale = true; if (one.near) draw(one); }
  differences();
  gallery();
  requestDrawing();
}

let waiting = false;
function requestDrawing() {
  if ([...figures].some((one) => one.stale)) document.documentElement.dataset.ready = "no";
  if (waiting) return;
  waiting = true;
  (window.requestIdleCallback || ((f) => setTimeout(f, 200)))(() => {
    waiting = false;
    const next = [...figures].find((one) => one.stale && one.element.offsetParent !== null);
    if (next) draw(next).then(requestDrawing); else document.documentElement.dataset.ready = "yes";
  }, { timeout: 200 });
}

async function draw(one) {
  one.stale = false;
  const turn = ++one.turn, made = one.build();
  one.made = made;
  one.view?.finalize();
  one.view = null;
  one.tools.hidden = one.details.hidden = Boolean(made.why);
  one.caption.textContent = made.why || made.description;
  one.plot.hidden = Boolean(made.why);
  if (made.why) return;
  const spec = fit(fill(D.specs[made.spec], { $description: made.description, ...made.places }));
  for (const [name, rows] of Object.entries(made.data)) spec.datasets[name] = rows;
  [...one.tools.children].slice(2).forEach((button) => { button.hidden = !zoomable(spec); });
  try {
    const drawn = await vegaEmbed(one.plot, spec, { ast: true, actions: false, renderer: "svg", tooltip: tip });
    if (turn !== one.turn) drawn.view.finalize(); else one.view = drawn.view;
  } catch (error) { one.caption.textContent = `this plot could not be drawn: ${error.message}`; }
  if (one.details.open) listNumbers(one);
}

function tip(handler, event, item, value) {
  const box = document.getElementById("tip");
  box.hidden = value === null || value === undefined || value === "";
  if (box.hidden) return;
  const lines = typeof value === "object" ? Object.entries(value).map(([k, v]) => `${k}: ${typeof v === "number" ? format(v) : v}`) : [String(value)];
  box.replaceChildren(...lines.map((text) => make("div", { textContent: text })));
  box.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8))}px`;
  box.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - box.offsetHeight - 8))}px`;
}

function listNumbers(one) {
  const rows = one.made.data.rows, names = [...new Set(rows.slice(0, 50).flatMap(Object.keys))].filter((k) => !["run", "raw"].includes(k));
  const body = rows.slice(0, 200).map((row) => make("tr", {}, ...names.map((name) => make("td", { textContent: format(row[name] ?? null) }))));
  const note = rows.length > 200 ? `the first 200 of ${rows.length.toLocaleString("en")}` : "";
  const titles = { x: one.made.places.$x, y: one.made.places.$y, c: one.made.places.$c, label: "run" };
  one.numbers.replaceChildren(make("p", { className: "soft", textContent: note }), make("table", {}, make("thead", {}, make("tr", {}, ...names.map((name) => make("th", { className: "plain", scope: "col", textContent: titles[name] || name })))), make("tbody", {}, ...body)));
}

function zoom(one, factor, shift = [0, 0]) {
  if (!one.view) return;
  for (const [axis, move] of [["x", shift[0]], ["y", shift[1]]]) {
    let domain;
    try { domain = one.view.scale(axis).domain().map(Number); } catch { continue; }
    if (domain.length !== 2 || !domain.every(Number.isFinite)) continue;
    const log = one.view.scale(axis).type === "log", [a, b] = log ? domain.map(Math.log) : domain;
    const middle = (a + b) / 2 + move * (b - a), half = ((b - a) / 2) * factor;
    const next = [middle - half, middle + half];
    const signals = one.view.getState({ signals: (name) => /^zoom_(x|y|raw)$/.test(name), data: () => false }).signals;
    const name = axis === "x" ? "zoom_x" : "zoom_raw" in signals ? "zoom_raw" : "zoom_y"; // by the field of the first layer
    if (name in signals) one.view.signal(name, log ? next.map(Math.exp) : next);
  }
  one.view.runAsync();
}

function zoomable(spec) { return Boolean(spec.params || spec.layer?.some((layer) => layer.params)); }

function pressed(one, event) {
  if (event.target !== one.plot || !one.view || !zoomable(D.specs[one.made.spec])) return;
  const ways = { "+": [0.6], "=": [0.6], "-": [1 / 0.6], ArrowLeft: [1, [-0.1, 0]], ArrowRight: [1, [0.1, 0]], ArrowUp: [1, [0, 0.1]], ArrowDown: [1, [0, -0.1]] };
  if (event.key === "0") draw(one);
  else if (ways[event.key]) zoom(one, ...ways[event.key]);
  else return;
  event.preventDefault();
}

async function save(one, kind) {
  if (!one.view) return;
  one.view.background("white");
  let url;
  if (kind === "png") url = await one.view.toImageURL("png", 2);
  else url = URL.createObjectURL(new Blob([(await one.view.toSVG()).replaceAll("currentColor", "#000")], { type: "image/svg+xml" }));
  one.view.background(null);
  make("a", { href: url, download: `${one.name.replace(/[^\w.-]+/g, "_")}.${kind}` }).click();
  if (kind === "svg") setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// ---- columns as axes

function typeOf(column) { return column.numeric ? "quantitative" : "nominal"; }

function isLog(column, rows) {
  const known = rows.map((n) => column.values[n]).filter(isFinal);
  return column.numeric && known.length > 0 && Math.min(...known) > 0 && Math.max(...known) >= 30 * Math.min(...known);
}

function scaleOf(column, rows) { return column.numeric ? { type: isLog(column, rows) ? "log" : "linear", nice: false, padding: 8 } : { type: "point" }; }

function valueOf(column, n) { return column.numeric ? column.values[n] : column.values[n] ?? "—"; }

function usable(column) { return column && (column.numeric ? column.values.some(isFinal) : column.levels <= 40); }

function best(rows, values) {
  const known = rows.filter((n) => isFinal(values[n]));
  if (!known.length) return "";
  const top = known.reduce((a, b) => (D.sign * values[b] > D.sign * values[a] ? b : a));
  return ` Best: ${D.runs.label[top]}, ${format(values[top])}.`;
}

// ---- learning curves

const curve = { metric: D.curves.metrics.some((m) => m.name === D.objective) ? D.objective : (D.curves.metrics[0] || {}).name, axis: "step", smooth: 0, log: false, most: CURVES, colour: "run", relative: false };

function along(n, steps, axis) {
  if (axis === "step") return steps;
  let points = D.curves[axis === "epoch" ? "epochs" : "seconds"][n];
  if (axis === "seconds" && points.length < 4) {
    const seconds = byName.get("seconds")?.values[n], last = byName.get("steps")?.values[n] || steps[steps.length - 1];
    if (!isFinal(seconds ?? null) || !last) return null;
    points = [0, 0, last, seconds];
  }
  if (points.length < 2) return null;
  if (points.length === 2) points = [0, 0, ...points];
  return steps.map((step) => interpolate(points, step));
}

function interpolate(points, x) {
  let place = 2;
  while (place < points.length - 2 && points[place] < x) place += 2;
  const [x0, y0, x1, y1] = points.slice(place - 2, place + 2);
  return x1 === x0 ? y1 : y0 + ((y1 - y0) * (x - x0)) / (x1 - x0);
}

function smoothen(values, weight) {
  let mean = 0, total = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return mean / total;
  });
}

function readCurve(metric, n) {
  const grid = metric.grid[n];
  if (grid < 0) return null;
  const steps = D.curves.grids[grid], x = along(n, steps, curve.axis);
  return x === null ? null : { x, raw: metric.values[n], y: curve.smooth ? smoothen(metric.values[n], curve.smooth) : metric.values[n] };
}

function subtract(line, base) {
  const known = base.x.map((x, k) => [x, base.y[k]]).filter((point) => point[1] !== null);
  const flat = known.flat(), inside = (x) => known.length > 1 && x >= known[0][0] && x <= known[known.length - 1][0];
  const y = line.x.map((x, k) => (line.y[k] === null || !inside(x) ? null : line.y[k] - interpolate(flat, x)));
  return { x: line.x, raw: y, y };
}

function buildCurves(name) {
  const metric = D.curves.metrics.find((m) => m.name === name);
  const base = curve.relative && state.baseline !== null ? readCurve(metric, state.baseline) : null;
  const drawn = chosenOrRows().filter((n) => metric.grid[n] >= 0).slice(0, curve.most);
  const column = curve.colour === "run" ? null : byName.get(curve.colour), named = !column && drawn.length <= 12;
  const rows = [];
  let points = 0, skipped = 0;
  for (const n of drawn) {
    let line = readCurve(metric, n);
    if (line === null) { skipped += 1; continue; }
    if (base) line = subtract(line, base);
    const c = column ? valueOf(column, n) : named ? D.runs.label[n] : objective ? objective.values[n] : null;
    line.x.forEach((x, k) => {
      if (line.y[k] === null || (curve.log && line.y[k] <= 0)) return;
      points += 1;
      rows.push({ run: n, label: D.runs.label[n], x, y: line.y[k], raw: curve.smooth ? line.raw[k] : null, c });
    });
  }
  if (!rows.length) return { why: `no run shown here has logged ${name}${curve.axis === "seconds" ? " with times" : ""}` };
  const of = column || named ? column : objective;
  const description = `${name}${base ? ` as difference to ${D.runs.label[state.baseline]}` : ""} over ${curve.axis === "step" ? "optimizer steps" : curve.axis}${N > 1 ? `, ${drawn.length - skipped} of ${chosenOrRows().length} runs` : ""}.` + (curve.smooth ? ` Smoothed by an exponential moving average of weight ${curve.smooth}; the thin lines are as logged.` : "");
  const places = { $x: curve.axis === "step" ? "optimizer step" : curve.axis, $y: base ? `${name} − baseline` : name, $yscale: curve.log && !base ? "log" : "linear", $ctype: of ? typeOf(of) : "nominal", $c: of ? of.name : "run", $legend: drawn.length === 1 ? null : {}, $points: points <= TICKED ? { size: 14, opacity: 0.8 } : false };
  return { spec: "curves", data: { rows }, places, description };
}

function isCurve(name) { return D.curves.metrics.find((m) => m.name === name).values.some((values) => values.length > 1); }

function makeCurves() {
  if (!D.curves.metrics.length) return;
  const holder = make("div"), names = D.curves.metrics.map((m) => m.name);
  if (N === 1 && names.filter(isCurve).length > 1) curve.metric = "";
  const rebuild = () => {
    drop([...holder.children]);
    const each = curve.metric === "" ? names.filter(isCurve).slice(0, 24) : [curve.metric];
    holder.className = each.length > 1 ? "grid" : "";
    holder.replaceChildren(...each.map((name) => figure(`Learning curves of ${name}`, () => buildCurves(name))));
    requestDrawing();
  };
  const set = (key, parse = (v) => v) => (value) => { curve[key] = parse(value); refresh(holder); };
  const range = make("input", { type: "range", id: "smooth", min: 0, max: 0.98, step: 0.02, value: 0, oninput: () => { shown.textContent = range.value; set("smooth", Number)(range.value); } }), shown = make("output", { textContent: "0" });
  const most = make("input", { type: "number", min: 1, max: N, value: Math.min(CURVES, N), oninput: () => set("most", (v) => Math.max(1, Number(v) || 1))(most.value) });
  const colours = [["run", "run"], ...columns.filter((c) => usable(c) && c.levels > 1).map((c) => [c.name, c.name])];
  section("curves", "Learning curves", make("div", { className: "controls" },
    choose("Metric", [...names.map((name) => [name, name]), ...(names.length > 1 ? [["", "each in a plot of its own"]] : [])], curve.metric, (v) => { curve.metric = v; rebuild(); }),
    choose("Over", [["step", "optimizer steps"], ["epoch", "epochs"], ["seconds", "seconds"]], "step", set("axis")),
    make("label", {}, "Smoothing", range, shown), tick("logarithmic", false, set("log")),
    ...(N > 1 ? [make("label", {}, "At most", most, "runs"), choose("Colour by", colours, "run", set("colour")), tick("difference to the baseline", false, set("relative"))] : [])),
    make("p", { className: "soft noprint", textContent: "Drag to move, Ctrl or Shift with the wheel to zoom, double-click to reset; on the keyboard + − arrows 0." }), holder);
  rebuild();
}

function refresh(holder) {
  for (const one of figures) if (holder.contains(one.element)) { one.stale = true; if (one.near) draw(one); }
  requestDrawing();
}

// ---- any two columns

const pair = { x: null, y: null, c: null };

function makeScatter() {
  const known = columns.filter(usable);
  if (N < 2 || known.length < 2) return;
  const numbers = known.filter((c) => c.numeric && c.levels > 1 && c.name !== "rank");
  pair.y = (objective && usable(objective) ? objective : numbers[0] || known[0]).name;
  pair.x = (known.find((c) => c.group === "setting" && c.levels > 1 && c.name !== pair.y) || numbers.find((c) => c.name !== pair.y) || known[0]).name;
  pair.c = (known.find((c) => c.group === "setting" && c.levels > 1 && c.name !== pair.x && c.name !== "seed") || byName.get(pair.y)).name;
  const options = known.map((c) => [c.name, c.name]), holder = make("div");
  const set = (key) => (value) => { pair[key] = value; refresh(holder); };
  holder.append(figure("Two columns against each other", () => {
    const [x, y, c] = [pair.x, pair.y, pair.c].map((name) => byName.get(name)), shown = chosenOrRows();
    const rows = shown.filter((n) => (!x.numeric || isFinal(x.values[n])) && (!y.numeric || isFinal(y.values[n]))).map((n) => ({ label: D.runs.label[n], x: valueOf(x, n), y: valueOf(y, n), c: valueOf(c, n) }));
    if (!rows.length) return { why: `no run shown here has both ${x.name} and ${y.name}` };
    return { spec: "scatter", data: { rows }, description: `${y.name} against ${x.name}, coloured by ${c.name}: ${rows.length} of ${shown.length} runs.`, places: { $x: x.name, $y: y.name, $c: c.name, $xtype: typeOf(x), $ytype: typeOf(y), $ctype: typeOf(c), $xscale: scaleOf(x, shown), $yscale: scaleOf(y, shown) } };
  }));
  section("columns", "Two columns", make("div", { className: "controls" }, choose("Across", options, pair.x, set("x")), choose("Up", options, pair.y, set("y")), choose("Colour", options, pair.c, set("c"))), holder);
}

// ---- a sweep's settings

function makeLandscape() {
  if (N < 2 || (!D.axes.length && !D.importances.values)) return;
  const made = section("settings", "Settings and the objective");
  if (D.axes.length) made.append(make("h3", { textContent: "Parallel coordinates" }), figure("Parallel coordinates", buildParallel));
  made.append(make("h3", { textContent: "Importances" }), D.importances.values
    ? figure("Importances", () => ({ spec: "importances", data: { rows: D.importances.values.map(([y, x]) => ({ y, x })) }, places: { $x: `importance for ${D.objective}` }, description: `${D.importances.said}. Greatest: ${D.importances.values.slice(0, 3).map(([name, share]) => `${name} ${format(share)}`).join(", ")}.` }))
    : make("p", { className: "soft", textContent: `No importances: ${D.importances.why}.` }));
  const axes = D.axes.slice(0, -1).map((axis) => byName.get(axis.name)).filter(usable);
  if (axes.length && objective) made.append(make("h3", { textContent: "Slices" }), make("div", { className: "grid" }, ...axes.map((x) => figure(`${D.objective} against ${x.name}`, () => buildSlice(x)))));
  if (!D.surfaces.length) return;
  let number = 0;
  const holder = make("div");
  holder.append(figure("Two settings and the objective", () => buildSurface(D.surfaces[number])));
  made.append(make("h3", { textContent: "Contours" }), make("div", { className: "controls" }, choose("Settings", D.surfaces.map((s, n) => [String(n), `${s.x} and ${s.y}`]), "0", (v) => { number = Number(v); refresh(holder); })), holder);
}

function buildParallel() {
  const goal = D.axes[D.axes.length - 1], values = objective ? objective.values : [], done = chosenOrRows().filter((n) => goal.positions[n] !== null), shown = done.slice(0, LINES);
  const names = D.axes.map((axis, k) => (D.axes.findIndex((other) => other.name === axis.name) === k ? axis.name : `${axis.name} `));
  const rows = shown.flatMap((n) => D.axes.flatMap((axis, k) => (axis.positions[n] === null ? [] : [{ run: n, label: `${D.runs.label[n]}: ${format(values[n])}`, axis: names[k], y: axis.positions[n], c: values[n] ?? null }])));
  if (!rows.length) return { why: "no run shown here has completed" };
  const ticks = D.axes.flatMap((axis, k) => axis.ticks.map(([y, text]) => ({ axis: names[k], y, text })));
  return { spec: "parallel", data: { rows, ticks }, places: { $axes: names, $c: D.objective, $ctype: "quantitative" }, description: `A line for each of ${shown.length}${done.length > LINES ? ` of ${done.length}` : ""} completed runs through its settings to ${D.objective}.${best(shown, values)}` };
}

function isDone(n) { return D.axes[D.axes.length - 1].positions[n] !== null; }

// A setting of texts, or of numbers and null, is drawn by its levels: null, the numbers by their size, the texts.
function levelsOf(values) {
  const rank = (v) => (v === null ? 0 : typeof v === "number" ? 1 : 2);
  return [...new Set(values)].sort((a, b) => rank(a) - rank(b) || (typeof a === "number" ? a - b : a < b ? -1 : 1)).map(String);
}

function buildSlice(x) {
  const shown = chosenOrRows().filter((n) => isDone(n) && isFinal(objective.values[n])), named = !x.numeric || all().some((n) => isDone(n) && x.values[n] === null);
  const rows = shown.filter((n) => named || isFinal(x.values[n])).map((n) => ({ label: D.runs.label[n], x: named ? String(x.values[n]) : x.values[n], y: objective.values[n] }));
  if (!rows.length) return { why: "no completed run shown here has a value" };
  const $xscale = named ? { type: "point", domain: levelsOf(shown.map((n) => x.values[n])) } : scaleOf(x, shown);
  return { spec: "slice", data: { rows }, places: { $x: x.name, $y: D.objective, $xtype: named ? "nominal" : "quantitative", $ytype: "quantitative", $xscale, $yscale: scaleOf(objective, []) }, description: `${D.objective} against ${x.name}, ${rows.length} completed runs.` };
}

function buildSurface(s) {
  const places = { $x: s.x, $y: s.y, $c: D.objective };
  if (s.kind === "means") {
    const rows = s.cells.map(([i, j, c, n]) => ({ x: s.levels[0][i], y: s.levels[1][j], c, n }));
    return { spec: "means", data: { rows }, places: { ...places, $xlevels: s.levels[0], $ylevels: [...s.levels[1]].reverse() }, description: `Mean of ${D.objective} of the completed runs at each pair of ${s.x} and ${s.y}.` };
  }
  const [ex, ey] = s.edges, side = ey.length - 1, x = byName.get(s.x), y = byName.get(s.y);
  const rows = s.cells.map((c, k) => ({ x: ex[Math.floor(k / side)], x2: ex[Math.floor(k / side) + 1], y: ey[k % side], y2: ey[(k % side) + 1], c }));
  const points = all().filter((n) => isDone(n) && objective && isFinal(objective.values[n]) && isFinal(x.values[n]) && isFinal(y.values[n])).map((n) => ({ label: D.runs.label[n], x: x.values[n], y: y.values[n], c: objective.values[n] }));
  const known = [...s.cells, ...points.map((point) => point.c)];
  return { spec: "surface", data: { rows, points }, places: { ...places, $xscale: s.log[0] ? "log" : "linear", $yscale: s.log[1] ? "log" : "linear", $domain: [Math.min(...known), Math.max(...known)] }, description: `${D.objective} over ${s.x} and ${s.y}: each point is a completed run, the bands between them are interpolated (Shepard's inverse distances).` };
}

// ---- replicates, differences to the baseline

function makeReplicates() {
  const { rows, said, test } = D.replicates;
  if (!rows.length) return;
  const body = rows.map((row) => make("tr", {}, make("th", { scope: "row", textContent: row.label }), ...[format(row.x), row.n > 1 ? `${format(row.low)} … ${format(row.high)}` : "", row.n, row.p === null ? "" : format(row.p), row.runs.map((n) => D.runs.label[n]).join(", ")].map((text) => make("td", { textContent: text }))));
  const p = test ? "p against the best" : "";
  section("replicates", "Replicates", figure("Replicates", () => ({ spec: "intervals", data: { rows: rows.slice(0, 40) }, places: { $x: D.objective }, description: `${D.objective}: ${said}${rows.length > 40 ? `; the best 40 of ${rows.length}` : ""}.` })),
    make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Table of replicates" }, make("table", {}, make("thead", {}, make("tr", {}, ...["setting", "mean", "interval", "n", p, "runs"].map((text) => make("th", { className: "plain", scope: "col", textContent: text })))), make("tbody", {}, ...body))),
    make("p", { className: "soft", textContent: test }));
}

function makeBaseline() {
  const metrics = columns.filter((c) => c.numeric && c.group === "metric" && c.values.some(isFinal));
  if (N < 2 || !metrics.length) return;
  let name = (objective && metrics.includes(objective) ? objective : metrics[0]).name;
  const holder = make("div");
  holder.append(figure("Differences to the baseline", () => {
    if (state.baseline === null) return { why: "Choose a baseline in the table: a run that all others are compared with." };
    const { values } = byName.get(name), base = values[state.baseline], shown = chosenOrRows().filter((n) => n !== state.baseline && isFinal(values[n]));
    if (!isFinal(base) || !shown.length) return { why: `the baseline, or every other run shown, lacks ${name}` };
    const rows = shown.slice(0, 40).map((n) => ({ label: D.runs.label[n], x: values[n] - base, better: values[n] === base ? "equal" : values[n] < base === lessIsBetter(name) ? "better" : "worse" }));
    const count = shown.filter((n) => values[n] !== base && values[n] < base === lessIsBetter(name)).length;
    return { spec: "differences", data: { rows }, places: { $x: `${name} − ${D.runs.label[state.baseline]}` }, description: `${name} of ${rows.length} of ${shown.length} runs minus that of ${D.runs.label[state.baseline]} (${format(base)}): ${count} of ${shown.length} are better.` };
  }));
  section("baseline", "Against a baseline", make("div", { className: "controls" }, choose("Metric", metrics.map((c) => [c.name, c.name]), name, (v) => { name = v; refresh(holder); })), holder);
}

// ---- what differs in the config, and what does not

const compared = make("div");

function makeConfig() {
  const same = Object.entries(D.constants), title = N > 1 ? `Settings that all runs share (${same.length})` : "Config";
  const constants = make("details", { open: N === 1 }, make("summary", { textContent: title }), make("div", { className: "scroll" }, make("table", {}, make("tbody", {}, ...same.map(([key, value]) => make("tr", {}, make("th", { scope: "row", textContent: key }), make("td", { textContent: value })))))));
  section("config", N > 1 ? "What differs in the config" : "Config", compared, constants);
}

function differences() {
  if (N < 2) return;
  const shown = chosenOrRows().slice(0, 12);
  if (state.baseline !== null && !shown.includes(state.baseline)) shown.unshift(state.baseline);
  const differing = columns.filter((c) => c.group === "setting" && new Set(shown.map((n) => c.values[n])).size > 1);
  const said = `${differing.length} settings differ between ${shown.length} ${state.chosen.size ? "of the chosen runs" : "runs, the first of the table"}${state.baseline === null ? "" : `; bold differs from ${D.runs.label[state.baseline]}`}.`;
  const body = differing.map((c) => make("tr", {}, make("th", { scope: "row", textContent: c.name }), ...shown.map((n) => make("td", { textContent: c.values[n] === null ? "—" : format(c.values[n]), className: state.baseline !== null && c.values[n] !== c.values[state.baseline] ? "other" : "" }))));
  const head = make("tr", {}, make("th", { className: "plain", scope: "col", textContent: "setting" }), ...shown.map((n) => make("th", { className: "plain", scope: "col", textContent: D.runs.label[n] })));
  compared.replaceChildren(make("p", { className: "soft", textContent: said }), make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Settings that differ" }, make("table", { id: "differing" }, make("thead", {}, head), make("tbody", {}, ...body))));
}

// ---- pictures

const hung = make("div", { className: "grid pictures" }), hungNames = new Set(), most = { pictures: 12 };
const morePictures = make("button", { type: "button", onclick: () => { most.pictures += 48; gallery(); } });

function makePictures() {
  if (!D.pictures.length) return;
  const names = [...new Set(D.pictures.map((one) => one.name))];
  names.slice(0, 6).forEach((name) => hungNames.add(name));
  section("pictures", "Pictures", make("div", { className: "controls" }, ...names.map((name) => tick(name, hungNames.has(name), (on) => { hungNames[on ? "add" : "delete"](name); gallery(); }))), hung, morePictures);
}

function gallery() {
  if (!D.pictures.length) return;
  const shown = new Set(chosenOrRows()), label = (one) => [one.run === null ? "" : D.runs.label[one.run], one.name, one.step ? `step ${one.step}` : ""].filter(Boolean).join(", ");
  const drawn = D.pictures.filter((one) => (one.run === null || shown.has(one.run)) && hungNames.has(one.name));
  morePictures.hidden = drawn.length <= most.pictures;
  morePictures.textContent = `Show more: ${most.pictures} of ${drawn.length} pictures are shown`;
  hung.replaceChildren(...drawn.slice(0, most.pictures).map((one) => make("figure", {}, make("img", { src: one.src, width: one.width, height: one.height, decoding: "async", alt: label(one) }), make("figcaption", { textContent: label(one) }))));
}

// ---- the page

document.getElementById("title").textContent = D.title;
document.getElementById("about").textContent = D.about;
document.getElementById("foot").textContent = `Made ${D.made} by python -m runner report --html with Vega-Lite. This file asks the network for nothing.`;
if (D.notes.length) document.getElementById("notes").append(make("details", {}, make("summary", { textContent: `Notes (${D.notes.length})` }), make("ul", {}, ...D.notes.map((text) => make("li", { textContent: text })))));
makeRuns();
makeCurves();
makeReplicates();
makeLandscape();
makeScatter();
makeBaseline();
makeConfig();
makePictures();
window.addEventListener("beforeprint", () => figures.forEach((one) => one.stale && draw(one)));
window.addEventListener("keydown", (event) => { if (event.key === "Escape") document.getElementById("tip").hidden = true; });
update();
