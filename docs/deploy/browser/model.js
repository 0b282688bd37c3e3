// The model in onnxruntime-web. An engine that was exported with --with-preprocessing takes bytes of
// any size, so nothing is resized or normalized here.
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

// More threads need a page that is cross-origin isolated; a small model gains nothing by them.
ort.env.wasm.numThreads = 1;

/** Opens a folder that `spvit-deploy export --format onnx --with-preprocessing` wrote. */
export async function openModel(folder) {
  const answer = await fetch(`${folder}/export.json`);
  if (!answer.ok) {
    throw new Error(`There is no model in ${folder}/: export one into it first.`);
  }
  const record = await answer.json();
  const [input] = record.inputs;
  if (input.dtype !== "uint8") {
    throw new Error(`${folder}/ takes ${input.dtype}: export it with --with-preprocessing.`);
  }
  const session = await ort.InferenceSession.create(`${folder}/model.onnx`);
  return {
    classes: record.class_names,
    record,
    /** Bytes of one picture, rows of pixels of channels → logits, and the milliseconds they took. */
    async logits(pixels, height, width) {
      const channels = pixels.length / (height * width);
      const picture = new ort.Tensor("uint8", pixels, [1, height, width, channels]);
      const start = performance.now();
      const answers = await session.run({ [input.name]: picture });
      const milliseconds = performance.now() - start;
      return { logits: Array.from(answers.logits.data), milliseconds };
    },
  };
}

/** Probabilities of logits. */
export function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}
