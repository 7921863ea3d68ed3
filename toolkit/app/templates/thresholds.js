// Moves thresholds in the table of labels. The page answers at once; the server changes the other tables afterwards.
const rows = () => [...element.querySelectorAll("tr[data-column]")];
const percent = (value, digits) => (100 * value).toFixed(digits) + "%";

function set(row, threshold) {
  const probability = Number(row.dataset.probability);
  const ratio = probability / Math.max(threshold, 1e-6);
  row.dataset.threshold = threshold;
  row.className = probability >= threshold ? "named" : "under";
  row.querySelector("input").value = threshold;
  row.querySelector(".t").textContent = percent(threshold, 1);
  row.querySelector(".r").textContent = (ratio > 99 ? "> 99" : ratio.toFixed(ratio < 10 ? 2 : 0)) + " x";
}

function tell() {
  const line = element.querySelector("#named");
  const named = rows().filter((row) => row.className === "named");
  const noun = element.querySelector("table.bars").dataset.noun;
  line.textContent = named.length ? "Named: " : `No ${noun} reaches its threshold.`;
  named.forEach((row, at) => {
    const name = document.createElement("b");
    name.textContent = row.dataset.genre;
    line.append(at ? ", " : "", name, ` (${percent(Number(row.dataset.probability), 0)})`);
  });
  const moved = rows().some((row) => row.dataset.threshold !== row.dataset.model);
  element.querySelector("[data-reset]").hidden = !moved;
}

element.addEventListener("input", (event) => {
  if (event.target.type !== "range") return;
  const row = event.target.closest("tr[data-column]");
  (row ? [row] : rows()).forEach((each) => set(each, Number(event.target.value)));
  tell();
});
element.addEventListener("change", (event) => {
  if (event.target.type !== "range") return;
  const row = event.target.closest("tr[data-column]");
  trigger("select", { index: row ? Number(row.dataset.column) : -1, value: Number(event.target.value) });
});
element.addEventListener("click", (event) => {
  if (!event.target.closest("[data-reset]")) return;
  rows().forEach((row) => set(row, Number(row.dataset.model)));
  tell();
  trigger("select", { index: -2, value: 0 });
});
