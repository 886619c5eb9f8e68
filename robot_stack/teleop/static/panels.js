// What the page says of the robot, in words and colour.

const PHASES = {
  between: ["Between episodes", "no episode is running"],
  autonomous: ["Policy drives", "a person may take over at any time"],
  paused: ["Paused", "the robot stands still; nothing is recorded"],
  recovering: ["Recovering", "a person drives back to a state that the policy knows"],
  correcting: ["Correcting", "a person drives on with the task"],
};

const byId = (id) => document.getElementById(id);
const put = (element, text) => { if (element.textContent !== text) element.textContent = text; };

export function showBanner(state, live) {
  const banner = byId("banner");
  const seat = state && state.seat;
  const away = !live ? "No connection" : !state || !seat || state.seat_problem ? "Edge is away" : "";
  const fault = state && state.body && (state.body.lifecycle === "fault" || state.body.fault);
  const [title, words] = away ? [away, ""] : PHASES[seat.phase] || [seat.phase, ""];
  banner.dataset.phase = away ? "away" : fault ? "fault" : seat.phase;
  put(byId("phase"), title);
  let note = away ? (live ? (state && state.seat_problem) || "waiting for its first message" : "the robot stands still; trying again") : words;
  if (!away && seat.waits_for_scene && seat.phase === "between") note = "waits until somebody says that the scene is ready";
  if (!away && seat.phase === "autonomous" && seat.familiarity >= 0) note = `familiarity ${seat.familiarity.toFixed(2)} (1 is the edge of what the policy knows)`;
  if (!away && seat.instruction) note = `"${seat.instruction}" · ${note}`;
  put(byId("phase-note"), note);
  showSafety(state, live);
}

function showSafety(state, live) {
  const body = state && state.body;
  let [level, text, note] = ["good", "Robot active", ""];
  if (!live || !body || state.body_problem) [level, text, note] = ["bad", "Robot unknown", (state && state.body_problem) || ""];
  else if (body.lifecycle === "fault" || body.fault) [level, text, note] = ["bad", "Fault", `${body.fault}. A person clears it at the robot: robot-stack operate clear-fault`];
  else if (body.stopping) [level, text, note] = ["warn", "Stopping", "no command is followed until it rests"];
  else if (body.lifecycle !== "active") [level, text, note] = ["warn", `Robot ${body.lifecycle}`, "not armed"];
  else if (body.held_back) [level, text, note] = ["warn", "Held back", `by ${body.held_back.replaceAll("_", " ")}`];
  else if (state.seat && state.seat.verdict && state.seat.verdict !== "accepted") [level, text, note] = ["warn", `Action ${state.seat.verdict}`, state.seat.verdict_reason];
  const safety = byId("safety");
  safety.dataset.level = level;
  put(safety, text);
  put(byId("safety-note"), note);
}

export function showControl(state, me, handlers) {
  const { control, seat } = state;
  const mine = control.page === me.page;
  const elsewhere = control.page < 0 && seat && seat.holder;
  const take = byId("take");
  const canCommand = me.role !== "viewer";
  put(byId("holder"), mine ? "You have control" : control.user ? `${control.user} has control` : elsewhere ? `${seat.holder} has control, at another server` : "Nobody has control");
  const taken = !mine && control.page >= 0 && control.user !== me.user;
  put(take, mine ? "Give control back" : taken || elsewhere ? (me.role === "admin" ? "Take by force" : "Ask for control") : "Take control");
  take.disabled = !canCommand || (elsewhere && me.role !== "admin");
  take.title = canCommand ? "" : "a viewer cannot command";
  take.dataset.does = mine ? "leave" : taken || elsewhere ? (me.role === "admin" ? "force" : "ask") : "take";
  const askers = byId("askers");
  const wanted = mine ? control.askers.map((one) => `${one.page}:${one.user}`).join() : "";
  if (askers.dataset.shown !== wanted) {
    askers.dataset.shown = wanted;
    askers.replaceChildren();
    for (const one of mine ? control.askers : []) {
      const row = document.createElement("div");
      row.className = "asker";
      const words = document.createElement("span");
      words.textContent = `${one.user} asks for control`;
      const button = document.createElement("button");
      button.className = "button";
      button.type = "button";
      button.textContent = "Give it";
      button.addEventListener("click", () => handlers.grant(one.page));
      row.append(words, button);
      askers.append(row);
    }
  }
  return mine;
}

export function showRewind(state, info) {
  const { seat } = state;
  const slider = byId("rewind-to");
  const words = byId("rewind-words");
  if (!seat || !info) return;
  if (!info.rewinds) {
    put(words, "This robot cannot be driven back by itself: recover by hand.");
    return;
  }
  if (Number(slider.max) !== seat.index) slider.max = String(seat.index);
  const chosen = Number(slider.value);
  const target = chosen >= 0 ? chosen : seat.rewind_to;
  put(byId("rewind-to-out"), chosen >= 0 ? `step ${chosen}` : "suggested");
  let text = target >= 0 ? `Rewinding leads to step ${target}; the robot is at step ${seat.index}` : "There is no way back yet";
  if (chosen < 0 && target >= 0 && seat.best_familiarity >= 0) text += `. Familiarity there ${seat.best_familiarity.toFixed(2)}`;
  put(words, `${text}.`);
}

const ms = (value, digits = 0) => (value === undefined || value === null || value < 0 ? "–" : `${value.toFixed(digits)} ms`);
const bytes = (value) => (value < 0 ? "–" : value >= 1e9 ? `${(value / 1e9).toFixed(1)} GB` : `${(value / 1e6).toFixed(1)} MB`);
const count = (value) => (value < 0 ? "–" : value.toLocaleString("en"));
const level = (value, warn, bad) => (value > bad ? "bad" : value > warn ? "warn" : "");

export function showGauges(state, link, info) {
  if (state === null) {
    fill(byId("gauges"), []);
    return;
  }
  const { seat, status } = state;
  const period = info ? 1000 / info.spec.control_rate_hz : -1;
  const rows = [
    ["Control period", ms(status ? status.period_ms : period, 0)],
    ["  jitter, p99", ms(status ? status.jitter_ms : -1, 1), status ? level(status.jitter_ms, 10, 30) : ""],
    ["Observation age", ms(status ? status.observation_age_ms : -1), status ? level(status.observation_age_ms, 100, 250) : ""],
    ["Inference", status && status.inference_ms[0] >= 0 ? `${status.inference_ms[0].toFixed(0)} / ${status.inference_ms[1].toFixed(0)} ms` : "–"],
    ["Page ↔ server", ms(link.tripMs, 0), level(link.tripMs, 80, 200)],
    ["Server ↔ edge", ms(state.seat_trip_ms, 1), level(state.seat_trip_ms, 30, 100)],
    ["Edge ↔ robot", ms(seat ? seat.round_trip_ms : -1, 1)],
    ["Seat's state, age", ms(state.seat_age_ms), level(state.seat_age_ms, 300, 1000)],
    ["Weights version", seat ? count(seat.weights_version) : "–"],
    ["Steps by people", seat ? count(seat.person_steps) : "–"],
  ];
  if (status) {
    rows.push(
      ["Steps kept", count(status.steps_kept)],
      ["  not at the learner yet", count(status.steps_waiting)],
      ["  lost", count(status.steps_dropped), status.steps_dropped > 0 ? "bad" : ""],
      ["Spool", `${bytes(status.spool_bytes)} of ${bytes(status.spool_capacity_bytes)}`],
      ["Disk free", bytes(status.disk_free_bytes)],
    );
    for (const alarm of status.alarms) rows.push([alarm, null, "bad"]);
  }
  fill(byId("gauges"), rows);
}

export function showLearner(status) {
  const rows = status ? [["Updates", count(status.updates)], ["Newest weights", count(status.weights_version)]] : [["Nothing known of a learner", null]];
  fill(byId("learner"), rows);
  const place = byId("curves");
  const curves = status ? Object.entries(status.curves) : [];
  const key = JSON.stringify(curves);
  if (place.dataset.shown === key) return;
  place.dataset.shown = key;
  place.replaceChildren();
  for (const [title, values] of curves) place.append(curve(title, values));
}

function curve(title, values) {
  const box = document.createElement("div");
  box.className = "curve";
  const name = document.createElement("span");
  name.textContent = title;
  const last = document.createElement("b");
  last.textContent = values.length ? values[values.length - 1].toPrecision(3) : "";
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [560, 88];
  const context = canvas.getContext("2d");
  const [low, high] = [Math.min(...values), Math.max(...values)];
  context.beginPath();
  values.forEach((value, i) => {
    const x = 4 + (552 * i) / Math.max(1, values.length - 1);
    const y = 82 - (76 * (value - low)) / (high - low || 1);
    if (i) context.lineTo(x, y); else context.moveTo(x, y);
  });
  context.strokeStyle = "#4d9fff";
  context.lineWidth = 3;
  context.lineJoin = "round";
  context.stroke();
  box.append(name, last, canvas);
  return box;
}

function fill(list, rows) {
  const key = JSON.stringify(rows);
  if (list.dataset.shown === key) return;
  list.dataset.shown = key;
  list.replaceChildren();
  for (const [name, value, mark] of rows) {
    const term = document.createElement("dt");
    term.textContent = name.trim();
    if (name.startsWith(" ")) term.style.paddingLeft = "14px";
    if (value === null) {
      const whole = document.createElement("dd");
      whole.className = `whole ${mark || ""}`;
      whole.textContent = name;
      list.append(whole);
      continue;
    }
    const data = document.createElement("dd");
    data.textContent = value;
    data.className = mark || "";
    list.append(term, data);
  }
}

export function say(kind, text) {
  const toast = document.createElement("div");
  toast.className = `toast ${kind}`;
  toast.textContent = text;
  const toasts = byId("toasts");
  const same = [...toasts.children].find((one) => one.textContent === text);
  if (same) same.remove();
  toasts.append(toast);
  while (toasts.children.length > 4) toasts.firstChild.remove();
  setTimeout(() => toast.remove(), kind === "info" ? 4000 : 9000);
  const log = byId("log");
  const line = document.createElement("li");
  const time = document.createElement("time");
  time.textContent = new Date().toLocaleTimeString("en-GB");
  const words = document.createElement("span");
  words.className = kind;
  words.textContent = text;
  line.append(time, words);
  log.prepend(line);
  while (log.children.length > 100) log.lastChild.remove();
}
