"use strict";
// A picture as the network takes it: what mnv3.transforms (timm's, on Pillow) makes of it in Python, to the bit.

const PRECISION = 22; // bits of a weight, as in Pillow's Resample.c
const HALF = 1 << (PRECISION - 1);
const LONGEST = 8; // of a strip's sides, in shorter ones: mnv3 reads no more of it, around the middle

const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));

// By name: the support in pixels, and the weight at a distance from the centre.
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => (Math.abs(x) < 1 ? sinc(x) * (Math.fround(0.54) + Math.fround(0.46) * Math.cos(x * Math.PI)) : 0)],
  bicubic: [2, bicubic],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

function bicubic(x) {
  const a = -0.5, d = Math.abs(x);
  if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
  return d < 2 ? (((d - 5) * d + 8) * d - 4) * a : 0;
}

/** For output pixels first .. first + count - 1 of one axis: where each begins to read, and its weights. */
function taps(from, to, name, first, count) {
  const scale = from / to;
  if (name === "nearest") return nearest(scale, first, count);
  const [support, weight] = FILTERS[name];
  const stretch = Math.max(1, scale), reach = support * stretch;
  const size = Math.ceil(reach) * 2 + 1;
  const starts = new Int32Array(count), lengths = new Int32Array(count), weights = new Int32Array(count * size);
  for (let i = 0; i < count; i++) {
    const centre = (first + i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(from, Math.trunc(centre + reach + 0.5));
    const values = Array.from({length: end - start}, (_, k) => weight((k + start - centre + 0.5) / stretch));
    const sum = values.reduce((a, b) => a + b, 0);
    starts[i] = start;
    lengths[i] = end - start;
    values.forEach((value, k) => {
      const fixed = (sum === 0 ? value : value / sum) * 2 ** PRECISION;
      weights[i * size + k] = Math.trunc(fixed + (fixed < 0 ? -0.5 : 0.5));
    });
  }
  return {starts, lengths, weights, size};
}

function nearest(scale, first, count) {
  const starts = new Int32Array(count);
  let x = scale * 0.5;
  for (let i = 0; i < first + count; i++, x += scale) {
    if (i >= first) starts[i - first] = Math.trunc(x);
  }
  return {starts, lengths: new Int32Array(count).fill(1), weights: new Int32Array(count).fill(2 ** PRECISION), size: 1};
}

/** Half to even, as Python rounds. */
function rounded(x) {
  const below = Math.floor(x);
  return x - below === 0.5 ? below + (below % 2) : Math.round(x);
}

/**
 * What becomes of a picture of this size: the box of it that is read, the size that this is brought to, and where in
 * that the network's square begins (before its edge where it is padded).
 */
function geometry(width, height, {size, scaled, mode}) {
  const longest = LONGEST * Math.min(width, height);
  const box = {width: Math.min(width, longest), height: Math.min(height, longest)};
  box.left = Math.floor((width - box.width) / 2);
  box.top = Math.floor((height - box.height) / 2);
  const {width: w, height: h} = box;
  let to;
  if (mode === "squash") {
    to = {width: scaled, height: scaled};
  } else if (mode === "border") {
    const ratio = Math.max(h / scaled, w / scaled);
    to = {width: rounded(w / ratio), height: rounded(h / ratio)};
  } else {
    const long = Math.trunc((scaled * Math.max(w, h)) / Math.min(w, h));
    to = w <= h ? {width: scaled, height: long} : {width: long, height: scaled};
  }
  const start = (side) => (side < size ? -Math.floor((size - side) / 2) : rounded((side - size) / 2));
  return {box, to, left: start(to.width), top: start(to.height)};
}

/**
 * The network's input: bytes (channels, size, size).
 *
 * readRows(top, count) gives rows of the picture as RGBA bytes; they are asked for in strips, from top to bottom.
 */
function preprocess(width, height, readRows, input) {
  const {size, channels, fill, interpolation} = input;
  const {box, to, left, top} = geometry(width, height, input);
  const columns = Math.min(size, to.width), rows = Math.min(size, to.height);
  const across = taps(box.width, to.width, interpolation, Math.max(0, left), columns);
  const down = taps(box.height, to.height, interpolation, Math.max(0, top), rows);
  // Pillow 13 shortens the columns of tall pictures before the rows, else rows come first; it rounds in between
  const less = {width: box.width - to.width, height: box.height - to.height};
  const columnsFirst = input.columns_first && less.height > 0 && less.height > 2 * less.width;
  const length = columnsFirst ? width * 4 : columns * channels;
  const sums = new Int32Array(rows * length).fill(HALF);
  const end = down.starts[rows - 1] + down.lengths[rows - 1], strip = Math.max(1, Math.floor(2 ** 20 / width));
  for (let y = down.starts[0]; y < end; y += strip) {
    const count = Math.min(strip, end - y);
    let data = readRows(box.top + y, count);
    if (channels === 1) makeGrey(data);
    if (!columnsFirst) data = resizeRows(data, width, box.left, count, across, channels);
    addColumns(sums, data, length, y, count, down);
  }
  let bytes = Uint8ClampedArray.from(sums, (sum) => sum >> PRECISION);
  if (columnsFirst) bytes = resizeRows(bytes, width, box.left, rows, across, channels);
  const output = new Uint8Array(channels * size * size);
  for (let c = 0; c < channels; c++) {
    const plane = output.subarray(c * size * size, (c + 1) * size * size).fill(fill[c]);
    for (let y = 0; y < rows; y++) {
      const start = (y + Math.max(0, -top)) * size + Math.max(0, -left);
      for (let x = 0; x < columns; x++) plane[start + x] = bytes[(y * columns + x) * channels + c];
    }
  }
  return output;
}

/** Rows of `width` RGBA pixels, from the pixel `left` on, as shorter or longer rows of `channels` bytes a pixel. */
function resizeRows(data, width, left, count, across, channels) {
  const columns = across.starts.length, resized = new Uint8ClampedArray(count * columns * channels);
  for (let y = 0, o = 0; y < count; y++) {
    for (let x = 0; x < columns; x++) {
      let red = HALF, green = HALF, blue = HALF;
      let p = (y * width + left + across.starts[x]) * 4;
      for (let k = x * across.size, last = k + across.lengths[x]; k < last; k++, p += 4) {
        const weight = across.weights[k];
        red = (red + data[p] * weight) | 0;
        green = (green + data[p + 1] * weight) | 0;
        blue = (blue + data[p + 2] * weight) | 0;
      }
      resized[o++] = red >> PRECISION; // clamped to 0 .. 255
      if (channels === 3) {
        resized[o++] = green >> PRECISION;
        resized[o++] = blue >> PRECISION;
      }
    }
  }
  return resized;
}

/** Add what rows of `length` bytes, the first of which is the row `top`, give to the rows that they become. */
function addColumns(sums, data, length, top, count, down) {
  down.starts.forEach((start, i) => {
    const last = Math.min(start + down.lengths[i], top + count);
    for (let y = Math.max(start, top); y < last; y++) {
      const weight = down.weights[i * down.size + y - start];
      for (let j = 0, s = i * length, p = (y - top) * length; j < length; j++) sums[s + j] += data[p + j] * weight;
    }
  });
}

/** Pillow's L in the place of red. */
function makeGrey(data) {
  for (let p = 0; p < data.length; p += 4) {
    data[p] = (data[p] * 19595 + data[p + 1] * 38470 + data[p + 2] * 7471 + 0x8000) >> 16;
  }
}
