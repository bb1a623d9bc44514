// The viewer: slices of an image with a label map that is looked at, measured and drawn on. What is seen of it (`Sight`)
// may be shared with a second viewer beside it.
import { LabelMap } from './labels.js'
import { colorsOf, context2D, layout, Picture, placed, PLANES, toCanvas, toSlice } from './planes.js'
import { hasGraphics, Rendering } from './rendering.js'

const COLORS = { cross: 'rgb(77 163 255 / .9)', active: '#4da3ff', pen: '#ffcf5c', letters: '#d5dce4' }
const CROSS_GAP = 10
const ZOOM = { least: 1, most: 20, step: 1.25 }
const STALE_MS = 1200 // a rendering follows what is drawn after so long

export class Sight {
  constructor() {
    this.cross = [0, 0, 0]
    this.zoom = 1
    this.view = 'multi'
    this.window = [0, 1]
    this.active = 'axial' // the plane that the keys scroll
    this.isMeasuring = false
    this.lines = [] // distances: { name, index, from, to }
    this.viewers = new Set()
    this.center()
  }

  center() { this.pan = { axial: [0, 0], coronal: [0, 0], sagittal: [0, 0] } }
  changed() { for (const each of this.viewers) each.draw() }
}

export class Viewer {
  constructor(canvas, sight = new Sight()) {
    const made = (kind, name) => canvas.parentElement.insertBefore(Object.assign(document.createElement(kind), { className: name }), canvas.nextSibling)
    this.canvas = canvas
    this.start = made('button', 'start')
    this.start.type = 'button'
    this.shown3D = made('div', 'rendering')
    this.over = made('canvas', 'over')
    this.over.setAttribute('aria-hidden', 'true')
    const canvas3D = document.createElement('canvas')
    canvas3D.setAttribute('role', 'img')
    canvas3D.setAttribute('aria-label', '3D rendering')
    this.shown3D.append(canvas3D)
    this.context = context2D(canvas, { alpha: false })
    this.marks = context2D(this.over)
    this.sight = sight
    this.pictures = { axial: new Picture(), coronal: new Picture(), sagittal: new Picture() }
    this.rendering = new Rendering(canvas3D)
    this.isStarted = false // whether there is a rendering of this case
    this.rendered = false // whether it shows the case as it is
    this.changes = 0 // of what it shows
    this.classes = []
    this.hidden = new Set()
    this.opacity = 0.55
    this.pen = { tool: 'none', value: 1, size: 3, protect: true }
    this.volume = this.labels = null
    this.parts = 0 // of the image, how often some have come
    this.look = 0 // how often the colors changed
    this.onChange = this.onMove = this.onWindow = () => {}
    this.onBusy = async work => work()
    sight.viewers.add(this)
    this.start.addEventListener('click', () => this.render())
    new ResizeObserver(() => this.draw()).observe(canvas)
    this.listen()
  }

  get dims() { return this.volume?.shape ?? [0, 0, 0] }
  get bitmap() { return this.labels?.voxels }
  get isDrawn() { return this.done.length > 0 }
  get done() { return this.labels?.done ?? [] }
  get undone() { return this.labels?.undone ?? [] }
  get tiles() { return layout(this.sight.view, this.canvas.clientWidth, this.canvas.clientHeight) }

  // An image and its label map, or none.
  show(volume, bytes, isFollowing = false) {
    this.volume?.viewers.delete(this)
    this.volume = volume
    this.labels = new LabelMap(volume.shape, volume.spacing, bytes)
    this.drag = this.outline = null
    volume.viewers.add(this)
    this.stale(true)
    if (!isFollowing) {
      Object.assign(this.sight, { zoom: 1, lines: [], cross: volume.shape.map(size => Math.floor((size - 1) / 2)) })
      this.sight.center()
    }
    this.paint()
    this.use({})
    this.moved()
  }

  clear() {
    this.volume?.viewers.delete(this)
    this.volume = this.labels = this.drag = this.outline = null
    this.stale(true)
  }

  // A part of the image has come.
  came() {
    this.parts++
    if (this.volume.isWhole) this.stale()
    this.draw()
    this.onMove(this.where())
  }

  // Once the slices that are looked at are there.
  async ready() {
    const planes = this.sight.view === 'multi' || this.sight.view === 'render' ? Object.values(PLANES) : [PLANES[this.sight.view]]
    await Promise.all(planes.map(({ axis }) => this.volume.want(axis, this.sight.cross[axis])))
    this.draw()
  }

  paint() {
    this.colors = colorsOf(this.classes, this.hidden, this.opacity)
    this.look++
    this.stale()
    this.draw()
  }

  view(name) {
    this.sight.view = name
    if (name in PLANES) this.sight.active = name
    this.moved()
    for (const each of this.sight.viewers) {
      each.stale(false, each.rendered)
      if (name === 'render' && !each.rendered) each.render()
    }
  }

  window(low, high) {
    this.sight.window = [low, high]
    this.stale()
    this.sight.changed()
  }

  measure(on) {
    this.sight.isMeasuring = on
    if (!on) this.sight.lines = []
    this.sight.changed()
  }

  use(pen) {
    this.pen = { ...this.pen, ...pen }
    this.canvas.style.cursor = this.pen.tool === 'none' ? '' : 'crosshair'
    this.draw()
  }

  undo() { if (this.labels?.undo()) this.changed() }
  redo() { if (this.labels?.redo()) this.changed() }

  changed() {
    this.stale()
    this.draw()
    this.onChange()
  }

  counts() { return this.labels?.counts() ?? new Uint32Array(256) }

  interpolate() {
    const filled = this.labels.interpolate(this.pen)
    if (filled) this.changed()
    return filled
  }

  // To the slice in which a class is largest, and its middle there.
  find(value) {
    const place = this.labels?.middle(value)
    if (!place) return false
    this.sight.center()
    this.goTo(place)
    if (this.sight.zoom > 1) for (const { name, plane } of Object.entries(PLANES).map(([name, plane]) => ({ name, plane }))) {
      this.sight.pan[name] = [plane.across, plane.down].map(n => (place[n] + 0.5 - this.dims[n] / 2) * this.volume.spacing[n])
    }
    return true
  }

  goTo(place) {
    this.sight.cross = place.map((each, n) => Math.min(Math.max(Math.round(each), 0), this.dims[n] - 1))
    this.moved()
  }

  // Keys: through the slices of the active plane, and across them.
  scroll(step) { this.sight.view === 'render' ? this.rendering.turn(0, 10 * step) : this.nudge('axis', step) }
  nudge(way, step) {
    if (!this.volume) return
    if (this.sight.view === 'render') { this.rendering.turn(-10 * step, 0); return }
    const place = [...this.sight.cross]
    place[PLANES[this.sight.active][way]] += step
    this.goTo(place)
  }

  nextPlane() {
    const names = Object.keys(PLANES)
    this.sight.active = names[(names.indexOf(this.sight.active) + 1) % names.length]
    this.moved()
  }

  zoom(factor, tile = null, px = 0, py = 0) {
    const { sight } = this, zoom = Math.min(Math.max(sight.zoom * factor, ZOOM.least), ZOOM.most)
    if (!this.volume || zoom === sight.zoom) return
    if (tile) {
      const before = placed(tile, this.volume, sight), point = toSlice(before, px, py)
      sight.zoom = zoom
      const after = placed(tile, this.volume, sight), [x, y] = toCanvas(after, ...point)
      sight.pan[tile.name] = [sight.pan[tile.name][0] + (px - x) / after.scale, sight.pan[tile.name][1] + (py - y) / after.scale]
    } else sight.zoom = zoom
    if (zoom === 1) sight.center()
    sight.changed()
  }

  zoomStep(direction) { direction ? this.zoom(ZOOM.step ** direction) : this.zoom(1 / this.sight.zoom) }

  // The brush, or an end of a distance, at the cross: for hands without a mouse.
  press() {
    if (!this.volume) return
    const { plane, name } = { plane: PLANES[this.sight.active], name: this.sight.active }
    const at = [this.sight.cross[plane.across] + 0.5, this.sight.cross[plane.down] + 0.5], index = this.sight.cross[plane.axis]
    if (this.sight.isMeasuring) {
      const open = this.sight.lines.find(each => each.isOpen && each.name === name && each.index === index)
      open ? Object.assign(open, { to: at, isOpen: false }) : this.sight.lines.push({ name, index, from: at, to: at, isOpen: true })
      this.sight.changed()
    } else if (this.pen.tool === 'brush' || this.pen.tool === 'erase') {
      this.labels.begin(this.stroke())
      this.labels.line(plane, index, at, at, this.radius(plane))
      if (this.labels.end()) this.changed()
    }
  }

  moved() {
    if (!this.volume) return
    if (this.sight.view !== 'render') for (const { plane } of this.tiles) this.volume.want(plane.axis, this.sight.cross[plane.axis]).catch(() => {})
    this.sight.changed()
    this.onMove(this.where())
  }

  where() {
    const { cross } = this.sight, { axis } = PLANES[this.sight.active]
    return { vox: cross, mm: this.volume.place(cross), value: this.volume.value(cross), label: this.labels.at(cross), plane: this.sight.active, slice: cross[axis], of: this.dims[axis] }
  }

  // The rendering.

  place3D() {
    const { view } = this.sight
    this.canvas.parentElement.dataset.view = view
    const isSeen = Boolean(this.volume) && (view === 'render' || view === 'multi')
    this.shown3D.hidden = !isSeen || !this.isStarted
    this.start.hidden = !isSeen || this.rendered
    this.start.textContent = this.isStarted ? 'Render again' : 'Show 3D rendering'
  }

  // What was rendered is not what is shown any more (unless it is `kept`); with a graphics card it follows by itself.
  stale(isOther = false, kept = false) {
    this.rendered = kept
    if (!kept) this.changes++
    if (isOther) this.isStarted = false
    this.place3D()
    clearTimeout(this.waiting)
    const isSeen = this.volume?.isWhole && (this.sight.view === 'render' || this.sight.view === 'multi')
    if (isSeen && !kept && hasGraphics()) this.waiting = setTimeout(() => this.render(), this.isStarted ? STALE_MS : 0)
  }

  async render() {
    const { volume, labels } = this
    if (!volume || this.isRendering) return
    this.isRendering = true
    await this.onBusy(async () => {
      while (!volume.isWhole && volume === this.volume) await new Promise(done => setTimeout(done, 100))
      if (volume !== this.volume) return
      const { changes } = this
      this.isStarted = true
      this.place3D()
      await this.rendering.show(volume, labels, { classes: this.classes, hidden: this.hidden, opacity: this.opacity, window: this.sight.window })
      this.rendered = changes === this.changes
    }, !hasGraphics())
    this.isRendering = false
    if (volume === this.volume) this.place3D()
    else this.stale(true)
  }

  // Pictures.

  draw() {
    this.pending ??= requestAnimationFrame(() => { this.pending = null; this.drawNow() })
  }

  drawNow() {
    const { canvas, over } = this, ratio = window.devicePixelRatio || 1
    const [w, h] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)]
    for (const each of [canvas, over]) if (each.width !== w || each.height !== h) { each.width = w; each.height = h }
    for (const each of [this.context, this.marks]) each.setTransform(ratio, 0, 0, ratio, 0, 0)
    this.context.fillStyle = '#000'
    this.context.fillRect(0, 0, w, h)
    this.marks.clearRect(0, 0, w, h)
    if (!this.volume) return
    for (const tile of this.tiles) this.drawTile(tile)
  }

  drawTile(tile) {
    const { plane, name } = tile, { volume, sight, context } = this, picture = this.pictures[name], index = sight.cross[plane.axis]
    picture.drawImage(volume, plane, index, sight.window, volume.has(plane.axis, index) ? 'whole' : this.parts)
    picture.drawLabels(this.labels, plane, index, this.colors, this.look)
    const at = placed(tile, volume, sight)
    context.save()
    context.beginPath()
    context.rect(tile.x, tile.y, tile.width, tile.height)
    context.clip()
    context.imageSmoothingEnabled = true
    context.drawImage(picture.image.canvas, at.left, at.top, at.w, at.h)
    context.imageSmoothingEnabled = false
    context.drawImage(picture.labels.canvas, at.left, at.top, at.w, at.h)
    context.restore()
    this.drawMarks(tile, at, index)
  }

  drawMarks(tile, at, index) {
    const { marks, sight } = this, { plane, name } = tile
    marks.save()
    marks.beginPath()
    marks.rect(tile.x, tile.y, tile.width, tile.height)
    marks.clip()
    const [x, y] = toCanvas(at, sight.cross[plane.across] + 0.5, sight.cross[plane.down] + 0.5)
    marks.strokeStyle = COLORS.cross
    marks.lineWidth = 1
    strokes(marks, [[tile.x, y, x - CROSS_GAP, y], [x + CROSS_GAP, y, tile.x + tile.width, y], [x, tile.y, x, y - CROSS_GAP], [x, y + CROSS_GAP, x, tile.y + tile.height]])
    this.drawLetters(tile)
    if (sight.view === 'multi' && sight.active === name) {
      marks.fillStyle = COLORS.active
      marks.fillRect(tile.x, tile.y, tile.width, 2)
    }
    for (const line of sight.lines) if (line.name === name && line.index === index) this.drawDistance(line, at, plane)
    if (this.outline?.name === name) {
      marks.strokeStyle = COLORS.pen
      marks.lineWidth = 1.5
      marks.beginPath()
      for (const point of this.outline.points) marks.lineTo(...toCanvas(at, ...point))
      marks.closePath()
      marks.stroke()
    }
    if (this.pointer?.name === name && (this.pen.tool === 'brush' || this.pen.tool === 'erase')) {
      marks.strokeStyle = this.pen.tool === 'erase' ? '#fff' : COLORS.pen
      marks.lineWidth = 1
      marks.beginPath()
      marks.arc(this.pointer.x, this.pointer.y, Math.max(this.radius(plane) * at.scale, 2), 0, 2 * Math.PI)
      marks.stroke()
    }
    marks.restore()
  }

  drawLetters({ x, y, width, height, plane }) {
    const { marks } = this, [left, right, top, bottom] = plane.letters
    marks.font = '600 13px system-ui, "DejaVu Sans", sans-serif'
    marks.textAlign = 'center'
    marks.textBaseline = 'middle'
    for (const [letter, px, py] of [[left, x + 12, y + height / 2], [right, x + width - 12, y + height / 2], [top, x + width / 2, y + 14], [bottom, x + width / 2, y + height - 12]]) outlined(marks, letter, px, py, COLORS.letters)
  }

  drawDistance({ from, to }, at, plane) {
    const { marks } = this, [a, b] = [toCanvas(at, ...from), toCanvas(at, ...to)]
    const mm = Math.hypot((from[0] - to[0]) * this.volume.spacing[plane.across], (from[1] - to[1]) * this.volume.spacing[plane.down])
    marks.strokeStyle = marks.fillStyle = COLORS.pen
    marks.lineWidth = 2
    strokes(marks, [[...a, ...b]])
    for (const [x, y] of [a, b]) { marks.beginPath(); marks.arc(x, y, 3, 0, 2 * Math.PI); marks.fill() }
    marks.font = '600 14px system-ui, "DejaVu Sans", sans-serif'
    marks.textAlign = 'left'
    const end = a[0] > b[0] ? a : b
    outlined(marks, `${mm.toFixed(1)} mm`, end[0] + 8, end[1] - 8, COLORS.pen)
  }

  // The mouse.

  radius(plane) { return this.pen.size / 2 * Math.min(this.volume.spacing[plane.across], this.volume.spacing[plane.down]) }
  stroke() { return { value: this.pen.value, erase: this.pen.tool === 'erase', protect: this.pen.protect } }

  tileAt(event) {
    const box = this.canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top
    const tile = this.volume ? this.tiles.find(each => x >= each.x && y >= each.y && x < each.x + each.width && y < each.y + each.height) : undefined
    return { tile, x, y }
  }

  listen() {
    const { canvas } = this
    canvas.addEventListener('pointerdown', event => this.down(event))
    canvas.addEventListener('pointermove', event => this.move(event))
    for (const kind of ['pointerup', 'pointercancel']) canvas.addEventListener(kind, () => this.up())
    canvas.addEventListener('pointerleave', () => { this.pointer = null; this.draw() })
    canvas.addEventListener('contextmenu', event => event.preventDefault())
    canvas.addEventListener('wheel', event => this.wheel(event), { passive: false })
  }

  down(event) {
    const { tile, x, y } = this.tileAt(event)
    if (!tile || this.drag) return
    const { name, plane } = tile, point = toSlice(placed(tile, this.volume, this.sight), x, y), index = this.sight.cross[plane.axis]
    this.canvas.setPointerCapture(event.pointerId)
    this.sight.active = name
    const isPlain = event.button === 0 && !event.shiftKey && !event.ctrlKey
    const kind = event.button === 2 ? 'window' : event.button === 1 || event.shiftKey ? 'pan'
      : isPlain && this.sight.isMeasuring ? 'measure' : isPlain && this.pen.tool === 'outline' ? 'outline' : isPlain && this.pen.tool !== 'none' ? 'stroke' : 'cross'
    this.drag = { kind, tile, x, y, point, index }
    if (kind === 'measure') this.sight.lines.push(this.drag.line = { name, index, from: point, to: point })
    if (kind === 'outline') this.outline = { name, points: [point] }
    if (kind === 'stroke') {
      this.labels.begin(this.stroke())
      this.labels.line(plane, index, point, point, this.radius(plane))
    }
    if (kind === 'cross') this.crossTo(point, plane)
    this.draw()
  }

  move(event) {
    const all = event.getCoalescedEvents?.() ?? []
    for (const each of all.length ? all : [event]) this.moveTo(each)
    this.draw()
  }

  moveTo(event) {
    const { tile, x, y } = this.tileAt(event), { drag } = this
    this.pointer = tile ? { name: tile.name, x, y } : null
    if (!drag) return
    const { plane, name } = drag.tile, point = toSlice(placed(drag.tile, this.volume, this.sight), x, y)
    if (drag.kind === 'stroke') this.labels.line(plane, drag.index, drag.point, point, this.radius(plane))
    if (drag.kind === 'outline') this.outline.points.push(point)
    if (drag.kind === 'measure') drag.line.to = point
    if (drag.kind === 'cross') this.crossTo(point, plane)
    if (drag.kind === 'pan') {
      const { scale } = placed(drag.tile, this.volume, this.sight), [a, d] = this.sight.pan[name]
      this.sight.pan[name] = [a + (x - drag.x) / scale, d + (y - drag.y) / scale]
    }
    if (drag.kind === 'window') {
      const [low, high] = this.sight.window, each = (high - low) / 300
      const width = Math.max((high - low) + 2 * (x - drag.x) * each, each), level = (low + high) / 2 + (y - drag.y) * each
      this.sight.window = [level - width / 2, level + width / 2]
      this.onWindow()
    }
    Object.assign(drag, { x, y, point })
    if (drag.kind !== 'stroke' && drag.kind !== 'cross') this.sight.changed()
  }

  up() {
    const { drag } = this
    this.drag = null
    if (!drag) return
    if (drag.kind === 'measure' && drag.line.from === drag.line.to) this.sight.lines.pop()
    if (drag.kind === 'outline') {
      this.labels.begin(this.stroke())
      this.labels.fill(drag.tile.plane, drag.index, this.outline.points)
      this.outline = null
    }
    if ((drag.kind === 'outline' || drag.kind === 'stroke') && this.labels.end()) this.changed()
    if (drag.kind === 'window') this.stale()
    this.moved()
  }

  crossTo(point, plane) {
    const place = [...this.sight.cross]
    place[plane.across] = Math.floor(point[0])
    place[plane.down] = Math.floor(point[1])
    this.goTo(place)
  }

  wheel(event) {
    const { tile, x, y } = this.tileAt(event)
    if (!tile) return
    event.preventDefault()
    if (event.ctrlKey) { this.zoom(Math.exp(-event.deltaY / 300), tile, x, y); return }
    if (this.drag?.kind === 'stroke' || this.drag?.kind === 'outline') return
    this.turned = (this.turned ?? 0) + (event.deltaMode === 0 ? event.deltaY / 50 : event.deltaY)
    const step = Math.trunc(this.turned)
    if (!step) return
    this.turned -= step
    this.sight.active = tile.name
    const place = [...this.sight.cross]
    place[tile.plane.axis] -= Math.sign(step) * Math.max(1, Math.round(Math.abs(step) / 2))
    this.goTo(place)
  }
}

function strokes(context, lines) {
  context.beginPath()
  for (const [x0, y0, x1, y1] of lines) { context.moveTo(x0, y0); context.lineTo(x1, y1) }
  context.stroke()
}

function outlined(context, text, x, y, color) {
  context.lineWidth = 3
  context.strokeStyle = '#000'
  context.strokeText(text, x, y)
  context.fillStyle = color
  context.fillText(text, x, y)
}
