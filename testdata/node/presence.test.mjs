// What web/presence.js does with each answer and each event, on a socket that answers as the test likes, by a clock that
// the test drives.
//
//   node --test presence.test.mjs
import assert from 'node:assert/strict';
import { EventEmitter } from 'node:events';
import { readFileSync } from 'node:fs';
import { beforeEach, mock, test } from 'node:test';

const text = readFileSync(new URL('../../web/presence.js', import.meta.url), 'utf8');
const { autoAway, isAway, joinRoom, watchRoom, watchUsers } = await import(`data:text/javascript,${encodeURIComponent(text)}`);

beforeEach(() => {
  mock.restoreAll();
  mock.timers.reset();
  mock.timers.enable({ apis: ['setTimeout', 'Date'], now: 1_000_000 });
  mock.method(performance, 'now', () => Date.now());
});

/** A socket of socket.io-client, as far as the helper knows one. */
class FakeSocket extends EventEmitter {
  connected = true;
  id = 'c1';
  sent = []; // requests that have no answer yet: { event, payload, answer }
  connects = 0;
  devices = []; // of the joins so far
  io = Object.assign(new EventEmitter(), { engine: { closed: 0, close: () => this.io.engine.closed++ } });

  timeout(ms) {
    return {
      emit: (event, payload, done) => {
        const late = setTimeout(() => done(new Error('late')), ms);
        const answer = (ack) => {
          clearTimeout(late);
          done(null, ack);
        };
        // As it leaves: without what JSON does not have. Binary data would leave as attachments, which end the connection.
        assert.ok(!JSON.stringify([payload], (_, value) => (value instanceof Blob || ArrayBuffer.isView(value) ? 'binary' : value)).includes('binary'));
        this.sent.push({ event, payload: JSON.parse(JSON.stringify(payload)), answer });
      },
      emitWithAck: (event, payload) =>
        new Promise((resolve, reject) => this.timeout(ms).emit(event, payload, (failure, ack) => (failure ? reject(failure) : resolve(ack)))),
    };
  }

  /** The only request under way. */
  request(event) {
    assert.equal(this.sent.length, 1, `requests: ${JSON.stringify(this.sent)}`);
    const request = this.sent.pop();
    assert.equal(request.event, event);
    if (event === 'presence:join') {
      const { deviceId, ...payload } = request.payload;
      this.devices.push(deviceId);
      request.payload = payload;
    }
    return request;
  }

  idle() {
    assert.deepEqual(this.sent, []);
  }

  hears(event) {
    this.emit('presence:event', { roomId: 'r', userConns: 1, ts: 1, ...event });
  }

  hearsBatch(rev, count, users, ...events) {
    this.emit('presence:batch', { roomId: 'r', rev, count, users, events: events.map((event) => ({ roomId: 'r', userConns: 1, ts: 1, ...event })) });
  }

  lose() {
    this.connected = false;
    this.emit('disconnect', 'transport close');
  }

  connect() {
    this.connects++;
  }

  comeBack(id) {
    Object.assign(this, { connected: true, id });
    this.emit('connect');
  }
}

const entry = (connId, userId, state = {}, epoch = 1) => ({ connId, userId, state, lastSeenMs: 1, epoch });

function welcome(socket, { snapshot = [entry(socket.id, 'u')], rev = 10, epoch = 7, ttlMs = 30_000, ...more } = {}) {
  const { payload, answer } = socket.request('presence:join');
  answer({ ok: true, snapshot, self: { connId: socket.id, epoch }, rev, ttlMs, ...more });
  return payload;
}

/** A socket that is in room r as user u, and what its room tells. */
function joined({ wish, ...options } = {}) {
  const socket = new FakeSocket();
  const room = joinRoom(socket, { roomId: 'r', userId: 'u', state: { a: 1, b: 1 }, ...wish });
  const told = { change: [], status: [], error: [] };
  for (const name of Object.keys(told)) room.on(name, (news) => told[name].push(news));
  welcome(socket, options);
  return { socket, room, told };
}

/** Lets time pass until the room speaks, and gives how long it took. */
function untilItSpeaks(socket) {
  for (let ms = 0; ms <= 60_000; ms += 10) {
    if (socket.sent.length > 0) return ms;
    mock.timers.tick(10);
  }
  assert.fail('it says nothing for a minute');
}

const view = (room) => [...room.members.values()].map(({ connId, userId, state }) => `${connId} ${userId} ${JSON.stringify(state)}`).sort();
const users = (room) => Object.fromEntries([...room.users].map(([user, conns]) => [user, [...conns.keys()].sort()]));
const ok = { ok: true, changed: true, epoch: 7 };
const refusal = (code, more) => ({ ok: false, code, error: code, ...more });

test('a snapshot and the events above it make the view (G2)', () => {
  const { socket, room, told } = joined({ snapshot: [entry('c1', 'u'), entry('x', 'v', { n: 0 })], rev: 10 });
  socket.hears({ type: 'join', connId: 'c1', userId: 'u', state: {}, epoch: 1, rev: 10 }); // its own, in the snapshot already
  socket.hears({ type: 'update', connId: 'x', userId: 'v', state: { n: -1 }, epoch: 1, rev: 9 }); // older
  socket.hears({ roomId: 'other', type: 'join', connId: 'q', userId: 'q', state: {}, epoch: 1, rev: 11 });
  assert.deepEqual(told.change.map(({ type }) => type), ['snapshot']);
  socket.hears({ type: 'join', connId: 'y', userId: 'v', state: { n: 5 }, epoch: 2, rev: 11, userConns: 2 });
  socket.hears({ type: 'update', connId: 'x', userId: 'v', state: { n: 1 }, epoch: 1, rev: 12, userConns: 2 });
  assert.deepEqual(view(room), ['c1 u {}', 'x v {"n":1}', 'y v {"n":5}']);
  assert.deepEqual(users(room), { u: ['c1'], v: ['x', 'y'] });
  socket.hears({ type: 'leave', connId: 'x', userId: 'v', state: null, epoch: 1, rev: 13, reason: 'left' });
  socket.hears({ type: 'join', connId: 'y', userId: 'w', state: {}, epoch: 14, rev: 14 }); // another user by the same connection
  assert.deepEqual(users(room), { u: ['c1'], w: ['y'] });
  assert.equal(room.rev, 14);
  assert.deepEqual(told.change.map(({ type, member }) => `${type} ${member?.connId}`), ['snapshot undefined', 'join y', 'update x', 'leave x', 'join y']);
  assert.deepEqual(told.change.at(-2).member.state, { n: 1 }, 'a leave tells who it was');
});

test('the differences of one reading share a revision (G3)', () => {
  const { socket, room } = joined({ snapshot: [entry('c1', 'u'), entry('x', 'v'), entry('y', 'v')], rev: 10 });
  for (const rev of [10, 20]) { // 10: as after a loss of data, where the revision stays
    socket.hears({ type: 'join', connId: `n${rev}`, userId: 'w', state: {}, epoch: 9, rev });
    socket.hears({ type: 'update', connId: 'x', userId: 'v', state: { rev }, epoch: 1, rev });
    socket.hears({ type: 'leave', connId: rev === 10 ? 'y' : 'n10', userId: 'v', state: null, epoch: 1, rev });
  }
  assert.deepEqual(view(room), ['c1 u {}', 'n20 w {}', 'x v {"rev":20}']);
  assert.deepEqual(users(room), { u: ['c1'], v: ['x'], w: ['n20'] });
});

test('heartbeats come within a third of the TTL, with the epoch', () => {
  const { socket } = joined({ ttlMs: 30_000 });
  const waits = new Set();
  for (let i = 0; i < 20; i++) {
    const wait = untilItSpeaks(socket);
    assert.ok(wait >= 7_900 && wait <= 10_010, `${wait} ms`);
    waits.add(wait);
    const { payload, answer } = socket.request('presence:heartbeat');
    assert.deepEqual(payload, { roomId: 'r', epoch: 7 });
    answer({ ...ok, changed: false });
  }
  assert.ok(waits.size > 5, 'they have no jitter');
});

test('where timers are throttled the ping of the server brings the heartbeat', () => {
  const { socket } = joined();
  mock.timers.reset(); // no timer fires any more
  mock.timers.enable({ apis: ['Date'], now: 1_000_000 + 5_000 });
  socket.io.emit('ping');
  socket.idle();
  mock.timers.reset();
  mock.timers.enable({ apis: ['setTimeout', 'Date'], now: 1_000_000 + 25_000 });
  socket.io.emit('ping');
  socket.request('presence:heartbeat');
});

for (const [name, hours] of [['set back', -1], ['set forward', 1]]) {
  test(`the wall clock is ${name}: patches, heartbeats and retries come in their time`, () => {
    mock.timers.reset();
    mock.timers.enable({ apis: ['setTimeout'] }); // timers go by a clock that nobody sets
    let wall = 1_000_000_000;
    mock.method(Date, 'now', () => wall);
    performance.now.mock.mockImplementation(() => 0); // it may stand still while the machine sleeps
    const { socket, room } = joined({ ttlMs: 30_000 });
    room.patch({ a: 2 });
    socket.request('presence:heartbeat').answer(ok);
    room.patch({ a: 3 });
    wall += hours * 3_600_000;
    room.patch({ a: 4 });
    assert.ok(untilItSpeaks(socket) <= 60);
    const { payload, answer } = socket.request('presence:heartbeat');
    assert.deepEqual(payload.patchState, { a: 4 });
    answer(ok);
    wall += hours * 3_600_000;
    const wait = untilItSpeaks(socket);
    assert.ok(wait >= 7_900 && wait <= 10_010, `${wait} ms`);
    socket.request('presence:heartbeat').answer(refusal('unavailable'));
    wall += hours * 3_600_000;
    assert.ok(untilItSpeaks(socket) <= 510);
  });
}

test('a clock that went on while the machine slept brings the heartbeat, and so does one that was set back', () => {
  for (const time of [1_000_000 + 60_000, 1_000]) {
    mock.timers.reset();
    mock.timers.enable({ apis: ['setTimeout', 'Date'], now: 1_000_000 });
    const { socket } = joined();
    mock.timers.reset(); // no timer fires in sleep
    mock.timers.enable({ apis: ['Date'], now: time });
    socket.io.emit('ping');
    socket.request('presence:heartbeat').answer(ok);
    socket.lose(); // no timer is left
  }
});

test('a TTL of weeks makes no storm of heartbeats', () => {
  const { socket } = joined({ ttlMs: 90 * 24 * 3_600_000 });
  mock.timers.tick(60_000);
  socket.idle();
});

test('patches are merged while one is under way', () => {
  const { socket, room } = joined();
  room.patch({ a: 2 });
  const first = socket.request('presence:heartbeat');
  assert.deepEqual(first.payload.patchState, { a: 2 });
  room.patch({ a: 3, c: 1 });
  room.patch({ c: 2 });
  socket.idle();
  first.answer(ok);
  untilItSpeaks(socket);
  const second = socket.request('presence:heartbeat');
  assert.deepEqual(second.payload, { roomId: 'r', epoch: 7, patchState: { a: 3, c: 2 } });
  second.answer(ok);
  socket.idle();
  assert.deepEqual(room.state, { a: 3, b: 1, c: 2 });
});

test('many patches in a short time are few requests', () => {
  const { socket, room } = joined();
  let requests = 0;
  for (let n = 0; n < 1_000; n++) {
    room.patch({ n });
    mock.timers.tick(1);
    for (const { answer } of socket.sent.splice(0)) {
      requests++;
      answer(ok);
    }
  }
  assert.ok(requests >= 15 && requests <= 21, `${requests} requests`);
});

test('the state of a join has what was patched while offline, and what was not acknowledged', () => {
  const { socket, room, told } = joined();
  room.patch({ a: 2 });
  const lost = socket.request('presence:heartbeat');
  socket.lose();
  room.patch({ b: 2 });
  assert.deepEqual(view(room), ['c1 u {}'], 'the view stays as it was seen');
  mock.timers.tick(60_000);
  socket.idle();
  socket.comeBack('c2');
  lost.answer(ok); // too late
  socket.hears({ type: 'join', connId: 'x', userId: 'x', state: {}, epoch: 1, rev: 15 }); // before the acknowledgement
  assert.equal(room.status, 'joining');
  assert.deepEqual(view(room), ['c1 u {}']);
  const join = socket.request('presence:join');
  assert.deepEqual(join.payload, { roomId: 'r', userId: 'u', state: { a: 2, b: 2 } });
  room.patch({ c: 3 }); // while the join is under way
  join.answer({ ok: true, snapshot: [entry('c2', 'u')], self: { connId: 'c2', epoch: 8 }, rev: 20, ttlMs: 30_000 });
  assert.deepEqual(told.status, ['joined', 'offline', 'joining', 'joined']);
  assert.equal(room.connId, 'c2');
  assert.deepEqual(view(room), ['c2 u {}']);
  untilItSpeaks(socket);
  assert.deepEqual(socket.request('presence:heartbeat').payload, { roomId: 'r', epoch: 8, patchState: { c: 3 } });
});

test('a stale epoch is corrected at once, and the patch sent again', () => {
  const { socket, room } = joined();
  room.patch({ a: 2 });
  socket.request('presence:heartbeat').answer(refusal('stale_epoch', { epoch: 9 }));
  const again = socket.request('presence:heartbeat');
  assert.deepEqual(again.payload, { roomId: 'r', epoch: 9, patchState: { a: 2 } });
  again.answer(refusal('stale_epoch', { epoch: 9 }));
  socket.idle(); // the second time it waits
});

test('not_joined is answered by a join with the whole state', () => {
  const { socket, room, told } = joined();
  room.patch({ a: 2 });
  socket.request('presence:heartbeat').answer(refusal('not_joined'));
  assert.deepEqual(welcome(socket, { rev: 30, epoch: 8 }).state, { a: 2, b: 1 });
  assert.deepEqual(told.status, ['joined', 'joining', 'joined']);
  socket.idle();
});

for (const code of ['unavailable', 'rate_limited', 'shutting_down', 'room_full', 'too_many_rooms']) {
  test(`a join that is refused with ${code} is repeated, more and more slowly`, () => {
    const socket = new FakeSocket();
    const room = joinRoom(socket, { roomId: 'r', userId: 'u' });
    const refusals = [];
    room.on('error', (refusal) => refusals.push(refusal));
    let last = 0;
    for (let n = 0; n < 4; n++) {
      socket.request('presence:join').answer(refusal(code));
      if (code === 'shutting_down') break;
      last = untilItSpeaks(socket);
      assert.ok(last >= 240 * 2 ** n && last <= 510 * 2 ** n, `${last} ms`);
    }
    assert.equal(refusals[0].retrying, true);
    if (code !== 'shutting_down') return welcome(socket);
    mock.timers.tick(510);
    assert.equal(socket.io.engine.closed, 1, 'a draining node takes no joins: the connection has to find another');
    socket.idle();
  });
}

test('a heartbeat that is refused for now is repeated with its patch and the later ones', () => {
  const { socket, room, told } = joined();
  room.patch({ a: 2, b: 2 });
  const first = socket.request('presence:heartbeat');
  room.patch({ b: 3 });
  first.answer(refusal('unavailable'));
  socket.idle();
  room.patch({ c: 1 }); // does not hurry it
  socket.idle();
  assert.ok(untilItSpeaks(socket) >= 240);
  const again = socket.request('presence:heartbeat');
  assert.deepEqual(again.payload.patchState, { a: 2, b: 3, c: 1 });
  assert.deepEqual(told.error, [{ code: 'unavailable', error: 'unavailable', retrying: true }]);
});

test('a patch that is too large is given up', () => {
  const { socket, room, told } = joined();
  room.patch({ a: 'large' });
  const first = socket.request('presence:heartbeat');
  room.patch({ b: 2 });
  first.answer(refusal('state_too_large'));
  assert.deepEqual(room.state, { a: 1, b: 2 });
  assert.deepEqual(told.error, [{ code: 'state_too_large', error: 'state_too_large', retrying: false }]);
  untilItSpeaks(socket);
  assert.deepEqual(socket.request('presence:heartbeat').payload.patchState, { b: 2 });
});

test('a join that cannot succeed is not repeated before the next connection', () => {
  const socket = new FakeSocket();
  const room = joinRoom(socket, { roomId: 'r', userId: 'u' });
  socket.request('presence:join').answer(refusal('forbidden'));
  assert.equal(room.status, 'refused');
  mock.timers.tick(600_000);
  socket.idle();
  socket.lose();
  socket.comeBack('c2');
  welcome(socket);
  assert.equal(room.status, 'joined');
});

test('who was removed for its silence sends a heartbeat at once', () => {
  for (const reason of ['timeout', 'node_lost', undefined]) {
    const { socket, room } = joined();
    socket.hears({ type: 'leave', connId: 'c1', userId: 'u', state: null, epoch: 7, rev: 11, userConns: 0, reason });
    assert.equal(room.status, 'joining');
    assert.deepEqual(view(room), []);
    socket.request('presence:heartbeat').answer({ ...ok, changed: false });
    socket.hears({ type: 'join', connId: 'c1', userId: 'u', state: { a: 1 }, epoch: 7, rev: 12 });
    assert.equal(room.status, 'joined');
    assert.deepEqual(view(room), ['c1 u {"a":1}']);
  }
});

test('who was removed while a heartbeat was under way sends another one soon', () => {
  const { socket, room } = joined({ ttlMs: 30_000 });
  room.patch({ a: 2 });
  const before = socket.request('presence:heartbeat');
  socket.hears({ type: 'leave', connId: 'c1', userId: 'u', state: null, epoch: 7, rev: 11, userConns: 0, reason: 'timeout' });
  before.answer(ok);
  assert.ok(untilItSpeaks(socket) <= 2_500);
});

const replaced = { type: 'leave', connId: 'c1', userId: 'u', state: null, epoch: 7, rev: 11, userConns: 1, reason: 'replaced' };

test('each socket is a device, which stays the same over reconnections', () => {
  const sockets = [joined().socket, joined().socket];
  for (const socket of sockets) {
    socket.lose();
    socket.comeBack('c2');
    welcome(socket);
  }
  const [[a, again], [b]] = sockets.map(({ devices }) => devices);
  assert.ok(a.length > 8 && a === again && b.length > 8 && a !== b);
});

test('who is replaced by a connection elsewhere joins again as another device', () => {
  const { socket, room, told } = joined();
  socket.hears({ ...replaced, connId: 'c9' }); // of another member
  socket.idle();
  socket.hears({ ...replaced, rev: 12 });
  assert.equal(room.status, 'joining');
  welcome(socket, { epoch: 13, rev: 13 });
  socket.lose();
  socket.comeBack('c2');
  welcome(socket);
  const [first, second, third] = socket.devices;
  assert.ok(first !== second && second === third);
  assert.deepEqual(told.error, []);
});

test('with a deviceId of the application the later connection goes on, and the earlier one ends', () => {
  const { socket, room, told } = joined({ wish: { deviceId: 7 } });
  socket.hears(replaced);
  assert.deepEqual([room.status, told.status.at(-1)], ['replaced', 'replaced']);
  mock.timers.tick(600_000);
  socket.idle();
  room.leave();
  joinRoom(socket, { roomId: 'r', userId: 'u', deviceId: '7' });
  welcome(socket);
  assert.deepEqual(socket.devices, ['7', '7']);
  assert.deepEqual(joined({ wish: { deviceId: null } }).socket.devices, [undefined]);
});

test('the device of a member is in the view', () => {
  const { socket, room } = joined({ snapshot: [{ ...entry('c2', 'v'), deviceId: 'd' }] });
  socket.hears({ type: 'join', connId: 'c3', userId: 'v', state: {}, deviceId: 'e', epoch: 11, rev: 11 });
  assert.deepEqual(['c2', 'c3'].map((id) => room.members.get(id).deviceId), ['d', 'e']);
});

/** What a page of a tab sees, with the tab's storage. */
async function inPage(storage, use) {
  const globals = { document: new EventTarget(), sessionStorage: storage };
  const target = new EventTarget();
  for (const name of ['addEventListener', 'removeEventListener', 'dispatchEvent']) globals[name] = target[name].bind(target);
  for (const [name, value] of Object.entries(globals)) Object.defineProperty(globalThis, name, { value, configurable: true });
  try {
    const module = await import(`data:text/javascript,${encodeURIComponent(`${text}//${Math.random()}`)}`);
    const socket = new FakeSocket();
    module.joinRoom(socket, { roomId: 'r', userId: 'u' });
    welcome(socket);
    await use?.(target, socket);
    return socket.devices[0];
  } finally {
    for (const name of Object.keys(globals)) delete globalThis[name];
  }
}

/** The storage of a tab, as far as the helper uses it. */
const storageOf = (map) => ({ getItem: (key) => map.get(key) ?? null, setItem: (key, value) => void map.set(key, value), removeItem: (key) => void map.delete(key) });
const event = (type, more) => Object.assign(new Event(type), more);

test('a tab keeps its device over reloads, and a duplicate of it has another one', async () => {
  const kept = new Map();
  let copied;
  const hide = async (target) => {
    copied = new Map(kept); // as a browser does it for a duplicate
    target.dispatchEvent(event('pagehide'));
  };
  const first = await inPage(storageOf(kept), hide);
  assert.equal(await inPage(storageOf(kept), hide), first);
  assert.notEqual(await inPage(storageOf(copied), hide), first);
  const cached = await inPage(storageOf(kept), async (target) => {
    await hide(target);
    target.dispatchEvent(event('pageshow', { persisted: true }));
    assert.equal(kept.size, 0); // a duplicate that is made now has none either
    await hide(target);
  });
  assert.equal(cached, first);
});

test('a tab whose storage is forbidden, full or spoilt has a device all the same', async () => {
  const forbidden = () => {
    throw new Error('forbidden');
  };
  const full = { ...storageOf(new Map()), setItem: forbidden };
  const broken = { ...full, getItem: forbidden, removeItem: forbidden };
  for (const storage of [full, broken, undefined, storageOf(new Map([['presence:device', 'd'.repeat(300)]]))]) {
    const device = await inPage(storage, (target) => target.dispatchEvent(event('pagehide')));
    assert.ok(device.length > 8 && device.length < 100);
  }
});

test('who was kicked stays away', () => {
  const { socket, room } = joined();
  socket.hears({ type: 'leave', connId: 'c1', userId: 'u', state: null, epoch: 7, rev: 11, userConns: 0, reason: 'kicked' });
  assert.equal(room.status, 'kicked');
  mock.timers.tick(600_000);
  socket.lose();
  socket.comeBack('c2');
  socket.idle();
  assert.equal(room.members.size, 0);
  joinRoom(socket, { roomId: 'r', userId: 'u' }); // unless the application says so
  welcome(socket);
});

const deep = (levels) => JSON.parse(`${'{"a":'.repeat(levels)}1${'}'.repeat(levels)}`);
const circular = () => {
  const state = { n: {} };
  state.n.n = state;
  return state;
};
const unsendable = {
  'a BigInt': () => ({ v: 1n }),
  'a circular object': circular,
  'a circle in a list': () => ({ v: [circular()] }),
  'a toJSON that throws': () => ({ v: { toJSON: () => assert.fail('mine') } }),
  'a getter that throws': () => ({
    get v() {
      throw 'mine'; // anything can be thrown
    },
  }),
  'a Uint8Array': () => ({ v: new Uint8Array(3) }),
  'a Float64Array in a list': () => ({ v: [1, new Float64Array(3)] }),
  'a DataView': () => ({ v: new DataView(new ArrayBuffer(3)) }),
  'an ArrayBuffer': () => ({ v: new ArrayBuffer(3) }),
  'a Buffer': () => ({ v: Buffer.from('abc') }),
  'a Blob': () => ({ v: { v: new Blob(['abc']) } }),
  'a File': () => ({ v: new File(['abc'], 'a') }),
  'binary data that a toJSON gives': () => ({ v: { toJSON: () => new Uint8Array(3) } }),
  'a Map': () => ({ v: new Map([[1, 2]]) }),
  'a Set': () => ({ v: new Set([1]) }),
  'a list': () => [1],
  'a text': () => 'abc',
  'a number': () => 5,
  'a function': () => () => 5,
  'a Date': () => new Date(5),
  'binary data itself': () => new Uint8Array(3),
  'one nested too deep for socket.io-client': () => deep(4_000),
  'one nested too deep for JSON': () => {
    const state = {};
    for (let i = 0, inner = state; i < 100_000; i++) inner = inner.a = {};
    return state;
  },
  'too much text': () => ({ v: 'a'.repeat(66_000) }),
  'too many bytes of UTF-8': () => ({ v: '€'.repeat(22_000) }),
  'too many bytes of text that is escaped': () => ({ v: '\ud800'.repeat(11_000) }),
};

for (const [name, make] of Object.entries(unsendable)) {
  const code = name.startsWith('too ') ? 'state_too_large' : 'invalid_payload';

  test(`${name} as a patch is one error, and the member stays`, () => {
    const { socket, room, told } = joined();
    socket.io.engine._maxPayload = 65_536;
    room.patch(make());
    room.patch({ good: 1 });
    assert.deepEqual(told.error.map((e) => [e.code, e.retrying, typeof e.error]), [[code, false, 'string']]);
    const { payload, answer } = socket.request('presence:heartbeat');
    assert.deepEqual(payload.patchState, { good: 1 });
    answer(ok);
    socket.lose();
    room.patch(make());
    socket.comeBack('c2');
    assert.deepEqual(welcome(socket).state, { a: 1, b: 1, good: 1 });
    assert.deepEqual([room.status, told.error.length, socket.io.engine.closed], ['joined', 2, 0]);
  });

  test(`${name} as the state of a join is one error, and it joins without`, async () => {
    const socket = new FakeSocket();
    const room = joinRoom(socket, { roomId: 'r', userId: 'u', state: make() });
    const errors = [];
    room.on('error', (error) => errors.push(error));
    assert.deepEqual(welcome(socket).state, {});
    await undefined;
    assert.deepEqual(errors.map((e) => [e.code, e.retrying]), [[code, false]]);
    assert.equal(room.status, 'joined');
  });
}

test('what JSON can say is sent as JSON says it, and own state and that of the others are the same', () => {
  const { socket, room, told } = joined();
  const list = [undefined, () => 1, NaN, { u: undefined, n: 1 }];
  room.patch({ a: undefined, f: () => 1, s: Symbol('s'), nan: NaN, date: new Date(5), list, nothing: null, boxed: Object('x') });
  list.push('later');
  const said = { nan: null, date: '1970-01-01T00:00:00.005Z', list: [null, null, null, { n: 1 }], nothing: null, boxed: 'x' };
  assert.deepEqual(socket.request('presence:heartbeat').payload.patchState, said);
  assert.deepEqual(room.state, { a: 1, b: 1, ...said });
  assert.deepEqual(told.error, []);
  room.patch({ toJSON: () => ({ __proto__: null, ['__proto__']: 1, '': 2 }) });
  assert.deepEqual(Object.entries(room.state).slice(-2), [['__proto__', 1], ['', 2]]);
});

test('a patch that changes no key is none', () => {
  const { socket, room } = joined();
  for (const patch of [{ a: undefined }, {}, undefined, null]) room.patch(patch);
  socket.idle();
  assert.deepEqual(room.state, { a: 1, b: 1 });
});

test('the limit is the one that the server announces, in bytes of the whole message', () => {
  for (const [key, limit] of [['_maxPayload', 1_000], ['maxPayload', 100_000]]) {
    const { socket, room, told } = joined();
    socket.io.engine[key] = limit;
    room.patch({ a: '€'.repeat(limit / 3) });
    assert.deepEqual(told.error.map(({ code }) => code), ['state_too_large']);
    room.patch({ a: '€'.repeat(limit / 3 - 60) });
    const { event, payload, answer } = socket.request('presence:heartbeat');
    assert.ok(Buffer.byteLength(`42999999${JSON.stringify([event, payload])}`) <= limit);
    answer(ok);
    room.patch({ b: '€'.repeat(60) }); // which is too much for the next join
    assert.deepEqual(told.error.map(({ code }) => code), ['state_too_large', 'state_too_large']);
  }
});

test('what was too large when the server had said its limit is dropped then', async () => {
  const socket = new FakeSocket();
  Object.assign(socket, { connected: false });
  const room = joinRoom(socket, { roomId: 'r', userId: 'u', state: { a: 'a'.repeat(5_000) } });
  const errors = [];
  room.on('error', ({ code, retrying }) => errors.push([code, retrying]));
  socket.io.engine._maxPayload = 1_000;
  socket.comeBack('c1');
  socket.idle();
  await undefined;
  assert.deepEqual(errors, [['state_too_large', false]]);
  assert.deepEqual(welcome(socket).state, {});
  assert.equal(room.status, 'joined');
});

test('what the server refuses of the state at a join is dropped, and what it had before stays', () => {
  for (const code of ['state_too_large', 'invalid_payload']) {
    const { socket, room, told } = joined();
    socket.lose();
    room.patch({ a: 'large' });
    socket.comeBack('c2');
    const join = socket.request('presence:join');
    room.patch({ c: 3 });
    join.answer(refusal(code));
    assert.deepEqual(welcome(socket).state, { a: 1, b: 1, c: 3 });
    assert.deepEqual(told.error, [{ code, error: code, retrying: false }]);
    socket.lose(); // now of a server that takes less
    socket.comeBack('c3');
    socket.request('presence:join').answer(refusal(code));
    assert.deepEqual(welcome(socket).state, {});
    assert.deepEqual([told.error.length, room.status], [2, 'joined']);
  }
});

test('a join that is refused without its state as well is one error', () => {
  const socket = new FakeSocket();
  const room = joinRoom(socket, { roomId: '', userId: 'u', state: { a: 1 } });
  const errors = [];
  room.on('error', ({ code }) => errors.push(code));
  for (let n = 0; n < 2; n++) socket.request('presence:join').answer(refusal('invalid_payload'));
  socket.idle();
  assert.deepEqual([errors, room.status], [['invalid_payload'], 'refused']);
});

test('nothing else that is sent can break the connection', async () => {
  const socket = new FakeSocket();
  const huge = 'x'.repeat(70_000);
  const errors = [];
  const minds = (standing) => standing.on('error', ({ code, retrying }) => errors.push([code, retrying]));
  minds(joinRoom(socket, { roomId: huge, userId: 'u' }));
  minds(joinRoom(socket, { roomId: 'r', userId: 'u', limit: 1n }));
  minds(watchRoom(socket, { roomId: 's', limit: new Uint8Array(3) }));
  const friends = watchUsers(socket, [huge]);
  minds(friends);
  await new Promise(setImmediate);
  socket.idle();
  assert.deepEqual(errors, Array(4).fill(['invalid_payload', false]));
  await friends.stop();
  socket.idle();
});

test('the end of a token is told', () => {
  const { socket, room } = joined();
  socket.emit('presence:expired');
  socket.lose();
  assert.equal(room.status, 'expired');
  socket.comeBack('c2');
  assert.equal(room.status, 'joining');
  mock.timers.tick(60_000);
  assert.equal(socket.connects, 0, 'a token that is no function is the affair of the application');
});

const notLetIn = (code) => Object.assign(new Error(`no: ${code}`), { data: { code } });

test('a token that ran out while offline is told, and auth asked anew', () => {
  const { socket, room, told } = joined();
  socket.auth = () => {};
  socket.lose();
  socket.emit('connect_error', new Error('websocket error')); // socket.io-client goes on by itself
  mock.timers.tick(60_000);
  assert.deepEqual([socket.connects, told.error.length, room.status], [0, 0, 'offline']);
  for (let n = 1; n <= 3; n++) {
    socket.emit('connect_error', notLetIn('unauthorized'));
    assert.equal(room.status, 'expired');
    assert.deepEqual(told.error.at(-1), { code: 'unauthorized', error: 'no: unauthorized', retrying: true });
    mock.timers.tick(240 * 2 ** (n - 1));
    assert.equal(socket.connects, n - 1);
    mock.timers.tick(270 * 2 ** (n - 1));
    assert.equal(socket.connects, n);
  }
  socket.comeBack('c2');
  welcome(socket);
  mock.timers.tick(60_000);
  assert.deepEqual([room.status, socket.connects, told.error.length], ['joined', 3, 3]);
});

test('a token that ran out while offline and is no function is told', () => {
  const { socket, room, told } = joined();
  socket.auth = { token: 'old' };
  socket.lose();
  socket.emit('connect_error', notLetIn('unauthorized'));
  mock.timers.tick(60_000);
  assert.deepEqual([socket.connects, told.error, room.status], [0, [{ code: 'unauthorized', error: 'no: unauthorized', retrying: false }], 'expired']);
});

test('a token that runs out while connected is asked for anew where it can be', () => {
  const { socket } = joined();
  socket.auth = () => {};
  socket.emit('presence:expired');
  socket.lose();
  mock.timers.tick(510);
  assert.equal(socket.connects, 1);
  socket.comeBack('c2');
  welcome(socket);
  socket.lose(); // for another reason
  mock.timers.tick(60_000);
  assert.equal(socket.connects, 1);
});

test('a server that lets nobody in for now is asked again, until that is over', () => {
  const { socket, room, told } = joined();
  socket.lose();
  socket.emit('connect_error', notLetIn('unavailable'));
  assert.deepEqual([room.status, told.error.at(-1).retrying], ['offline', true]);
  room.leave();
  mock.timers.tick(60_000);
  assert.equal(socket.connects, 0);
});

test('two answers that do not come mean a dead connection', () => {
  const { socket, room } = joined();
  room.patch({ a: 2 });
  socket.request('presence:heartbeat');
  mock.timers.tick(10_000);
  assert.deepEqual(socket.request('presence:heartbeat').payload.patchState, { a: 2 });
  assert.equal(socket.io.engine.closed, 0);
  mock.timers.tick(10_000);
  assert.equal(socket.io.engine.closed, 1);
  socket.idle();
});

test('rooms of one socket do not mix', () => {
  const { socket, room } = joined();
  const other = joinRoom(socket, { roomId: 's', userId: 'u' });
  welcome(socket, { snapshot: [entry('c1', 'u'), entry('z', 'z')], rev: 99 });
  socket.hears({ roomId: 's', type: 'leave', connId: 'z', userId: 'z', state: null, epoch: 1, rev: 100 });
  socket.hears({ roomId: 'r', type: 'join', connId: 'y', userId: 'y', state: {}, epoch: 1, rev: 11 });
  assert.deepEqual(users(other), { u: ['c1'] });
  assert.deepEqual(users(room), { u: ['c1'], y: ['y'] });
});

test('after leave nothing is left', async () => {
  const { socket, room, told } = joined();
  const left = room.leave();
  assert.equal(room.leave(), left);
  const count = (emitter) => emitter.eventNames().reduce((sum, name) => sum + emitter.listenerCount(name), 0);
  assert.equal(count(socket) + count(socket.io), 0);
  assert.equal(room.members.size + room.users.size, 0);
  socket.request('presence:leave').answer(refusal('rate_limited'));
  await new Promise(setImmediate);
  mock.timers.tick(510);
  await new Promise(setImmediate);
  socket.request('presence:leave').answer({ ok: true });
  await left;
  room.patch({ a: 9 });
  mock.timers.tick(600_000);
  socket.idle();
  assert.deepEqual(told.status, ['joined', 'left']);
});

/** Another one who joins room r on this socket, and what it is told. */
function another(socket, wish) {
  const room = joinRoom(socket, { roomId: 'r', userId: 'u', ...wish });
  const told = { change: [], status: [], error: [] };
  for (const name of Object.keys(told)) room.on(name, (news) => told[name].push(news));
  return { room, told };
}

test('two who join a room on one socket share a membership, which ends with the last of them', async () => {
  const { socket, room, told } = joined();
  const two = another(socket);
  socket.idle();
  assert.deepEqual([two.room.status, two.room.connId, view(two.room)], ['joined', 'c1', ['c1 u {}']]);
  await undefined;
  assert.deepEqual([two.told.change, two.told.status], [[{ type: 'snapshot' }], ['joined']]);
  two.room.patch({ a: 2 });
  const { payload, answer } = socket.request('presence:heartbeat');
  assert.deepEqual(payload.patchState, { a: 2 });
  answer(ok);
  assert.deepEqual(room.state, { a: 2, b: 1 });
  socket.hears({ type: 'join', connId: 'x', userId: 'x', state: {}, epoch: 1, rev: 11 });
  assert.deepEqual([told.change.at(-1).type, two.told.change.at(-1).type], ['join', 'join']);
  const left = room.leave();
  assert.equal(room.leave(), left);
  await left;
  socket.idle();
  room.patch({ a: 9 });
  assert.deepEqual([room.status, room.members.size, room.users.size, room.count, room.userCount, told.status.at(-1)], ['left', 0, 0, 0, 0, 'left']);
  const before = told.change.length;
  socket.hears({ type: 'leave', connId: 'x', userId: 'x', state: null, epoch: 1, rev: 12 });
  socket.lose();
  socket.comeBack('c2');
  assert.deepEqual(welcome(socket).state, { a: 2, b: 1 });
  assert.deepEqual([told.change.length, told.status.at(-1), two.told.status.at(-1)], [before, 'left', 'joined']);
  two.room.leave();
  socket.request('presence:leave');
  assert.equal(socket.eventNames().length + socket.io.eventNames().length, 0);
});

test('who shares a membership may leave in the moment of joining', async () => {
  const { socket, room } = joined();
  const two = another(socket);
  two.room.leave();
  await undefined;
  assert.deepEqual([two.told.change.length, two.told.status], [1, ['left']]);
  socket.idle();
  assert.equal(room.status, 'joined');
});

test('a state that is given to a shared membership is a patch', async () => {
  const { socket, room, told } = joined();
  another(socket, { state: { b: 2, c: 2 } });
  const { payload } = socket.request('presence:heartbeat');
  assert.deepEqual(payload.patchState, { b: 2, c: 2 });
  assert.deepEqual(room.state, { a: 1, b: 2, c: 2 });
  const three = another(socket, { state: { v: 1n } });
  await undefined;
  assert.deepEqual([told.error.length, three.told.error.length], [1, 1]);
});

test('a shared membership is of one user, and one that is kicked ends for all', () => {
  const { socket, room } = joined();
  assert.throws(() => joinRoom(socket, { roomId: 'r', userId: 'v' }), /already/);
  assert.throws(() => watchRoom(socket, { roomId: 'r' }), /already/);
  const two = another(socket);
  socket.hears({ type: 'leave', connId: 'c1', userId: 'u', state: null, epoch: 7, rev: 11, userConns: 0, reason: 'kicked' });
  assert.deepEqual([room.status, two.room.status, two.told.status], ['kicked', 'kicked', ['kicked']]);
  room.leave();
  assert.equal(room.status, 'kicked');
  socket.idle();
});

test('who joins a room anew after a refusal has it tried again', () => {
  const socket = new FakeSocket();
  const room = joinRoom(socket, { roomId: 'r', userId: 'u' });
  socket.request('presence:join').answer(refusal('forbidden'));
  joinRoom(socket, { roomId: 'r', userId: 'u' });
  welcome(socket);
  assert.equal(room.status, 'joined');
});

test('of two modes the one that tells more counts', () => {
  const { socket, room } = joined({ wish: { events: 'count' }, count: 5, users: 5 });
  another(socket, { events: 'none' });
  socket.idle();
  another(socket, { events: 'batch', limit: 9 });
  assert.equal(room.count, 5);
  const { events, limit, state } = welcome(socket, { snapshot: [entry('c1', 'u'), entry('x', 'x')], rev: 20, epoch: 8, count: 2, users: 2 });
  assert.deepEqual([events, limit, state, view(room).length, room.count], ['batch', 9, { a: 1, b: 1 }, 2, 2]);
  another(socket, { events: 'batch' });
  socket.idle();
  room.patch({ a: 2 });
  const heartbeat = socket.request('presence:heartbeat');
  another(socket); // all, while a request is under way
  heartbeat.answer(ok);
  assert.equal(welcome(socket).events, 'all');
  const offline = new FakeSocket();
  offline.connected = false;
  joinRoom(offline, { roomId: 'r', userId: 'u', events: 'none' });
  joinRoom(offline, { roomId: 'r', userId: 'u', events: 'batch' });
  offline.comeBack('c1');
  assert.equal(welcome(offline).events, 'batch');
});

test('two who watch a room on one socket share that', async () => {
  const socket = new FakeSocket();
  const [one, two] = ['count', 'all'].map((events) => watchRoom(socket, { roomId: 'r', events }));
  for (const events of ['count', 'all']) {
    const { payload, answer } = socket.request('presence:watch');
    assert.equal(payload.events, events);
    answer({ ok: true, snapshot: [entry('x', 'x')], rev: 10, count: 1, users: 1 });
  }
  socket.idle();
  assert.deepEqual([view(one), view(two)], [['x x {}'], ['x x {}']]);
  await one.stop();
  socket.idle();
  assert.deepEqual([one.members.size, two.members.size], [0, 1]);
  two.stop();
  socket.request('presence:unwatch');
});

test('numbers as ids are taken as their digits', () => {
  const socket = new FakeSocket();
  const room = joinRoom(socket, { roomId: 7, userId: 42n });
  assert.equal(joinRoom(socket, { roomId: '7', userId: 42 }).status, 'joining');
  const { roomId, userId } = welcome(socket, { snapshot: [entry('c1', '42')] });
  assert.deepEqual([roomId, userId, room.roomId, room.userId], ['7', '42', '7', '42']);
  socket.hears({ roomId: '7', type: 'join', connId: 'x', userId: 'x', state: {}, epoch: 1, rev: 11 });
  assert.deepEqual(users(room), { 42: ['c1'], x: ['x'] });
  room.patch({ a: 1 });
  assert.equal(socket.request('presence:heartbeat').payload.roomId, '7');
  const { watched, told } = watching(socket, 5, '5', 6);
  knows(socket, { 5: true, 6: false });
  assert.deepEqual(told, ['5 true', '6 false']);
  watched.remove(5);
  assert.deepEqual(socket.request('presence:unwatch').payload, { userIds: ['5'] });
  watchRoom(socket, { roomId: 8 });
  assert.equal(socket.request('presence:watch').payload.roomId, '8');
});

test('what can be no id is refused by the server, and not taken for one', () => {
  const socket = new FakeSocket();
  for (const id of [undefined, null, NaN, Infinity, true, {}, circular(), [1], Symbol('s'), new Uint8Array(3)]) {
    const room = joinRoom(socket, { roomId: id, userId: id });
    const join = socket.request('presence:join');
    assert.deepEqual([join.payload.roomId, join.payload.userId], [null, null]);
    join.answer(refusal('invalid_payload'));
    assert.equal(room.status, 'refused');
    room.leave();
    socket.request('presence:leave');
  }
});

test('no view says when somebody was last heard of: nobody tells it', () => {
  const { socket, room } = loading();
  socket.hears(joins('y', 11));
  for (const member of room.members.values()) assert.deepEqual(Object.keys(member).sort(), ['connId', 'epoch', 'rev', 'state', 'userId']);
});

test('a leave that was refused is not repeated where it would do harm', async () => {
  for (const harm of [
    (socket) => socket.comeBack('c2'), // with the connection the membership has ended
    (socket) => joinRoom(socket, { roomId: 'r', userId: 'u' }),
  ]) {
    const { socket, room } = joined();
    const left = room.leave();
    socket.request('presence:leave').answer(refusal('rate_limited'));
    await new Promise(setImmediate);
    harm(socket);
    socket.sent = [];
    mock.timers.tick(510);
    await left;
    socket.idle();
  }
});

test('a listener may leave, and one that throws keeps nobody from hearing', () => {
  const { socket, room } = joined();
  const later = mock.method(globalThis, 'queueMicrotask', () => {});
  let heard = 0;
  const off = room.on('change', () => {
    throw new Error('mine');
  });
  room.on('change', () => heard++);
  socket.hears({ type: 'join', connId: 'x', userId: 'x', state: {}, epoch: 1, rev: 11 });
  off();
  assert.equal(heard, 1);
  later.mock.restore();
  assert.throws(later.mock.calls[0].arguments[0], /mine/);
  room.on('change', () => room.leave());
  socket.hears({ type: 'leave', connId: 'c1', userId: 'u', state: null, epoch: 7, rev: 12, reason: 'kicked' });
  assert.equal(room.status, 'left');
  socket.request('presence:leave');
});

const joins = (connId, rev, state = {}) => ({ type: 'join', connId, userId: connId, state, epoch: rev, rev });
const updates = (connId, rev, state) => ({ type: 'update', connId, userId: connId, state, epoch: 1, rev });
const leaves = (connId, rev) => ({ type: 'leave', connId, userId: connId, state: null, epoch: rev, rev });

test('batches are folded in the order of their events (G3)', () => {
  const { socket, room, told } = joined({ wish: { events: 'batch' }, snapshot: [entry('c1', 'u'), entry('x', 'x'), entry('y', 'y')] });
  socket.hearsBatch(15, 3, 3, updates('x', 11, { n: 1 }), leaves('y', 12), leaves('never', 13), joins('z', 14));
  assert.deepEqual(view(room), ['c1 u {}', 'x x {"n":1}', 'z z {}']);
  assert.deepEqual([room.rev, room.count, room.userCount], [15, 3, 3]);
  socket.emit('presence:batch', { roomId: 'other', rev: 99, count: 0, users: 0, events: [leaves('x', 99)] });
  socket.hearsBatch(15, 3, 3, joins('late', 14)); // is covered
  assert.deepEqual(told.change.map(({ type, member }) => `${type} ${member?.connId}`), ['snapshot undefined', 'update x', 'leave y', 'join z']);
  socket.hearsBatch(20, 2, 2, { ...leaves('c1', 20), epoch: 7, reason: 'timeout' });
  assert.equal(room.status, 'joining');
  socket.request('presence:heartbeat');
});

/** A room of which a page is missing. */
function loading(events) {
  const all = joined({ wish: { events, limit: 2 }, snapshot: [entry('c1', 'u'), entry('x', 'x')], count: 6, users: 6, cursor: 'A' });
  const { payload, answer } = all.socket.request('presence:get');
  assert.deepEqual(payload, { roomId: 'r', cursor: 'A', limit: 2 });
  return { ...all, answer };
}

const page = (rev, snapshot, cursor) => ({ ok: true, rev, snapshot, count: 9, users: 8, cursor });

test('pages and the events that come between them make the view (G3)', () => {
  const { socket, room, told, answer } = loading();
  assert.deepEqual([room.loading, room.count, room.userCount], [true, 6, 6]);
  socket.hears(joins('d', 11, { new: true })); // the page below is older than these
  socket.hears(updates('e', 13, { new: true }));
  socket.hears(leaves('f', 14));
  socket.hears(leaves('g', 15));
  socket.hears(leaves('x', 16));
  answer(page(12, [entry('d', 'd', { at: 12 }), entry('e', 'e', { at: 12 }), entry('f', 'f')], 'B'));
  assert.deepEqual(view(room), ['c1 u {}', 'd d {"at":12}', 'e e {"new":true}']);
  assert.deepEqual([room.loading, room.count, room.userCount], [true, 9, 8]);
  assert.deepEqual(told.change.at(-1).members.map(({ connId, rev }) => [connId, rev]), [['d', 12]]);
  socket.hears(leaves('m', 20));
  const next = socket.request('presence:get');
  assert.equal(next.payload.cursor, 'B');
  next.answer(page(20, [entry('g', 'g'), entry('m', 'm')])); // g is back, m was gone by then
  assert.deepEqual(view(room), ['c1 u {}', 'd d {"at":12}', 'e e {"new":true}', 'g g {}']);
  assert.deepEqual([room.loading, room.count, room.userCount], [false, 4, 4]);
  socket.hears(joins('m', 21));
  assert.equal(room.count, 5);
  socket.idle();
});

test('a batch tells nothing older of whom a page has shown (G3)', () => {
  const { socket, room, answer } = loading('batch');
  answer(page(15, [entry('d', 'd', { at: 15 }), entry('e', 'e', { at: 15 }), entry('f', 'f')]));
  socket.hearsBatch(15, 5, 5, updates('d', 12, { at: 12 }), leaves('e', 13), leaves('f', 15));
  assert.deepEqual(view(room), ['c1 u {}', 'd d {"at":15}', 'e e {"at":15}', 'x x {}']);
  socket.hearsBatch(17, 5, 5, leaves('d', 16), updates('e', 17, { at: 17 }));
  assert.deepEqual(view(room), ['c1 u {}', 'e e {"at":17}', 'x x {}']);
});

test('a page that does not come is asked for again, beside the heartbeats', () => {
  const { socket, room, told, answer } = loading();
  answer(refusal('rate_limited'));
  assert.deepEqual(told.error, [{ code: 'rate_limited', error: 'rate_limited', retrying: true }]);
  assert.ok(untilItSpeaks(socket) >= 240);
  socket.request('presence:get'); // without an answer
  for (let ms = 0; ms < 10_000 && socket.sent.length === 0; ms += 10) mock.timers.tick(10);
  socket.request('presence:heartbeat').answer(ok);
  assert.ok(untilItSpeaks(socket) <= 4_000);
  socket.request('presence:get').answer(page(11, [entry('d', 'd')]));
  assert.equal(room.loading, false);
});

test('a page of another connection, or after the end, is none', () => {
  const { socket, room, answer } = loading();
  socket.lose();
  socket.comeBack('c2');
  welcome(socket, { rev: 30 });
  answer(page(12, [entry('d', 'd')]));
  assert.deepEqual(view(room), ['c2 u {}']);
  assert.equal(room.loading, false);
  const other = loading();
  other.room.leave();
  other.answer(page(12, [entry('d', 'd')], 'B'));
  assert.equal(other.room.members.size, 0);
  other.socket.request('presence:leave');
});

for (const events of ['count', 'none']) {
  test(`with ${events} a room has numbers but no members, and minds its own removal`, () => {
    const { socket, room, told } = joined({ wish: { events }, snapshot: [entry('x', 'x')], count: 70_000, users: 60_000, cursor: 'A' });
    assert.deepEqual([room.members.size, room.users.size, room.count, room.userCount, room.loading], [0, 0, 70_000, 60_000, false]);
    socket.emit('presence:count', { roomId: 'other', rev: 11, count: 1, users: 1 });
    socket.emit('presence:count', { roomId: 'r', rev: 12, count: 5, users: 4 });
    assert.deepEqual([room.count, room.userCount, room.rev], [5, 4, 12]);
    assert.deepEqual(told.change, [{ type: 'snapshot' }, { type: 'count' }]);
    socket.hears({ ...leaves('c1', 13), epoch: 7, reason: 'timeout' });
    socket.request('presence:heartbeat').answer(ok);
    assert.equal(room.status, 'joined');
    assert.ok(untilItSpeaks(socket) >= 7_900, 'it is in again, and has no reason to hurry');
    socket.request('presence:heartbeat').answer(ok);
    socket.hears({ ...leaves('c1', 14), epoch: 7, reason: 'kicked' });
    assert.equal(room.status, 'kicked');
    socket.idle();
  });
}

test('how to be told goes with each join, and nothing that was not asked for', () => {
  for (const [wish, more] of [[{}, {}], [{ events: 'batch', limit: 9 }, { events: 'batch', limit: 9 }], [{ events: 'count', limit: 9 }, { events: 'count', limit: 1 }]]) {
    const socket = new FakeSocket();
    joinRoom(socket, { roomId: 'r', userId: 'u', ...wish });
    for (const id of ['c2', 'c3']) {
      assert.deepEqual(welcome(socket), { roomId: 'r', userId: 'u', state: {}, ...more });
      socket.lose();
      socket.comeBack(id);
    }
  }
});

test('a room is watched, again after each reconnection, until that is stopped', async () => {
  const socket = new FakeSocket();
  const room = watchRoom(socket, { roomId: 'r', events: 'batch', limit: 1 });
  for (const id of ['c2', 'c3']) {
    const { payload, answer } = socket.request('presence:watch');
    assert.deepEqual(payload, { roomId: 'r', events: 'batch', limit: 1 });
    assert.equal(room.status, 'joining');
    answer({ ok: true, snapshot: [entry('x', 'x')], rev: 10, count: 2, users: 2, cursor: 'A' });
    assert.equal(room.status, 'joined');
    socket.request('presence:get').answer(page(10, [entry('y', 'y')]));
    socket.hearsBatch(11, 1, 1, leaves('x', 11));
    assert.deepEqual(view(room), ['y y {}']);
    mock.timers.tick(600_000);
    socket.idle(); // it needs no heartbeat
    socket.lose();
    assert.equal(room.status, 'offline');
    assert.deepEqual(view(room), ['y y {}']);
    socket.comeBack(id);
  }
  socket.request('presence:watch').answer(refusal('unavailable'));
  assert.ok(untilItSpeaks(socket) >= 240);
  assert.throws(() => joinRoom(socket, { roomId: 'r', userId: 'u' }), /already/);
  const late = socket.request('presence:watch');
  const stopped = room.stop();
  assert.equal(room.stop(), stopped);
  late.answer({ ok: true, snapshot: [entry('x', 'x')], rev: 10, count: 1, users: 1 });
  const { payload, answer } = socket.request('presence:unwatch');
  assert.deepEqual(payload, { roomId: 'r' });
  answer({ ok: true });
  await stopped;
  assert.deepEqual([room.status, room.members.size, room.count], ['left', 0, 0]);
  assert.equal(socket.eventNames().length + socket.io.eventNames().length, 0);
});

/** Users that are watched, and what is told of them. */
function watching(socket, ...userIds) {
  const watched = watchUsers(socket, userIds);
  const told = [];
  watched.on('change', ({ userId, online }) => told.push(`${userId} ${online}`));
  return { watched, told };
}

function knows(socket, online, rest = []) {
  const { payload, answer } = socket.request('presence:watch');
  assert.deepEqual(payload, { userIds: [...Object.keys(online), ...rest] });
  answer({ ok: true, users: payload.userIds.map((userId) => ({ userId, online: online[userId] ?? false })) });
}

test('users are watched, again after each reconnection, and only what changed is told', async () => {
  const socket = new FakeSocket();
  const { watched, told } = watching(socket, 'ann', 'bob', 'ann');
  knows(socket, { ann: true, bob: false });
  assert.deepEqual(told, ['ann true', 'bob false']);
  assert.equal(watched.status, 'joined');
  socket.emit('presence:user', { userId: 'bob', online: true, ts: 1 });
  socket.emit('presence:user', { userId: 'eve', online: true, ts: 1 });
  assert.deepEqual(Object.fromEntries(watched.online), { ann: true, bob: true });
  socket.lose();
  assert.deepEqual([watched.status, watched.online.get('bob')], ['offline', true]);
  watched.add('cid'); // while it is offline
  socket.comeBack('c2');
  socket.emit('presence:user', { userId: 'ann', online: false, ts: 1 }); // of what was asked before
  knows(socket, { ann: true, bob: false, cid: true });
  assert.deepEqual(told.slice(2), ['bob true', 'bob false', 'cid true']);
  watched.add('dan');
  knows(socket, { dan: false });
  const removed = watched.remove('ann', 'nobody');
  socket.request('presence:unwatch').answer({ ok: true });
  await removed;
  socket.emit('presence:user', { userId: 'ann', online: false, ts: 1 });
  assert.deepEqual([...watched.online.keys()], ['bob', 'cid', 'dan']);
  const stopped = watched.stop();
  const { payload, answer } = socket.request('presence:unwatch');
  assert.deepEqual(payload, { userIds: ['bob', 'cid', 'dan'] });
  answer({ ok: true });
  await stopped;
  watched.add('eve');
  socket.idle();
  assert.deepEqual([watched.online.size, watched.status], [0, 'left']);
  assert.equal(socket.eventNames().length + socket.io.eventNames().length, 0);
});

test('when a user was last seen is known while the user is offline', () => {
  const socket = new FakeSocket();
  const watched = watchUsers(socket, ['ann', 'bob']);
  const told = [];
  watched.on('change', (change) => told.push(change));
  const { answer } = socket.request('presence:watch');
  answer({ ok: true, users: [{ userId: 'ann', online: false, lastSeenMs: 5 }, { userId: 'bob', online: false }] });
  assert.deepEqual(Object.fromEntries(watched.lastSeen), { ann: 5 });
  socket.emit('presence:user', { userId: 'ann', online: true, ts: 6 });
  assert.equal(watched.lastSeen.size, 0);
  socket.emit('presence:user', { userId: 'ann', online: false, ts: 8, lastSeenMs: 7 });
  assert.deepEqual(told.at(-1), { userId: 'ann', online: false, lastSeenMs: 7 });
  assert.deepEqual(Object.fromEntries(watched.lastSeen), { ann: 7 });
});

test('who watches a user that another watches as well does not end that', async () => {
  const socket = new FakeSocket();
  const one = watching(socket, 'ann', 'bob');
  knows(socket, { ann: true, bob: true });
  const two = watching(socket, 'ann');
  knows(socket, { ann: true });
  const stopped = one.watched.stop();
  const { payload, answer } = socket.request('presence:unwatch');
  assert.deepEqual(payload, { userIds: ['bob'] });
  answer({ ok: true });
  await stopped;
  socket.emit('presence:user', { userId: 'ann', online: false, ts: 1 });
  assert.deepEqual([one.told.length, two.told.at(-1)], [2, 'ann false']);
  two.watched.remove('ann');
  socket.request('presence:unwatch').answer(refusal('rate_limited'));
  two.watched.add('ann');
  knows(socket, { ann: true });
  await new Promise(setImmediate);
  mock.timers.tick(510);
  await new Promise(setImmediate);
  socket.idle(); // it is not said any more
});

test('no request for users is longer than the server takes', async () => {
  const socket = new FakeSocket();
  socket.io.engine._maxPayload = 1_000;
  const ids = Array.from({ length: 100 }, (_, i) => `${'€'.repeat(30)} ${i}`);
  const { watched } = watching(socket, ...ids);
  const fits = ({ event, payload }) => assert.ok(Buffer.byteLength(`42999999${JSON.stringify([event, payload])}`) <= 1_000);
  let requests = 0;
  for (; socket.sent.length > 0; requests++) {
    fits(socket.sent[0]);
    const { payload, answer } = socket.request('presence:watch');
    answer({ ok: true, users: payload.userIds.map((userId) => ({ userId, online: true })) });
  }
  assert.deepEqual([watched.online.size, requests], [100, 12]);
  watched.stop();
  socket.sent.forEach(fits);
  assert.equal(socket.sent.flatMap(({ payload }) => payload.userIds).length, 100);
});

test('many users are asked for in parts, and a refusal is repeated', () => {
  const socket = new FakeSocket();
  const ids = Array.from({ length: 250 }, (_, i) => `user ${i}`);
  const { watched } = watching(socket, ...ids);
  const refusals = [];
  watched.on('error', (refusal) => refusals.push(refusal));
  knows(socket, {}, ids.slice(0, 100));
  assert.equal(watched.status, 'joining');
  socket.request('presence:watch').answer(refusal('too_many_users'));
  assert.ok(untilItSpeaks(socket) >= 240);
  knows(socket, {}, ids.slice(100, 200));
  knows(socket, {}, ids.slice(200));
  socket.idle();
  assert.deepEqual([watched.status, watched.online.size, refusals.length], ['joined', 250, 1]);
});

/** A page, as far as autoAway knows one: input is an event of the window. */
function withPage(body) {
  const page = Object.assign(new EventTarget(), { visibilityState: 'visible' });
  const window = new EventTarget();
  const there = { document: page, addEventListener: window.addEventListener.bind(window), removeEventListener: window.removeEventListener.bind(window) };
  const before = Object.fromEntries(Object.keys(there).map((name) => [name, Object.getOwnPropertyDescriptor(globalThis, name)]));
  for (const [name, value] of Object.entries(there)) Object.defineProperty(globalThis, name, { value, configurable: true });
  try {
    body({
      input: (name = 'keydown') => window.dispatchEvent(new Event(name)),
      show: (visibilityState) => {
        page.visibilityState = visibilityState;
        page.dispatchEvent(new Event('visibilitychange'));
      },
    });
  } finally {
    for (const [name, descriptor] of Object.entries(before)) {
      if (descriptor) Object.defineProperty(globalThis, name, descriptor);
      else delete globalThis[name];
    }
  }
}

test('away is patched by input, by visibility and after the sleep of the machine', () => {
  const { room } = joined();
  const patches = [];
  mock.method(room, 'patch', (patch) => {
    patches.push(patch.away);
    state = { ...state, ...patch };
  });
  let state = { a: 1 };
  Object.defineProperty(room, 'state', { get: () => state });
  withPage(({ input, show }) => {
    const stop = autoAway(room, { idleMs: 10_000 });
    mock.timers.tick(9_000);
    input('pointermove'); // ten seconds begin anew
    mock.timers.tick(9_000);
    assert.deepEqual(patches, []);
    mock.timers.tick(1_000);
    assert.deepEqual(patches, [true]);
    mock.timers.tick(60_000);
    input();
    input();
    assert.deepEqual(patches, [true, false]);
    show('hidden');
    input();
    assert.deepEqual(patches, [true, false, true]);
    show('visible');
    assert.deepEqual(patches, [true, false, true, false]);
    mock.timers.setTime(Date.now() + 3_600_000); // the machine slept
    mock.timers.tick(10_000);
    assert.deepEqual(patches, [true, false, true, false, true]);
    stop();
    assert.deepEqual(patches, [true, false, true, false, true, false]);
    input();
    show('hidden');
    mock.timers.tick(60_000);
    assert.equal(patches.length, 6);
  });
  for (const idleMs of [0, -1, NaN, 2 ** 31, 'x']) withPage(() => assert.throws(() => autoAway(room, { idleMs }), RangeError));
  autoAway(room, { idleMs: 1 })(); // there is no page: nothing happens
  mock.timers.tick(1_000);
  assert.equal(patches.length, 6);
});

test('a user is away with all devices, or not', () => {
  const members = (...states) => new Map(states.map((state, i) => [`c${i}`, { state }]));
  assert.equal(isAway(undefined), false);
  assert.equal(isAway(members()), false);
  assert.equal(isAway(members({ away: true })), true);
  assert.equal(isAway(members({ away: true }, { away: false })), false);
  assert.equal(isAway(members({ away: true }, {})), false);
  assert.equal(isAway(members({ away: true }, { away: true })), true);
});
