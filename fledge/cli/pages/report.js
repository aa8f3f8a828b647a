"use strict";

// Draws a report of fledge: the map of sizes, the list of the open folder, and the tables.
// Names come from the artifact. They are only ever set as text, never as HTML.

const MAX_CELLS = 2500; // boxes in the map at once
const MAX_LISTED = 200; // rows in the list of the open folder
const FEW_ROWS = 15; // of a table at first
const HEADER = 20; // pixels for the name of a folder in the map
const MIN_SIDE = 3; // pixels of a box that is still drawn
const GOLDEN_ANGLE = 137.508; // degrees between the hues of two groups: any number of them differ
const CHANGE_HUES = [140, 5, 215]; // added, removed, changed

const data = JSON.parse(document.getElementById("data").textContent);
const { map } = data;
const isChange = map.mode === "change";
const byId = (id) => document.getElementById(id);
let open; // the folder that the map shows

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function button(text, className, action) {
  const made = element("button", text, className);
  made.type = "button";
  made.addEventListener("click", action);
  return made;
}

// As fledge.report.human_size formats a number of bytes.
function humanSize(size) {
  const sign = size < 0 ? "-" : "";
  let value = Math.abs(size);
  if (value < 1024) return `${sign}${value} bytes`;
  for (const unit of ["KiB", "MiB", "GiB"]) {
    value /= 1024;
    if (value < 1024) return `${sign}${value.toFixed(1)} ${unit}`;
  }
  return `${sign}${(value / 1024).toFixed(1)} TiB`;
}

const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const hue = (group) => (isChange ? CHANGE_HUES[group] : (210 + group * GOLDEN_ANGLE) % 360);

// The tree -------------------------------------------------------------------------------------

// A node: {name, parent, children, sizes, files, group, groups}. Files have no children. The group of
// a folder is the one that has most of it; groups are its sizes by group.
function makeFolder(name, parent) {
  const groups = map.groups.map(() => 0);
  const sizes = isChange ? [0, 0, 0] : [0];
  return { name, parent, children: [], sizes, files: 0, group: 0, groups };
}

function addArea(folder, [, name, group, files, ...sizes]) {
  folder.children.push({ name, parent: folder, children: null, sizes, files, group });
  for (let each = folder; each; each = each.parent) {
    each.files += files;
    sizes.forEach((size, index) => { each.sizes[index] += size; });
    each.groups[group] += sizes[0];
  }
}

function finish(folders) {
  for (const folder of folders) {
    folder.children.sort((a, b) => b.sizes[0] - a.sizes[0]);
    folder.group = folder.groups.indexOf(Math.max(...folder.groups));
  }
}

function treeByFolder() {
  const folders = map.folders.map(([, name]) => makeFolder(name || "/", null));
  map.folders.forEach(([parent], number) => {
    if (!number) return;
    folders[number].parent = folders[parent];
    folders[parent].children.push(folders[number]);
  });
  for (const area of map.areas) addArea(folders[area[0]], area);
  finish(folders);
  return folders[0];
}

function treeByGroup() {
  const root = makeFolder("all sources", null);
  const made = new Map(); // by group and number of the folder
  const all = [root];
  function folderOf(group, number) {
    const key = `${group} ${number}`;
    if (!made.has(key)) {
      const [parent, name] = map.folders[number];
      const above = number ? folderOf(group, parent) : root;
      const folder = makeFolder(number ? name : map.groups[group][0], above);
      above.children.push(folder);
      made.set(key, folder);
      all.push(folder);
    }
    return made.get(key);
  }
  for (const area of map.areas) addArea(folderOf(area[2], area[0]), area);
  finish(all);
  return root;
}

function label(node) {
  if (node.name === null) return counted(node.files, "smaller file");
  return node.children && node.parent ? `${node.name}/` : node.name;
}

function describe(node) {
  const sizes = isChange && node.children === null
    ? `${humanSize(node.sizes[1])} → ${humanSize(node.sizes[2])}`
    : humanSize(node.sizes[0]);
  const parts = [label(node), sizes];
  if (node.children) parts.push(counted(node.files, "file"));
  else parts.push(map.groups[node.group][0]);
  return parts.join(", ");
}

// The map --------------------------------------------------------------------------------------

// Squarified treemaps (Bruls, Huizing, van Wijk: "Squarified Treemaps", 2000). Calls
// place(node, x, y, width, height) for nodes sorted by size, the largest first.
function squarify(nodes, x, y, width, height, place) {
  let left = nodes.reduce((sum, node) => sum + node.sizes[0], 0);
  let first = 0;
  while (first < nodes.length && left > 0 && width > 0 && height > 0) {
    const scale = (width * height) / left;
    const side = Math.min(width, height);
    let last = first;
    let sum = 0;
    let worst = Infinity;
    while (last < nodes.length && nodes[last].sizes[0] > 0) {
      const more = sum + nodes[last].sizes[0];
      const ratio = worstRatio(nodes[first].sizes[0] * scale, nodes[last].sizes[0] * scale, more * scale, side);
      if (ratio > worst) break;
      worst = ratio;
      sum = more;
      last += 1;
    }
    if (last === first) return;
    const depth = (sum * scale) / side;
    let position = 0;
    for (const node of nodes.slice(first, last)) {
      const length = (node.sizes[0] / sum) * side;
      if (width >= height) place(node, x, y + position, depth, length);
      else place(node, x + position, y, length, depth);
      position += length;
    }
    if (width >= height) { x += depth; width -= depth; } else { y += depth; height -= depth; }
    left -= sum;
    first = last;
  }
}

// The worst ratio of width to height in a row of boxes along a side.
function worstRatio(largest, smallest, sum, side) {
  return Math.max((side * side * largest) / (sum * sum), (sum * sum) / (side * side * smallest));
}

function drawMap() {
  const area = byId("map");
  area.replaceChildren();
  let cells = 0;
  const pending = []; // folders whose content is to be drawn: the largest first
  function place(node, x, y, width, height, isInner) {
    if (width < MIN_SIDE || height < MIN_SIDE || cells >= MAX_CELLS) return;
    cells += 1;
    const cell = makeCell(node, x, y, width, height, isInner);
    area.append(cell);
    if (node.children && width > 24 && height > HEADER + 12) {
      pending.push([cell, node, x + 3, y + HEADER, width - 6, height - HEADER - 3]);
    }
  }
  squarify(open.children, 0, 0, area.clientWidth, area.clientHeight, (...box) => place(...box, false));
  while (pending.length && cells < MAX_CELLS) {
    const [cell, node, ...box] = pending.shift();
    cell.classList.add("filled");
    squarify(node.children, ...box, (...inner) => place(...inner, true));
  }
  const first = area.querySelector("button");
  if (first) first.tabIndex = 0;
  else area.append(element("p", "Nothing here has a size."));
}

function makeCell(node, x, y, width, height, isInner) {
  const text = width > 34 && height > 16 ? label(node) : "";
  const cell = isInner ? element("div", text, "cell inner") : button(text, "cell", () => openNode(node));
  if (node.children) cell.classList.add("folder");
  cell.style.setProperty("--hue", hue(node.group));
  if (node.name === null) cell.classList.add("rest");
  if (!text) cell.classList.add("tiny");
  Object.assign(cell.style, {
    left: `${x}px`, top: `${y}px`, width: `${width}px`, height: `${height}px`,
  });
  if (isInner) {
    cell.setAttribute("aria-hidden", "true");
    return cell;
  }
  // A folder shows its name at the top, above its content.
  if (node.children) cell.style.paddingBottom = `${Math.max(0, height - HEADER - 2)}px`;
  cell.tabIndex = -1;
  cell.title = describe(node);
  cell.setAttribute("aria-label", describe(node));
  return cell;
}

function openNode(node) {
  if (!node.children) return;
  open = node;
  draw();
  const first = byId("map").querySelector("button");
  if (first) first.focus({ preventScroll: true });
}

function onKey(event) {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if ((event.key === "Backspace" || event.key === "Escape") && open.parent) {
    event.preventDefault();
    openNode(open.parent);
  } else if (event.key in steps) {
    event.preventDefault();
    moveFocus(...steps[event.key]);
  }
}

// Focuses the nearest box in a direction from the middle of the one that has the focus.
function moveFocus(right, down) {
  const current = document.activeElement;
  const from = current.getBoundingClientRect();
  const x = from.x + from.width / 2;
  const y = from.y + from.height / 2;
  let best = null;
  let nearest = Infinity;
  for (const cell of byId("map").querySelectorAll("button")) {
    const box = cell.getBoundingClientRect();
    const along = (box.x + box.width / 2 - x) * right + (box.y + box.height / 2 - y) * down;
    const beside = Math.max(0, box.left - x, x - box.right) * Math.abs(down);
    const across = beside + Math.max(0, box.top - y, y - box.bottom) * Math.abs(right);
    const distance = along + 4 * across;
    if (cell !== current && along > 1 && distance < nearest) {
      best = cell;
      nearest = distance;
    }
  }
  if (best) {
    current.tabIndex = -1;
    best.tabIndex = 0;
    best.focus();
  }
}

// Around the map -------------------------------------------------------------------------------

function drawTrail() {
  const trail = [];
  for (let node = open; node; node = node.parent) trail.unshift(node);
  byId("trail").replaceChildren(...trail.map((node) => {
    const name = node === open || !node.parent ? node.name : `${node.name} ›`;
    const step = button(name, "link", () => openNode(node));
    step.disabled = node === open;
    if (node === open) step.setAttribute("aria-current", "true");
    return step;
  }));
}

function drawList() {
  const figures = isChange
    ? [["Before", "size"], ["After", "size"], ["Change", "change"]]
    : [["Size", "size"], ["Share", "text"]];
  const columns = [["Name", "path"], ...figures, ["Files", "count"]];
  const list = byId("list");
  list.tHead.replaceChildren(headRow(columns));
  const total = open.sizes[0] || 1;
  const rows = open.children.slice(0, MAX_LISTED).map((node) => {
    const [size, before, after] = node.sizes;
    const share = `${((100 * size) / total).toFixed(1)} %`;
    const values = isChange ? [before, after, after - before] : [size, share];
    const row = bodyRow(columns, [label(node), ...values, node.files]);
    if (node.children) row.firstChild.replaceChildren(button(label(node), "link", () => openNode(node)));
    return row;
  });
  const more = open.children.length - rows.length;
  if (more) rows.push(wideRow(columns, `and ${more} more`));
  list.tBodies[0].replaceChildren(...rows);
  const files = counted(open.files, "file");
  const size = isChange ? `${files} ${open.files === 1 ? "differs" : "differ"}` : `${humanSize(open.sizes[0])} in ${files}`;
  list.caption.textContent = `${open.parent ? label(open) : open.name}: ${size}`;
}

function drawLegend() {
  const sizes = map.groups.map(() => 0);
  for (const [, , group, , size] of map.areas) sizes[group] += size;
  byId("legend").replaceChildren(...map.groups.map(([title, text], group) => {
    const item = element("li");
    const swatch = element("span", "", "swatch");
    swatch.style.setProperty("--hue", hue(group));
    item.append(swatch, `${title} `, element("span", humanSize(sizes[group]), "quiet"));
    item.title = text;
    return item;
  }));
}

// Tables ---------------------------------------------------------------------------------------

const className = (kind) => (["size", "change", "count"].includes(kind) ? "number" : kind);

function headRow(columns) {
  const row = element("tr");
  for (const [title, kind] of columns) {
    const cell = element("th", title, className(kind) === "number" ? "number" : "");
    cell.scope = "col";
    row.append(cell);
  }
  return row;
}

function bodyRow(columns, values) {
  const row = element("tr");
  columns.forEach(([, kind], index) => {
    const value = values[index];
    const cell = element("td", undefined, className(kind));
    if (kind === "size" || kind === "change") {
      cell.textContent = (kind === "change" && value > 0 ? "+" : "") + humanSize(value);
      cell.title = counted(value, "byte");
      cell.dataset.value = value;
    } else {
      cell.textContent = kind === "count" ? value.toLocaleString("en") : value;
    }
    row.append(cell);
  });
  return row;
}

function wideRow(columns, text) {
  const row = element("tr");
  const cell = element("td", text, "quiet");
  cell.colSpan = columns.length;
  row.append(cell);
  return row;
}

// Counts the rows that are not shown, and shows those of them that the page has.
function restRow(columns, rows, more) {
  const hidden = wideRow(columns, `and ${(Math.max(0, rows.length - FEW_ROWS) + more).toLocaleString("en")} more`);
  if (rows.length <= FEW_ROWS) return hidden;
  hidden.firstChild.append(" ", button("show", "link", () => {
    const shown = rows.slice(FEW_ROWS).map((row) => bodyRow(columns, row));
    if (more) shown.push(wideRow(columns, `and ${more.toLocaleString("en")} more`));
    hidden.replaceWith(...shown);
  }));
  return hidden;
}

function drawTables() {
  for (const { title, text, columns, rows, more, empty } of data.tables) {
    const section = element("section");
    section.append(element("h2", title), element("p", text, "quiet"));
    if (rows.length) {
      const table = element("table");
      table.createTHead().append(headRow(columns));
      const body = table.createTBody();
      body.append(...rows.slice(0, FEW_ROWS).map((row) => bodyRow(columns, row)));
      if (rows.length > FEW_ROWS || more) body.append(restRow(columns, rows, more));
      const wide = element("div", undefined, "wide");
      wide.append(table);
      section.append(wide);
    } else {
      section.append(element("p", empty));
    }
    byId("tables").append(section);
  }
}

// Start ----------------------------------------------------------------------------------------

function draw() {
  drawMap();
  drawTrail();
  drawList();
}

function start() {
  document.title = `${data.title} - fledge`;
  byId("title").textContent = data.title;
  for (const [title, text] of data.facts) byId("facts").append(element("dt", title), element("dd", text));
  byId("notes").append(...data.notes.map((note) => element("li", note)));
  byId("modes").hidden = isChange;
  byId("modes").addEventListener("change", (event) => {
    open = event.target.value === "group" ? treeByGroup() : treeByFolder();
    draw();
  });
  byId("map").addEventListener("keydown", onKey);
  open = treeByFolder();
  drawTrail();
  drawList();
  drawLegend();
  drawTables();
  new ResizeObserver(drawMap).observe(byId("map"));
}

start();
