function render({ model, el }) {
  const area = document.createElement("textarea");
  area.className = "lab-prompt-box";
  area.spellcheck = false;
  el.dataset.lmSuppressShortcuts = "true";
  let timer = 0;
  const send = () => {
    clearTimeout(timer);
    model.set("value", area.value);
    model.save_changes();
  };
  const fill = () => {
    if (area.value !== model.get("value")) area.value = model.get("value");
  };
  const show = () => {
    area.placeholder = model.get("placeholder");
    area.rows = model.get("rows");
    area.setAttribute("aria-label", model.get("label"));
  };
  area.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(send, 200);
  });
  area.addEventListener("blur", send);
  area.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key !== "Enter" || !(event.shiftKey || event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    clearTimeout(timer);
    model.set("value", area.value);
    model.set("submitted", model.get("submitted") + 1);
    model.save_changes();
  });
  const looks = ["change:placeholder", "change:rows", "change:label"];
  model.on("change:value", fill);
  looks.forEach((name) => model.on(name, show));
  fill();
  show();
  el.append(area);
  return () => { clearTimeout(timer); model.off("change:value", fill); looks.forEach((name) => model.off(name, show)); };
}
export default { render };
