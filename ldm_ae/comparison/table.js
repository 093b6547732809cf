"use strict";
// Sorts the rows of tables: a header's button sorts by its column, the better values first, and turns the order around.
(() => {
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const headers = [...table.tHead.rows[0].cells];
    const value = (row, column) => row.cells[column].dataset.value;
    const compare = (a, b) => (a[0] === "" || isNaN(a) || isNaN(b) ? a.localeCompare(b) : Number(a) - Number(b));
    headers.forEach((header, column) => {
      header.querySelector("button").addEventListener("click", () => {
        const first = header.dataset.first; // the order that shows the better values first
        const turned = first === "ascending" ? "descending" : "ascending";
        const order = header.getAttribute("aria-sort") === first ? turned : first;
        headers.forEach((other) => other.removeAttribute("aria-sort"));
        header.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const rows = [...body.rows].sort((a, b) => {
          const [left, right] = [value(a, column), value(b, column)];
          // Rows without a value are last in both orders.
          if (left === undefined || right === undefined) return (left === undefined) - (right === undefined);
          return sign * compare(left, right);
        });
        body.append(...rows);
      });
    });
  }
})();
