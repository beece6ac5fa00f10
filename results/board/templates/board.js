"use strict";
const form = document.getElementById("filters");
const table = document.querySelector("#board table");
const said = document.getElementById("shown");
const groups = [...table.tBodies];
const lines = groups.flatMap((group) => [...group.rows].slice(1));
const chosen = (name) => form.elements[name].value;
const ticked = (name) => form.elements[name].checked;

function fits(group) {
  return [...form.querySelectorAll("select[data-setting]")].every(
    (select) => !select.value || group.dataset[select.dataset.setting] === select.value);
}

function shown(line, column, wanted) {
  const cells = column ? [line.cells[column]] : [...line.cells].slice(1);
  const run = cells.some((cell) => !cell.classList.contains("none"));
  return (!wanted || line.dataset.words.includes(wanted))
    && (!chosen("family") || line.dataset.family === chosen("family"))
    && (!ticked("ahead") || cells.some((cell) => cell.querySelector(".ahead")))
    && (!ticked("run") || run)
    && (ticked("variants") || !line.hasAttribute("data-variant"));
}

function apply() {
  const wanted = chosen("method").trim().toLowerCase();
  const column = Number(chosen("suite"));
  let rows = 0;
  let settings = 0;
  for (const group of groups) {
    const whole = group.hasAttribute("data-never") ? !ticked("run") && !ticked("ahead") : fits(group);
    let some = 0;
    for (const line of [...group.rows].slice(1)) {
      line.hidden = !whole || !shown(line, column, wanted);
      some += !line.hidden;
    }
    group.hidden = some === 0;
    rows += some;
    settings += some > 0 && !group.hasAttribute("data-never");
  }
  for (const row of [table.tHead.rows[0], ...lines]) {
    [...row.cells].forEach((cell, index) => { cell.hidden = column > 0 && index > 0 && index !== column; });
  }
  said.textContent = `${rows} of ${lines.length} rows shown, at ${settings} of ${groups.filter((group) => !group.hasAttribute("data-never")).length} settings.`;
}

form.hidden = false;
for (const select of form.querySelectorAll("select[data-setting]")) {
  select.value = groups[0].dataset[select.dataset.setting];
}
for (const change of ["input", "change"]) form.addEventListener(change, apply);
form.addEventListener("submit", (event) => event.preventDefault());
document.getElementById("all").addEventListener("click", () => {
  for (const select of form.querySelectorAll("select")) select.selectedIndex = 0;
  form.elements.method.value = "";
  form.elements.ahead.checked = form.elements.run.checked = false;
  form.elements.variants.checked = true;
  apply();
});
apply();
