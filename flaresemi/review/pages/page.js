// The page: the queue, one open case, and what is decided about it. All state of the server is asked for anew.
import { hasGraphics } from './rendering.js'
import { Viewer } from './viewer.js'
import { Volume } from './volume.js'

const $ = id => document.getElementById(id)
const api = name => `api/${name}`
const tab = crypto.randomUUID()

const WINDOWS = {
  'Soft tissue': [-160, 240], Liver: [-10, 170], Pancreas: [-60, 190], Lung: [-1350, 150], Bone: [-400, 1400], Brain: [0, 80],
}
const ADJUSTED = 'Adjusted' // with the mouse
const BEAT_SECONDS = 10

const state = {
  info: null, items: [], next: [], round: 0, filter: 'open', find: '',
  open: null, // what the server says of the open case
  marks: new Map(), // by organ: accepted, rejected or corrected
  before: new Map(), // by organ that drawing has marked as corrected, its mark before that
  readonly: null, // why nothing may be changed
  dirty: false, // whether something is not saved
  edits: 0, // how often something was changed, so that only what was sent counts as saved
  saving: false,
  which: 'newest', channel: 0, window: 0, view: 'multi', seen: 0, busy: 0, compared: false,
}

const viewer = new Viewer($('canvas'))
let other = null

// Talking to the server.

async function ask(path, options) {
  let answer
  try {
    answer = await fetch(path, { cache: 'no-store', ...options })
  } catch (problem) {
    if (problem.name === 'AbortError') throw problem
    connected(false)
    throw new Told('the server does not answer', 'start flaresemi_review again; what is drawn here stays until you close this tab')
  }
  connected(true)
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}))
    throw new Told(said.what ?? `the server answered ${answer.status}`, said.fix)
  }
  return answer
}

class Told extends Error {
  constructor(what, fix) { super(fix ? `${what}: ${fix}` : what) }
}

const read = async (name, words = {}) => (await ask(`${api(name)}?${new URLSearchParams(words)}`)).json()

async function tell(name, said, label = null, words = {}) {
  const line = JSON.stringify({ tab, who: who(), ...said }) + (label ? '\n' : '')
  const body = label ? new Blob([line, label]) : line
  return (await ask(`${api(name)}?${new URLSearchParams(words)}`, { method: 'POST', headers: { 'X-Flaresemi': '1' }, body })).json()
}

const who = () => $('who').value.trim()

function connected(is) {
  $('connection').textContent = is ? '' : 'No answer from the server'
}

function toast(text, bad = false) {
  const box = document.createElement('div')
  box.textContent = text
  box.className = bad ? 'bad' : ''
  $('toast').append(box)
  setTimeout(() => box.remove(), bad ? 9000 : 4000)
}

// Runs what may fail, and says what did.
async function attempt(work) {
  try {
    return await work()
  } catch (problem) {
    toast(problem instanceof Told ? problem.message : `This page has a fault: ${problem.message}`, true)
    if (!(problem instanceof Told)) console.error(problem)
    return undefined
  }
}

// The queue.

async function refresh() {
  const found = await read('queue')
  if (state.round && found.round !== state.round) toast(`Round ${found.round} has labeled the cases anew; open them again to see it`)
  state.items = found.items
  state.next = found.next
  state.round = found.round
  $('what').textContent = `${state.info.dataset} · fold ${state.info.fold} · ${found.round ? `pseudo-labels of round ${found.round}` : 'no pseudo-labels yet'}`
  list()
}

function status(item) {
  const review = item.review
  if (item.group === 'held out') return ['held out', 'open']
  if (!review) return ['', '']
  if (review.corrected.length) return ['corrected', 'corrected']
  if (review.accepted.length && review.rejected.length) return ['partly', 'accepted']
  return review.accepted.length ? ['accepted', 'accepted'] : ['rejected', 'rejected']
}

function shown() {
  const fits = item => item.id.toLowerCase().includes(state.find.toLowerCase())
  if (state.filter === 'next') {
    const by = new Map(state.items.map(item => [item.id, item]))
    return state.next.map(each => ({ ...by.get(each.case_id), suggestion: each })).filter(item => item.id && fits(item))
  }
  const kinds = { open: item => item.reasons.length > 0, decided: item => item.review, all: () => true }
  return state.items.filter(kinds[state.filter]).filter(fits)
}

function list() {
  const items = shown(), most = Math.max(...state.items.map(item => item.priority), 1e-9)
  const notes = {
    open: 'Most urgent first. What is decided leaves this list.',
    next: 'To label from scratch: random among the unlike, one of each part of the cases by the volume of their organs.',
    decided: 'Decided about; the next round uses it.', all: 'Every unlabeled case, and held-out ones that fell.',
  }
  $('queue-note').textContent = items.length ? `${notes[state.filter]} ${items.length} case${items.length === 1 ? '' : 's'}.` : 'No case here.'
  $('queue').replaceChildren(...items.map(item => {
    const entry = document.createElement('li'), button = document.createElement('button')
    const [text, kind] = status(item)
    button.type = 'button'
    button.dataset.id = item.id
    button.setAttribute('aria-current', state.open?.id === item.id)
    const name = part('span', 'name', item.id)
    if (text) name.append(part('span', `badge ${kind}`, text))
    button.append(name)
    const why = item.suggestion
      ? item.suggestion.why
      : item.reasons.map(each => each.text).join('; ')
    if (why) button.append(part('span', 'why', why))
    if (item.open && item.open !== who()) button.append(part('span', 'why', `open: ${item.open}`))
    if (item.priority > 0) {
      const bar = part('span', 'bar', ''), fill = document.createElement('span')
      fill.style.width = `${Math.round(100 * item.priority / most)}%`
      bar.append(fill)
      button.append(bar)
    }
    button.addEventListener('click', () => attempt(() => open(item.id)))
    entry.append(button)
    return entry
  }))
}

function part(kind, name, text) {
  const made = document.createElement(kind)
  made.className = name
  made.textContent = text
  return made
}

function neighbor(step) {
  const items = shown(), at = items.findIndex(item => item.id === state.open?.id)
  return items[at < 0 ? 0 : at + step]
}

async function walk(step) {
  const item = neighbor(step)
  if (item) await open(item.id)
}

// A case.

function leave() {
  return !state.dirty || confirm('What you changed in this case is not saved. Leave it?')
}

async function open(id, words = {}) {
  if (!words.again && !leave()) return
  const turn = ++state.seen
  busy('Loading the image')
  const volume = volumeOf(id)
  volume.open().catch(() => {}) // the server reads it meanwhile; what goes wrong is told below
  try {
    const isOpen = state.items.some(item => item.id === id && item.group === 'unlabeled')
    const [facts, claim] = await Promise.all([read('case', { id }), who() && isOpen ? tell('claim', { id }) : null])
    const which = words.which ?? (facts.has_reviewed ? 'reviewed' : 'newest')
    const [label] = await Promise.all([labelMap(id, which), volume.open()])
    if (turn !== state.seen) return volume.stop() // another case was chosen meanwhile
    volume.lies(facts)
    state.open = facts
    state.readonly = facts.group !== 'unlabeled' ? 'A held-out case: it judges the rounds, and is only looked at.'
      : !claim ? 'Write your name above to decide about cases.'
      : claim.granted ? null : `${claim.by} has this case open: you can only look at it.`
    viewer.volume?.stop()
    viewer.show(volume, label)
    marks(which)
    windows()
    sources(which)
    look()
    $('empty').hidden = true
    describe()
    list()
    await viewer.ready().catch(() => {}) // what has not come is asked for again behind it
    if (turn !== state.seen) return undefined
    if (state.compared) await attempt(() => compare(true))
    painted().then(() => volume.stream(() => viewer.sight.cross[2])).then(isWhole => { if (isWhole) lookAhead() })
  } finally {
    busy(null)
  }
}

// After the next picture of the page, or soon where nobody sees it.
function painted() {
  return new Promise(done => { requestAnimationFrame(() => setTimeout(done)); setTimeout(done, 500) })
}

function volumeOf(id) {
  const channel = Math.max($('channel').selectedIndex, 0)
  return new Volume((box, signal) => ask(`${api('voxels')}?${new URLSearchParams({ id, channel, box: box.flat() })}`, { signal }))
}

// The server reads the next case's image while a person looks at this one, or at the queue.
function lookAhead() {
  const item = neighbor(1)
  if (item && item.id !== state.open?.id) volumeOf(item.id).open().catch(() => {})
}

// At the organ that the case is in the queue for, or at the middle.
function look() {
  const reasons = state.items.find(each => each.id === state.open.id)?.reasons ?? []
  const organs = reasons.flatMap(each => each.organs)
  const found = state.info.classes.filter(each => each.organs?.some(organ => organs.includes(organ)))
  const wanted = organs.flatMap(organ => found.filter(each => each.organs.includes(organ)))
  wanted.some(each => viewer.find(each.index))
}

async function labelMap(id, which) {
  const answer = await ask(`${api('label')}?${new URLSearchParams({ id, which })}`)
  return answer.status === 204 ? null : new Uint8Array(await answer.arrayBuffer())
}

function busy(text) {
  state.busy = text ? state.busy + 1 : Math.max(state.busy - 1, 0)
  $('busy').hidden = state.busy === 0
  if (text) $('busy-text').textContent = text
}

// What was accepted or corrected is so in the label map that was reviewed, and in no other that is shown.
function marks(which) {
  const kinds = which === 'reviewed' ? ['accepted', 'rejected', 'corrected'] : ['rejected']
  state.marks = new Map()
  state.before = new Map()
  for (const kind of kinds) for (const organ of state.open.review?.[kind] ?? []) state.marks.set(organ, kind)
  $('note').value = state.open.review?.note ?? ''
  const slices = state.open.review?.slices?.[0]
  $('first').value = slices ? slices[0] + 1 : ''
  $('last').value = slices ? slices[1] : ''
  $('first').max = $('last').max = state.open.shape[2]
  state.dirty = false
}

function sources(which) {
  state.which = which
  const names = { newest: state.open.round ? `round ${state.open.round}` : 'supervised start', former: state.open.round > 1 || state.open.group === 'held out' ? 'former round' : null,
    reviewed: state.open.has_reviewed ? `reviewed by ${state.open.review.by}` : null, real: state.open.group === 'held out' ? 'real labels' : null }
  $('which').replaceChildren(...Object.entries(names).filter(each => each[1]).map(([key, text]) => new Option(text, key, false, key === which)))
  $('caption').textContent = state.compared ? names[which] ?? '' : ''
}

function windowNames() {
  return state.info.is_ct && $('channel').selectedIndex <= 0 ? [...Object.keys(WINDOWS), 'Automatic'] : ['Automatic']
}

function windows() {
  const names = windowNames()
  $('window').replaceChildren(...names.map(name => new Option(name, name)))
  state.window = Math.min(state.window, names.length - 1)
  $('window').selectedIndex = state.window
  applyWindow()
}

function applyWindow() {
  state.window = $('window').selectedIndex
  const { value } = $('window')
  if (value !== ADJUSTED && viewer.volume) viewer.window(...(WINDOWS[value] ?? viewer.volume.window))
}

async function compare(on) {
  state.compared = on
  $('other').hidden = !on
  $('compare').setAttribute('aria-pressed', on)
  if (on && state.open) {
    const { volume } = viewer, former = await labelMap(state.open.id, 'former')
    if (volume !== viewer.volume) return
    if (!other) {
      other = new Viewer($('canvas-other'), viewer.sight)
      other.onMove = () => viewer.onMove(viewer.where())
      other.onWindow = viewer.onWindow
      other.onBusy = viewer.onBusy
      other.classes = viewer.classes
    }
    Object.assign(other, { hidden: viewer.hidden, opacity: viewer.opacity })
    other.show(volume, former, true)
    $('caption-other').textContent = former ? 'former round' : 'no former label map'
  } else other?.clear()
  if (state.open) sources($('which').value || 'newest')
}

// What is shown of a case.

function describe() {
  const facts = state.open
  $('case').hidden = $('decide').hidden = false
  $('case-name').textContent = facts.id
  const item = state.items.find(each => each.id === facts.id)
  const [text, kind] = item ? status({ ...item, review: facts.review }) : ['', '']
  $('badge').textContent = text
  $('badge').className = `badge ${kind}`
  $('badge').hidden = !text
  $('banner').hidden = !state.readonly
  $('banner').textContent = state.readonly ?? ''
  $('reasons').replaceChildren(...(item?.reasons ?? []).map(each => {
    const entry = part('li', '', each.text)
    entry.prepend(part('b', '', each.kind))
    return entry
  }))
  const review = facts.review, lost = review?.label_revision && !facts.has_reviewed
  $('former-decision').textContent = review ? `Decided by ${review.by}, ${review.at.slice(0, 10)} (revision ${review.revision}).${lost ? ' The label map of it is missing or has changed: decide again.' : ''}` : ''
  $('take-back').hidden = !review
  organs()
  decision()
}

function organs() {
  const facts = state.open
  $('organs').replaceChildren(...state.info.classes.map(each => {
    const entry = document.createElement('li')
    entry.style.setProperty('--color', `rgb(${each.color})`)
    entry.className = viewer.pen.value === each.index && viewer.pen.tool !== 'none' ? 'pen' : ''
    const visible = document.createElement('input')
    visible.type = 'checkbox'
    visible.checked = !viewer.hidden.has(each.index)
    visible.setAttribute('aria-label', `show ${each.name}`)
    visible.addEventListener('change', () => toggle(each.index))
    const button = part('button', 'organ', each.name)
    button.type = 'button'
    const score = facts.organs?.[each.name]
    if (score && score.agreement === null) button.classList.add('absent')
    const unused = facts.unused?.[each.name] ?? facts.rejected
    button.title = score ? `${each.name}: ${unused ? `not used: ${unused}` : facts.used ? 'used by the selection' : 'not selected yet'}. Click: go there and draw it` : `${each.name}: go there and draw it`
    button.addEventListener('click', () => choose(each.index))
    entry.append(visible, button, numbers(each, score), organMarks(each))
    return entry
  }))
  $('toggle-all').textContent = viewer.hidden.size ? 'show all' : 'hide all'
}

function numbers(each, score) {
  const made = part('span', 'numbers', '')
  if (!score) return made
  const range = state.open.volumes[each.name]
  const volume = part('span', '', score.volume_ml >= 10 ? score.volume_ml.toFixed(0) : score.volume_ml.toFixed(1))
  if (range && (score.volume_ml < range[0] / 2 || (range[1] && score.volume_ml > 2 * range[1]))) volume.className = 'off'
  if (range) volume.title = `labeled cases: ${range[0].toFixed(0)} to ${range[1]?.toFixed(0) ?? '?'} ml`
  const trust = score.predicted_dice ?? score.agreement
  made.append(volume, ` · ${trust === null ? 'absent' : trust.toFixed(2)}`)
  return made
}

function organMarks(each) {
  const made = part('span', 'marks', '')
  if (!each.organs) return made
  for (const [kind, sign, word] of [['accepted', '✓', 'accept'], ['rejected', '✕', 'reject'], ['corrected', '✎', 'vouch for as corrected:']]) {
    const button = document.createElement('button')
    const on = each.organs.every(organ => state.marks.get(organ) === kind)
    button.type = 'button'
    button.textContent = sign
    button.dataset.mark = kind
    button.disabled = state.readonly !== null
    button.setAttribute('aria-label', `${word} ${each.name}`)
    button.title = `${word} ${each.name}`
    button.setAttribute('aria-pressed', on)
    button.addEventListener('click', () => {
      for (const organ of each.organs) {
        on ? state.marks.delete(organ) : state.marks.set(organ, kind)
        state.before.delete(organ)
      }
      changed()
      const again = [...$('organs').querySelectorAll(`[data-mark=${kind}]`)].find(b => b.getAttribute('aria-label') === `${word} ${each.name}`)
      again?.focus()
    })
    made.append(button)
  }
  return made
}

// What is shown differs from what is saved.
function edited() {
  state.dirty = true
  state.edits++
}

function changed() {
  edited()
  organs()
  decision()
}

function decision() {
  const count = kind => state.info.organs.filter(organ => state.marks.get(organ) === kind).length
  const [accepted, rejected, corrected] = ['accepted', 'rejected', 'corrected'].map(count)
  const parts = []
  const absent = state.info.organs.filter(organ => state.marks.get(organ) === 'accepted' && state.open.organs?.[organ]?.agreement === null)
  if (accepted) parts.push(`${accepted} accepted${absent.length ? ` (as absent: ${absent.join(', ')})` : ''}`)
  if (rejected) parts.push(`${rejected} rejected`)
  if (corrected) parts.push(`${corrected} corrected`)
  const left = state.info.organs.length - accepted - rejected - corrected
  const rest = corrected ? 'teach nothing in this case' : 'are used by their scores'
  const part = corrected && $('first').value && $('last').value ? `, in slices ${$('first').value} to ${$('last').value}` : ''
  const ending = (left ? `; the other ${left} ${rest}` : corrected && !rejected ? ': counts as a labeled case' : '') + part
  $('decision-text').textContent = parts.length ? `${parts.join(', ')}${ending}${state.dirty ? ' (not saved)' : ''}` : 'Nothing is decided yet.'
  const frozen = state.readonly !== null
  for (const id of ['accept', 'reject', 'note', 'take-back', 'first', 'last']) $(id).disabled = frozen
  for (const id of ['save', 'save-next']) $(id).disabled = frozen || !parts.length || !state.dirty
  const hasLabels = Boolean(state.open?.label_hash) || state.open?.has_reviewed
  $('accept').disabled ||= !hasLabels
  $('draw').hidden = frozen
  $('undo').disabled = !viewer.done.length
  $('redo').disabled = !viewer.undone.length
  for (const button of document.querySelectorAll('[data-tool]')) button.setAttribute('aria-pressed', button.dataset.tool === viewer.pen.tool)
}

// Every organ of a class that was just drawn on is corrected, and what a person says of the others stays; where all that was
// drawn of an organ was undone, it is marked as it was.
function drawn() {
  const of = found => new Set(state.info.classes.filter(each => found.has(each.index)).flatMap(each => each.organs ?? []))
  const organs = of(viewer.labels.changed()), touched = of(viewer.labels.touched())
  for (const organ of organs) {
    if (!touched.has(organ) || state.marks.get(organ) === 'corrected') continue
    state.before.set(organ, state.marks.get(organ))
    state.marks.set(organ, 'corrected')
  }
  for (const [organ, mark] of state.before) {
    if (organs.has(organ)) continue
    mark ? state.marks.set(organ, mark) : state.marks.delete(organ)
    state.before.delete(organ)
  }
  changed()
}

function toggle(index) {
  viewer.hidden.has(index) ? viewer.hidden.delete(index) : viewer.hidden.add(index)
  repaint()
}

function repaint() {
  viewer.paint()
  if (other) { other.hidden = viewer.hidden; other.opacity = viewer.opacity; other.paint() }
  if (state.open) organs()
}

function choose(index) {
  viewer.use({ value: index })
  viewer.find(index)
  organs()
}

function tool(name) {
  if (state.readonly !== null || !state.open) return
  viewer.use({ tool: name })
  organs()
  decision()
}

function fill(kind) {
  if (state.readonly !== null || !state.open) return
  for (const organ of state.info.organs) {
    const now = state.marks.get(organ)
    if (kind === 'accepted' ? now === undefined : now !== 'corrected') state.marks.set(organ, kind)
  }
  changed()
}

async function save(next = false) {
  if ($('save').disabled || state.saving) return
  const facts = state.open, { edits } = state, following = next ? neighbor(1)?.id : null
  const named = kind => state.info.organs.filter(organ => state.marks.get(organ) === kind)
  const corrected = named('corrected'), accepted = named('accepted')
  const said = { revision: facts.review?.revision ?? 0, looked_at: facts.label_hash, image: facts.image, accepted, rejected: named('rejected'), corrected,
    slices: slices(corrected), note: $('note').value.trim() }
  const showsOther = $('which').value !== 'newest'
  const needsMap = corrected.length > 0 || (accepted.length > 0 && (showsOther || viewer.isDrawn))
  state.saving = true
  busy('Saving')
  try {
    const label = needsMap ? await packed(viewer.bitmap) : null
    const review = await tell('decision', said, label, { id: facts.id })
    facts.review = review
    facts.has_reviewed = review.label_revision > 0
    if (state.open === facts && state.edits === edits) state.dirty = false
    toast(`Saved: ${facts.id}, revision ${review.revision}. The next round uses it.`)
    await refresh()
    if (state.open !== facts) return
    sources(needsMap ? 'reviewed' : $('which').value)
    describe()
    if (following && following !== facts.id) await open(following)
  } finally {
    state.saving = false
    busy(null)
  }
}

async function packed(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream('gzip'))
  return new Response(stream).blob()
}

function slices(corrected) {
  const [first, last] = [Number($('first').value), Number($('last').value)]
  if (!first && !last) return []
  if (!corrected.length) throw new Told('only corrected organs can count in some slices', 'mark those that you looked at as corrected (✎), or leave the slices empty')
  if (!(first >= 1 && last >= first && last <= state.open.shape[2])) throw new Told(`slices run from 1 to ${state.open.shape[2]}`)
  return [[first - 1, last]]
}

async function takeBack() {
  const facts = state.open
  if (!facts?.review || state.readonly !== null || !leave() || !confirm(`Take back what ${facts.review.by} decided about ${facts.id}?`)) return
  await tell('take-back', { id: facts.id, revision: facts.review.revision })
  toast(`Taken back: ${facts.id}`)
  await refresh()
  if (state.open === facts) await open(facts.id, { again: true })
}

// Location, keys and the rest of the page.

function moved({ mm, value, label, plane, slice, of }) {
  if (!state.open) return
  const name = state.info.classes.find(each => each.index === label)?.name ?? 'background'
  const unit = state.info.is_ct && $('channel').selectedIndex <= 0 ? ' HU' : ''
  const bold = text => part('b', '', text), [r, a, s] = mm.map(each => each.toFixed(0))
  const level = value === undefined ? '…' : `${Math.round(value * 10) / 10}${unit}`
  const left = viewer.volume.isWhole ? '' : `  ·  loading the other slices, ${Math.round(100 * (1 - viewer.volume.missing / viewer.dims[2]))} %`
  $('location').replaceChildren(`${plane} slice `, bold(`${slice + 1}/${of}`), `  ·  x ${r}  y ${a}  z ${s} mm  ·  `, bold(level), '  ·  ', bold(name), left)
  $('canvas').setAttribute('aria-label', `Viewer: ${state.open.id}, ${plane} slice ${slice + 1} of ${of}, ${name}`)
}

const VIEWS = ['multi', 'axial', 'coronal', 'sagittal', 'render']

function setView(name) {
  state.view = name
  for (const button of document.querySelectorAll('button[data-view]')) button.setAttribute('aria-pressed', button.dataset.view === name)
  viewer.view(name)
}

function cycleOrgan(step) {
  const all = state.info.classes, at = all.findIndex(each => each.index === viewer.pen.value)
  choose(all[(at + step + all.length) % all.length].index)
}

function setSize(size) {
  $('size').value = $('size-out').value = Math.min(Math.max(size, 1), 25)
  viewer.use({ size: Number($('size').value) })
}

function setMeasure(on) {
  $('measure').setAttribute('aria-pressed', on)
  viewer.measure(on)
}

const isOn = id => $(id).getAttribute('aria-pressed') === 'true'

const KEYS = [
  ['J / K', 'next, previous case', { j: () => walk(1), k: () => walk(-1) }],
  ['A', 'accept all', { a: () => fill('accepted') }],
  ['X', 'reject all', { x: () => fill('rejected') }],
  ['S', 'save', { s: () => save() }],
  ['N', 'save, next case', { n: () => save(true) }],
  ['↑ ↓', 'next, previous slice; 3D: turn', { ArrowUp: () => viewer.scroll(1), ArrowDown: () => viewer.scroll(-1) }],
  ['PgUp PgDn', 'ten slices', { PageUp: () => viewer.scroll(10), PageDown: () => viewer.scroll(-10) }],
  ['← →', 'cross to the side; 3D: turn', { ArrowLeft: () => viewer.nudge('across', 1), ArrowRight: () => viewer.nudge('across', -1) }],
  ['Shift+↑ ↓', 'cross up, down', { 'Shift+ArrowUp': () => viewer.nudge('down', 1), 'Shift+ArrowDown': () => viewer.nudge('down', -1) }],
  ['P', 'the plane that keys scroll', { p: () => viewer.nextPlane() }],
  ['+ - 0', 'zoom, whole slice', { '+': () => viewer.zoomStep(1), '-': () => viewer.zoomStep(-1), 0: () => viewer.zoomStep(0) }],
  ['1 to 5', 'planes, axial, coronal, sagittal, 3D', Object.fromEntries(VIEWS.map((view, n) => [String(n + 1), () => setView(view)]))],
  ['W', 'next window', { w: () => { $('window').selectedIndex = ($('window').selectedIndex + 1) % $('window').length; applyWindow() } }],
  ['L', 'labels on, off', { l: () => toggleAll() }],
  [', .', 'previous, next organ', { ',': () => cycleOrgan(-1), '.': () => cycleOrgan(1) }],
  ['C', 'former round beside it', { c: () => compare(!state.compared) }],
  ['M', 'measure a distance', { m: () => setMeasure(!isOn('measure')) }],
  ['Esc', 'look, draw nothing', { Escape: () => tool('none') }],
  ['B', 'brush', { b: () => tool('brush') }],
  ['O', 'outline that is filled', { o: () => tool('outline') }],
  ['E', 'eraser', { e: () => tool('erase') }],
  ['Enter', 'brush, or end of a distance, at the cross', {}],
  ['[ ]', 'size of the brush', { '[': () => setSize(viewer.pen.size - 1), ']': () => setSize(viewer.pen.size + 1) }],
  ['I', 'interpolate between slices', { i: () => interpolate() }],
  ['Ctrl+Z', 'undo (with Shift: redo)', {}],
  ['?', 'this list', { '?': () => $('help').showModal() }],
]

function toggleAll() {
  viewer.hidden = viewer.hidden.size ? new Set() : new Set(state.info.classes.map(each => each.index))
  repaint()
}

function interpolate() {
  if (state.readonly !== null || !state.open) return
  const filled = viewer.interpolate()
  if (!filled) toast('Draw the organ on two axial slices first, with slices between them')
}

function pressed(event) {
  const inText = event.target.matches('input[type=text], input[type=search], input[type=number], textarea')
  if ($('help').open || !state.info) return
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === 'z' && !inText) {
    event.preventDefault()
    event.shiftKey ? viewer.redo() : viewer.undo()
    return
  }
  if (inText || event.ctrlKey || event.metaKey || event.altKey) return
  const isSlider = event.target.matches('input[type=range], select')
  const isArrow = event.key.startsWith('Arrow'), key = isArrow && event.shiftKey ? `Shift+${event.key}` : event.key
  if (key === 'Enter' && event.target === $('canvas')) viewer.press()
  for (const [, , keys] of KEYS) {
    const work = keys[key] ?? keys[key.toLowerCase()]
    if (!work || (isSlider && isArrow)) continue
    event.preventDefault()
    event.stopPropagation() // NiiVue has keys of its own
    attempt(work)
    return
  }
}

function wire() {
  $('who').value = state.info.by || localStorage.getItem('who') || ''
  $('who').classList.toggle('wanted', !who())
  $('who').addEventListener('change', () => {
    localStorage.setItem('who', who())
    $('who').classList.toggle('wanted', !who())
    if (state.open && state.readonly && !state.dirty) attempt(() => open(state.open.id, { again: true }))
  })
  for (const button of document.querySelectorAll('[data-filter]')) button.addEventListener('click', () => {
    state.filter = button.dataset.filter
    for (const each of document.querySelectorAll('[data-filter]')) each.setAttribute('aria-pressed', each === button)
    list()
  })
  $('find').addEventListener('input', () => { state.find = $('find').value; list() })
  for (const button of document.querySelectorAll('button[data-view]')) button.addEventListener('click', () => setView(button.dataset.view))
  for (const button of document.querySelectorAll('[data-tool]')) button.addEventListener('click', () => tool(button.dataset.tool))
  $('window').addEventListener('change', applyWindow)
  $('opacity').addEventListener('input', () => { viewer.opacity = $('opacity').value / 100; repaint() })
  $('which').addEventListener('change', () => attempt(async () => {
    if (leave()) await open(state.open.id, { again: true, which: $('which').value })
    else sources(state.which)
  }))
  $('channel').replaceChildren(...state.info.channels.map((name, n) => new Option(name, n)))
  $('channel-label').hidden = state.info.channels.length < 2
  $('channel').addEventListener('change', () => {
    if (!leave()) $('channel').selectedIndex = state.channel
    else if (state.open) attempt(() => open(state.open.id, { again: true, which: state.which }))
    state.channel = $('channel').selectedIndex
  })
  $('size').addEventListener('input', () => setSize(Number($('size').value)))
  $('protect').addEventListener('change', () => viewer.use({ protect: $('protect').checked }))
  const clicks = {
    compare: () => compare(!state.compared), measure: () => setMeasure(!isOn('measure')), 'toggle-all': toggleAll, interpolate,
    undo: () => viewer.undo(), redo: () => viewer.redo(), accept: () => fill('accepted'), reject: () => fill('rejected'),
    save: () => save(), 'save-next': () => save(true), 'take-back': takeBack, 'help-open': () => $('help').showModal(),
  }
  for (const [id, work] of Object.entries(clicks)) $(id).addEventListener('click', () => attempt(work))
  for (const id of ['note', 'first', 'last']) $(id).addEventListener('input', () => { edited(); decision() })
  $('keys').replaceChildren(...KEYS.flatMap(([keys, text]) => [part('span', '', ''), part('span', 'quiet', text)].map((each, n) => {
    if (n === 0) each.append(part('kbd', '', keys))
    return each
  })))
  window.addEventListener('keydown', pressed, { capture: true })
  window.addEventListener('beforeunload', event => { if (state.dirty) event.preventDefault() })
  window.addEventListener('pagehide', () => {
    fetch(api('release'), { method: 'POST', keepalive: true, headers: { 'X-Flaresemi': '1' }, body: JSON.stringify({ tab }) }).catch(() => {})
  })
}

// Says now and then that the case is still open here, and sees what became of the others.
async function beat() {
  if (state.open?.group === 'unlabeled' && who()) {
    const claim = await tell('claim', { id: state.open.id }).catch(() => null)
    const lost = claim && !claim.granted ? `${claim.by} has this case open: you can only look at it.` : null
    if (claim && (state.readonly === null) !== claim.granted) {
      if (lost) viewer.use({ tool: 'none' })
      if (claim.granted && !state.dirty) await attempt(() => open(state.open.id, { again: true }))
      else { state.readonly = lost; describe() }
    }
  }
  await refresh().catch(() => {})
}

async function start() {
  state.info = await read('state')
  document.title = `${state.info.dataset}: flaresemi review`
  wire()
  viewer.classes = state.info.classes
  viewer.onChange = drawn
  viewer.onMove = moved
  viewer.onWindow = () => {
    if ($('window').lastElementChild.value !== ADJUSTED) $('window').append(new Option(ADJUSTED))
    $('window').value = ADJUSTED
  }
  viewer.onBusy = (work, isLong) => attempt(async () => {
    if (isLong) busy('Rendering')
    try { await work() } finally { if (isLong) busy(null) }
  })
  document.body.classList.toggle('moves', hasGraphics())
  setView('multi')
  await refresh()
  lookAhead()
  setInterval(beat, BEAT_SECONDS * 1000)
  document.body.dataset.ready = 'true'
}

window.reviewing = { viewer, state } // for tests, and for the curious
attempt(start)
