/* Tables of the class sm-sortable: a heading sorts the rows.

   Without this script they are plain tables. A cell may say by data-sort what it is sorted by;
   otherwise a column of numbers is sorted by its numbers, any other by its text. What is empty or
   a dash comes last, in either direction. A column of formulas has no order. */
(() => {
  const EMPTY = /^[\s\u2013\u2014-]*$/;
  const NUMBER = /^[+\-\u2212]?(\d[\d\u00a0\u202f ]*)?\.?\d+(e[+\-]?\d+)?/i;

  const told = (cell) => (cell?.dataset.sort ?? cell?.textContent ?? "").trim();

  const numeric = (text) => {
    const found = text.match(NUMBER);
    return found ? Number(found[0].replace(/[\u00a0\u202f ]/g, "").replace("\u2212", "-")) : NaN;
  };

  const sorted = (rows, column, descending) => {
    const keyed = rows.map((row, place) => ({ row, place, text: told(row.cells[column]) }));
    const filled = keyed.filter((item) => !EMPTY.test(item.text));
    const numbers = filled.every((item) => !Number.isNaN(numeric(item.text)));
    const compare = numbers
      ? (a, b) => numeric(a.text) - numeric(b.text)
      : (a, b) => a.text.localeCompare(b.text, "en", { numeric: true, sensitivity: "base" });
    // Equal cells keep the order that the page was written in, in either direction.
    filled.sort((a, b) => (descending ? compare(b, a) : compare(a, b)) || a.place - b.place);
    return [...filled, ...keyed.filter((item) => EMPTY.test(item.text))].map((item) => item.row);
  };

  const prepare = (table) => {
    const body = table.tBodies[0];
    const heads = [...(table.tHead?.rows[table.tHead.rows.length - 1]?.cells ?? [])];
    if (!body || !heads.length || table.dataset.sortable) return;
    table.dataset.sortable = "";
    const written = [...body.rows];
    heads.forEach((head, column) => {
      const label = head.textContent.trim();
      for (const row of written) {
        const cell = row.cells[column];
        if (!cell) continue;
        cell.dataset.label = label;
        if (EMPTY.test(cell.textContent)) cell.dataset.empty = "";
      }
      if (!label || written.some((row) => row.cells[column]?.querySelector(".math"))) return;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = label;
      head.replaceChildren(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) {
          if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
        }
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        body.append(...sorted(written, column, descending));
      });
    });
  };

  const start = () => document.querySelectorAll("table.sm-sortable").forEach(prepare);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
