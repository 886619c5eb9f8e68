// Pictures: decoded beside the page, drawn when ready, and acknowledged only then.

const HEADER = 20;
const MAGIC = 0x31505352; // 'RSP1'

export class Cameras {
  constructor(place, acknowledge) {
    this.place = place;
    this.acknowledge = acknowledge;
    this.views = new Map();
    this.drawn = 0;
  }

  show(names) {
    if ([...this.views.keys()].join("\n") === names.join("\n")) return;
    this.views.clear();
    this.place.replaceChildren();
    for (const name of names) {
      const figure = document.createElement("figure");
      figure.className = "camera";
      figure.dataset.camera = name;
      const canvas = document.createElement("canvas");
      const caption = document.createElement("figcaption");
      caption.textContent = name;
      const trouble = document.createElement("div");
      trouble.className = "trouble";
      trouble.hidden = true;
      figure.append(canvas, trouble, caption);
      this.place.append(figure);
      this.views.set(name, { canvas, caption, trouble, figure, stampUs: -1 });
    }
  }

  async take(buffer, robot) {
    const view = new DataView(buffer);
    if (buffer.byteLength < HEADER || view.getUint32(0, true) !== MAGIC) return;
    const robotBytes = view.getUint8(4);
    const cameraBytes = view.getUint8(5);
    const number = view.getUint32(8, true);
    const stampUs = view.getFloat64(12, true);
    const text = new TextDecoder();
    const from = text.decode(new Uint8Array(buffer, HEADER, robotBytes));
    const camera = text.decode(new Uint8Array(buffer, HEADER + robotBytes, cameraBytes));
    const shown = this.views.get(camera);
    if (from !== robot || !shown) return;
    try {
      const jpeg = new Blob([new Uint8Array(buffer, HEADER + robotBytes + cameraBytes)], { type: "image/jpeg" });
      const bitmap = await createImageBitmap(jpeg);
      if (shown.canvas.width !== bitmap.width || shown.canvas.height !== bitmap.height) {
        shown.canvas.width = bitmap.width;
        shown.canvas.height = bitmap.height;
      }
      shown.canvas.getContext("2d").drawImage(bitmap, 0, 0);
      bitmap.close();
      this.drawn += 1;
      shown.canvas.dataset.number = number;
      shown.stampUs = stampUs;
    } finally {
      this.acknowledge(camera, number);
    }
  }

  // What the server says of each camera. `serverUs`: its clock now, null if that is unknown.
  tell(cameras, serverUs) {
    for (const camera of cameras) {
      const shown = this.views.get(camera.name);
      if (!shown) continue;
      const age = shown.stampUs >= 0 && serverUs !== null ? `${Math.max(0, Math.round((serverUs - shown.stampUs) / 1000))} ms old` : "no picture";
      shown.caption.textContent = `${camera.name} · ${age}`;
      shown.trouble.hidden = !camera.problem;
      shown.trouble.textContent = camera.problem;
      shown.figure.classList.toggle("old", Boolean(camera.problem));
    }
  }

  // Nothing fresh comes from anywhere.
  lost() {
    for (const shown of this.views.values()) shown.figure.classList.add("old");
  }
}
