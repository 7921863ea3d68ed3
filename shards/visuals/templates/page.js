"use strict";
// Tables of class "sortable": a click on the header of a column sorts the rows. A second click turns the order round.
// Rows without a value are always last.
function valueOf(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replace(/[,%+]/g, "").replace("\u2212", "-"));
  return { number, text, empty: text === "" || text === "\u2013" };
}
function compare(a, b, sign) {
  if (a.empty || b.empty) return a.empty - b.empty;
  const difference = a.number - b.number;
  return sign * (Number.isNaN(difference) ? a.text.localeCompare(b.text) : difference);
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    if (head.textContent.trim() === "" || body.rows.length < 2) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const rows = [...body.rows].map((row) => ({ row, value: valueOf(row, column) }));
      const numbers = rows.every(({ value }) => value.empty || !Number.isNaN(value.number));
      const up = before ? before === "descending" : !numbers;
      rows.sort((a, b) => compare(a.value, b.value, up ? 1 : -1));
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.append(...rows.map(({ row }) => row));
    });
  });
}
// A link to a closed section opens the section.
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  if (target) target.scrollIntoView();
}
window.addEventListener("hashchange", openTarget);
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (link && link.hash === location.hash) openTarget(); // then there is no hashchange
});
if (location.hash) openTarget();
// Paper shows all sections.
let closed = [];
window.addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((part) => { part.open = true; });
});
window.addEventListener("afterprint", () => closed.forEach((part) => { part.open = false; }));
