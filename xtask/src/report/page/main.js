// Themes, sorting by any column, and a filter over all tables. State is in the address.

const address = new URLSearchParams(location.hash.slice(1));

function setTheme(theme) {
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}
for (const input of document.querySelectorAll("#theme input")) {
  input.checked = input.value === (address.get("theme") ?? "auto");
  input.addEventListener("change", () => setTheme(input.value));
}
setTheme(address.get("theme"));

/** What a cell is sorted by: its number, or its text. */
function key(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
}

function sort(table, column, direction) {
  const rows = [...table.tBodies[0].rows];
  const sign = direction === "descending" ? -1 : 1;
  rows.sort((a, b) => {
    const [x, y] = [key(a, column), key(b, column)];
    return sign * (x < y ? -1 : x > y ? 1 : 0);
  });
  table.tBodies[0].append(...rows);
  for (const [index, head] of [...table.tHead.rows[0].cells].entries()) {
    if (index === column) head.setAttribute("aria-sort", direction);
    else head.removeAttribute("aria-sort");
  }
}

for (const table of document.querySelectorAll(".sortable")) {
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    const isNumber = table.tBodies[0].rows[0]?.cells[column].dataset.value !== undefined;
    if (isNumber) head.classList.add("n");
    head.firstChild.addEventListener("click", () => {
      const first = isNumber ? "descending" : "ascending";
      const other = isNumber ? "ascending" : "descending";
      sort(table, column, head.getAttribute("aria-sort") === first ? other : first);
    });
  }
}

const filter = document.getElementById("filter");
filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of document.querySelectorAll(".sortable tbody tr")) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
});
