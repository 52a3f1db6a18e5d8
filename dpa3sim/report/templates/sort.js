// Sorts a table by the clicked column; a second click reverses the order. Blanks stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[column].title || row.cells[column].textContent;
    const rows = [...body.rows].map(row => [key(row), Number(key(row)), row]);
    rows.sort(([a, x], [b, y]) => {
      if ((a === "–") !== (b === "–")) return a === "–" ? 1 : -1;
      const order = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
      return down ? -order : order;
    });
    body.append(...rows.map(([, , row]) => row));
  }));
}
