"use strict";
// The page: a picture in, the most likely classes out. Nothing is sent anywhere; the page's policy forbids it, too.

const MODEL = JSON.parse(document.getElementById("model").textContent);
const TEXTS = JSON.parse(document.getElementById("texts").textContent);
const TOP = Math.min(5, MODEL.classes);
const MAX_THREADS = 4; // more do not make so small a network faster

/** A failure that the page has a sentence for: its key in texts.json, and what is filled in. */
class Problem extends Error {
  constructor(key, values = {}) {
    super(key);
    this.text = [key, values];
  }
}

const state = {
  language: remembered() || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en"),
  status: ["loading", {megabytes: megabytes("wasm")}],
  broken: null, // why there is no network, as [key, values]
  problem: null, // what is wrong with the picture
  network: null, // a promise of the one in use, or of nothing where there is none
  file: null, // the picture that was given last
  picture: null, // the one that is shown: its address and size
  answer: null, // probabilities, by class
};

const networks = {}; // by device, promises of what `openNetwork` gives

const element = (id) => document.getElementById(id);

// --- texts

function remembered() {
  try {
    return TEXTS[localStorage.getItem("language")] && localStorage.getItem("language");
  } catch {
    return null; // a browser that keeps nothing
  }
}

function say(key, values = {}) {
  return TEXTS[state.language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function labelOf(index) {
  return MODEL.labels ? MODEL.labels[index] : say("class", {index});
}

function percent(probability) {
  const digits = {minimumFractionDigits: 1, maximumFractionDigits: 1};
  return new Intl.NumberFormat(state.language, {style: "percent", ...digits}).format(probability);
}

function megabytes(device) {
  const files = [MODEL.network, ...Object.values(MODEL.runtime[device])];
  return Math.round(files.reduce((sum, file) => sum + file.bytes, 0) / 1e6);
}

function switchLanguage() {
  state.language = state.language === "en" ? "zh" : "en";
  try {
    localStorage.setItem("language", state.language);
  } catch {
    // it lasts as long as the page
  }
  translate();
  show();
}

function translate() {
  const count = MODEL.classes.toLocaleString(state.language);
  document.documentElement.lang = state.language === "zh" ? "zh-Hans" : "en";
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = say(node.dataset.text);
  element("language").textContent = say("other");
  element("language").lang = state.language === "en" ? "zh-Hans" : "en";
  element("picture").alt = say("picture");
  element("empty").textContent = say("empty", {top: TOP, count});
  if (MODEL.labels) element("known").querySelector("summary").textContent = say("known", {count});
}

// --- what is on the page

function show() {
  const problem = state.broken || state.problem;
  element("problem").hidden = !problem;
  element("problem").textContent = problem ? say(...problem) : "";
  element("columns").hidden = Boolean(state.broken); // nothing there would be of use
  element("empty").hidden = Boolean(state.answer);
  showPicture();
  const best = state.answer ? mostLikely(state.answer) : [];
  element("results").replaceChildren(...best.map(resultOf));
  element("status").replaceChildren(...statusOf(best));
}

function showPicture() {
  element("figure").hidden = !state.picture;
  element("invitation").hidden = Boolean(state.picture);
  element("zone").classList.toggle("full", Boolean(state.picture));
  if (!state.picture) return;
  const {address, width, height} = state.picture;
  if (element("picture").src !== address) element("picture").src = address;
  const {box, to, left, top} = geometry(width, height, MODEL.input);
  const part = (start, side, boxStart, boxSide, whole) => {
    const from = boxStart + (Math.max(0, start) / side) * boxSide;
    const length = (Math.min(MODEL.input.size, side) / side) * boxSide;
    return [`${(100 * from) / whole}%`, `${(100 * length) / whole}%`];
  };
  const frame = element("frame");
  [frame.style.left, frame.style.width] = part(left, to.width, box.left, box.width, width);
  [frame.style.top, frame.style.height] = part(top, to.height, box.top, box.height, height);
  const whole = frame.style.width === "100%" && frame.style.height === "100%";
  frame.hidden = element("caption").hidden = whole;
}

function mostLikely(probabilities) {
  const order = Array.from(probabilities.keys()).sort((a, b) => probabilities[b] - probabilities[a]);
  return order.slice(0, TOP).map((index) => ({label: labelOf(index), probability: probabilities[index]}));
}

function resultOf({label, probability}) {
  const item = make("li"), bar = make("div", "bar"), length = make("div");
  bar.setAttribute("aria-hidden", "true");
  length.style.width = `${(100 * probability).toFixed(2)}%`;
  bar.append(length);
  item.append(make("span", "label", label), make("span", "percent", percent(probability)), bar);
  return item;
}

function statusOf(best) {
  if (!state.status) return [];
  const [key, values] = state.status;
  if (key !== "done") return [say(key, values)];
  const first = `${best[0].label}, ${percent(best[0].probability)}. `; // for those who hear the page
  return [make("span", "spoken", first), make("div", "", say(key, values)), make("div", "", say(values.device, values))];
}

function make(tag, name = "", text = "") {
  const node = document.createElement(tag);
  node.className = name;
  node.textContent = text;
  return node;
}

// --- the network

/** A file of this page's, which has to be the one that it was written with. */
async function loadFile({url, integrity}) {
  try {
    const answer = await fetch(url, {integrity, credentials: "omit"});
    if (!answer.ok) throw new Error(answer.statusText);
    return await answer.arrayBuffer();
  } catch {
    throw new Problem("no_file", {file: url.split("/").pop()});
  }
}

function addressOf(script) {
  return URL.createObjectURL(new Blob([script], {type: "text/javascript"}));
}

/** Open the network on "wasm" or "webgpu". Gives a function from its input's bytes to probabilities. */
async function openNetwork(device) {
  checkBrowser();
  const {library, glue, binary} = MODEL.runtime[device];
  const [network, ...runtime] = await Promise.all([MODEL.network, library, glue, binary].map(loadFile));
  try {
    const ort = await import(addressOf(runtime[0]));
    const threads = globalThis.crossOriginIsolated ? Math.min(MAX_THREADS, navigator.hardwareConcurrency || 1) : 1;
    ort.env.logLevel = "error";
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.wasmPaths = {mjs: addressOf(runtime[1])};
    ort.env.wasm.wasmBinary = runtime[2];
    const session = await ort.InferenceSession.create(network, {executionProviders: [device], logSeverityLevel: 3});
    const run = (bytes) => classify(ort, session, bytes);
    await run(new Uint8Array(MODEL.input.channels * MODEL.input.size ** 2)); // the first run takes longer
    return {run, device, threads};
  } catch (error) {
    throw new Problem("no_run", {reason: reasonOf(error)});
  }
}

/** Raise the sentence for what this browser lacks. */
function checkBrowser() {
  if (location.protocol === "file:") throw new Problem("no_server");
  // a function that makes a vector of 16 bytes
  const simd = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
  const has = {
    WebAssembly: typeof WebAssembly === "object",
    "WebAssembly SIMD": typeof WebAssembly === "object" && WebAssembly.validate(new Uint8Array(simd)),
    createImageBitmap: typeof createImageBitmap === "function",
  };
  const feature = Object.keys(has).find((name) => !has[name]);
  if (feature) throw new Problem("no_browser", {feature});
}

async function classify(ort, session, bytes) {
  const {channels, size, batch} = MODEL.input;
  const picture = MODEL.input.normalize ? normalized(bytes) : bytes;
  const data = new picture.constructor(batch * picture.length); // of a fixed batch, all but the first stay empty
  data.set(picture);
  const type = MODEL.input.normalize ? "float32" : "uint8";
  const input = new ort.Tensor(type, data, [batch, channels, size, size]);
  const outputs = await session.run({[session.inputNames[0]]: input});
  const first = (await outputs[session.outputNames[0]].getData()).slice(0, MODEL.classes);
  const probabilities = MODEL.softmax ? softmax(first) : first;
  if (!probabilities.every(Number.isFinite)) throw new Error("it gives no numbers");
  return probabilities;
}

/** For a network that does not do it itself. */
function normalized(bytes) {
  const {mean, std} = MODEL.input.normalize, plane = MODEL.input.size ** 2;
  return Float32Array.from(bytes, (value, i) => {
    const channel = Math.floor(i / plane);
    return (value / 255 - mean[channel]) / std[channel];
  });
}

function softmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const powers = Array.from(logits, (value) => Math.exp(value - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / sum);
}

// --- pictures

/** A picture file, upright and with its own colours, whatever screen they are meant for, as mnv3 reads it in Python. */
async function decode(file) {
  try {
    return await createImageBitmap(file, {colorSpaceConversion: "none", imageOrientation: "from-image"});
  } catch {
    throw new Problem("no_decode", {file: file.name || say("picture")});
  }
}

function inputOf(bitmap) {
  const {width, height} = bitmap;
  const canvas = make("canvas");
  canvas.width = width;
  const context = canvas.getContext("2d", {willReadFrequently: true});
  const readRows = (from, count) => {
    canvas.height = count; // clears it
    context.fillStyle = "#fff"; // what is transparent lies on white
    context.fillRect(0, 0, width, count);
    context.drawImage(bitmap, 0, from, width, count, 0, 0, width, count);
    return context.getImageData(0, 0, width, count).data;
  };
  return preprocess(width, height, readRows, MODEL.input);
}

/** Take a picture, and show its classes. A later one overtakes it. */
async function take(file) {
  if (!file) return;
  const overtaken = () => state.file !== file;
  state.file = file;
  try {
    if (file.type && !file.type.startsWith("image/")) throw new Problem("no_picture");
    const bitmap = await decode(file);
    if (overtaken()) return;
    if (state.picture) URL.revokeObjectURL(state.picture.address);
    state.picture = {address: URL.createObjectURL(file), width: bitmap.width, height: bitmap.height};
    state.problem = state.answer = null;
    if (state.status?.[0] !== "loading") state.status = ["working"];
    show();
    const network = await state.network;
    if (overtaken()) return;
    state.status = network ? ["working"] : null; // `state.broken` says why there is none
    show();
    if (!network) return;
    await painted();
    const start = performance.now();
    const bytes = inputOf(bitmap);
    const middle = performance.now();
    const answer = await network.run(bytes);
    const end = performance.now();
    bitmap.close();
    if (overtaken()) return;
    state.answer = answer;
    const times = {preparation: milliseconds(middle - start), network: milliseconds(end - middle)};
    state.status = ["done", {...times, device: network.device, threads: network.threads}];
  } catch (error) {
    if (overtaken()) return;
    state.problem = sentenceOf(error);
    if (state.status?.[0] === "working") state.status = ["ready"];
  }
  show();
}

function milliseconds(time) {
  return time < 10 ? time.toFixed(1) : Math.round(time);
}

function painted() {
  return new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
}

function sentenceOf(error) {
  return error instanceof Problem ? error.text : ["no_run", {reason: reasonOf(error)}];
}

function reasonOf(error) {
  return String(error?.message || error).split("\n")[0].slice(0, 200);
}

// --- what its user does

function listen() {
  element("language").addEventListener("click", switchLanguage);
  for (const id of ["file", "camera"]) {
    element(id).addEventListener("change", (event) => {
      take(event.target.files[0]);
      event.target.value = ""; // the same file again is a change, too
    });
  }
  const over = (event) => {
    event.preventDefault();
    element("zone").classList.toggle("over", event.type === "dragover");
  };
  addEventListener("dragover", over);
  addEventListener("dragleave", over);
  addEventListener("drop", (event) => {
    over(event);
    takeOne(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => takeOne(event.clipboardData.files));
  element("gpu").querySelector("input").addEventListener("change", (event) => {
    startNetwork(event.target.checked ? "webgpu" : "wasm");
    take(state.file);
  });
  if (MODEL.labels) {
    element("known").addEventListener("toggle", () => (element("labels").textContent = MODEL.labels.join(", ")));
  }
}

function takeOne(files) {
  if (files.length) {
    take(files[0]);
  } else {
    state.problem = ["no_picture", {}];
    show();
  }
}

/** Open the network, once for each device; where the graphics processor cannot, on WebAssembly. */
function startNetwork(device) {
  state.status = ["loading", {megabytes: megabytes(device)}];
  show();
  const opened = (networks[device] ??= openNetwork(device)).catch((error) => {
    if (device !== "webgpu") throw error;
    element("gpu").querySelector("input").checked = false;
    const reason = error.text[1].reason || error.text[1].file;
    return networks.wasm.then((network) => {
      state.problem = ["no_gpu", {reason}];
      return network;
    });
  });
  state.network = opened.then(
    (network) => {
      if (state.status?.[0] === "loading") state.status = ["ready"];
      show();
      return network;
    },
    (error) => {
      state.broken = sentenceOf(error);
      state.status = null;
      show();
    },
  );
}

translate();
listen();
element("gpu").hidden = !(MODEL.runtime.webgpu && navigator.gpu);
startNetwork("wasm");
