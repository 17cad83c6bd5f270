// The browser half of annotator.py. Marks are in pixels of the upright film, however it is zoomed; heights and residuals are
// computed in Python. A mark's address is [kind, level or end, corner], such as ["centroids", "L1"], ["corners", "L1",
// "right_superior"] or ["s1_endplate", "left"].

const VIEWS = ["ap", "lateral"];
const MODES = { centroids: "vertebra centres", corners: "body corners", s1_endplate: "S1 endplate", ruler: "ruler" };
const RULER = ["from", "to"]; // ends of a known distance
const SYNC_MS = 60; // between two messages while a mark is dragged
const CLICK_PX = 4; // a pointer that moves less beside a mark has clicked; a gripped mark follows at once

const clone = (value) => JSON.parse(JSON.stringify(value));

function element(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "circle", "path", "line", "text"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const button = (text, label, onclick) => element("button", { type: "button", "aria-label": label, title: label, onclick }, text);

function chooser(label, options, onchange) {
  const select = element("select", { "aria-label": label, title: label, onchange: () => onchange(select.value) });
  for (const [value, text] of options) select.append(element("option", { value }, text));
  return select;
}

// The marks and their history for undo and redo.
class Marks {
  constructor(model, names, changed) {
    Object.assign(this, { model, names, changed, selected: null, synced: 0 });
    this.history = [clone(model.get("marks"))];
    this.place = 0;
    this.marks = clone(this.history[0]);
    this.listener = () => {
      const theirs = model.get("marks");
      if (JSON.stringify(theirs) === this.sent) return;
      this.sent = JSON.stringify(theirs);
      this.marks = clone(theirs);
      this.remember();
      changed();
    };
    this.sent = JSON.stringify(this.marks);
    model.on("change:marks", this.listener);
  }

  get(viewName, [kind, name, part]) {
    const found = this.marks[viewName][kind]?.[name];
    return part === undefined ? found : found?.[part];
  }

  // Sets a mark, or deletes it if `pixel` is null. Touching a proposed level confirms it.
  put(viewName, [kind, name, part], pixel) {
    const view = this.marks[viewName];
    view[kind] ??= {};
    const holder = part === undefined ? view[kind] : (view[kind][name] ??= {});
    const key = part === undefined ? name : part;
    if (pixel) holder[key] = pixel.map((value) => Math.round(value * 100) / 100);
    else delete holder[key];
    if (part !== undefined && !Object.keys(holder).length) delete view[kind][name];
    if (kind === "centroids") this.confirm(viewName, name);
  }

  confirm(viewName, name) {
    this.marks[viewName].proposed = (this.marks[viewName].proposed ?? []).filter((other) => other !== name);
  }

  remember() {
    if (JSON.stringify(this.history[this.place]) === JSON.stringify(this.marks)) return;
    this.history.splice(++this.place, Infinity, clone(this.marks));
  }

  commit() {
    this.remember();
    this.keep();
  }

  // Sends the marks, to be saved as well.
  keep() {
    this.send();
    this.model.send({ command: "autosave" });
    this.changed();
  }

  send() {
    this.sent = JSON.stringify(this.marks);
    this.synced = Date.now();
    this.model.set("marks", clone(this.marks));
    this.model.save_changes();
  }

  drag() {
    if (Date.now() - this.synced > SYNC_MS) this.send();
    this.changed();
  }

  step(by) {
    if (this.place + by < 0 || this.place + by >= this.history.length) return;
    this.place += by;
    this.marks = clone(this.history[this.place]);
    this.keep();
  }

  all(viewName) {
    const { centroids = {}, corners = {}, s1_endplate = {}, ruler = {} } = this.marks[viewName];
    const found = Object.entries(centroids).map(([name, pixel]) => [["centroids", name], pixel]);
    for (const [name, parts] of Object.entries(corners))
      found.push(...Object.entries(parts).map(([part, pixel]) => [["corners", name, part], pixel]));
    for (const [kind, ends] of Object.entries({ s1_endplate, ruler }))
      found.push(...Object.entries(ends).map(([end, pixel]) => [[kind, end], pixel]));
    return found;
  }
}

// One film: its picture, its marks, and the pointer's actions.
class Pane {
  constructor(app, film) {
    Object.assign(this, { app, film, viewName: film.view, next: film.next, centre: 128, width: 256, inverted: false, local: false });
    this.canvas = element("canvas");
    this.overlay = element("svg", { role: "group", "aria-label": `marks on ${film.title}` });
    this.stage = element("div", { class: "tv-stage", tabindex: 0, "data-view": this.viewName }, this.canvas, this.overlay);
    this.chooser = chooser(`next level on ${film.title}`, app.names.map((name) => [name, name]), (name) => {
      this.next = name;
      app.draw();
    });
    this.slots = element("span", { class: "tv-slot" });
    const slider = (label, key) =>
      element("label", {}, label, element("input", {
        type: "range", min: key === "width" ? 2 : 0, max: key === "width" ? 512 : 255, value: this[key],
        oninput: (event) => { this[key] = Number(event.target.value); this.develop(); this.draw(); },
      }));
    this.length = element("input", { type: "number", min: 1, max: 2000, style: "width: 5em", "aria-label": `length of the ruler on ${film.title}`,
      value: app.marks.marks[this.viewName].ruler_mm || "", onchange: () => {
        app.marks.marks[this.viewName].ruler_mm = Number(this.length.value);
        app.marks.commit();
      } });
    const toggle = (label, key) => element("label", {}, element("input", { type: "checkbox", checked: this[key] ? "" : null,
      onchange: (event) => { this[key] = event.target.checked; this.develop(); this.draw(); } }), label);
    this.root = element("div", { class: "tv-pane" },
      element("div", { class: "tv-row" }, element("strong", {}, film.title), "next:", this.chooser, this.slots,
        element("span", { class: "tv-right" }, button("+", `zoom in on ${film.title}`, () => this.zoom(1.25)),
          button("−", `zoom out of ${film.title}`, () => this.zoom(0.8)),
          button("fit", `show all of ${film.title}`, () => this.fit()))),
      this.stage,
      element("div", { class: "tv-row" }, slider("brightness", "centre"), slider("contrast window", "width"), toggle("local contrast", "local"), toggle("invert", "inverted"), element("label", {}, "ruler", this.length, "mm")));
    this.listen();
    this.load();
    this.observer = new ResizeObserver(() => (this.fitted ? this.draw() : this.fit()));
    this.observer.observe(this.stage);
  }

  async load() {
    const bytes = this.film.png;
    const picture = await createImageBitmap(new Blob([bytes.buffer ? new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength) : bytes], { type: "image/png" }));
    this.developed = element("canvas", { width: picture.width, height: picture.height });
    const context = this.developed.getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, 0, 0);
    this.grey = context.getImageData(0, 0, picture.width, picture.height);
    this.develop();
    this.fit();
    this.stage.dataset.ready = "yes";
  }

  // Applies the chosen window of grey values to the picture that is drawn: red as the film is, green with local contrast.
  develop() {
    const table = new Uint8ClampedArray(256);
    for (let value = 0; value < 256; value++) {
      const shown = ((value - this.centre) / this.width + 0.5) * 255;
      table[value] = this.inverted ? 255 - shown : shown;
    }
    const context = this.developed.getContext("2d");
    const made = context.createImageData(this.grey.width, this.grey.height);
    const channel = this.local ? 1 : 0;
    for (let i = 0; i < made.data.length; i += 4) {
      made.data[i] = made.data[i + 1] = made.data[i + 2] = table[this.grey.data[i + channel]];
      made.data[i + 3] = 255;
    }
    context.putImageData(made, 0, 0);
  }

  // Screen pixels a film pixel: columns may be wider than rows are high.
  get pitch() { return [this.scale, this.scale * this.film.aspect]; }

  toScreen([row, column]) {
    const [down, across] = this.pitch;
    return [this.left + (column + 0.5) * across, this.top + (row + 0.5) * down];
  }

  toFilm([x, y]) {
    const [down, across] = this.pitch;
    return [(y - this.top) / down - 0.5, (x - this.left) / across - 0.5];
  }

  within([row, column]) {
    const clamp = (value, count) => Math.min(Math.max(value, -0.5), count - 0.5);
    return [clamp(row, this.film.rows), clamp(column, this.film.columns)];
  }

  at(event) {
    const box = this.stage.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  fit() {
    const { clientWidth: width, clientHeight: height } = this.stage;
    if (!width || !this.grey) return;
    this.fitted = true;
    this.scale = Math.min(width / (this.film.columns * this.film.aspect), height / this.film.rows);
    this.left = (width - this.film.columns * this.film.aspect * this.scale) / 2;
    this.top = (height - this.film.rows * this.scale) / 2;
    this.draw();
  }

  zoom(by, around = [this.stage.clientWidth / 2, this.stage.clientHeight / 2]) {
    const kept = this.toFilm(around);
    this.scale *= by;
    const [x, y] = this.toScreen(kept);
    this.left += around[0] - x;
    this.top += around[1] - y;
    this.draw();
  }

  pan(x, y) {
    this.left += x;
    this.top += y;
    this.draw();
  }

  listen() {
    this.stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 500), this.at(event));
    }, { passive: false });
    this.stage.addEventListener("pointerdown", (event) => {
      if (event.button > 1 || !this.grey) return;
      const [start, address] = [this.at(event), event.target.closest?.("[data-address]")?.dataset.address];
      this.held = { start, last: start, moved: false, address: address && event.button === 0 ? JSON.parse(address) : null, places: event.button === 0 };
      this.stage.setPointerCapture(event.pointerId);
    });
    this.stage.addEventListener("pointermove", (event) => {
      if (!this.held) return;
      const [x, y] = this.at(event);
      const { start, last, address } = this.held;
      if (!this.held.moved && Math.hypot(x - start[0], y - start[1]) < (address ? 1 : CLICK_PX)) return;
      this.held.moved = true;
      if (address) {
        // Relative to where the mark was gripped, so that it does not jump to the pointer.
        const from = this.toScreen(this.app.marks.get(this.viewName, address));
        this.app.marks.put(this.viewName, address, this.within(this.toFilm([from[0] + x - last[0], from[1] + y - last[1]])));
        this.app.marks.selected = [this.viewName, address];
        this.app.marks.drag();
      } else this.pan(x - last[0], y - last[1]);
      this.held.last = [x, y];
    });
    this.stage.addEventListener("pointerup", (event) => {
      const held = this.held;
      this.held = null;
      if (!held) return;
      if (held.address) {
        this.app.select(this.viewName, held.address);
        if (held.moved) this.app.marks.commit();
      } else if (!held.moved && held.places) this.place(this.toFilm(this.at(event)));
    });
    this.stage.addEventListener("pointercancel", () => (this.held = null));
    this.stage.addEventListener("keydown", (event) => this.press(event));
  }

  press(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const address = event.target.closest?.("[data-address]")?.dataset.address;
    if (step && address) {
      const [row, column] = this.app.marks.get(this.viewName, JSON.parse(address));
      const by = event.shiftKey ? 10 : 1;
      this.app.marks.put(this.viewName, JSON.parse(address), this.within([row + by * step[0], column + by * step[1]]));
      this.app.select(this.viewName, JSON.parse(address));
      this.app.marks.commit();
    } else if (address && (event.key === "Delete" || event.key === "Backspace")) this.app.remove();
    else if (step) this.pan(-40 * step[1], -40 * step[0]);
    else if (event.key === "+" || event.key === "-") this.zoom(event.key === "+" ? 1.25 : 0.8);
    else return;
    event.preventDefault();
  }

  // The address of the mark that the next click sets, or null if nothing is left.
  get due() {
    const parts = this.film.corners.filter((part) => !this.app.marks.get(this.viewName, ["corners", this.next, part]));
    const ends = this.film.ends.filter((end) => !this.app.marks.get(this.viewName, ["s1_endplate", end]));
    if (this.app.mode === "corners") return parts.length ? ["corners", this.next, parts[0]] : null;
    if (this.app.mode === "s1_endplate") return ends.length ? ["s1_endplate", ends[0]] : null;
    if (this.app.mode === "ruler") {
      const end = RULER.find((name) => !this.app.marks.get(this.viewName, ["ruler", name]));
      return end ? ["ruler", end] : null;
    }
    return this.app.marks.get(this.viewName, ["centroids", this.next]) ? null : ["centroids", this.next];
  }

  place(pixel) {
    const due = this.due;
    const { rows, columns } = this.film;
    if (!due || pixel[0] < -0.5 || pixel[1] < -0.5 || pixel[0] > rows - 0.5 || pixel[1] > columns - 0.5) return;
    this.app.marks.put(this.viewName, due, pixel);
    this.app.marks.selected = [this.viewName, due];
    if (!this.due) this.advance();
    this.app.marks.commit();
  }

  // To the next level without the mark being set; T13 and L6 are chosen by hand.
  advance() {
    if (!this.app.byLevel) return;
    const order = this.app.names.filter((name) => name === this.next || !["T13", "L6"].includes(name));
    if (this.app.upwards) order.reverse();
    const rest = order.slice(order.indexOf(this.next) + 1);
    const before = this.next;
    this.next = rest.find((name) => ((this.next = name), this.due)) ?? before;
  }

  draw() {
    if (!this.grey || !this.fitted) return;
    const { clientWidth: width, clientHeight: height } = this.stage;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    const [down, across] = this.pitch;
    context.imageSmoothingEnabled = down * this.film.factor < 3;
    context.drawImage(this.developed, this.left, this.top, this.film.covered[1] * across, this.film.covered[0] * down);
    this.chooser.value = this.next;
    const due = this.due;
    this.slots.textContent = !due ? "marked" : due[0] === "centroids" ? "" : due.at(-1).replace("_", " ");
    this.chooser.disabled = !this.app.byLevel;
    this.overlay.replaceChildren(...this.lines(), ...this.symbols(),
      element("text", { x: 8, y: height / 2, class: "tv-side" }, this.film.sides[0]),
      element("text", { x: width - 8, y: height / 2, class: "tv-side", "text-anchor": "end" }, this.film.sides[1]));
  }

  // The other film's vertebrae as lines at their height.
  *lines() {
    const { selected } = this.app.marks;
    for (const [name, ends] of Object.entries(this.app.feedback.lines?.[this.viewName] ?? {})) {
      const wanted = name === this.next || (selected && selected[1][1] === name);
      if (!wanted && this.app.marks.get(this.viewName, ["centroids", name])) continue;
      const [[x1, y1], [x2, y2]] = ends.map((end) => this.toScreen(end));
      yield element("line", { x1, y1, x2, y2, "data-level": name, class: wanted ? "tv-line tv-wanted" : "tv-line" });
      const x = Math.max(x1, 0) + 5;
      yield element("text", { x, y: y1 + ((y2 - y1) * (x - x1)) / (x2 - x1) - 4, class: "tv-linename" }, name);
    }
  }

  *symbols() {
    const { feedback, marks } = this.app;
    for (const [address, pixel] of marks.all(this.viewName)) {
      const [kind, name, part] = address;
      const [x, y] = this.toScreen(pixel);
      const chosen = marks.selected && marks.selected[0] === this.viewName && String(marks.selected[1]) === String(address);
      const mm = kind === "centroids" ? feedback.residuals?.[name] : undefined;
      const guess = kind === "centroids" && (marks.marks[this.viewName].proposed ?? []).includes(name);
      const verdict = this.app.verdict(mm);
      let text = part ? "" : kind === "s1_endplate" ? `S1 ${name}` : kind === "ruler" ? "ruler" : name;
      if (mm !== undefined && !guess) text += ` ${mm.toFixed(1)} mm`;
      if (guess) text += ` proposed${feedback.errors?.[this.viewName]?.[name] ? ` ±${feedback.errors[this.viewName][name].toFixed(0)} mm` : ""}`;
      const shapes = {
        near: element("circle", { r: 5.5 }), alone: element("circle", { r: 5.5 }),
        apart: element("path", { d: "M0,-8 L8,6 L-8,6 Z" }), wrong: element("path", { d: "M-6,-6 H6 V6 H-6 Z" }),
      };
      const shape = kind === "centroids" ? shapes[verdict] : element("path", { d: "M-5,0 H5 M0,-5 V5" });
      yield element("g", {
        class: `tv-mark tv-${verdict}${chosen ? " tv-chosen" : ""}${guess ? " tv-guess" : ""}`, tabindex: 0, role: "button",
        transform: `translate(${x},${y})`, "data-address": JSON.stringify(address), "data-pixel": JSON.stringify(pixel),
        "aria-label": `${this.film.title}: ${part ? `${name} ${part.replace("_", " ")}` : text}, row ${pixel[0].toFixed(0)}, column ${pixel[1].toFixed(0)}`,
        onfocus: () => this.app.select(this.viewName, address, false),
      }, element("circle", { r: 12, class: "tv-grip" }), shape, element("circle", { r: 0.8, class: "tv-dot" }), element("text", { x: 11, y: 4 }, text));
    }
  }
}

class App {
  constructor(model, el) {
    Object.assign(this, { model, names: model.get("level_names"), mode: "centroids", upwards: false, feedback: model.get("feedback") });
    this.marks = new Marks(model, this.names, () => this.draw());
    this.panes = model.get("films").map((film) => new Pane(this, film));
    const send = (command) => () => { this.marks.send(); model.send({ command }); };
    this.undo = button("↶ undo", "undo the last change", () => this.marks.step(-1));
    this.redo = button("↷ redo", "redo the undone change", () => this.marks.step(1));
    this.rename = chooser("rename the chosen mark", [["", "rename to"], ...this.names.map((name) => [name, name])], (name) => this.renameTo(name));
    this.dropper = button("✕ delete", "delete the chosen mark", () => this.remove());
    this.chosen = element("span", { class: "tv-slot" });
    this.path = element("input", { type: "text", "aria-label": "file of the landmarks", value: model.get("path"), size: 26,
      onchange: () => { model.set("path", this.path.value); model.save_changes(); } });
    this.table = element("tbody");
    this.instruction = element("div", { class: "tv-instruction" });
    this.message = element("div", { class: "tv-message", role: "status", "aria-live": "polite" });
    this.root = element("div", { class: "tv-annotator", "data-lm-suppress-shortcuts": "true", style: `--tv-height: ${model.get("height")}px` },
      element("div", { class: "tv-row" },
        chooser("what a click marks", Object.entries(MODES), (mode) => { this.mode = mode; this.draw(); }),
        chooser("order of the levels", [["down", "head to feet"], ["up", "feet to head"]], (way) => (this.upwards = way === "up")),
        this.undo, this.redo, this.chosen, this.rename, this.dropper,
        button("fill in", "propose the vertebrae between the clicked ones", send("fill")),
        button("accept", "confirm all that is proposed", () => this.accept()),
        button("check", "check the landmarks", send("check")),
        element("span", { class: "tv-right" }, this.path, button("save", "save to the file", send("save")), button("load", "load the file", send("load")))),
      this.instruction,
      this.message,
      element("div", { class: "tv-films" }, ...this.panes.map((pane) => pane.root),
        element("div", { class: "tv-list" }, element("table", {}, element("thead", {}, element("tr", {}, ...["level", "AP", "lateral", "rays apart"].map((title) => element("th", {}, title)))), this.table))));
    // Keep the notebook's own shortcuts from acting here.
    this.root.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.target.tagName === "INPUT" || !(event.ctrlKey || event.metaKey)) return;
      const key = event.key.toLowerCase();
      if (key === "z" || key === "y") {
        event.preventDefault();
        this.marks.step(key === "y" || event.shiftKey ? 1 : -1);
      }
    });
    el.append(this.root);
    this.listeners = {
      "change:feedback": () => { this.feedback = model.get("feedback"); this.draw(); },
      "change:instruction": () => (this.instruction.textContent = model.get("instruction")),
      "change:message": () => (this.message.textContent = model.get("message")),
      "change:path": () => (this.path.value = model.get("path")),
    };
    for (const [name, listener] of Object.entries(this.listeners)) model.on(name, listener);
    this.instruction.textContent = model.get("instruction");
    this.message.textContent = model.get("message");
    this.draw();
  }

  get byLevel() { return ["centroids", "corners"].includes(this.mode); }

  verdict(mm) {
    const [fair, most] = this.model.get("limits_mm");
    return mm === undefined ? "alone" : mm <= fair ? "near" : mm <= most ? "apart" : "wrong";
  }

  select(viewName, address, redraw = true) {
    this.marks.selected = [viewName, address];
    if (redraw) this.draw();
    else this.tell();
  }

  remove() {
    if (!this.marks.selected) return;
    this.marks.put(...this.marks.selected, null);
    this.marks.selected = null;
    this.marks.commit();
  }

  // Renames a level's mark, or all its corners; the two are exchanged if the new name is taken.
  renameTo(name) {
    const [viewName, [kind, old]] = this.marks.selected ?? [null, []];
    this.rename.value = "";
    if (!viewName || !name || !["centroids", "corners"].includes(kind) || name === old) return;
    const held = this.marks.marks[viewName][kind];
    const taken = held[name];
    held[name] = held[old];
    if (taken) held[old] = taken;
    else delete held[old];
    if (kind === "centroids") { this.marks.confirm(viewName, old); this.marks.confirm(viewName, name); }
    this.marks.selected = [viewName, [kind, name, ...this.marks.selected[1].slice(2)]];
    this.marks.commit();
  }

  accept() {
    for (const viewName of VIEWS) this.marks.marks[viewName].proposed = [];
    this.marks.commit();
  }

  draw() {
    // Redrawing takes the focus from a mark: restore it, so that arrow keys keep moving it.
    const focused = document.activeElement?.dataset?.address;
    const held = this.panes.find((pane) => pane.stage.contains(document.activeElement));
    for (const pane of this.panes) pane.draw();
    if (focused && held) (held.overlay.querySelector(`[data-address='${focused}']`) ?? held.stage).focus({ preventScroll: true });
    this.tell();
  }

  tell() {
    const { selected, marks, history, place } = this.marks;
    this.chosen.textContent = selected ? `chosen: ${selected[1].slice(1).join(" ").replace("_", " ")}` : "";
    // Not `disabled`, which would take the keyboard focus away.
    const off = (control, is) => control.setAttribute("aria-disabled", String(is));
    off(this.undo, place === 0);
    off(this.redo, place === history.length - 1);
    off(this.dropper, !selected);
    off(this.rename, !selected);
    const words = { near: "✓ ", apart: "▲ ", wrong: "■ ", alone: "" };
    this.table.replaceChildren(...this.names.filter((name) => VIEWS.some((viewName) => marks[viewName].centroids?.[name])).map((name) => {
      const mm = this.feedback.residuals?.[name];
      const verdict = this.verdict(mm);
      const state = (viewName) => !marks[viewName].centroids?.[name] ? "–" : (marks[viewName].proposed ?? []).includes(name) ? "?" : "●";
      return element("tr", { class: `tv-${verdict}`, "data-level": name }, element("th", { scope: "row" }, name),
        ...VIEWS.map((viewName) => element("td", {}, state(viewName))),
        element("td", {}, mm === undefined ? "" : `${words[verdict]}${mm.toFixed(1)} mm`));
    }));
  }

  close() {
    this.model.off("change:marks", this.marks.listener);
    for (const [name, listener] of Object.entries(this.listeners)) this.model.off(name, listener);
    for (const pane of this.panes) pane.observer.disconnect();
  }
}

export default {
  render({ model, el }) {
    const app = new App(model, el);
    return () => app.close();
  },
};
