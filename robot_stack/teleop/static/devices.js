// Input devices of the teleop server's host: which one drives, how it is, and the dead man's switch of those without one.

const KEYS = "";
const SWITCH_MS = 300;
const SWITCH_KEY = "v";

const byId = (id) => document.getElementById(id);

export class Devices {
  // choose(device): the person wants it, "" for the page's keys. hold(ms): the switch is held for so long from now; 0 lets go.
  constructor(choose, hold) {
    this.hold = hold;
    this.held = false;
    this.mine = false;
    this.needed = false;
    byId("device").addEventListener("change", () => {
      choose(byId("device").value);
      byId("device").blur(); // the next key drives, and chooses no other device
    });
    const button = byId("switch");
    button.addEventListener("pointerdown", (event) => {
      if (button.disabled) return;
      button.setPointerCapture(event.pointerId);
      this.press();
    });
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) button.addEventListener(name, () => this.release());
    button.addEventListener("contextmenu", (event) => event.preventDefault());
    window.addEventListener("keydown", (event) => this.key(event) && !event.repeat && this.press());
    window.addEventListener("keyup", (event) => event.key.toLowerCase() === SWITCH_KEY && this.release());
    for (const name of ["blur", "pagehide"]) window.addEventListener(name, () => this.release());
    document.addEventListener("visibilitychange", () => document.hidden && this.release());
  }

  key(event) {
    const text = event.target instanceof HTMLInputElement && event.target.type !== "range";
    return event.key.toLowerCase() === SWITCH_KEY && !text && !event.ctrlKey && !event.metaKey && !event.altKey;
  }

  press() {
    if (!this.mine || !this.needed) return;
    this.held = true;
    byId("switch").classList.add("held");
    this.hold(SWITCH_MS);
  }

  release() {
    if (this.held) this.hold(0);
    this.held = false;
    byId("switch").classList.remove("held");
  }

  // Thirty times a second.
  beat() {
    if (this.held) this.hold(SWITCH_MS);
  }

  // The device that drives this robot, or "".
  show(devices, robot, mine) {
    this.mine = mine;
    byId("devices").hidden = !devices.length;
    const used = devices.find((one) => one.robot === robot);
    const key = JSON.stringify(devices.map((one) => [one.name, one.state, one.robot]));
    const select = byId("device");
    if (select.dataset.shown !== key && document.activeElement !== select) {
      select.dataset.shown = key;
      select.replaceChildren(option(KEYS, "this page's keys, pads and gamepad"), ...devices.map((one) => option(one.name, title(one, robot))));
    }
    if (document.activeElement !== select) select.value = used ? used.name : KEYS;
    select.disabled = !mine;
    this.needed = Boolean(used && used.needs_switch);
    byId("switch").hidden = !this.needed;
    byId("switch").disabled = !mine;
    if (!mine || !this.needed) this.release();
    const words = byId("device-words");
    const text = used ? tell(used) : "";
    if (words.textContent !== text) words.textContent = text;
    words.dataset.state = used ? used.state : "";
    return used ? used.name : "";
  }
}

function option(value, text) {
  const one = document.createElement("option");
  one.value = value;
  one.textContent = text;
  return one;
}

function title(device, robot) {
  const other = device.robot && device.robot !== robot ? ` · drives ${device.robot}` : "";
  return `${device.name} · ${device.state}${other}`;
}

function tell(device) {
  if (device.state === "gone") return `${device.name} is gone: ${device.problem}`;
  const silent = device.silent_ms > 1000 ? ` It has said nothing for ${Math.round(device.silent_ms / 1000)} s.` : "";
  if (device.state === "engaged") return `The robot follows ${device.name}.`;
  return `${device.name} is ready: ${device.needs_switch ? "hold V, or the button, and move it" : "hold it, to move"}.${silent}`;
}
