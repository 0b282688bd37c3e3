// What is drawn, as the scans look that the model was trained on: 8 × 8 bytes of ink, the digit as
// high as the picture.
const SIDE = 8;
const BLOCK = 4;

/** Lets a canvas be drawn on; calls `changed` after each stroke. Returns what clears it. */
export function drawable(canvas, changed) {
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  let last = null;
  const clear = () => {
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, canvas.width, canvas.height);
  };
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const scale = canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  };
  const line = (from, to) => {
    pen.strokeStyle = "#fff";
    pen.lineWidth = canvas.width / 8;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    pen.moveTo(...from);
    pen.lineTo(...to);
    pen.stroke();
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = at(event);
    line(last, last);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (last) {
      const here = at(event);
      line(last, here);
      last = here;
    }
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => {
      if (last) {
        last = null;
        changed();
      }
    });
  }
  clear();
  return clear;
}

/** The box around the ink: [left, top, width, height], or null where there is none. */
function inkOf(canvas) {
  const { width, height } = canvas;
  const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      if (pixels[4 * (y * width + x)] > 127) {
        left = Math.min(left, x);
        right = Math.max(right, x);
        top = Math.min(top, y);
        bottom = Math.max(bottom, y);
      }
    }
  }
  return right < 0 ? null : [left, top, right - left + 1, bottom - top + 1];
}

/** The drawing as a scan, 64 bytes; null where nothing is drawn. */
export function scan(canvas) {
  const box = inkOf(canvas);
  if (box === null) {
    return null;
  }
  const [left, top, width, height] = box;
  const side = Math.max(width, height);
  const fine = SIDE * BLOCK;
  const small = document.createElement("canvas");
  small.width = small.height = fine;
  const pen = small.getContext("2d", { willReadFrequently: true });
  pen.fillRect(0, 0, fine, fine);
  const [wide, high] = [(width / side) * fine, (height / side) * fine];
  const place = [(fine - wide) / 2, (fine - high) / 2, wide, high];
  pen.drawImage(canvas, left, top, width, height, ...place);
  const pixels = pen.getImageData(0, 0, fine, fine).data;
  const bytes = new Uint8Array(SIDE * SIDE);
  for (let index = 0; index < bytes.length; index += 1) {
    const [row, column] = [Math.floor(index / SIDE), index % SIDE];
    let ink = 0;
    for (let y = row * BLOCK; y < (row + 1) * BLOCK; y += 1) {
      for (let x = column * BLOCK; x < (column + 1) * BLOCK; x += 1) {
        ink += pixels[4 * (y * fine + x)];
      }
    }
    bytes[index] = Math.round(ink / BLOCK ** 2);
  }
  return bytes;
}

/** Shows a scan on a canvas, as it is. */
export function show(bytes, canvas) {
  const pen = canvas.getContext("2d");
  const cell = canvas.width / SIDE;
  bytes.forEach((byte, index) => {
    pen.fillStyle = `rgb(${byte} ${byte} ${byte})`;
    pen.fillRect((index % SIDE) * cell, Math.floor(index / SIDE) * cell, cell, cell);
  });
}
