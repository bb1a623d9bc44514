// One channel of an image. A voxel here is a voxel of the server: both count from left to right, back to front, feet to
// head. A slice that is looked at comes at once, the rest in slabs behind it, those close to it first.
const SLAB_BYTES = 4 << 20
const AGAIN_MS = 3000 // after the server did not answer
const EMPTY = -32768 // darker than anything: what has not come yet

export class Volume {
  // `ask` gets the answer of the server about a box: [[x0, x1], [y0, y1], [z0, z1]].
  constructor(ask) {
    this.ask = ask
    this.wanted = [null, null, null]
    this.pulling = [null, null, null]
    this.stopper = new AbortController()
    this.viewers = new Set() // told of every part that has come
  }

  get isWhole() { return this.missing === 0 }
  has(axis, index) { return this.isWhole || this.there[axis][index] === 1 }

  // Waits until the server has the image in its memory; after it, type and brightness are known.
  open() { return this.opened ??= this.first() }

  async first() {
    const answer = await this.ask([[0, 1], [0, 1], [0, 1]], this.stopper.signal)
    this.type = answer.headers.get('x-voxels') === 'int16' ? Int16Array : Float32Array
    this.window = answer.headers.get('x-window').split(',').map(Number)
  }

  // What the server says of the case; the image is open.
  lies({ shape, spacing, world }) {
    Object.assign(this, { shape, spacing, world, strides: [1, shape[0], shape[0] * shape[1]] })
    this.there = shape.map(size => new Uint8Array(size)) // by axis, the slices that have come
    this.missing = shape[2] // axial slices
    this.voxels = new this.type(shape[0] * shape[1] * shape[2]).fill(this.type === Int16Array ? EMPTY : NaN)
  }

  // A slice; of several that are asked for while one is on its way, only the last.
  want(axis, index) {
    if (this.has(axis, index)) return Promise.resolve()
    this.wanted[axis] = index
    return this.pulling[axis] ??= this.pull(axis).finally(() => { this.pulling[axis] = null })
  }

  async pull(axis) {
    while (!this.has(axis, this.wanted[axis])) {
      const index = this.wanted[axis]
      await this.load(this.shape.map((size, n) => (n === axis ? [index, index + 1] : [0, size])))
      this.mark(axis, index)
      this.came()
    }
  }

  came() { for (const each of this.viewers) each.came() }

  mark(axis, index) {
    if (axis === 2 && !this.there[2][index]) this.missing--
    this.there[axis][index] = 1
  }

  // All the rest, in slabs of axial slices; `near` says which slice is looked at.
  async stream(near) {
    const thick = Math.max(1, Math.floor(SLAB_BYTES / (this.strides[2] * this.type.BYTES_PER_ELEMENT)))
    const left = new Set(Array.from({ length: Math.ceil(this.shape[2] / thick) }, (_, n) => n))
    while (left.size) {
      const at = near() / thick - 0.5
      const next = [...left].reduce((best, n) => (Math.abs(n - at) < Math.abs(best - at) ? n : best))
      const [first, end] = [next * thick, Math.min((next + 1) * thick, this.shape[2])]
      try {
        await this.load([[0, this.shape[0]], [0, this.shape[1]], [first, end]])
      } catch {
        await new Promise(done => setTimeout(done, AGAIN_MS))
        if (this.stopper.signal.aborted) return false
        continue
      }
      left.delete(next)
      for (let z = first; z < end; z++) this.mark(2, z)
      this.came()
    }
    return true
  }

  stop() { this.stopper.abort() }

  async load(box) {
    const answer = await this.ask(box, this.stopper.signal)
    const part = new this.type(await answer.arrayBuffer())
    const [[x0, x1], [y0, y1], [z0, z1]] = box, [, row, slice] = this.strides
    if (x1 - x0 === this.shape[0] && y1 - y0 === this.shape[1]) return this.voxels.set(part, z0 * slice)
    const width = x1 - x0
    for (let z = z0, at = 0; z < z1; z++) for (let y = y0; y < y1; y++, at += width) {
      const start = x0 + y * row + z * slice
      if (width === 1) this.voxels[start] = part[at]
      else this.voxels.set(part.subarray(at, at + width), start)
    }
  }

  // In mm to the right, front and head.
  place([x, y, z]) { return this.world.map(each => each[0] * x + each[1] * y + each[2] * z + each[3]) }

  // What is known of a voxel; undefined where it has not come.
  value([x, y, z]) {
    if (!this.has(2, z) && !this.has(1, y) && !this.has(0, x)) return undefined
    return this.voxels[x + y * this.strides[1] + z * this.strides[2]]
  }
}
