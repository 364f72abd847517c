/* The arrow that unfolds a part in the contents says which part it unfolds. */
document.addEventListener("DOMContentLoaded", () => {
  for (const summary of document.querySelectorAll("nav.bd-links summary")) {
    const part = summary.closest("li")?.querySelector("a")?.textContent.trim();
    summary.setAttribute("aria-label", `Chapters of ${part ?? "this part"}`);
  }
});

/* What scrolls in its own box can be reached and scrolled by keyboard. */
(() => {
  const boxes = "article :is(div.math mjx-container, .sm-sortable mjx-container, .cell_output div, .cell_output pre, .pst-scrollable-table-container)";
  const reach = () => {
    for (const box of document.querySelectorAll(boxes)) {
      const style = getComputedStyle(box);
      const scrolls = ["auto", "scroll"].includes(style.overflowX) && box.scrollWidth > box.clientWidth;
      if (scrolls && box.tabIndex < 0) {
        box.tabIndex = 0;
        box.dataset.reachable = "";
      } else if (!scrolls && "reachable" in box.dataset) {
        box.removeAttribute("tabindex");
        delete box.dataset.reachable;
      }
    }
  };
  const start = async () => {
    await window.MathJax?.startup?.promise;
    reach();
    new ResizeObserver(reach).observe(document.documentElement);
  };
  window.addEventListener("load", start);
})();
