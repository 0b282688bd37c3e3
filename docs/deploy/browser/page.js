import { drawable, scan, show } from "./drawing.js";
import { openModel, softmax } from "./model.js";

const SIDE = 8;
const find = (id) => document.getElementById(id);

function makeRows(classes) {
  const rows = classes.map((name) => {
    const row = document.createElement("li");
    row.innerHTML = '<span class="name"></span><span class="bar"><i></i></span><output></output>';
    row.querySelector(".name").textContent = name;
    find("scores").append(row);
    return row;
  });
  return (chances) => {
    const best = chances.indexOf(Math.max(...chances));
    rows.forEach((row, index) => {
      row.classList.toggle("best", index === best && chances[index] > 0);
      row.querySelector("i").style.width = `${100 * chances[index]}%`;
      row.querySelector("output").textContent = `${(100 * chances[index]).toFixed(1)} %`;
    });
    return best;
  };
}

function say(text) {
  find("said").textContent = text;
}

async function main() {
  const [model, samples] = await Promise.all([
    openModel("engine"),
    fetch("samples.json").then((answer) => answer.json()),
  ]);
  const showScores = makeRows(model.classes);
  const answer = async (bytes) => {
    show(bytes, find("seen"));
    const { logits, milliseconds } = await model.logits(bytes, SIDE, SIDE);
    const best = showScores(softmax(logits));
    say(`Looks like ${model.classes[best]} – ${milliseconds.toFixed(1)} ms`);
  };
  // A session answers one call at a time.
  let last = Promise.resolve();
  const ask = (bytes) => {
    last = last.then(() => answer(bytes)).catch(fail);
    return last;
  };
  const clear = drawable(find("pad"), () => {
    const bytes = scan(find("pad"));
    if (bytes) {
      ask(bytes);
    }
  });
  find("pad").addEventListener("pointerdown", () => {
    find("hint").hidden = true;
  });
  find("clear").addEventListener("click", () => {
    clear();
    find("hint").hidden = false;
    showScores(model.classes.map(() => 0));
    show(new Uint8Array(SIDE * SIDE), find("seen"));
    say("Draw a digit, or choose one.");
  });
  for (const { label, pixels } of samples) {
    const button = document.createElement("button");
    const picture = document.createElement("canvas");
    picture.width = picture.height = 40;
    button.setAttribute("aria-label", `A scanned ${label}`);
    show(Uint8Array.from(pixels), picture);
    button.append(picture);
    button.addEventListener("click", () => ask(Uint8Array.from(pixels)));
    find("samples").append(button);
  }
  const { macs, params } = model.record;
  find("about").textContent =
    `${(params / 1e3).toFixed(0)} thousand parameters, ` +
    `${(macs / 1e6).toFixed(1)} million multiply-adds an image, in WebAssembly on one thread.`;
  // The first call takes longer: it is not the one that is shown.
  const first = Uint8Array.from(samples[0].pixels);
  await model.logits(first, SIDE, SIDE);
  await ask(first);
}

function fail(error) {
  say(error.message);
  find("said").classList.add("wrong");
}

main().catch(fail);
