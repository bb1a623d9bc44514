// The viewer: NiiVue with label maps as drawings, changes that can be undone, and interpolation between slices.
// A voxel here is a voxel of the server: both count from left to right, back to front, feet to head.
const { NVImage, Niivue } = window.niivue // niivue.js stands before this script

const PLANES = { multi: 3, axial: 0, coronal: 1, sagittal: 2, render: 4 }
const MEASURE = 2, PAN = 3, CROSS = 8, WINDOW = 9 // what a drag does, in NiiVue's numbers

export class Viewer {
  constructor(canvas) {
    this.canvas = canvas
    this.nv = new Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [0.3, 0.64, 1, 0.9], crosshairWidth: 0.3, crosshairWidthUnit: 'percent', crosshairGap: 12, show3Dcrosshair: true,
      dragAndDropEnabled: false, logLevel: 'error', loadingText: '', isOrientationTextVisible: true, isCornerOrientationText: false,
      multiplanarForceRender: true, multiplanarPadPixels: 4, multiplanarLayout: 2, isRadiologicalConvention: true,
      clipPlaneHotKey: '', cycleClipPlaneHotKey: '', viewModeHotKey: '', maxDrawUndoBitmaps: 2, fontMinPx: 12,
      isNearestInterpolation: false, rulerColor: [1, 0.81, 0.36, 1], measureLineColor: [1, 0.81, 0.36, 1], measureTextColor: [1, 0.81, 0.36, 1],
    })
    this.classes = []
    this.hidden = new Set()
    this.opacity = 0.55
    this.pen = { tool: 'none', value: 1, size: 3, protect: true }
    this.onChange = () => {}
    this.onMove = () => {}
    this.forget()
  }

  async attach() {
    await this.nv.attachToCanvas(this.canvas)
    const told = this.nv.gl.getExtension('WEBGL_debug_renderer_info')
    const renderer = String(told ? this.nv.gl.getParameter(told.UNMASKED_RENDERER_WEBGL) : this.nv.gl.getParameter(this.nv.gl.RENDERER))
    this.isSlow = /swiftshader|llvmpipe|software|basic render/i.test(renderer) // no graphics card: a rendering takes seconds
    this.nv.onLocationChange = where => this.onMove(where)
    // NiiVue ends a stroke on release, wherever that is.
    for (const kind of ['pointerup', 'mouseup', 'touchend']) window.addEventListener(kind, () => setTimeout(() => this.settle()))
  }

  // Work without a picture after each part of it, and one at its end.
  async quietly(work) {
    this.nv.drawScene = () => {}
    try {
      return await work()
    } finally {
      delete this.nv.drawScene
      this.nv.drawScene()
    }
  }

  forget() {
    this.last = null // the label map before the stroke that is being drawn
    this.original = null // as it came
    this.undone = []
    this.done = []
    this.touched = new Map() // by class, the axial slices that were drawn on
  }

  get volume() { return this.nv.volumes[0] }
  get dims() { return this.volume ? this.volume.dimsRAS.slice(1, 4) : [0, 0, 0] }
  get isDrawn() { return this.done.length > 0 }
  get bitmap() { return this.nv.drawBitmap }

  // An image, in a window where one is given: another one later means to process all of it again.
  async show(buffer, title, range = null) {
    this.forget()
    this.nv.closeDrawing()
    while (this.nv.volumes.length) this.nv.removeVolumeByIndex(0)
    if (!buffer) return
    const volume = await NVImage.loadFromUrl({ url: `${title}.nii`, name: `${title}.nii`, buffer })
    this.automatic = [volume.cal_min, volume.cal_max]
    if (range) [volume.cal_min, volume.cal_max] = range
    this.nv.addVolume(volume)
    this.nv.scene.crosshairPos = [0.5, 0.5, 0.5]
  }

  label(bytes) {
    const [x, y, z] = this.dims
    this.forget()
    this.nv.createEmptyDrawing()
    if (bytes) {
      if (bytes.length !== x * y * z) throw new Error('the label map has another size than the image')
      this.nv.drawBitmap.set(bytes)
    }
    this.last = this.nv.drawBitmap.slice()
    this.original = this.nv.drawBitmap.slice()
    this.paint()
    this.nv.refreshDrawing(true)
    this.use(this.pen)
  }

  // Colors and opacity; hidden classes are transparent.
  paint() {
    const map = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: ['background'] }
    for (const each of this.classes) {
      map.R.push(each.color[0]); map.G.push(each.color[1]); map.B.push(each.color[2])
      map.A.push(this.hidden.has(each.index) ? 0 : 255); map.I.push(each.index); map.labels.push(each.name)
    }
    this.nv.drawLut = window.niivue.cmapper.makeDrawLut(map)
    this.nv.refreshColormaps() // setDrawColormap would process the whole image anew
    this.nv.setDrawOpacity(this.opacity)
  }

  view(name) {
    this.nv.setSliceType(PLANES[name])
  }

  window(low, high) {
    if (!this.volume || (this.volume.cal_min === low && this.volume.cal_max === high)) return
    this.volume.cal_min = low
    this.volume.cal_max = high
    this.nv.updateGLVolume()
  }

  measure(on) {
    this.nv.setMouseEventConfig({
      leftButton: { primary: on ? MEASURE : CROSS, withShift: PAN, withCtrl: CROSS }, rightButton: WINDOW, centerButton: PAN,
    })
    if (!on) this.nv.clearAllMeasurements()
    this.nv.drawScene()
  }

  use(pen) {
    this.pen = { ...this.pen, ...pen }
    const { tool, value, size } = this.pen
    this.nv.opts.penSize = size
    const on = tool !== 'none' && this.last !== null
    this.nv.setDrawingEnabled(on)
    if (on) this.nv.setPenValue(tool === 'erase' ? 0 : value, tool === 'outline')
    this.canvas.style.cursor = on ? 'crosshair' : ''
  }

  // What a stroke changed becomes one step that can be undone; what it should not have touched is put back.
  settle() {
    if (!this.last || !this.nv.drawBitmap || this.pen.tool === 'none') return
    const now = this.nv.drawBitmap, last = this.last
    const { tool, value, protect } = this.pen
    const where = [], before = []
    let restored = false
    for (let i = 0; i < now.length; i++) {
      if (now[i] === last[i]) continue
      if (protect && last[i] !== value && last[i] !== 0) { now[i] = last[i]; restored = true; continue }
      where.push(i); before.push(last[i])
    }
    if (restored) this.nv.refreshDrawing(true)
    if (where.length) this.remember(where, before, tool === 'erase' ? null : value)
  }

  remember(where, before, value) {
    const now = this.nv.drawBitmap
    const step = { where: Uint32Array.from(where), before: Uint8Array.from(before), after: Uint8Array.from(where, i => now[i]) }
    this.done.push(step)
    this.undone = []
    const slice = this.dims[0] * this.dims[1]
    for (const i of where) {
      this.last[i] = now[i]
      if (value !== null) this.slices(value).add(Math.floor(i / slice))
    }
    this.onChange()
  }

  slices(value) {
    if (!this.touched.has(value)) this.touched.set(value, new Set())
    return this.touched.get(value)
  }

  undo() { this.step(this.done, this.undone, 'before') }
  redo() { this.step(this.undone, this.done, 'after') }

  step(from, to, side) {
    const step = from.pop()
    if (!step) return
    step.where.forEach((i, n) => { this.nv.drawBitmap[i] = this.last[i] = step[side][n] })
    to.push(step)
    this.nv.refreshDrawing(true)
    this.onChange()
  }

  // Classes whose voxels differ from what came.
  changed() {
    const found = new Set()
    if (!this.original) return found
    const now = this.nv.drawBitmap
    for (const step of this.done) for (const i of step.where) {
      if (now[i] !== this.original[i]) { found.add(now[i]); found.add(this.original[i]) }
    }
    found.delete(0)
    return found
  }

  counts() {
    const found = new Uint32Array(256)
    if (this.nv.drawBitmap) for (const value of this.nv.drawBitmap) found[value]++
    return found
  }

  // Shapes between the slices that were drawn on, by their distances to the outline; returns how many were filled.
  interpolate() {
    const { value, protect } = this.pen
    const drawn = [...(this.touched.get(value) ?? [])].sort((a, b) => a - b).filter(z => this.has(z, value))
    const [nx, ny] = this.dims, size = nx * ny
    const where = [], before = []
    let filled = 0
    for (let n = 1; n < drawn.length; n++) {
      const [low, high] = [drawn[n - 1], drawn[n]]
      if (high - low < 2) continue
      const [a, b] = [this.distance(low, value), this.distance(high, value)]
      for (let z = low + 1; z < high; z++, filled++) {
        const t = (z - low) / (high - low)
        for (let i = 0; i < size; i++) {
          const at = z * size + i, old = this.nv.drawBitmap[at]
          const inside = a[i] * (1 - t) + b[i] * t > 0
          const next = inside ? (protect && old !== 0 && old !== value ? old : value) : (old === value ? 0 : old)
          if (next !== old) { where.push(at); before.push(old); this.nv.drawBitmap[at] = next }
        }
      }
    }
    if (where.length) {
      this.remember(where, before, null)
      this.nv.refreshDrawing(true)
    }
    return filled
  }

  has(z, value) {
    const size = this.dims[0] * this.dims[1]
    return this.nv.drawBitmap.subarray(z * size, (z + 1) * size).includes(value)
  }

  // Signed distance to the outline in a slice, voxels, positive inside.
  distance(z, value) {
    const [nx, ny] = this.dims, size = nx * ny
    const slice = this.nv.drawBitmap.subarray(z * size, (z + 1) * size)
    const inside = squared(slice, nx, ny, value, false), outside = squared(slice, nx, ny, value, true)
    return Float32Array.from(slice, (_, i) => (slice[i] === value ? Math.sqrt(inside[i]) - 0.5 : 0.5 - Math.sqrt(outside[i])))
  }

  goTo(x, y, z) {
    const [nx, ny, nz] = this.dims
    this.nv.scene.crosshairPos = [(x + 0.5) / nx, (y + 0.5) / ny, (z + 0.5) / nz]
    this.nv.createOnLocationChange()
    this.nv.drawScene()
  }

  // To the slice in which a class is largest, and its middle there.
  find(value) {
    const [nx, ny, nz] = this.dims, map = this.nv.drawBitmap
    let best = 0, place = null
    for (let z = 0, at = 0; z < nz; z++) {
      let count = 0, sx = 0, sy = 0
      for (let y = 0; y < ny; y++) for (let x = 0; x < nx; x++, at++) if (map[at] === value) { count++; sx += x; sy += y }
      if (count > best) { best = count; place = [Math.round(sx / count), Math.round(sy / count), z] }
    }
    if (place) this.goTo(...place)
    return place !== null
  }

  scroll(step) {
    this.nv.moveCrosshairInVox(0, 0, step)
  }

  follow(other) {
    this.nv.broadcastTo(other ? [other.nv] : [], { '2d': true, '3d': true, zoomPan: true })
  }
}

// Squared distance of every voxel to the closest one that is (or is not) the class: Felzenszwalb and Huttenlocher, 2012.
function squared(slice, nx, ny, value, toClass) {
  const far = 1e10
  const field = Float32Array.from(slice, each => ((each === value) === toClass ? 0 : far))
  const row = new Float32Array(Math.max(nx, ny)), place = new Int32Array(row.length), bound = new Float32Array(row.length + 1)
  const line = (start, step, length) => {
    for (let i = 0; i < length; i++) row[i] = field[start + i * step]
    let k = 0
    place[0] = 0; bound[0] = -far; bound[1] = far
    for (let q = 1; q < length; q++) {
      let s = cross(q, place[k])
      while (s <= bound[k]) s = cross(q, place[--k])
      place[++k] = q; bound[k] = s; bound[k + 1] = far
    }
    for (let q = 0, j = 0; q < length; q++) {
      while (bound[j + 1] < q) j++
      field[start + q * step] = (q - place[j]) ** 2 + row[place[j]]
    }
  }
  const cross = (q, p) => (row[q] + q * q - (row[p] + p * p)) / (2 * q - 2 * p)
  for (let x = 0; x < nx; x++) line(x, nx, ny)
  for (let y = 0; y < ny; y++) line(y * nx, 1, nx)
  return field
}
