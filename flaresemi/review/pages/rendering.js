// The rendering, by NiiVue: loaded when it is first asked for, of as many voxels as the machine can take.
let loading = null

function loaded() {
  return loading ??= new Promise((done, failed) => {
    const script = document.createElement('script')
    script.src = 'niivue.js'
    script.onload = () => done(window.niivue)
    script.onerror = () => { loading = null; failed(new Error('the program for renderings cannot be loaded')) }
    document.head.append(script)
  })
}

let graphics = null

// Whether there is a graphics card; without one, the browser computes a rendering in seconds.
export function hasGraphics() {
  if (graphics === null) {
    const gl = document.createElement('canvas').getContext('webgl2', { failIfMajorPerformanceCaveat: true })
    const told = gl?.getExtension('WEBGL_debug_renderer_info')
    const renderer = String(gl?.getParameter(told ? told.UNMASKED_RENDERER_WEBGL : gl.RENDERER) ?? 'software')
    gl?.getExtension('WEBGL_lose_context')?.loseContext()
    graphics = !/swiftshader|llvmpipe|software|basic render/i.test(renderer)
  }
  return graphics
}

const MOST = { card: 256, none: 112 } // voxels along an axis

export class Rendering {
  constructor(canvas) {
    this.canvas = canvas // fills what it stands in
    this.nv = null
  }

  // An image, its label map, and the look of both.
  async show(volume, labels, { classes, hidden, opacity, window: range }) {
    const { NVImage, Niivue, cmapper } = await loaded()
    if (!this.nv) {
      const nv = new Niivue({
        backColor: [0, 0, 0, 1], show3Dcrosshair: false, dragAndDropEnabled: false, logLevel: 'error', loadingText: '', maxDrawUndoBitmaps: 2,
        isOrientationTextVisible: false, clipPlaneHotKey: '', cycleClipPlaneHotKey: '', viewModeHotKey: '', sliceType: 4, crosshairWidth: 0,
      })
      await nv.attachToCanvas(this.canvas)
      this.nv = nv
    }
    const { nv } = this
    nv.drawScene = () => {} // one picture, at the end
    try {
      const steps = volume.shape.map(size => Math.ceil(size / (hasGraphics() ? MOST.card : MOST.none)))
      nv.closeDrawing()
      while (nv.volumes.length) nv.removeVolumeByIndex(0)
      const image = await NVImage.loadFromUrl({ url: 'image.nii', name: 'image.nii', buffer: nifti(volume, steps) })
      ;[image.cal_min, image.cal_max] = range
      nv.addVolume(image)
      nv.createEmptyDrawing()
      nv.drawBitmap.set(thinned(labels, steps, Uint8Array))
      const map = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: ['background'] }
      for (const each of classes) {
        map.R.push(each.color[0]); map.G.push(each.color[1]); map.B.push(each.color[2])
        map.A.push(hidden.has(each.index) ? 0 : 255); map.I.push(each.index); map.labels.push(each.name)
      }
      nv.drawLut = cmapper.makeDrawLut(map)
      nv.refreshColormaps()
      nv.drawOpacity = Math.max(opacity, 0.3)
      nv.refreshDrawing(false)
      nv.setSliceType(4)
    } finally {
      delete nv.drawScene
    }
    nv.drawScene()
  }

  turn(right, up) {
    const { renderAzimuth, renderElevation } = this.nv?.scene ?? {}
    this.nv?.setRenderAzimuthElevation(renderAzimuth + right, Math.min(Math.max(renderElevation + up, -90), 90))
  }
}

// Every so many voxels along each axis.
function thinned({ voxels, shape, strides }, [sx, sy, sz], type) {
  const found = new type(shape.reduce((size, each, n) => size * Math.ceil(each / [sx, sy, sz][n]), 1))
  let at = 0
  for (let z = 0; z < shape[2]; z += sz) for (let y = 0; y < shape[1]; y += sy) {
    const row = y * strides[1] + z * strides[2]
    for (let x = 0; x < shape[0]; x += sx) found[at++] = voxels[row + x]
  }
  return found
}

// The image as a NIfTI file, whose axes run to the right, front and head.
function nifti(volume, steps) {
  const isShort = volume.type === Int16Array
  const voxels = thinned(volume, steps, volume.type)
  const file = new ArrayBuffer(352 + voxels.byteLength), head = new DataView(file)
  head.setInt32(0, 348, true)
  ;[3, ...volume.shape.map((size, n) => Math.ceil(size / steps[n])), 1, 1, 1, 1].forEach((size, n) => head.setInt16(40 + 2 * n, size, true))
  head.setInt16(70, isShort ? 4 : 16, true)
  head.setInt16(72, isShort ? 16 : 32, true)
  const spacing = volume.spacing.map((each, n) => each * steps[n])
  ;[1, ...spacing].forEach((each, n) => head.setFloat32(76 + 4 * n, each, true))
  head.setFloat32(108, 352, true)
  head.setFloat32(112, 1, true)
  head.setInt8(123, 2)
  head.setInt16(254, 1, true)
  spacing.forEach((each, n) => head.setFloat32(280 + 16 * n + 4 * n, each, true))
  ;[0x6e, 0x2b, 0x31].forEach((each, n) => head.setUint8(344 + n, each))
  new Uint8Array(file, 352).set(new Uint8Array(voxels.buffer))
  return file
}
