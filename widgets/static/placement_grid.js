const make = (tag, css, text) => {
  const made = document.createElement(tag);
  if (css) made.className = css;
  if (text !== undefined) made.textContent = text;
  return made;
};
const count = (n) => n.toLocaleString("en-US");
function ranges(layers, limit = 3) {
  const runs = [];
  for (const layer of layers)
    if (runs.length && layer === runs.at(-1)[1] + 1) runs.at(-1)[1] = layer;
    else runs.push([layer, layer]);
  const texts = runs.map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`));
  return texts.length > limit ? `${texts.slice(0, limit - 1).join(", ")}, … ${texts.at(-1)}` : texts.join(", ");
}

function render({ model, el }) {
  const root = make("div", "lab-sites");
  const tools = make("div", "lab-sites-tools"), scroll = make("div", "lab-sites-scroll");
  const info = make("div", "lab-sites-info"), total = make("span", "lab-sites-count");
  const label = make("label", "", "layers"), typed = make("input"), each = make("button"), more = make("button");
  typed.placeholder = "all";
  typed.title = "Layers of all selected columns, such as 0-7 or 0,4,-1";
  typed.setAttribute("aria-label", "layers of all selected columns");
  info.setAttribute("role", "status");
  each.type = more.type = "button";
  label.append(typed);
  tools.append(label, each, more, total);
  root.append(tools, scroll, info);
  el.append(root);

  let open = new Set(), perLayer = false, chosen = {}, lines = [], spots = [], at = [1, 1], anchor = null, paint = null;

  const layersOf = (line, name) => line.layers.filter((layer) => sites[name].has(layer));
  const isOn = (name, layer) => chosen[name]?.has(layer) ?? false;
  let sites = {}, names = [];

  const readChosen = () => {
    chosen = Object.fromEntries(Object.entries(model.get("selected")).map(([name, layers]) => [name, new Set(layers)]));
  };
  const save = () => {
    const sorted = Object.entries(chosen).map(([name, own]) => [name, [...own].sort((a, b) => a - b)]);
    model.set("selected", Object.fromEntries(sorted.filter(([, own]) => own.length)));
    model.save_changes();
  };
  const put = (pairs, on) => {
    for (const [name, layer] of pairs) {
      chosen[name] ??= new Set();
      if (on) chosen[name].add(layer); else chosen[name].delete(layer);
    }
    show();
  };
  // The cells that a spot of the grid stands for: one, a folded one, a column, a group of columns, a row, or all.
  const pairsOf = (spot) => spot.names.flatMap((name) => spot.lines.flatMap((line) => layersOf(line, name).map((layer) => [name, layer])));
  const full = (pairs) => pairs.length > 0 && pairs.every(([name, layer]) => isOn(name, layer));

  function build() {
    const head = model.get("head");
    root.hidden = !head.length;
    names = head.map((each) => each.name);
    sites = Object.fromEntries(Object.entries(model.get("sites")).map(([name, own]) => [name, new Set(own)]));
    const rows = model.get("rows");
    lines = [];
    for (const layers of rows) {
      const key = layers.join();
      const opened = layers.length > 1 && (perLayer || open.has(key));
      if (!perLayer || layers.length === 1) lines.push({ layers, key, folds: layers.length > 1, opened });
      if (opened) lines.push(...layers.map((layer) => ({ layers: [layer], inner: !perLayer })));
    }
    if (perLayer) lines.sort((a, b) => a.layers[0] - b.layers[0]);
    const bodies = lines.filter((line) => !line.inner);  // each layer once, for heads of columns
    const table = make("table"), thead = make("thead"), tbody = make("tbody");
    table.setAttribute("role", "grid");
    table.setAttribute("aria-multiselectable", "true");
    table.setAttribute("aria-label", "placement: layers by role");
    spots = [];
    const cell = (tag, role, text, spot, css) => {
      const made = make(tag, css, text);
      made.setAttribute("role", role);
      made.tabIndex = -1;
      made.dataset.lmSuppressShortcuts = "true";  // those of JupyterLab, such as d d: it looks at the focused element first
      made.spot = Object.assign(spot, { cell: made });
      return made;
    };
    const groups = make("tr"), groupSpots = [null];
    groups.append(make("th", "lab-sites-group"));
    for (let i = 0; i < head.length;) {
      let end = i;
      while (end < head.length && head[end].group === head[i].group) end++;
      const text = head[i].group;
      const made = cell("th", "columnheader", text, { names: names.slice(i, end), lines: bodies, says: text }, "lab-sites-group");
      made.colSpan = end - i;
      made.title = text;
      groups.append(made);
      for (; i < end; i++) groupSpots.push(made.spot);
    }
    const heads = make("tr"), headSpots = [];
    const all = cell("th", "columnheader", "all", { names, lines: bodies, says: "all shown sites" }, "lab-sites-all");
    heads.append(all);
    headSpots.push(all.spot);
    for (const { name, short } of head) {
      const made = cell("th", "columnheader", short, { names: [name], lines: bodies, says: `${name} in every layer` });
      heads.append(made);
      headSpots.push(made.spot);
    }
    groupSpots[0] = all.spot;
    spots.push(groupSpots, headSpots);
    for (const part of [groups, heads]) part.setAttribute("role", "row");
    thead.setAttribute("role", "rowgroup");
    tbody.setAttribute("role", "rowgroup");
    thead.append(groups, heads);
    for (const line of lines) {
      const tr = make("tr", line.inner ? "lab-sites-inner" : ""), own = [];
      tr.setAttribute("role", "row");
      const says = line.layers[0] < 0 ? "outside the layers" : `${line.layers.length > 1 ? "layers" : "layer"} ${ranges(line.layers)}`;
      const th = cell("th", "rowheader", undefined, { names, lines: [line], says, line });
      if (line.folds) {
        const turn = make("span", "lab-sites-turn", line.opened ? "▾" : "▸");
        turn.title = line.opened ? "Fold these layers (Enter)" : "Show each layer (Enter)";
        th.append(turn);
        th.setAttribute("aria-expanded", String(line.opened));
      }
      th.append(line.layers[0] < 0 ? "model" : ranges(line.layers));
      tr.append(th);
      own.push(th.spot);
      for (const name of names) {
        const there = layersOf(line, name).length;
        const td = cell("td", "gridcell", undefined, { names: [name], lines: [line], site: there > 0, says: `${name}, ${says}` });
        if (there) td.dataset.site = "";
        tr.append(td);
        own.push(td.spot);
      }
      tbody.append(tr);
      spots.push(own);
    }
    table.append(thead, tbody);
    scroll.replaceChildren(table);
    at = [Math.min(at[0], spots.length - 1), Math.min(at[1], names.length)];
    const spot = spots[at[0]]?.[at[1]];
    if (spot) spot.cell.tabIndex = 0;
    each.hidden = !rows.some((layers) => layers.length > 1);
    each.textContent = perLayer ? "fold layers" : "per layer";
    each.setAttribute("aria-pressed", String(perLayer));
    more.hidden = !model.get("more");
    more.textContent = model.get("everything") ? "fewer columns" : "more columns";
    more.title = "Inputs, whole sublayers, routers, embedding and head";
    show();
  }

  function show() {
    let on = 0, all = 0;
    for (const spot of spots.slice(2).flat()) {
      if (!spot.site) continue;
      const layers = layersOf(spot.lines[0], spot.names[0]);
      const flags = layers.map((layer) => isOn(spot.names[0], layer));
      const n = flags.filter(Boolean).length, part = n > 0 && n < flags.length, td = spot.cell;
      if (!spot.lines[0].inner) { on += n; all += flags.length; }
      td.setAttribute("aria-selected", String(n === flags.length));
      td.classList.toggle("lab-sites-part", part);
      td.setAttribute("aria-label", part ? `${spot.says}: ${n} of ${flags.length} selected` : spot.says);
      // A stripe for every selected layer of the row, from left to right.
      const stops = flags.map((flag, i) => `${flag ? "var(--lab-sites-accent)" : "transparent"} ${(100 * i) / flags.length}% ${(100 * (i + 1)) / flags.length}%`);
      td.style.backgroundImage = part ? `linear-gradient(to right, ${stops.join(", ")})` : "";
    }
    total.textContent = `${count(on)} of ${count(all)} sites`;
  }

  function describe(spot) {
    if (spot?.names.length !== 1 || !spot.lines.length) return spot?.says ?? "";
    const name = spot.names[0], layers = spot.lines.flatMap((line) => layersOf(line, name));
    if (!layers.length) return "";
    const runs = (model.get("about")[name] ?? []).filter(([first, last]) => layers.some((l) => first <= l && l <= last));
    if (!runs.length) return spot.says;
    const [, , path, dIn, dOut, places] = runs[0];
    const where = path.replace("*", layers.length > 1 ? `{${ranges(layers)}}` : layers[0]);
    const size = runs.every((run) => run[3] === dIn && run[4] === dOut) ? `${count(dIn)} → ${count(dOut)}` : "different widths";
    const added = layers.map((l) => runs.find(([first, last]) => first <= l && l <= last)[6]);
    const sum = added.includes(null) ? "" : ` · ${count(added.reduce((a, b) => a + b, 0))} parameters`;
    const on = layers.filter((l) => isOn(name, l)).length;
    const some = on && on < layers.length ? ` · ${on} of ${layers.length} layers selected` : "";
    return `${where}${places > 1 ? ` and ${places - 1} more` : ""} · ${size}${sum}${some}`;
  }
  const tell = (spot) => {
    const fault = model.get("fault");
    info.classList.toggle("lab-sites-fault", Boolean(fault) && !spot);
    info.textContent = (spot ? describe(spot) : fault) || "Click or drag; heads select columns and rows.";
    info.title = info.textContent;
  };

  function focus(row, col) {
    const before = spots[at[0]]?.[at[1]];
    if (before) before.cell.tabIndex = -1;
    at = [row, col];
    const { cell } = spots[row][col];
    cell.tabIndex = 0;
    cell.focus();
    cell.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  const placeOf = (spot) => {
    const row = spots.findIndex((line) => line.includes(spot));
    return [row, spots[row].indexOf(spot)];
  };
  function unfold(line) {
    if (!line?.folds) return;
    if (open.has(line.key)) open.delete(line.key); else open.add(line.key);
    const [row, col] = at;
    build();
    focus(Math.min(row, spots.length - 1), col);
  }
  // With Shift, everything between the last place and this one gets the state of the last place.
  function act(spot, ranged) {
    const [row, col] = placeOf(spot);
    const pairs = pairsOf(spot);
    if (ranged && anchor && spot.site) {
      const [r0, r1] = [anchor.row, row].sort((a, b) => a - b), [c0, c1] = [anchor.col, col].sort((a, b) => a - b);
      put(spots.slice(r0, r1 + 1).flatMap((line) => line.slice(c0, c1 + 1)).flatMap(pairsOf), anchor.on);
    } else {
      const on = !full(pairs);
      put(pairs, on);
      if (spot.site) anchor = { row, col, on };
    }
    tell(spot);
  }

  const spotAt = (event) => event.target.closest?.("th, td")?.spot;
  scroll.addEventListener("pointerdown", (event) => {
    const spot = spotAt(event);
    if (!spot || event.button !== 0 || event.pointerType === "touch") return;
    event.preventDefault();
    focus(...placeOf(spot));
    if (event.target.closest(".lab-sites-turn")) return unfold(spot.line);
    act(spot, event.shiftKey);
    paint = spot.site ? { on: full(pairsOf(spot)) } : {};
    addEventListener("pointerup", () => { paint = null; save(); }, { once: true });
  });
  scroll.addEventListener("click", (event) => {
    const spot = spotAt(event);
    if (!spot || event.pointerType !== "touch") return;
    if (event.target.closest(".lab-sites-turn")) return unfold(spot.line);
    act(spot, false);
    save();
  });
  scroll.addEventListener("pointerover", (event) => {
    const spot = spotAt(event);
    tell(spot);
    if (spot?.site && paint && paint.on !== undefined) put(pairsOf(spot), paint.on);
  });
  scroll.addEventListener("pointerleave", () => tell(null));
  scroll.addEventListener("focusin", (event) => {
    const spot = spotAt(event);
    if (spot && spots[at[0]]?.[at[1]] !== spot) at = placeOf(spot);
    tell(spot);
  });
  scroll.addEventListener("focusout", () => tell(null));
  scroll.addEventListener("keydown", (event) => {
    const spot = spotAt(event);
    if (!spot) return;
    let [row, col] = at;
    const last = [spots.length - 1, names.length];
    if (event.key === " " || (event.key === "Enter" && !spot.line?.folds)) {
      act(spot, event.shiftKey);
      save();
    } else if (event.key === "Enter") unfold(spot.line);
    else if (event.key === "ArrowUp") focus(Math.max(0, row - 1), col);
    else if (event.key === "ArrowDown") focus(Math.min(last[0], row + 1), col);
    else if (event.key === "ArrowLeft") {
      while (col > 0 && spots[row][col] === spot) col--;
      focus(row, col);
    } else if (event.key === "ArrowRight") {
      while (col < last[1] && spots[row][col] === spot) col++;
      focus(row, col);
    } else if (event.key === "Home") focus(event.ctrlKey ? 0 : row, 0);
    else if (event.key === "End") focus(event.ctrlKey ? last[0] : row, last[1]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  each.addEventListener("click", () => { perLayer = !perLayer; open = new Set(); anchor = null; build(); });
  more.addEventListener("click", () => { model.set("everything", !model.get("everything")); model.save_changes(); });
  const send = () => { model.set("layers", typed.value); model.save_changes(); };
  typed.addEventListener("change", send);
  typed.addEventListener("keydown", (event) => event.stopPropagation());
  const onLayers = () => { if (document.activeElement !== typed || !model.get("layers")) typed.value = model.get("layers"); };
  const onFault = () => { typed.setAttribute("aria-invalid", String(Boolean(model.get("fault")))); tell(null); };

  let waiting = false;  // several traits change at once
  const rebuild = () => {
    if (waiting) return;
    waiting = true;
    queueMicrotask(() => { waiting = false; anchor = null; readChosen(); build(); });
  };
  const onSelected = () => { if (!paint) { readChosen(); show(); } };
  const handlers = { head: rebuild, rows: rebuild, sites: rebuild, everything: rebuild, selected: onSelected, layers: onLayers, fault: onFault };
  for (const [name, handler] of Object.entries(handlers)) model.on(`change:${name}`, handler);
  readChosen();
  build();
  onLayers();
  onFault();
  return () => { for (const [name, handler] of Object.entries(handlers)) model.off(`change:${name}`, handler); };
}
export default { render };
