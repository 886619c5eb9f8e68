// The page: log-in, tabs, and the loop that sends what a person holds, thirty times a second.

import { Cameras } from "./cameras.js";
import { Devices } from "./devices.js";
import { Inputs } from "./inputs.js";
import { say, showBanner, showControl, showGauges, showLearner, showRewind } from "./panels.js";
import { Scene } from "./scene.js";
import { CLOSED_LOGIN, Link } from "./socket.js";

const AT_ONCE_MS = 12;
const SEND_EVERY_MS = 1000 / 30;
const VALID_MS = 300;
const ONCE_VALID_MS = 450;
const SILENT_MS = 1500;

const byId = (id) => document.getElementById(id);
const page = { me: null, robot: null, card: null, state: null, stateMs: 0, mode: "recover", driving: false, mine: false, device: "", label: "auto", refusal: ["", 0] };

const link = new Link({ message: take, picture: (buffer) => cameras.take(buffer, page.robot), open: opened, closed });
const cameras = new Cameras(byId("cameras"), (camera, number) => link.send({ type: "ack", camera, number }));
const scene = new Scene(byId("scene"));
const inputs = new Inputs(byId("desk"), act, () => Number(byId("speed").value) / 100, atOnce);
const devices = new Devices(useDevice, (ms) => {
  const untilUs = Math.round(link.serverUs()) + ms * 1000;
  link.send({ type: "switch", robot: page.robot, until_us: ms ? untilUs : 0 });
});

// ---- log-in -------------------------------------------------------------------------------------------------------

async function ask(path, body) {
  try {
    const answer = await fetch(path, body === undefined ? {} : { method: "POST", body: JSON.stringify(body), keepalive: true });
    return [answer.status, await answer.json()];
  } catch {
    return [0, { error: "the teleop server does not answer" }];
  }
}

function showLogin(problem) {
  link.close();
  inputs.release();
  byId("desk").hidden = true;
  byId("login").hidden = false;
  byId("login-problem").textContent = problem;
  byId("token").focus();
}

async function begin() {
  const [status, answer] = await ask("/api/who");
  if (status !== 200) {
    showLogin(answer.error || "");
    return;
  }
  byId("login").hidden = true;
  byId("desk").hidden = false;
  byId("who").textContent = answer.user === answer.role ? answer.user : `${answer.user} · ${answer.role}`;
  byId("stop").disabled = answer.role === "viewer";
  link.open();
}

byId("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [status, answer] = await ask("/api/login", { token: byId("token").value });
  if (status !== 200) {
    byId("login-problem").textContent = answer.error;
    return;
  }
  byId("token").value = "";
  byId("login-problem").textContent = "";
  begin();
});
byId("logout").addEventListener("click", async () => {
  await ask("/api/logout", {});
  showLogin("");
});

// ---- connection ---------------------------------------------------------------------------------------------------

function opened() {
  page.driving = false;
  byId("refusal").textContent = "";
}

function closed(code, reason) {
  forget();
  showBanner(null, false);
  if (CLOSED_LOGIN.includes(code)) showLogin(reason || "log in again");
  else say("error", reason || "The connection to the teleop server is lost. The robot stands still.");
}

// What was shown is not true any more, and nothing is held.
function forget() {
  page.state = null;
  page.mine = page.driving = false;
  inputs.enabled = false;
  inputs.release();
  page.device = devices.show([], page.robot, false);
  cameras.lost();
  byId("holder").textContent = "";
  byId("take").disabled = true;
  enableCommands(false);
}

function enableCommands(mine) {
  for (const id of ["pause", "resume", "finish", "success", "failure", "reset", "discard", "ready"]) byId(id).disabled = !mine;
  byId("rewind").disabled = !mine || !(page.card && page.card.info && page.card.info.rewinds);
  for (const pad of document.querySelectorAll(".pad")) pad.classList.toggle("off", !mine);
}

function watch(robot) {
  if (page.mine && page.robot !== robot) link.send({ type: "leave", robot: page.robot });
  forget();
  if (page.robot !== robot) {
    cameras.show([]);
    scene.begin(null);
    scene.show(new Map());
    showGauges(null, link, null);
    showLearner(null);
    page.refusal = ["", 0];
    refuse("");
    byId("episode").textContent = byId("rewind-words").textContent = "";
  }
  page.robot = robot;
  page.card = null;
  byId("stop-robot").textContent = robot;
  for (const tab of byId("tabs").children) tab.setAttribute("aria-selected", String(tab.textContent === robot));
  link.send({ type: "watch", robot });
  showBanner(null, true);
}

function take(message) {
  if (message.type === "state") takeState(message);
  else if (message.type === "card") takeCard(message);
  else if (message.type === "driven") refuse(message.refusal);
  else if (message.type === "welcome") welcome(message);
  else if (message.type === "expired") showLogin(message.text);
  else if (message.type === "notice") {
    say(message.level, message.text);
    if (message.level === "error") refuse(message.text);
  }
}

function welcome(message) {
  page.me = message;
  const tabs = byId("tabs");
  tabs.replaceChildren();
  for (const robot of message.robots) {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.textContent = robot;
    tab.addEventListener("click", () => robot !== page.robot && watch(robot));
    tabs.append(tab);
  }
  watch(message.robots.includes(page.robot) ? page.robot : message.robots[0]);
}

function takeCard(card) {
  if (card.robot !== page.robot) return;
  const first = page.card === null;
  page.card = card;
  cameras.show(card.cameras);
  if (first) link.send({ type: "watch", robot: card.robot, cameras: card.cameras });
  scene.begin(card.skeleton);
  if (card.info) inputs.begin(card.info.drivable);
  setMode(ownMode());
}

function takeState(state) {
  link.send({ type: "ack", number: state.number });
  if (state.robot !== page.robot) return;
  page.state = state;
  page.stateMs = performance.now();
  page.mine = showControl(state, page.me, { grant: (who) => link.send({ type: "grant", robot: page.robot, page: who }) });
  inputs.enabled = page.mine;
  page.device = devices.show(state.devices, page.robot, page.mine);
  showBanner(state, true);
  showEpisode(state.seat);
  showRewind(state, page.card && page.card.info);
  showGauges(state, link, page.card && page.card.info);
  showLearner(state.status);
  cameras.tell(state.cameras, link.serverUs());
  byId("stop-problem").textContent = state.stop_problem ? " It would not reach the robot now!" : "";
  byId("stop-problem").title = state.stop_problem;
  enableCommands(page.mine);
  if (!page.mine) page.driving = false;
  scene.show(named(state));
}

// Every named element of the newest state.
function named(state) {
  const values = new Map();
  const spec = page.card && page.card.info && page.card.info.spec;
  const features = (state.body && state.body.features) || (state.seat && state.seat.features) || {};
  if (!spec) return values;
  for (const [key, list] of Object.entries(features)) {
    const names = (spec.observation[key] || {}).names || [];
    names.forEach((name, i) => values.set(name, list[i]));
  }
  return values;
}

// ---- driving ------------------------------------------------------------------------------------------------------

function refuse(text) {
  const now = performance.now();
  if (text) page.refusal = [text, now];
  if (now - page.refusal[1] > 4000) page.refusal = ["", now];
  const [words] = page.refusal;
  if (byId("refusal").textContent !== words) byId("refusal").textContent = words;
}

function setMode(mode) {
  const changed = page.mode !== mode;
  page.mode = mode;
  byId("mode-recover").setAttribute("aria-pressed", String(mode === "recover"));
  byId("mode-correct").setAttribute("aria-pressed", String(mode === "correct"));
  if (changed && page.mine && page.device) useDevice(page.device);
}

function useDevice(device) {
  link.send({ type: "usedevice", robot: page.robot, device, intent: page.mode });
}

// Where an intervention has to begin with a recovery, driving by hand is one until the person says otherwise.
function ownMode() {
  const info = page.card && page.card.info;
  return info && info.rule !== "rac" ? "correct" : "recover";
}

function once(intent) {
  if (!page.mine) {
    refuse("take control first");
    return;
  }
  page.driving = false;
  inputs.release();
  if (!link.drive(page.robot, intent, ONCE_VALID_MS)) refuse("the connection is not ready");
}

// A key that was pressed or let go is not kept waiting for the next beat; no more often than the server takes it.
let soon = null, beatMs = 0;
function atOnce() {
  if (soon === null) soon = setTimeout(() => { soon = null; beat(); }, Math.max(0, beatMs + AT_ONCE_MS - performance.now()));
}

function beat() {
  beatMs = performance.now();
  refuse("");
  if (page.state && performance.now() - page.stateMs > SILENT_MS) {
    showBanner(null, false);
    cameras.lost();
  }
  if (!page.mine || !link.live) return;
  devices.beat();
  const held = inputs.now();
  if (held === null) {
    if (page.driving) link.drive(page.robot, "hold", VALID_MS);
    page.driving = false;
    return;
  }
  page.driving = true;
  if (held.rewind) {
    const more = { speed: Number(byId("rewind-speed").value) / 100, to_index: Number(byId("rewind-to").value) };
    link.drive(page.robot, "rewind", VALID_MS, more);
  } else {
    link.drive(page.robot, page.mode, VALID_MS, { moves: held.moves });
  }
}
setInterval(beat, SEND_EVERY_MS);

async function stop() {
  if (!page.robot || (page.me && page.me.role === "viewer")) return;
  inputs.release();
  link.send({ type: "stop", robot: page.robot });
  const [status, answer] = await ask("/api/stop", { robot: page.robot });
  if (status !== 200) say("error", `THE STOP DID NOT REACH ${page.robot}: ${answer.error}. Use the emergency stop on the robot`);
}
byId("stop").addEventListener("pointerdown", stop);
byId("stop").addEventListener("click", (event) => event.detail === 0 && stop()); // by the keyboard or a screen reader

// ---- episodes -----------------------------------------------------------------------------------------------------

function labelled(seat) {
  if (page.label === "last" || (page.label === "auto" && !(seat.episode && seat.phase !== "between"))) return seat.last_episode || seat.episode;
  return seat.episode || seat.last_episode;
}

function showEpisode(seat) {
  if (!seat) return;
  const running = seat.episode ? seat.episode.episode : null;
  if (running !== page.running) setMode(ownMode());
  page.running = running;
  const episode = labelled(seat);
  const same = (a, b) => a && b && a.episode === b.episode && a.session === b.session;
  const isLast = same(episode, seat.last_episode) && !(same(episode, seat.episode) && seat.phase !== "between");
  byId("label-last").setAttribute("aria-pressed", String(Boolean(isLast)));
  byId("label-running").setAttribute("aria-pressed", String(!isLast));
  byId("label-last").disabled = !seat.last_episode;
  const known = isLast ? (seat.last_success ? " · the task says success" : " · the task says no success") : ` · step ${seat.index} of ${seat.max_steps}`;
  byId("episode").textContent = episode ? `${episode.episode}${known}` : "";
  byId("ready").hidden = !seat.waits_for_scene;
  byId("label-last").textContent = seat.last_episode ? `Last: ${seat.last_episode.episode}` : "Last";
  byId("label-running").textContent = seat.episode && seat.phase !== "between" ? `Running: ${seat.episode.episode}` : "Running";
}

function label(more) {
  const episode = page.state && page.state.seat && labelled(page.state.seat);
  if (!page.mine) refuse("take control first");
  else if (!episode) refuse("there is no episode to label yet");
  else link.send({ type: "label", robot: page.robot, episode, ...more });
}

function act(word) {
  const acts = {
    stop,
    pause: () => once("hold"),
    resume: () => once("resume"),
    finish: () => once("finish"),
    recover: () => setMode("recover"),
    correct: () => setMode("correct"),
    success: () => label({ success: true }),
    failure: () => label({ success: false }),
    reset: () => label({ reset_needed: true }),
    discard: () => label({ discard: true }),
  };
  acts[word]();
}

for (const id of ["pause", "resume", "finish", "success", "failure", "reset", "discard"]) byId(id).addEventListener("click", () => act(id));
byId("mode-recover").addEventListener("click", () => setMode("recover"));
byId("mode-correct").addEventListener("click", () => setMode("correct"));
byId("label-running").addEventListener("click", () => { page.label = "running"; });
byId("label-last").addEventListener("click", () => { page.label = "last"; });
byId("ready").addEventListener("click", () => link.send({ type: "ready", robot: page.robot }));
byId("note-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (byId("note").value) label({ note: byId("note").value });
  byId("note").value = "";
  byId("note").blur();
});
byId("take").addEventListener("click", () => {
  const does = byId("take").dataset.does;
  const message = does === "force" ? { type: "take", force: true } : { type: does };
  link.send({ ...message, robot: page.robot });
});
for (const [id, out] of [["speed", "speed-out"], ["rewind-speed", "rewind-speed-out"]]) {
  byId(id).addEventListener("input", () => { byId(out).textContent = `${byId(id).value} %`; });
}
for (const button of document.querySelectorAll("button")) {
  button.addEventListener("click", () => button.blur()); // the next space bar is a pause, not this button again
}

// Read by tests and by people at the console.
window.teleop = { page, link, inputs, cameras, devices };
begin();
