// Hands on the robot: keys, pads, gamepad and phone. Whatever is not held does not count.

const PAIRS = { x: ["w", "s"], y: ["a", "d"], z: ["r", "f"], yaw: ["q", "e"], roll: ["u", "j"], pitch: ["i", "k"] };
const MORE = [["o", "l"], ["n", "m"], ["t", "y"]];
const CARTESIAN = /^([a-z]+_)?d(x|y|z|roll|pitch|yaw)_(m|rad)$/;
const DELTA = /^([a-z0-9_]+)_delta_(m|rad)$/;
const HAND = /^([a-z0-9_]+_)?gripper$/;
const GRIPPER_KEYS = ["g", "h"];
const DEAD_BAND = 0.12;
const TILT_FULL_DEG = 30;
const GAMEPAD_CLUTCH = 5;

// How the elements of an action are driven: groups (one arm each) of axes with their keys, and toggles.
export function layOut(names) {
  const groups = new Map();
  const toggles = [];
  for (const name of names) {
    const cartesian = CARTESIAN.exec(name);
    const delta = DELTA.exec(name);
    if (!cartesian && !delta) {
      if (HAND.test(name)) toggles.push(name); // other absolute elements would jump
      continue;
    }
    const key = cartesian ? (cartesian[1] || "").replace(/_$/, "") : "";
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push({ name, axis: cartesian ? cartesian[2] : null });
  }
  const plain = groups.get("") || [];
  if (groups.size > 1 && plain.length) { // what belongs to no arm goes with every arm
    groups.delete("");
    for (const axes of groups.values()) axes.push(...plain);
  }
  for (const axes of groups.values()) {
    let free = 0;
    const used = new Set(axes.filter((one) => one.axis).map((one) => one.axis));
    const spare = [...Object.keys(PAIRS).filter((axis) => !used.has(axis)).map((axis) => PAIRS[axis]), ...MORE];
    for (const one of axes) one.keys = one.axis ? PAIRS[one.axis] : spare[free++] || null;
  }
  return {
    groups: [...groups].map(([title, axes]) => ({ title, axes })),
    toggles: toggles.map((name, i) => ({ name, key: GRIPPER_KEYS[i] || null })),
  };
}

const spoken = (name) => name.replace(/(^|_)d(x|y|z|roll|pitch|yaw)_/, "$1$2_").replace(/_(m|rad)$/, "").replace(/_delta$/, "").replaceAll("_", " ");

export class Inputs {
  // act(word): one-time actions by key. speed(): 0 to 1.
  constructor(desk, act, speed, changed) {
    this.desk = desk;
    this.act = act;
    this.changed = changed;
    this.speed = speed;
    this.held = new Set();
    this.pads = new Map();
    this.toggled = new Map();
    this.pulse = new Map();
    this.rewinding = false;
    this.group = 0;
    this.plan = { groups: [], toggles: [] };
    this.enabled = false;
    window.addEventListener("keydown", (event) => {
      this.down(event);
      if (!event.repeat) this.changed();
    });
    window.addEventListener("keyup", (event) => {
      this.held.delete(event.key.toLowerCase());
      if (event.key.toLowerCase() === "b") this.rewinding = false;
      this.changed();
    });
    for (const name of ["blur", "pagehide"]) window.addEventListener(name, () => this.release());
    document.addEventListener("visibilitychange", () => document.hidden && this.release());
    document.addEventListener("focusin", (event) => isText(event.target) && this.release());
    for (const id of ["a", "b"]) this.listenPad(id);
    this.listenHold(document.getElementById("rewind"));
  }

  // Nothing is held any more.
  release() {
    this.held.clear();
    this.pads.clear();
    this.pulse.clear();
    this.rewinding = false;
    this.tilt = null;
    for (const pad of document.querySelectorAll(".pad")) moveKnob(pad, 0, 0);
    for (const button of document.querySelectorAll(".held")) button.classList.remove("held");
  }

  begin(names) {
    this.plan = layOut(names);
    this.group = 0;
    this.toggled.clear();
    this.release();
    this.describe();
  }

  get axes() {
    const group = this.plan.groups[this.group];
    return group ? group.axes : [];
  }

  axis(kind, fallback) {
    return this.axes.find((one) => one.axis === kind) || this.axes.filter((one) => !one.axis)[fallback] || null;
  }

  describe() {
    const keys = document.getElementById("keys");
    keys.replaceChildren();
    const say = (key, text) => {
      const span = document.createElement("span");
      const bold = document.createElement("b");
      bold.textContent = key;
      span.append(bold, ` ${text}`);
      keys.append(span);
    };
    for (const one of this.axes) if (one.keys) say(one.keys.join(" ").toUpperCase(), spoken(one.name));
    for (const one of this.plan.toggles) if (one.key) say(one.key.toUpperCase(), spoken(one.name));
    say("Shift", "fine");
    if (this.plan.groups.length > 1) say("0", "other arm");
    say("Esc", "E-stop");
    const name = (one) => (one ? spoken(one.name) : "-");
    const [x, y, z, yaw] = [this.axis("x", 0), this.axis("y", 1), this.axis("z", 2), this.axis("yaw", 3)];
    document.querySelector("#pad-a .pad-name").textContent = `${name(x)} up · ${name(y)} left`;
    document.querySelector("#pad-b .pad-name").textContent = `${name(z)} up · ${name(yaw)} left`;
    this.extras();
  }

  extras() {
    const place = document.getElementById("extras");
    place.replaceChildren();
    for (const { name } of this.plan.toggles) {
      const button = makeButton(`${spoken(name)}`, () => this.toggle(name));
      button.dataset.toggle = name;
      place.append(button);
    }
    if (this.plan.groups.length > 1) {
      const title = this.plan.groups[this.group].title || "first";
      place.append(makeButton(`arm: ${title}`, () => this.nextGroup()));
    }
    if (window.DeviceOrientationEvent && matchMedia("(pointer: coarse)").matches) {
      const tilt = makeButton("Tilt: hold and lean", () => {});
      holdable(tilt, () => this.beginTilt(), () => { this.tilt = null; });
      place.append(tilt);
    }
    place.hidden = !place.children.length;
  }

  nextGroup() {
    this.release();
    this.group = (this.group + 1) % this.plan.groups.length;
    this.describe();
  }

  // Open or close: the new value is sent for a moment, and stays until the next one.
  toggle(name) {
    this.toggled.set(name, this.toggled.get(name) === 1 ? -1 : 1);
    this.pulse.set(name, performance.now() + 400);
  }

  down(event) {
    if (event.key === "Escape") {
      this.act("stop");
      return;
    }
    if (!this.enabled || isText(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    if (key === " " || key === "enter") event.preventDefault();
    if (event.repeat) return;
    const acts = { " ": "pause", enter: event.shiftKey ? "finish" : "resume", x: "recover", c: "correct", 1: "success", 2: "failure", 3: "reset", 4: "discard" };
    if (acts[key]) {
      if (key === " ") this.release();
      this.act(acts[key]);
    } else if (key === "b") {
      this.rewinding = true;
    } else if (key === "0" && this.plan.groups.length > 1) {
      this.nextGroup();
    } else {
      const toggle = this.plan.toggles.find((one) => one.key === key);
      if (toggle) this.toggle(toggle.name);
      else this.held.add(key);
    }
  }

  listenPad(id) {
    const pad = document.getElementById(`pad-${id}`);
    const move = (event) => {
      const box = pad.getBoundingClientRect();
      const half = Math.min(box.width, box.height) / 2 - 12;
      const clip = (value) => Math.max(-1, Math.min(1, value / half));
      const [x, y] = [clip(event.clientX - box.left - box.width / 2), clip(event.clientY - box.top - box.height / 2)];
      this.pads.set(id, [x, y]);
      moveKnob(pad, x * half, y * half);
    };
    const end = () => {
      this.pads.delete(id);
      moveKnob(pad, 0, 0);
    };
    pad.addEventListener("pointerdown", (event) => {
      if (!this.enabled) return;
      pad.setPointerCapture(event.pointerId);
      move(event);
    });
    pad.addEventListener("pointermove", (event) => this.pads.has(id) && move(event));
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) pad.addEventListener(name, end);
    pad.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  listenHold(button) {
    holdable(button, () => { if (this.enabled) this.rewinding = true; }, () => { this.rewinding = false; });
  }

  async beginTilt() {
    const ask = window.DeviceOrientationEvent.requestPermission;
    if (ask && (await ask.call(window.DeviceOrientationEvent)) !== "granted") return;
    this.tilt = { zero: null, now: null };
    if (this.listensTilt) return;
    this.listensTilt = true;
    window.addEventListener("deviceorientation", (event) => {
      if (!this.tilt || event.beta === null) return;
      this.tilt.zero = this.tilt.zero || [event.beta, event.gamma];
      this.tilt.now = [event.beta, event.gamma];
    });
  }

  gamepad(moves) {
    const pad = (navigator.getGamepads ? [...navigator.getGamepads()] : []).find((one) => one && one.connected);
    if (!pad || !pad.buttons[GAMEPAD_CLUTCH] || !pad.buttons[GAMEPAD_CLUTCH].pressed) return false;
    const value = (i) => (Math.abs(pad.axes[i] || 0) > DEAD_BAND ? -pad.axes[i] : 0);
    add(moves, this.axis("y", 1), value(0));
    add(moves, this.axis("x", 0), value(1));
    add(moves, this.axis("yaw", 3), value(2));
    add(moves, this.axis("z", 2), value(3));
    return true;
  }

  // What is held now: {rewind: true}, {moves} or null.
  now() {
    if (!this.enabled) return null;
    if (this.rewinding) return { rewind: true };
    const moves = new Map();
    let driving = this.gamepad(moves);
    for (const one of this.axes) {
      if (!one.keys) continue;
      const value = Number(this.held.has(one.keys[0])) - Number(this.held.has(one.keys[1]));
      if (this.held.has(one.keys[0]) || this.held.has(one.keys[1])) driving = true;
      add(moves, one, value);
    }
    const [a, b] = [this.pads.get("a"), this.pads.get("b")];
    if (a) { add(moves, this.axis("x", 0), -a[1]); add(moves, this.axis("y", 1), -a[0]); }
    if (b) { add(moves, this.axis("z", 2), -b[1]); add(moves, this.axis("yaw", 3), -b[0]); }
    if (this.tilt && this.tilt.now) {
      add(moves, this.axis("x", 0), -(this.tilt.now[0] - this.tilt.zero[0]) / TILT_FULL_DEG);
      add(moves, this.axis("y", 1), -(this.tilt.now[1] - this.tilt.zero[1]) / TILT_FULL_DEG);
    }
    driving = driving || Boolean(a || b || this.tilt);
    const scale = this.speed() * (this.held.has("shift") ? 0.2 : 1);
    const wanted = {};
    for (const [name, value] of moves) wanted[name] = Math.max(-1, Math.min(1, value)) * scale;
    for (const [name, untilMs] of this.pulse) {
      if (performance.now() > untilMs) this.pulse.delete(name);
      driving = true;
    }
    if (!driving) return null;
    for (const [name, value] of this.toggled) wanted[name] = value;
    return { moves: wanted };
  }
}

function add(moves, axis, value) {
  if (axis && value) moves.set(axis.name, (moves.get(axis.name) || 0) + value);
}

function moveKnob(pad, x, y) {
  pad.querySelector(".knob").style.transform = `translate(${x}px, ${y}px)`;
}

function isText(target) {
  return target instanceof HTMLInputElement && target.type !== "range";
}

function makeButton(text, click) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "button";
  button.textContent = text;
  button.addEventListener("click", click);
  return button;
}

function holdable(button, begin, end) {
  button.addEventListener("pointerdown", (event) => {
    if (button.disabled) return;
    button.setPointerCapture(event.pointerId);
    button.classList.add("held");
    begin();
  });
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
    button.addEventListener(name, () => {
      button.classList.remove("held");
      end();
    });
  }
  button.addEventListener("contextmenu", (event) => event.preventDefault());
}
