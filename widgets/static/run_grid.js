// Only the rows in sight are in the page. Python decides on the lines and their order.
const ROW = 28, NAME = 170, FIXED = 28 + 44 + 16;
const make = (tag, css, text, more = {}) => {
  const made = document.createElement(tag);
  if (css) made.className = css;
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(more)) made.setAttribute(key, value);
  return made;
};
function render({ model, el }) {
  const root = make("div", "lab-grid");
  const head = make("div", "lab-grid-head", undefined, { role: "row" });
  const body = make("div", "lab-grid-body", undefined, { role: "rowgroup" });
  const space = make("div", "lab-grid-space", undefined, { role: "presentation" });
  const id = "lab-grid-" + Math.random().toString(36).slice(2);
  root.tabIndex = 0;
  for (const [key, value] of Object.entries({ role: "grid", "aria-label": "runs", "aria-multiselectable": "true" })) root.setAttribute(key, value);
  body.append(space);
  root.append(head, body);
  el.append(root);
  requestAnimationFrame(() => { if (!root.closest(".lab")) root.classList.add("lab"); });  // on its own, in the page by then
  let rows = {}, lines = [], shown = [], chosen = new Set(), now = 0, anchor = 0, drawn = new Map();
  const row = (i) => rows[lines[i]?.[0]];
  const members = (i) => row(i)?.members ?? [];
  const set = (name, value) => { model.set(name, value); model.save_changes(); };
  const among = (ids) => { const n = ids.filter((one) => chosen.has(one)).length; return n === 0 ? false : n === ids.length ? true : "mixed"; };

  function select(indices, on) {
    for (const i of indices) for (const one of members(i)) on ? chosen.add(one) : chosen.delete(one);
    set("selected", [...chosen]);
    redraw();
  }
  function toggle(i, range) {
    const on = among(members(i)) !== true, [from, to] = range ? [Math.min(anchor, i), Math.max(anchor, i)] : [i, i];
    select(Array.from({ length: to - from + 1 }, (_, k) => from + k), range ? true : on);
    anchor = i;
  }
  function unfold(i, on) {
    const open = new Set(model.get("unfolded")), key = lines[i][0];
    if (!row(i)?.group || open.has(key) === on) return;
    on ? open.add(key) : open.delete(key);
    set("unfolded", [...open]);
  }
  function mark(i) {
    model.send({ star: lines[i][0] });
    row(i).star = !row(i).star;  // until Python says so
    redraw();
  }
  function box(state, label) {
    const made = make("span", "lab-grid-box", state === true ? "✓" : state === "mixed" ? "–" : "", { "aria-hidden": "true", title: label });
    if (state) made.classList.add("lab-on");
    return made;
  }
  function line(i) {
    const own = row(i), depth = lines[i][1], state = among(members(i));
    const made = make("div", "lab-grid-row" + (depth ? " lab-grid-member" : "") + (state ? " lab-on" : "") + (i === now ? " lab-grid-now" : ""), undefined,
      { role: "row", id: `${id}-${i}`, "aria-rowindex": i + 2, "aria-selected": String(state === true) });
    made.style.top = i * ROW + "px";
    const tick = make("div", "lab-grid-cell lab-grid-tick", undefined, { role: "gridcell" });
    tick.append(box(state, "Select (Space); with Shift, the rows between"));
    const name = make("div", "lab-grid-cell lab-grid-name", undefined, { role: "rowheader", title: own.title });
    if (own.group) {
      const fold = make("button", "lab-grid-fold", model.get("unfolded").includes(lines[i][0]) ? "▾" : "▸", { tabindex: "-1", title: "Show or hide the seeds (→ ←)", "aria-label": "seeds of " + own.name });
      fold.addEventListener("click", (event) => { event.stopPropagation(); now = i; unfold(i, !model.get("unfolded").includes(lines[i][0])); });
      name.append(fold);
    } else name.append(make("span", "lab-grid-fold" + (depth ? " lab-grid-deep" : "")));
    const dot = make("span", "lab-grid-dot");
    const colour = model.get("colours")[lines[i][0]];
    colour ? (dot.style.background = colour) : dot.classList.add("lab-off");
    const sign = own.sign ? [make("span", "lab-grid-sign" + (own.bad ? " lab-bad" : ""), own.sign, { title: own.state, "aria-label": own.state })] : [];
    name.append(dot, make("span", "lab-grid-text", own.name), ...sign);
    if (own.baseline) name.append(make("span", "lab-chip", "baseline"));
    for (const tag of own.tags ?? []) name.append(make("span", "lab-chip", tag));
    made.append(tick, name);
    const best = model.get("best")[lines[i][0]] ?? [];
    for (const j of shown) {
      const column = model.get("columns")[j], text = own.cells[j] ?? "";
      const tip = own.tips[j] ?? (text.length * 7 > column.width ? text : "");
      const cell = make("div", "lab-grid-cell" + (column.number ? " lab-grid-number" : "") + (best.includes(j) ? " lab-grid-best" : ""), text, { role: "gridcell" });
      if (tip || best.includes(j)) cell.title = tip + (best.includes(j) ? (tip ? "; " : "") + "best of these" : "");
      made.append(cell);
    }
    const marks = make("div", "lab-grid-cell lab-grid-marks", undefined, { role: "gridcell" });
    const note = own.note ? make("span", "lab-grid-note", "✎", { title: own.note, "aria-label": "note: " + own.note }) : make("span", "lab-grid-note");
    const star = make("button", "lab-grid-star" + (own.star ? " lab-on" : ""), own.star ? "★" : "☆", { tabindex: "-1", title: own.star ? "Remove the star (S)" : "Star (S)", "aria-label": "star", "aria-pressed": String(!!own.star) });
    star.addEventListener("click", (event) => { event.stopPropagation(); mark(i); });
    marks.append(note, star);
    made.append(marks);
    made.addEventListener("click", (event) => { if (event.detail < 2) { now = i; toggle(i, event.shiftKey); root.focus({ preventScroll: true }); } });
    made.addEventListener("dblclick", () => model.send({ open: lines[i][0] }));
    return made;
  }
  function draw() {
    const first = Math.max(0, Math.floor(body.scrollTop / ROW) - 4), last = Math.min(lines.length, first + Math.ceil((body.clientHeight || 600) / ROW) + 8);
    for (const [i, made] of drawn) if (i < first || i >= last) { made.remove(); drawn.delete(i); }
    for (let i = first; i < last; i++) if (!drawn.has(i) && row(i)) { const made = line(i); drawn.set(i, made); space.append(made); }
  }
  function redraw() {
    for (const made of drawn.values()) made.remove();
    drawn = new Map();
    space.style.height = lines.length * ROW + "px";
    root.setAttribute("aria-rowcount", lines.length + 1);
    lines.length ? root.setAttribute("aria-activedescendant", `${id}-${now}`) : root.removeAttribute("aria-activedescendant");
    body.dataset.empty = lines.length ? "" : model.get("empty");
    heading();
    draw();
  }
  function heading() {
    const columns = model.get("columns"), [sorted, down] = model.get("sort"), width = root.clientWidth - 2;
    const order = columns.map((_, j) => j).sort((a, b) => columns[a].rank - columns[b].rank);
    let used = FIXED + NAME, kept = new Set();
    const wide = (j) => columns[j].width + (columns[j].key === sorted ? 14 : 0);
    for (const j of order) if (!model.get("fit") || used + wide(j) <= width) { used += wide(j); kept.add(j); }
    shown = columns.map((_, j) => j).filter((j) => kept.has(j));
    root.style.setProperty("--lab-columns", `28px minmax(${NAME}px, 1fr) ${shown.map((j) => wide(j) + "px").join(" ")} 44px`);
    root.style.setProperty("--lab-least", used + "px");
    head.replaceChildren();
    const everything = lines.flatMap(([key, depth]) => (depth ? [] : rows[key]?.members ?? []));
    const all = make("button", "lab-grid-cell lab-grid-tick", undefined, { "aria-label": "select all", role: "columnheader", title: "Select all that match the filter, or none" });
    const state = among(everything);
    all.append(box(everything.length ? state : false, ""));
    all.addEventListener("click", () => { set("selected", state === true ? [] : [...new Set([...chosen, ...everything])]); });
    head.append(all);
    const title = (key, label, tip, number) => {
      const made = make("button", "lab-grid-cell" + (number ? " lab-grid-number" : ""), label, { role: "columnheader", title: tip, "aria-sort": key === sorted ? (down ? "descending" : "ascending") : "none" });
      if (key === sorted) made.append(make("span", "lab-grid-arrow", down ? "↓" : "↑", { "aria-hidden": "true" }));
      made.addEventListener("click", () => set("sort", [key, key === sorted ? !down : number]));
      return made;
    };
    head.append(title("name", "run", "Sort by name", false));
    for (const j of shown) head.append(title(columns[j].key, columns[j].label, columns[j].tip, columns[j].number));
    const left = columns.filter((_, j) => !kept.has(j)).map((column) => column.label);
    head.append(make("span", "lab-grid-more", left.length ? `+${left.length}` : "", left.length ? { title: "No room for: " + left.join(", "), "aria-label": "no room for " + left.join(", ") } : {}));
  }
  function go(to) {
    now = Math.max(0, Math.min(lines.length - 1, to));
    const top = now * ROW;
    if (top < body.scrollTop) body.scrollTop = top;
    if (top + ROW > body.scrollTop + body.clientHeight) body.scrollTop = top + ROW - body.clientHeight;
    redraw();
  }
  root.addEventListener("keydown", (event) => {
    if (event.target !== root || !lines.length) return;
    const page = Math.max(1, Math.floor(body.clientHeight / ROW) - 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -lines.length, End: lines.length };
    if (event.key in moves) { const before = now; go(now + moves[event.key]); if (event.shiftKey) select([before, now], true); }
    else if (event.key === " ") toggle(now, event.shiftKey);
    else if (event.key === "Enter") model.send({ open: lines[now][0] });
    else if (event.key === "ArrowRight" || event.key === "ArrowLeft") unfold(now, event.key === "ArrowRight");
    else if (event.key === "s" && !event.ctrlKey && !event.metaKey) mark(now);
    else if (event.key === "a" && (event.ctrlKey || event.metaKey)) select(lines.map((_, i) => i), true);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const take = () => {
    rows = model.get("rows");
    lines = model.get("lines");
    chosen = new Set(model.get("selected"));
    now = Math.min(now, Math.max(0, lines.length - 1));
    redraw();
  };
  const patch = ({ rows: changed, gone }) => {
    if (!changed) return;
    rows = model.get("rows");  // changed in place: Python holds the same
    Object.assign(rows, changed);
    for (const key of gone) delete rows[key];
    redraw();
  };
  const traits = ["rows", "lines", "selected", "columns", "sort", "best", "colours", "fit", "empty", "unfolded"].map((name) => "change:" + name).join(" ");
  let waiting = 0;  // several traits change together
  const soon = () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(take); };
  model.on(traits, soon);
  model.on("msg:custom", patch);
  body.addEventListener("scroll", draw);
  const room = () => { if (model.get("room") !== window.innerHeight) set("room", window.innerHeight); };
  const seen = new ResizeObserver(() => { room(); redraw(); });
  seen.observe(root);
  take();
  return () => { model.off(traits, soon); model.off("msg:custom", patch); seen.disconnect(); cancelAnimationFrame(waiting); };
}
export default { render };
