// Slices on a canvas: where each lies on it, and its picture. Every axis is drawn from its far end, so that the patient's
// right is at the left, and front and head are at the top; in a sagittal slice, the front is at the left.

import { hasGraphics } from './rendering.js'

export const PLANES = {
  axial: { axis: 2, across: 0, down: 1, letters: ['R', 'L', 'A', 'P'] },
  coronal: { axis: 1, across: 0, down: 2, letters: ['R', 'L', 'S', 'I'] },
  sagittal: { axis: 0, across: 1, down: 2, letters: ['A', 'P', 'S', 'I'] },
}

const GAP = 4
const SHORTS = 65536

// Where each plane lies, in parts of the canvas: coronal above axial have their columns in common, coronal and sagittal their rows.
export function layout(view, width, height) {
  if (view === 'render') return []
  if (view !== 'multi') return [tile(view, 0, 0, width, height)]
  const w = (width - GAP) / 2, h = (height - GAP) / 2
  return [tile('coronal', 0, 0, w, h), tile('sagittal', w + GAP, 0, w, h), tile('axial', 0, h + GAP, w, h)]
}

function tile(name, x, y, width, height) { return { name, plane: PLANES[name], x, y, width, height } }

// Where a slice is drawn in its tile: the far corner in pixels, and pixels per voxel.
export function placed({ name, plane, x, y, width, height }, volume, sight) {
  const [sa, sd] = [volume.spacing[plane.across], volume.spacing[plane.down]]
  const [na, nd] = [volume.shape[plane.across], volume.shape[plane.down]]
  const scale = sight.zoom * Math.min(width / (na * sa), height / (nd * sd)) // pixels per mm
  const [panA, panD] = sight.pan[name]
  const [w, h] = [na * sa * scale, nd * sd * scale]
  return { left: x + (width - w) / 2 + panA * scale, top: y + (height - h) / 2 + panD * scale, w, h, stepA: sa * scale, stepD: sd * scale, na, nd, scale }
}

// From a place on the canvas to one in the slice, in voxels counted from their edges; and back.
export function toSlice(at, px, py) { return [at.na - (px - at.left) / at.stepA, at.nd - (py - at.top) / at.stepD] }
export function toCanvas(at, a, d) { return [at.left + (at.na - a) * at.stepA, at.top + (at.nd - d) * at.stepD] }

// The picture of a slice, made anew only where what it shows has changed.
export class Picture {
  constructor() {
    this.image = layer()
    this.labels = layer()
  }

  drawImage(volume, plane, index, window, version) {
    const key = `${plane.axis} ${index} ${window} ${version}`
    if (this.image.volume === volume && this.image.key === key) return
    const { voxels } = volume, pixels = sized(this.image, volume.shape, plane)
    const shades = shadesOf(window)
    if (volume.type === Int16Array) walk(volume, plane, index, pixels.length, (i, n) => { pixels[n] = shades[voxels[i] + SHORTS / 2] })
    else {
      const [low, high] = window, each = 255 / (high - low)
      walk(volume, plane, index, pixels.length, (i, n) => { pixels[n] = gray((voxels[i] - low) * each) })
    }
    finish(this.image, key)
    this.image.volume = volume
  }

  drawLabels(labels, plane, index, colors, version) {
    const key = `${plane.axis} ${index} ${labels.version} ${version}`
    if (this.labels.map === labels && this.labels.key === key) return
    const { voxels } = labels, pixels = sized(this.labels, labels.shape, plane)
    walk(labels, plane, index, pixels.length, (i, n) => { pixels[n] = colors[voxels[i]] })
    finish(this.labels, key)
    this.labels.map = labels
  }
}

function layer() {
  const canvas = document.createElement('canvas')
  return { canvas, context: context2D(canvas), data: null, key: null }
}

function sized(each, shape, plane) {
  const [w, h] = [shape[plane.across], shape[plane.down]]
  if (each.data?.width !== w || each.data?.height !== h) {
    each.canvas.width = w
    each.canvas.height = h
    each.data = new ImageData(w, h)
    each.pixels = new Uint32Array(each.data.data.buffer)
  }
  return each.pixels
}

function finish(each, key) {
  each.context.putImageData(each.data, 0, 0)
  each.key = key
}

// The voxels of a slice in the order of its picture.
function walk({ shape, strides }, { axis, across, down }, index, count, each) {
  const [na, nd] = [shape[across], shape[down]], step = strides[across], row = strides[down]
  for (let d = nd - 1, n = 0; d >= 0; d--) {
    let i = index * strides[axis] + d * row + (na - 1) * step
    for (const end = n + na; n < end; n++, i -= step) each(i, n)
  }
}

// Little-endian pixels: alpha, blue, green, red.
function gray(value) {
  const level = value >= 255 ? 255 : value > 0 ? Math.round(value) : 0 // 0 for NaN, too
  return 0xff000000 | level << 16 | level << 8 | level
}

let shades = null
let shadesFor = ''

function shadesOf(window) {
  if (shadesFor !== `${window}`) {
    const [low, high] = window
    shades ??= new Uint32Array(SHORTS)
    for (let n = 0; n < SHORTS; n++) shades[n] = gray((n - SHORTS / 2 - low) * 255 / (high - low))
    shadesFor = `${window}`
  }
  return shades
}

// By class, its color; hidden ones and the background are transparent.
export function colorsOf(classes, hidden, opacity) {
  const colors = new Uint32Array(256)
  for (const each of classes) {
    const [r, g, b] = each.color
    if (!hidden.has(each.index)) colors[each.index] = Math.round(255 * opacity) << 24 | b << 16 | g << 8 | r
  }
  return colors
}

// Without a graphics card, a canvas that is computed by the processor at once is faster than one by way of a made-up card.
export function context2D(canvas, options = {}) {
  return canvas.getContext('2d', { ...options, willReadFrequently: !hasGraphics() })
}
