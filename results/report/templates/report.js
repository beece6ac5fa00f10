"use strict";
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    button.addEventListener("click", () => sortBy(table, headings, column));
    heading.replaceChildren(button);
  });
}

function sortBy(table, headings, column) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({ row, value: row.cells[column].dataset.sort }));
  const filled = rows.filter((entry) => entry.value !== "" && entry.row.cells[column].textContent !== "not run");
  const empty = rows.filter((entry) => !filled.includes(entry));
  const numbers = filled.every((entry) => entry.value.trim() !== "" && Number.isFinite(Number(entry.value)));
  const before = headings[column].getAttribute("aria-sort");
  const descending = before === null ? numbers : before === "ascending";
  const sign = descending ? -1 : 1;
  filled.sort((a, b) =>
    sign * (numbers ? a.value - b.value : a.value.localeCompare(b.value, "en", { numeric: true })));
  body.append(...filled.map((entry) => entry.row), ...empty.map((entry) => entry.row));
  headings.forEach((heading) => heading.removeAttribute("aria-sort"));
  headings[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  const said = `Sorted by ${headings[column].textContent}, ${descending ? "descending" : "ascending"}`;
  document.getElementById("said").textContent = said;
}

// what is folded away on the screen is printed all the same
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
