const SIGNS = { "\n": "↵\n", "\t": "⇥\t" };
const spell = (text) => text.replace(/[\n\t]/g, (c) => SIGNS[c][0]).replace(/ /g, "·") || "∅";
const percent = (p) => (p >= 0.9995 ? "100 %" : (100 * p).toFixed(p >= 0.1 ? 1 : 2) + " %");
const make = (tag, name, text) => {
  const made = document.createElement(tag);
  made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
};

const icon = (shape) => {
  const space = "http://www.w3.org/2000/svg";
  const [picture, path] = ["svg", "path"].map((name) => document.createElementNS(space, name));
  for (const [key, value] of Object.entries({ viewBox: "0 0 16 16", width: 14, height: 14, fill: "none", stroke: "currentColor", "stroke-width": 1.4, "aria-hidden": "true" })) picture.setAttribute(key, value);
  path.setAttribute("d", shape);
  picture.append(path);
  return picture;
};

function render({ model, el }) {
  const root = make("div", "lab-answer-grid");
  const tip = make("div", "lab-chances");
  tip.setAttribute("role", "tooltip");
  tip.id = "tip-" + Math.random().toString(36).slice(2);
  el.append(root);
  requestAnimationFrame(() => { if (!el.closest(".lab")) el.classList.add("lab"); });  // on its own, in the page by then
  let boxes = {};
  let kept = {};

  const showTip = (span) => {
    const token = span.token;
    tip.replaceChildren(make("div", "lab-chances-head", `${spell(token.t)}   ${percent(token.p)}`));
    let found = false;
    for (const [text, p] of token.c) {
      const row = make("div", "lab-chances-row");
      if (!found && Math.abs(p - token.p) < 1e-9) { row.classList.add("lab-chosen"); found = true; }
      const bar = make("i", "lab-chances-bar");
      bar.style.width = Math.max(1, 60 * p) + "px";
      row.append(make("code", "", spell(text)), make("span", "lab-chances-track"), make("span", "lab-num", percent(p)));
      row.children[1].append(bar);
      tip.append(row);
    }
    if (token.k === "after") tip.append(make("div", "lab-chances-note", "after the end of the answer"));
    root.append(tip);
    const around = root.getBoundingClientRect();
    const at = span.getBoundingClientRect();
    tip.style.left = Math.max(0, Math.min(at.left - around.left, around.width - tip.offsetWidth - 4)) + "px";
    const below = at.bottom + tip.offsetHeight + 8 < window.innerHeight || at.top < tip.offsetHeight;
    tip.style.top = (below ? at.bottom + 4 : at.top - tip.offsetHeight - 4) - around.top + "px";
    span.setAttribute("aria-describedby", tip.id);
  };
  const hideTip = () => tip.remove();
  root.addEventListener("pointerover", (event) => (event.target.token ? showTip(event.target) : hideTip()));
  root.addEventListener("pointerleave", hideTip);
  root.addEventListener("focusin", (event) => event.target.token && showTip(event.target));
  root.addEventListener("focusout", hideTip);
  root.addEventListener("keydown", (event) => {
    const span = event.target;
    if (event.key === "Escape") hideTip();
    if (!span.token) return;
    const all = [...span.parentNode.querySelectorAll(".lab-tok")];
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -all.length, End: all.length }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const next = all[Math.max(0, Math.min(all.length - 1, all.indexOf(span) + step))];
    span.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });

  const addTokens = (box, tokens) => {
    for (const token of tokens) {
      const span = make("span", "lab-tok" + (token.k ? " lab-tok-" + token.k : ""), token.t);
      span.token = token;
      span.style.setProperty("--p", token.p);
      span.tabIndex = box.childElementCount ? -1 : 0;
      span.setAttribute("role", "option");
      span.setAttribute("aria-label", `${spell(token.t)}, probability ${percent(token.p)}`);
      box.append(span);
    }
  };
  const setFoot = (place, { verdict, foot, good }) => {
    const words = make("div", good === true ? "lab-good" : good === false ? "lab-bad" : "", verdict || "");
    const size = make("div", "", foot || "");
    place.replaceChildren(...(verdict ? [words, size] : [size]));
  };
  const addTurn = (column, turn, many) => {
    if (many && turn.asked) column.list.append(make("div", "lab-asked", turn.asked));
    const box = make("div", "lab-said");
    box.setAttribute("role", "listbox");
    box.setAttribute("aria-orientation", "horizontal");
    box.setAttribute("aria-label", "Tokens of the answer of " + column.name);
    if (turn.tokens && turn.tokens.length) addTokens(box, turn.tokens);
    else if (turn.text) box.append(make("span", "", turn.text));
    if (turn.problem) box.append(make("div", "lab-bad", "✗ " + turn.problem));
    column.list.append(box);
    column.turns.push(box);
    setFoot(column.foot, turn);
  };
  const copy = (key) => {
    const last = (kept[key] || []).at(-1);
    const text = last ? (last.tokens && last.tokens.length ? last.tokens.filter((t) => !t.k).map((t) => t.t).join("").trim() : last.text || "") : "";
    navigator.clipboard?.writeText(text);
  };

  const draw = () => {
    hideTip();
    boxes = {};
    kept = structuredClone(model.get("turns"));
    const columns = model.get("columns");
    root.style.setProperty("--lab-columns", columns.length || 1);
    root.replaceChildren();
    for (const { key, name, title, colour, note, removable } of columns) {
      const place = make("section", "lab-answer");
      place.setAttribute("aria-label", name);
      const head = make("div", "lab-answer-head");
      const dot = make("span", "lab-dot");
      dot.style.background = colour;
      const label = make("b", "", name);
      label.title = title;
      head.append(dot, label);
      const button = (shape, words, act) => {
        const made = make("button", "lab-icon");
        made.append(icon(shape));
        made.type = "button";
        made.title = words;
        made.setAttribute("aria-label", words + ": " + name);
        made.addEventListener("click", act);
        head.append(made);
      };
      button("M5 5V2h9v9h-3M2 5h9v9H2z", "Copy the answer", () => copy(key));
      if (removable) button("M4 4l8 8M12 4l-8 8", "Remove this column", () => { model.set("removed", key); model.save_changes(); });
      const list = make("div", "lab-answer-list");
      list.tabIndex = 0;
      list.setAttribute("role", "group");
      list.setAttribute("aria-label", "Answer of " + name);
      const foot = make("div", "lab-answer-foot lab-num");
      foot.setAttribute("aria-live", "polite");
      place.append(head, make("div", "lab-answer-note", note || ""), list, foot);
      root.append(place);
      boxes[key] = { list, foot, name, turns: [] };
      const turns = kept[key] || [];
      for (const turn of turns) addTurn(boxes[key], turn, turns.length > 1);
      requestAnimationFrame(() => { list.scrollTop = list.scrollHeight; });
    }
  };
  const same = () => {
    const now = model.get("turns");
    const size = (all) => JSON.stringify(Object.entries(all).map(([key, turns]) => [key, turns.map((t) => [t.asked, t.text, t.problem, (t.tokens || []).length])]));
    return size(now) === size(kept);
  };
  const changed = () => {
    if (!same()) return draw();
    // All tokens are there; the end may be known only now.
    for (const [key, turns] of Object.entries(model.get("turns"))) {
      const column = boxes[key];
      if (!column) continue;
      turns.forEach((turn, i) => (turn.tokens || []).forEach((token, j) => {
        const span = column.turns[i]?.children[j];
        if (span?.token) { span.token = token; span.className = "lab-tok" + (token.k ? " lab-tok-" + token.k : ""); }
      }));
      const last = turns.at(-1);
      if (last) setFoot(column.foot, last);
    }
    kept = structuredClone(model.get("turns"));
  };
  const grow = () => {
    for (const added of model.get("part")) {
      const { key, turn, from, tokens, problem } = added;
      const column = boxes[key];
      const known = kept[key]?.[turn];
      if (problem || !column || !known || !column.turns[turn]) continue;
      const list = column.list;
      const follow = list.scrollTop + list.clientHeight >= list.scrollHeight - 20;
      const place = column.turns[turn];
      while (place.childElementCount > from) place.lastChild.remove();
      known.tokens = (known.tokens || []).slice(0, from).concat(tokens);
      addTokens(place, tokens);
      setFoot(column.foot, added);
      if (follow) list.scrollTop = list.scrollHeight;
    }
  };
  const tint = () => root.classList.toggle("lab-tinted", model.get("tinted"));
  model.on("change:columns", draw);
  model.on("change:turns", changed);
  model.on("change:part", grow);
  model.on("change:tinted", tint);
  draw();
  tint();
  return () => { model.off("change:columns", draw); model.off("change:turns", changed); model.off("change:part", grow); model.off("change:tinted", tint); };
}
export default { render };
