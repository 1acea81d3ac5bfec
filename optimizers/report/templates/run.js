"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const panel = document.getElementById("panel");
const body = document.getElementById("panel-body");
const find = document.getElementById("find");
const sources = [...document.querySelectorAll(".candidate .panel")];
const place = new Map(sources.map((source, index) => [source.id, index]));
let shown = -1;

// ---- the panel of a candidate: its part of the list, shown beside whatever was clicked

function open(index) {
  const source = sources[index];
  if (!source) return;
  shown = index;
  const copy = source.cloneNode(true);
  copy.removeAttribute("id");
  body.replaceChildren(copy);
  document.getElementById("panel-title").textContent = source.dataset.title;
  document.getElementById("earlier").disabled = index === 0;
  document.getElementById("later").disabled = index === sources.length - 1;
  history.replaceState(null, "", "#" + source.id);
  if (!panel.open) panel.showModal();
  if (!panel.contains(document.activeElement)) document.getElementById("panel-title").focus(); // its link is gone
  panel.scrollTop = 0;
}

document.addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  const link = event.target.closest && event.target.closest("[data-c]");
  if (link) {
    event.preventDefault();
    open(place.get("c" + link.dataset.c));
  } else if (event.target === panel) {
    panel.close(); // the backdrop
  }
});
panel.addEventListener("close", () => history.replaceState(null, "", "#"));
document.getElementById("close").addEventListener("click", () => panel.close());
document.getElementById("earlier").addEventListener("click", () => open(shown - 1));
document.getElementById("later").addEventListener("click", () => open(shown + 1));
panel.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft" && shown > 0) open(shown - 1);
  if (event.key === "ArrowRight" && shown < sources.length - 1) open(shown + 1);
});
function openAddress() {
  if (place.has(location.hash.slice(1))) open(place.get(location.hash.slice(1)));
}
window.addEventListener("hashchange", openAddress);
openAddress();

// ---- search among the candidates

const texts = sources.map((source) => source.parentElement);
find.closest("p").hidden = false;
find.addEventListener("input", () => {
  const wanted = find.value.toLowerCase();
  let count = 0;
  for (const item of texts) {
    item.hidden = wanted !== "" && !item.textContent.toLowerCase().includes(wanted);
    count += !item.hidden;
  }
  document.getElementById("found").textContent = wanted === "" ? "" : `${count} contain it`;
});

// ---- the matrix: what a cell says, under the mouse or under the keys

function matrix(packed) {
  const box = document.getElementById("matrix");
  const image = box.querySelector("img");
  const cursor = box.querySelector(".cursor");
  const told = document.getElementById("cell");
  const bytes = Uint8Array.from(atob(packed.cells), (character) => character.charCodeAt(0));
  const width = packed.columns.length;
  const height = packed.rows.length;
  const at = { row: 0, column: 0 };

  function score(cell) {
    const code = bytes[2 * cell] + 256 * bytes[2 * cell + 1];
    if (code === 0) return "not run";
    const value = packed.values ? packed.values[code - 1] : packed.low + (code - 1) * packed.step;
    return "score " + Number(value.toPrecision(5));
  }

  function tell(row, column) {
    at.row = Math.min(height - 1, Math.max(0, row));
    at.column = Math.min(width - 1, Math.max(0, column));
    const cell = at.row * width + at.column;
    const [, id, status, mean] = packed.rows[at.row];
    const text = packed.said[cell] === undefined ? "" : "\n" + packed.texts[packed.said[cell]];
    const all = mean === null ? "" : `, ${Number(mean.toPrecision(4))} in all`;
    told.textContent = `candidate ${id} (${status}${all}), ${packed.columns[at.column]}: ${score(cell)}${text}`;
    image.title = told.textContent;
    cursor.hidden = false;
    const w = image.clientWidth / width;
    const h = image.clientHeight / height;
    cursor.style.left = at.column * w + "px";
    cursor.style.top = at.row * h + "px";
    cursor.style.width = w + "px";
    cursor.style.height = h + "px";
  }

  function under(event) {
    const rect = image.getBoundingClientRect();
    tell(
      Math.floor(((event.clientY - rect.top) / rect.height) * height),
      Math.floor(((event.clientX - rect.left) / rect.width) * width),
    );
  }

  const openRow = () => open(place.get("c" + packed.rows[at.row][0]));
  image.addEventListener("pointermove", under);
  image.addEventListener("click", (event) => {
    under(event);
    openRow();
  });
  box.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (move) {
      event.preventDefault();
      tell(at.row + move[0], at.column + move[1]);
      cursor.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else if (event.key === "Enter") {
      openRow();
    }
  });
}
if (data.matrix) matrix(data.matrix);
