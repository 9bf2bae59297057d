"use strict";

// A click on a heading sorts a table by that column, a second one in the other direction; the first column restores the
// order. Lines that belong to a row stay with it.
for (const table of document.querySelectorAll("table")) {
  const groups = [...table.tBodies], headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = column ? "sort by this column" : "restore the order";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") !== "descending";
      headings.forEach(other => other.removeAttribute("aria-sort"));
      if (column) heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      table.append(...(column ? sorted(groups, column, descending) : groups));
    });
  });
}

// By number; what is none comes last, by its letters, and an empty cell after that.
function sorted(groups, column, descending) {
  const text = group => (group.rows[0].cells[column]?.firstChild?.textContent ?? "").trim().replace("\u2013", "");
  const number = group => parseFloat(text(group).replaceAll(",", "").replace("\u2212", "-"));
  return [...groups].sort((one, other) => {
    const [a, b] = [number(one), number(other)], [x, y] = [text(one), text(other)];
    if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b) || (x === "") - (y === "") || x.localeCompare(y);
    return descending ? b - a : a - b;
  });
}

// Two runs, chosen from lists: which images one is right about and the other is not, and their examples side by side.
const place = document.getElementById("compare");
if (place) {
  const outcomes = JSON.parse(document.getElementById("outcomes").textContent);
  const panels = new Map([...document.querySelectorAll(".panel")].map(panel => [panel.dataset.run, panel]));
  const names = [...new Set([...Object.keys(outcomes.runs), ...panels.keys()])];
  const choice = element("div", "choice"), words = element("p"), pair = element("div", "pair");
  const [one, other] = ["Compare", "with"].map((label, index) => {
    const select = document.createElement("select"), around = element("label", "", label);
    names.forEach(name => select.append(new Option(name, name)));
    select.selectedIndex = Math.min(index, names.length - 1);
    select.addEventListener("change", show);
    around.append(select);
    choice.append(around);
    return select;
  });
  place.append(choice, words, pair);
  show();

  function show() {
    const [a, b] = [one.value, other.value];
    words.textContent = a in outcomes.runs && b in outcomes.runs ? difference(a, b)
      : outcomes.attack ? `Under ${outcomes.attack}, there are no outcomes of both.` : "";
    pair.replaceChildren();
    const examples = [a, b].map(name => [...(panels.get(name)?.querySelectorAll(".example") ?? [])]);
    for (let index = 0; index < Math.max(...examples.map(list => list.length)); index++)
      examples.forEach((list, which) => {
        const copy = list[index]?.cloneNode(true) ?? element("span");
        copy.querySelector("figcaption")?.prepend([a, b][which] + ": ");
        pair.append(copy);
      });
  }

  function difference(a, b) {
    const [first, second] = [bits(outcomes.runs[a]), bits(outcomes.runs[b])];
    const found = { both: [], one: [], other: [], neither: [] };
    for (let index = 0; index < outcomes.count; index++)
      found[first(index) ? (second(index) ? "both" : "one") : (second(index) ? "other" : "neither")].push(index);
    return `Of ${outcomes.count} test images, under ${outcomes.attack} ${found.both.length} are classified correctly by both,`
      + ` ${found.one.length} by ${a} only${numbers(found.one)}, ${found.other.length} by ${b} only${numbers(found.other)},`
      + ` ${found.neither.length} by neither.`;
  }

  function bits(base64) {
    const bytes = atob(base64);
    return index => bytes.charCodeAt(index >> 3) >> (7 - index % 8) & 1;
  }

  function numbers(images) {
    return images.length ? ` (numbers ${images.slice(0, 40).join(", ")}${images.length > 40 ? ", …" : ""}, from 0)` : "";
  }

  function element(name, className = "", text = "") {
    return Object.assign(document.createElement(name), { className, textContent: text });
  }
}
