// The robot in three dimensions on a plain canvas: frames of its links by forward kinematics, the goal, the tool's trail.

const TRAIL = 600;

function multiply(a, b) {
  const out = new Array(12);
  for (let row = 0; row < 3; row += 1) {
    for (let column = 0; column < 4; column += 1) {
      let sum = column === 3 ? a[row * 4 + 3] : 0;
      for (let k = 0; k < 3; k += 1) sum += a[row * 4 + k] * b[k * 4 + column];
      out[row * 4 + column] = sum;
    }
  }
  return out;
}

function pose([x, y, z], [roll, pitch, yaw]) {
  const [cr, sr, cp, sp, cy, sy] = [Math.cos(roll), Math.sin(roll), Math.cos(pitch), Math.sin(pitch), Math.cos(yaw), Math.sin(yaw)];
  return [
    cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr, x,
    sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr, y,
    -sp, cp * sr, cp * cr, z,
  ];
}

function turn([x, y, z], angle) {
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  const t = 1 - c;
  return [
    t * x * x + c, t * x * y - s * z, t * x * z + s * y, 0,
    t * x * y + s * z, t * y * y + c, t * y * z - s * x, 0,
    t * x * z - s * y, t * y * z + s * x, t * z * z + c, 0,
  ];
}

// Positions of the links' frames by name, for joint values by name.
export function forward(skeleton, values) {
  const frames = new Map([["", pose([0, 0, 0], [0, 0, 0])]]);
  for (const link of skeleton.links) {
    let frame = multiply(frames.get(link.parent) || frames.get(""), pose(link.origin_m, link.origin_rpy_rad));
    const value = values.get(link.joint) || 0;
    if (link.joint && link.slides) frame = multiply(frame, pose(link.axis.map((part) => part * value), [0, 0, 0]));
    else if (link.joint) frame = multiply(frame, turn(link.axis, value));
    frames.set(link.name, frame);
  }
  return frames;
}

const at = (frame) => [frame[3], frame[7], frame[11]];

export class Scene {
  constructor(canvas) {
    this.canvas = canvas;
    this.yaw = -2.2;
    this.pitch = 0.42;
    this.distance = 1.55;
    this.trail = [];
    this.skeleton = null;
    this.values = new Map();
    let last = null;
    canvas.addEventListener("pointerdown", (event) => {
      last = [event.clientX, event.clientY];
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      this.yaw -= (event.clientX - last[0]) * 0.008;
      this.pitch = Math.min(1.5, Math.max(-0.2, this.pitch + (event.clientY - last[1]) * 0.006));
      last = [event.clientX, event.clientY];
      this.draw();
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { last = null; });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.distance = Math.min(8, Math.max(0.5, this.distance * Math.exp(event.deltaY * 0.001)));
      this.draw();
    }, { passive: false });
  }

  begin(skeleton) {
    this.skeleton = skeleton;
    this.trail = [];
  }

  // values: every named element of the state.
  show(values) {
    this.values = values;
    const tool = this.tool();
    if (tool) {
      const before = this.trail[this.trail.length - 1];
      if (!before || Math.hypot(...tool.map((part, i) => part - before[i])) > 0.002) this.trail.push(tool);
      if (this.trail.length > TRAIL) this.trail.shift();
    }
    this.draw();
  }

  named(prefix, base = "") {
    const found = ["x_m", "y_m", "z_m"].map((axis) => this.values.get(`${base}${prefix}_${axis}`));
    return found.every((value) => value !== undefined) ? found : null;
  }

  tool() {
    const measured = this.named("tool");
    if (measured) return measured;
    if (!this.skeleton || !this.values.size) return null;
    const frames = forward(this.skeleton, this.values);
    return at(frames.get(this.skeleton.links[this.skeleton.links.length - 1].name));
  }

  goal() {
    const tool = this.named("tool");
    const lead = this.named("tool", "goal_minus_");
    return tool && lead ? tool.map((part, i) => part + lead[i]) : null;
  }

  project(point) {
    const centre = [0.3, 0, 0.35];
    const [x, y, z] = point.map((part, i) => part - centre[i]);
    const [c, s] = [Math.cos(this.yaw), Math.sin(this.yaw)];
    const side = -s * x + c * y;
    const ahead = c * x + s * y;
    const [cp, sp] = [Math.cos(this.pitch), Math.sin(this.pitch)];
    const depth = this.distance + ahead * cp - z * sp;
    const up = ahead * sp + z * cp;
    const scale = (0.95 * this.height) / Math.max(0.2, depth);
    return [this.width / 2 - side * scale, this.height / 2 - up * scale, scale];
  }

  line(points, style, width, scaled = false) {
    const { context } = this;
    const projected = points.map((point) => this.project(point));
    context.beginPath();
    projected.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.strokeStyle = style;
    context.lineWidth = scaled ? Math.max(2, width * projected[0][2]) : width;
    context.stroke();
  }

  ball(point, radius, fill, stroke) {
    const [x, y, scale] = this.project(point);
    const { context } = this;
    context.beginPath();
    context.arc(x, y, Math.max(2.5, radius * scale), 0, 2 * Math.PI);
    if (fill) { context.fillStyle = fill; context.fill(); }
    if (stroke) { context.strokeStyle = stroke; context.lineWidth = 2; context.stroke(); }
  }

  draw() {
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    if (!this.width) return;
    if (this.canvas.width !== Math.round(this.width * ratio) || this.canvas.height !== Math.round(this.height * ratio)) {
      this.canvas.width = Math.round(this.width * ratio);
      this.canvas.height = Math.round(this.height * ratio);
    }
    this.context = this.canvas.getContext("2d");
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.context.clearRect(0, 0, this.width, this.height);
    this.context.lineCap = this.context.lineJoin = "round";
    for (let i = -4; i <= 6; i += 1) {
      this.line([[i / 5, -0.8, 0], [i / 5, 0.8, 0]], "#1f2a36", 1);
      if (i <= 4) this.line([[-0.8, i / 5, 0], [1.2, i / 5, 0]], "#1f2a36", 1);
    }
    this.line([[0, 0, 0], [0.2, 0, 0]], "#e5484d", 2);
    this.line([[0, 0, 0], [0, 0.2, 0]], "#35c982", 2);
    this.line([[0, 0, 0], [0, 0, 0.2]], "#4d9fff", 2);
    if (this.trail.length > 1) this.line(this.trail, "#4d9fff66", 2);
    if (this.skeleton && this.skeleton.links.every((link) => !link.joint || this.values.has(link.joint))) this.robot();
    const tool = this.tool();
    if (tool) {
      this.line([[tool[0], tool[1], 0], tool], "#3a4a5c", 1);
      this.ball(tool, 0.014, "#e8eef5");
    }
    const goal = this.goal();
    if (goal) this.ball(goal, 0.026, null, "#ffb020");
  }

  robot() {
    const frames = forward(this.skeleton, this.values);
    for (const link of this.skeleton.links) {
      this.line([at(frames.get(link.parent) || frames.get("")), at(frames.get(link.name))], "#5f87b4", 0.05, true);
    }
    for (const link of this.skeleton.links) this.ball(at(frames.get(link.name)), 0.034, link.joint ? "#8fc2ff" : "#c8d6e5");
  }
}
