"use strict";
// Tables that sort by a column and show the rows that a search and menus leave.
for (const holder of document.querySelectorAll(".searchable")) {
  const table = holder.querySelector("table");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows];
  const texts = rows.map((row) => [...row.cells].map((cell) => cell.textContent));
  const lower = texts.map((cells) => cells.join("\n").toLowerCase());
  const search = holder.querySelector("[data-search]");
  const menus = [...holder.querySelectorAll("select")];
  const output = holder.querySelector("output");
  holder.querySelector(".tools").hidden = false;

  function show() {
    const wanted = search.value.toLowerCase();
    let count = 0;
    rows.forEach((row, i) => {
      row.hidden = !(
        lower[i].includes(wanted) &&
        menus.every((menu) => !menu.value || texts[i][menu.dataset.column] === menu.value)
      );
      count += !row.hidden;
    });
    output.textContent = `${count} of ${rows.length}`;
  }
  search.addEventListener("input", show);
  for (const menu of menus) menu.addEventListener("change", show);
  show(); // a browser may have kept what was typed before

  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") === "descending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const keys = rows.map((row, i) => {
        const key = row.cells[column].dataset.key;
        return key === undefined ? texts[i][column] : key === "" ? null : Number(key);
      });
      const sign = rising ? 1 : -1;
      const compare = (a, b) =>
        typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      const order = rows.map((_, i) => i);
      order.sort((i, j) => {
        const [a, b] = [keys[i], keys[j]];
        if (a === null || b === null) return (a === null) - (b === null) || i - j; // empty ones last
        return sign * compare(a, b) || i - j;
      });
      body.append(...order.map((i) => rows[i]));
    });
  });
}
