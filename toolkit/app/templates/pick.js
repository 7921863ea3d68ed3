// A click on a poster displays it, and a click on a page number shows this page.
element.addEventListener("click", (event) => {
  const target = event.target.closest("[data-row], [data-page]");
  if (!target) return;
  if (target.dataset.page !== undefined) {
    trigger("select", { index: Number(target.dataset.page), value: "page" });
    return;
  }
  element.querySelectorAll("[aria-current]").forEach((other) => other.removeAttribute("aria-current"));
  target.setAttribute("aria-current", "true");
  trigger("select", { index: Number(target.dataset.row), value: "poster" });
});
