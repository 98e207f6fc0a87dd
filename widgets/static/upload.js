const PIECE = 512 * 1024;

function render({ model, el }) {
  const root = document.createElement("div"), button = document.createElement("button");
  const input = document.createElement("input"), bar = document.createElement("progress"), words = document.createElement("span");
  root.className = "lab-upload";
  button.type = "button";
  button.textContent = model.get("label");
  button.title = "Choose a file, or drop one here: " + model.get("accept").replaceAll(",", ", ");
  words.setAttribute("role", "status");
  input.type = "file";
  input.accept = model.get("accept");
  bar.hidden = true;
  root.append(button, input, bar, words);
  el.append(root);

  let file = null, sent = 0;
  const stop = (text) => {
    file = null;
    bar.hidden = true;
    button.disabled = false;
    input.value = "";
    words.textContent = text;
  };
  const next = async () => {
    const source = file, from = sent;
    let piece;
    try {
      piece = await source.slice(from, from + PIECE).arrayBuffer();
    } catch {
      return stop(`${source.name} cannot be read.`);
    }
    if (file !== source) return;
    sent = Math.min(from + PIECE, source.size);
    model.send({ name: source.name, size: source.size, from, last: sent >= source.size }, undefined, [piece]);
  };
  const start = (chosen) => {
    if (!chosen || file) return;
    const limit = model.get("limit");
    if (chosen.size > limit) return stop(`${chosen.name} has ${Math.ceil(chosen.size / 1e6)} MB; at most ${Math.floor(limit / 1e6)} MB can be uploaded.`);
    [file, sent] = [chosen, 0];
    button.disabled = true;
    bar.hidden = false;
    bar.max = Math.max(1, file.size);
    bar.value = 0;
    words.textContent = "";
    next();
  };
  // The kernel answers every piece; the next one is sent only then.
  const answered = (message) => {
    if (!file || message.name !== file.name) return;
    if (message.done || message.error) return stop("");
    bar.value = sent;
    next();
  };
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => start(input.files[0]));
  const over = (event) => {
    if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
    event.preventDefault();
    event.stopPropagation();
    root.classList.toggle("lab-upload-over", event.type !== "drop" && event.type !== "dragleave");
    if (event.type === "drop") start(event.dataTransfer.files[0]);
  };
  // A file may be dropped anywhere on the card.
  let zone = root;
  requestAnimationFrame(() => {
    zone = root.closest(".lab-card") ?? root;
    for (const name of ["dragenter", "dragover", "dragleave", "drop"]) zone.addEventListener(name, over);
  });
  model.on("msg:custom", answered);
  return () => {
    model.off("msg:custom", answered);
    for (const name of ["dragenter", "dragover", "dragleave", "drop"]) zone.removeEventListener(name, over);
  };
}
export default { render };
