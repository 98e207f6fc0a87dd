function render({ model, el }) {
  const bytes = model.get("data");
  if (!bytes.byteLength) return;
  const place = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
  const link = document.createElement("a");
  link.className = "lab-delivery";
  link.href = place;
  link.download = model.get("name");
  link.textContent = "Save " + model.get("name") + " again";
  el.append(link);
  if (!model.get("done")) {
    model.set("done", true);
    model.save_changes();
    link.click();
  }
  return () => URL.revokeObjectURL(place);
}
export default { render };
