// A label map that is drawn on: strokes, steps that can be undone, and shapes between slices. Knows nothing of pictures.

export class LabelMap {
  constructor(shape, spacing, bytes = null) {
    const [nx, ny, nz] = shape
    if (bytes && bytes.length !== nx * ny * nz) throw new Error('the label map has another size than the image')
    this.shape = shape
    this.spacing = spacing
    this.size = nx * ny // of an axial slice
    this.strides = [1, nx, nx * ny]
    this.voxels = bytes ?? new Uint8Array(nx * ny * nz)
    this.original = new Map() // by axial slice, as it came, where something was drawn
    this.differs = new Int32Array(256) // by class, how many voxels were taken from or given to it
    this.since = new Uint8Array(256) // by class, whether voxels were taken from or given to it since `touched` was asked
    this.done = []
    this.undone = []
    this.stroke = null
    this.version = 0
    this.table = this.count() // by axial slice and class, voxels
  }

  count() {
    const [, , nz] = this.shape, { size, voxels } = this
    const table = new Uint32Array(nz * 256)
    const words = size % 4 === 0 && voxels.byteOffset % 4 === 0 ? new Uint32Array(voxels.buffer, voxels.byteOffset, voxels.length / 4) : null
    for (let z = 0; z < nz; z++) {
      const row = z * 256, end = (z + 1) * size
      if (!words) { for (let i = z * size; i < end; i++) table[row + voxels[i]]++; continue }
      for (let n = z * size / 4; n < end / 4; n++) { // most is background
        const word = words[n]
        if (word === 0) continue
        table[row + (word & 255)]++; table[row + (word >>> 8 & 255)]++; table[row + (word >>> 16 & 255)]++; table[row + (word >>> 24)]++
      }
    }
    for (let z = 0; z < nz; z++) {
      let others = 0
      for (let value = 1; value < 256; value++) others += table[z * 256 + value]
      table[z * 256] = size - others
    }
    return table
  }

  counts() {
    const found = new Uint32Array(256)
    this.table.forEach((count, n) => { found[n & 255] += count })
    return found
  }

  at([x, y, z]) { return this.voxels[x + y * this.strides[1] + z * this.strides[2]] }

  set(i, value) {
    const z = Math.floor(i / this.size), old = this.voxels[i]
    if (!this.original.has(z)) this.original.set(z, this.voxels.slice(z * this.size, (z + 1) * this.size))
    const came = this.original.get(z)[i - z * this.size]
    if (old !== came) { this.differs[old]--; this.differs[came]-- }
    if (value !== came) { this.differs[value]++; this.differs[came]++ }
    this.table[z * 256 + old]--
    this.table[z * 256 + value]++
    this.since[old] = this.since[value] = 1
    this.voxels[i] = value
  }

  // Classes whose voxels differ from what came.
  changed() {
    const found = new Set()
    for (let value = 1; value < 256; value++) if (this.differs[value] > 0) found.add(value)
    return found
  }

  // Classes of which voxels were set since this was asked before.
  touched() {
    const found = new Set()
    for (let value = 1; value < 256; value++) if (this.since[value]) found.add(value)
    this.since.fill(0)
    return found
  }

  // A stroke: voxels of one class, or with `erase` of none, until it ends. With `protect`, other classes stay.
  begin({ value, erase, protect }) {
    this.stroke = { value, erase, protect, where: [], before: [] }
  }

  mark(i) {
    const { value, erase, protect, where, before } = this.stroke
    const old = this.voxels[i], next = erase ? 0 : value
    if (old === next || (protect && old !== 0 && old !== value)) return
    where.push(i)
    before.push(old)
    this.set(i, next)
  }

  // What is within `radius` mm of the line between two points of a slice, in voxels along its two axes; and their own voxels.
  line(plane, index, from, to, radius) {
    const [sa, sd] = [this.spacing[plane.across], this.spacing[plane.down]]
    const [na, nd] = [this.shape[plane.across], this.shape[plane.down]]
    const [ax, ay, bx, by] = [from[0] * sa, from[1] * sd, to[0] * sa, to[1] * sd]
    const [dx, dy] = [bx - ax, by - ay], length = dx * dx + dy * dy
    const clip = (low, high, n) => [Math.max(0, Math.floor(low)), Math.min(n - 1, Math.floor(high))]
    const [u0, u1] = clip((Math.min(ax, bx) - radius) / sa, (Math.max(ax, bx) + radius) / sa, na)
    const [v0, v1] = clip((Math.min(ay, by) - radius) / sd, (Math.max(ay, by) + radius) / sd, nd)
    const start = index * this.strides[plane.axis], step = this.strides[plane.across], row = this.strides[plane.down]
    for (let v = v0; v <= v1; v++) for (let u = u0; u <= u1; u++) {
      const x = (u + 0.5) * sa - ax, y = (v + 0.5) * sd - ay
      const t = length ? Math.min(Math.max((x * dx + y * dy) / length, 0), 1) : 0
      const off = (x - t * dx) ** 2 + (y - t * dy) ** 2
      const isOwn = (u === Math.floor(to[0]) && v === Math.floor(to[1])) || (u === Math.floor(from[0]) && v === Math.floor(from[1]))
      if (off <= radius * radius || isOwn) this.mark(start + u * step + v * row)
    }
    this.version++
  }

  // What a closed outline surrounds: voxels whose center is within it.
  fill(plane, index, points) {
    const [na, nd] = [this.shape[plane.across], this.shape[plane.down]]
    const start = index * this.strides[plane.axis], step = this.strides[plane.across], row = this.strides[plane.down]
    for (let v = 0; v < nd; v++) {
      const y = v + 0.5, hits = []
      points.forEach(([ax, ay], n) => {
        const [bx, by] = points[(n + 1) % points.length]
        if (ay <= y !== by <= y) hits.push(ax + (y - ay) / (by - ay) * (bx - ax))
      })
      hits.sort((a, b) => a - b)
      for (let n = 0; n + 1 < hits.length; n += 2) {
        const first = Math.max(0, Math.ceil(hits[n] - 0.5)), end = Math.min(na, Math.ceil(hits[n + 1] - 0.5))
        for (let u = first; u < end; u++) this.mark(start + u * step + v * row)
      }
    }
    this.version++
  }

  // Makes a stroke one step that can be undone; whether it changed anything.
  end() {
    const { where, before } = this.stroke
    this.stroke = null
    return this.remember(where, before, true)
  }

  remember(where, before, byHand) {
    if (!where.length) return false
    const after = Uint8Array.from(where, i => this.voxels[i])
    this.done.push({ where: Uint32Array.from(where), before: Uint8Array.from(before), after, byHand })
    this.undone = []
    this.version++
    return true
  }

  // The axial slices in which strokes that are not undone gave voxels to a class or took some from it.
  drawnOn(value) {
    const found = new Set()
    for (const { where, before, after, byHand } of this.done) {
      if (byHand) where.forEach((i, n) => { if (before[n] === value || after[n] === value) found.add(Math.floor(i / this.size)) })
    }
    return [...found].sort((a, b) => a - b)
  }

  undo() { return this.step(this.done, this.undone, 'before') }
  redo() { return this.step(this.undone, this.done, 'after') }

  step(from, to, side) {
    const step = this.stroke ? null : from.pop()
    if (!step) return false
    step.where.forEach((i, n) => this.set(i, step[side][n]))
    to.push(step)
    this.version++
    return true
  }

  // Shapes between the slices that were drawn on, by their distances to the outline; returns how many were filled. A slice
  // from which all was erased has no shape.
  interpolate({ value, protect }) {
    const drawn = this.drawnOn(value).filter(z => this.table[z * 256 + value] > 0)
    const { size } = this, where = [], before = []
    let filled = 0
    for (let n = 1; n < drawn.length; n++) {
      const [low, high] = [drawn[n - 1], drawn[n]]
      if (high - low < 2) continue
      const [a, b] = [this.distance(low, value), this.distance(high, value)]
      for (let z = low + 1; z < high; z++, filled++) {
        const t = (z - low) / (high - low)
        for (let i = 0; i < size; i++) {
          const at = z * size + i, old = this.voxels[at]
          const inside = a[i] * (1 - t) + b[i] * t > 0
          const next = inside ? (protect && old !== 0 && old !== value ? old : value) : (old === value ? 0 : old)
          if (next !== old) { where.push(at); before.push(old); this.set(at, next) }
        }
      }
    }
    this.remember(where, before, false)
    return filled
  }

  // Signed distance to the outline in an axial slice, voxels, positive inside.
  distance(z, value) {
    const [nx, ny] = this.shape
    const slice = this.voxels.subarray(z * this.size, (z + 1) * this.size)
    const inside = squared(slice, nx, ny, value, false), outside = squared(slice, nx, ny, value, true)
    return Float32Array.from(slice, (each, i) => (each === value ? Math.sqrt(inside[i]) - 0.5 : 0.5 - Math.sqrt(outside[i])))
  }

  // The middle of a class in the axial slice in which it is largest; null where it is absent.
  middle(value) {
    const [nx, ny, nz] = this.shape
    let best = 0, z = 0
    for (let each = 0; each < nz; each++) if (this.table[each * 256 + value] > best) { best = this.table[each * 256 + value]; z = each }
    if (!best) return null
    let sx = 0, sy = 0
    for (let y = 0, at = z * this.size; y < ny; y++) for (let x = 0; x < nx; x++, at++) if (this.voxels[at] === value) { sx += x; sy += y }
    return [Math.round(sx / best), Math.round(sy / best), z]
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
