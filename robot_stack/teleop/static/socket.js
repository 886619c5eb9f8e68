// One WebSocket to the teleop server: clock, reconnection, and numbers that never outlive a connection.

const PING_EVERY_MS = 1000;
const PINGS = 20;
const RETRY_MS = 1000;
export const CLOSED_LOGIN = [4401, 4403];

export class Link {
  // handlers: message(object), picture(ArrayBuffer), open(), closed(code, reason)
  constructor(handlers) {
    this.handlers = handlers;
    this.wanted = false;
    this.socket = null;
    this.tripMs = -1;
  }

  open() {
    this.wanted = true;
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/ws`);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.pings = [];
    this.seq = 0;
    socket.onopen = () => {
      this.handlers.open();
      this.ping();
      this.timer = setInterval(() => this.ping(), PING_EVERY_MS);
    };
    socket.onmessage = (event) => {
      if (socket !== this.socket) return;
      if (typeof event.data !== "string") {
        this.handlers.picture(event.data);
        return;
      }
      const message = JSON.parse(event.data);
      if (message.type === "pong") this.pong(message);
      else this.handlers.message(message);
    };
    socket.onclose = (event) => {
      if (socket !== this.socket) return;
      clearInterval(this.timer);
      this.socket = null;
      this.pings = [];
      this.handlers.closed(event.code, event.reason);
      if (this.wanted && !CLOSED_LOGIN.includes(event.code)) setTimeout(() => this.wanted && !this.socket && this.open(), RETRY_MS);
    };
  }

  close() {
    this.wanted = false;
    if (this.socket) this.socket.close();
  }

  get live() {
    return this.socket !== null && this.socket.readyState === WebSocket.OPEN;
  }

  send(message) {
    if (!this.live) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  ping() {
    this.send({ type: "ping", sent_us: performance.now() * 1000 });
  }

  pong(message) {
    const nowUs = performance.now() * 1000;
    const tripUs = nowUs - message.sent_us;
    this.tripMs = tripUs / 1000;
    this.pings.push({ tripUs, offsetUs: message.server_us - (nowUs + message.sent_us) / 2 });
    if (this.pings.length > PINGS) this.pings.shift();
  }

  // The server's clock now, by the ping with the shortest way; null before the first one.
  serverUs() {
    if (!this.pings || !this.pings.length) return null;
    const best = this.pings.reduce((a, b) => (b.tripUs < a.tripUs ? b : a));
    return performance.now() * 1000 + best.offsetUs;
  }

  // A drive counts until its deadline, whatever happens to this page. False if it could not be sent.
  drive(robot, intent, validMs, more = {}) {
    const nowUs = this.serverUs();
    if (nowUs === null || !this.live || this.socket.bufferedAmount > 4096) return false;
    this.seq += 1;
    return this.send({ type: "drive", robot, seq: this.seq, deadline_us: Math.round(nowUs + validMs * 1000), intent, ...more });
  }
}
