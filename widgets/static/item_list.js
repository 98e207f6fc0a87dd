// Questions with two answers each; a button hands one of them to Inspect.
const make = (tag, css, text, more = {}) => {
  const made = document.createElement(tag);
  if (css) made.className = css;
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(more)) made.setAttribute(key, value);
  return made;
};
function render({ model, el }) {
  const root = make("div", "lab-items", undefined, { tabindex: "0", role: "region", "aria-label": "items" });
  el.append(root);
  requestAnimationFrame(() => { if (!root.closest(".lab")) root.classList.add("lab"); });  // on its own, in the page by then
  const answer = ({ said, read, right }) => {
    const cell = make("td", "lab-item-answer", undefined, { title: said });
    const mark = make("span", right ? "lab-good" : "lab-bad", right ? "✓ " : "✗ ", { "aria-label": right ? "right" : "wrong" });
    cell.append(mark, make("b", "", read), make("div", "lab-muted", said === read ? "" : said));
    return cell;
  };
  const draw = () => {
    const table = make("table"), head = make("tr"), body = make("tbody");
    for (const name of ["question", "gold", ...model.get("names"), ""]) head.append(make("th", "", name, { scope: "col", title: name }));
    for (const item of model.get("items")) {
      const line = make("tr"), question = make("td", "lab-item-question", undefined, { title: item.question });
      question.append(make("div", "", item.question), make("div", "lab-muted", item.id));
      const open = make("button", "lab-link", "Inspect", { title: "Open this item in Inspect" });
      open.addEventListener("click", () => model.send({ inspect: [item.task, item.id] }));
      const last = make("td");
      last.append(open);
      line.append(question, make("td", "", item.gold), ...item.answers.map(answer), last);
      body.append(line);
    }
    const top = make("thead");
    top.append(head);
    table.append(top, body);
    root.replaceChildren(...(model.get("items").length ? [table] : [make("div", "lab-muted", model.get("empty"))]));
    root.scrollTop = 0;
  };
  model.on("change:items change:names change:empty", draw);
  draw();
  return () => model.off("change:items change:names change:empty", draw);
}
export default { render };
