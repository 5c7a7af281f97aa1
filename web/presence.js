// Keeps a socket.io-client socket in rooms of the presence server, and shows who else is there.
//
//   const room = joinRoom(socket, { roomId: "room-1", userId: "u-42", state: { mic: true } });
//   room.on("change", () => console.log([...room.users.keys()]));
//   room.patch({ mic: false });
//   await room.leave();
//
//   const stage = watchRoom(socket, { roomId: "stage", events: "batch", limit: 1000 }); // without being in it
//   const friends = watchUsers(socket, ["u-1", "u-2"]); // wherever they are
//   friends.on("change", ({ userId, online }) => console.log(userId, online));
//
//   const stop = autoAway(room, { idleMs: 300_000 }); // patches away
//   isAway(room.users.get("u-1"));                     // with all devices
//
// Nothing is needed beside this file. It runs in browsers, in workers and in Node.js. License: MIT.

/**
 * @typedef {Record<string, any>} State  a JSON object
 *
 * @typedef {object} Member  one connection in the room; never changed, always replaced
 * @property {string} connId
 * @property {string} userId
 * @property {State} state
 * @property {string} [deviceId]
 * @property {number} epoch
 * @property {number} rev  the room's revision when it was so
 *
 * @typedef {"all" | "batch" | "count" | "none"} Mode  how to be told of a room: of each change at once, of those of a
 *   while together, only of how many there are, or not at all
 *
 * @typedef {string | number | bigint} Id  a number counts as its digits
 *
 * @typedef {object} RoomWish
 * @property {Id} roomId
 * @property {Mode} [events]  "all" if missing; with "count" and "none" the view has no members
 * @property {number} [limit]  so many members at once, 1 to 1000: the others are loaded page by page; all if missing
 *
 * @typedef {object} PresenceEvent  as the server sends it
 * @property {"join" | "update" | "leave"} type
 * @property {string} roomId
 * @property {string} userId
 * @property {string} connId
 * @property {State | null} state
 * @property {string} [deviceId]
 * @property {number} ts
 * @property {number} epoch
 * @property {number} rev
 * @property {number} userConns  1 on the join of a user's first connection, 0 on the leave of the last
 * @property {string} [reason]
 *
 * @typedef {object} Change
 * @property {"snapshot" | "page" | "join" | "update" | "leave" | "count"} type  "snapshot": the whole view is another one;
 *   "page": more of a large room was loaded; "count": only the numbers are others
 * @property {Member} [member]  who joined, changed or left
 * @property {Member[]} [members]  whom a page added
 * @property {PresenceEvent} [event]
 *
 * @typedef {object} UserChange
 * @property {string} userId
 * @property {boolean} online
 * @property {number} [lastSeenMs]  when the last connection of a user who is offline went, milliseconds since 1970, if the server knows
 *
 * @typedef {object} Refusal
 * @property {string} code   stable, see the server's error codes
 * @property {string} error  a sentence for a person
 * @property {boolean} retrying  what was refused is tried again by itself
 *
 * @typedef {"joining" | "joined" | "offline" | "expired" | "refused" | "kicked" | "replaced" | "left"} Status
 *   for those who watch, "joined" means that the view is live, and "left" that they have stopped
 *
 * @typedef {object} Listeners
 * @property {(change: any) => void} change  a Change, or a UserChange, after the view has changed
 * @property {(status: Status) => void} status
 * @property {(refusal: Refusal) => void} error  the server refused a request, or it cannot be sent
 *
 * @typedef {import("socket.io-client").Socket} Socket
 */

const ANSWER_WITHIN_MS = 10_000; // the server needs 2 s at most
const UNANSWERED = 2; // so many times in a row, and the connection counts as dead
const PATCH_EVERY_MS = 50; // patches in between are sent together
const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 15_000;
const LONGEST_PERIOD_MS = 3_600_000; // between heartbeats; a timer holds at most 2^31 - 1 ms
const USERS_AT_ONCE = 100; // in one request
const MESSAGE_BYTES = 65_536; // what a server takes that announces no limit
const MESSAGE_FRAME_BYTES = 16; // of a message, beside the name and the payload of its event
const STATE_LEVELS = 1000; // socket.io-client looks through a payload by recursion

/** Refusals that repeating does not mend. */
const HOPELESS = new Set(["invalid_payload", "state_too_large", "unauthorized", "forbidden"]);
/** Refusals that the state may be to blame for. */
const BAD_STATE = new Set(["invalid_payload", "state_too_large"]);

/** The modes, each tells more than those before it.
 * @type {Mode[]} */
const MODES = ["none", "count", "batch", "all"];

/**
 * Joins a room, again after each reconnection, until `leave` is called. A socket may be in several rooms. Who joins a room
 * that the socket is in already shares that membership, which ends with the last of them: the state given is a patch then,
 * and of two modes the one that tells more counts.
 *
 * After a change of network or a reload, the member of the connection before leaves with the join, because it has the same
 * deviceId. Each socket of a tab has one, which a reload keeps. Another deviceId, such as one for the whole browser, makes
 * a user's later connection with it take the place of the earlier one, which ends as "replaced"; null is none.
 *
 * @param {Socket} socket  connected or not
 * @param {RoomWish & { userId: Id, state?: State, deviceId?: Id | null }} wish
 * @returns {Room}
 * @throws {Error} if the socket is in the room as another user, or watches it
 */
export function joinRoom(socket, wish) {
  const { rooms } = keeperOf(socket);
  const there = rooms.get(idOf(wish.roomId));
  if (!there) return new Room(new Membership(socket, wish));
  if (!(there instanceof Membership) || there.userId !== idOf(wish.userId)) throw taken(there);
  there.widen(wish);
  there.begin(wish.state);
  return new Room(there);
}

/**
 * Shows a room without being in it, again after each reconnection, until `stop` is called. A room that the socket is in
 * has its view already. Who watches a room that the socket watches already shares that, as with `joinRoom`.
 *
 * @param {Socket} socket  connected or not
 * @param {RoomWish} wish
 * @returns {WatchedRoom}
 * @throws {Error} if the socket is in the room
 */
export function watchRoom(socket, wish) {
  const { rooms } = keeperOf(socket);
  const there = rooms.get(idOf(wish.roomId));
  if (!there) return new WatchedRoom(new Watch(socket, wish));
  if (!(there instanceof Watch)) throw taken(there);
  there.widen(wish);
  return new WatchedRoom(there);
}

// How somebody at a page shows that they are there.
const inputs = ["pointerdown", "pointermove", "keydown", "wheel", "touchstart", "focus"];

/**
 * Keeps `away` in the own state: true while the page is hidden, after `idleMs` without input, and when the machine has slept for so long;
 * false again with the next input, or when the page is shown. Only changes are sent. Where there is no page, nothing is ever away.
 *
 * @param {Room} room
 * @param {{ idleMs?: number }} [options]  idleMs: milliseconds from 1 to 2147483647; 5 minutes if missing
 * @returns {() => void}  ends it, and takes `away` back
 * @throws {RangeError} if idleMs is anything else
 */
export function autoAway(room, { idleMs = 300_000 } = {}) {
  if (!(idleMs >= 1 && idleMs <= 2 ** 31 - 1)) throw new RangeError("idleMs must be from 1 to 2147483647");
  const page = globalThis.document;
  if (!page) return () => {};
  let seen = now();
  /** @type {ReturnType<typeof setTimeout>} */
  let timer;
  const patch = (/** @type {boolean} */ away) => {
    if ((room.state.away === true) !== away) room.patch({ away });
  };
  const look = () => {
    clearTimeout(timer);
    const idle = since(seen);
    const away = page.visibilityState === "hidden" || idle >= idleMs;
    patch(away);
    if (!away) timer = setTimeout(look, Math.max(1, idleMs - idle));
  };
  const input = () => {
    seen = now();
    if (room.state.away === true && page.visibilityState !== "hidden") look();
  };
  const shown = () => {
    if (page.visibilityState !== "hidden") seen = now();
    look();
  };
  const ends = inputs.map((name) => listen(globalThis, name, input));
  ends.push(listen(page, "visibilitychange", shown));
  look();
  return () => {
    clearTimeout(timer);
    for (const end of ends) end();
    patch(false);
  };
}

/**
 * Whether a user is away with all devices: an entry of `users` of a room. Nobody is not away.
 *
 * @param {Map<string, Member> | undefined} user
 * @returns {boolean}
 */
export function isAway(user) {
  return !!user && user.size > 0 && [...user.values()].every(({ state }) => state.away === true);
}

/** @param {RoomView} view */
function taken({ roomId }) {
  return new Error(`this socket is in room ${roomId} already, as another user, or watches it`);
}

/**
 * Shows whether users are online, in whatever rooms they are, again after each reconnection, until `stop` is called.
 *
 * @param {Socket} socket  connected or not
 * @param {Iterable<Id>} [userIds]  more may be added later
 * @returns {WatchedUsers}
 */
export function watchUsers(socket, userIds = []) {
  return new WatchedUsers(socket, userIds);
}

/** Something that has listeners. */
class Teller {
  #listeners = { change: new Set(), status: new Set(), error: new Set() };

  /**
   * Calls the listener until the function that is returned is called.
   *
   * @template {keyof Listeners} Name
   * @param {Name} name
   * @param {Listeners[Name]} listener
   * @returns {() => void}
   */
  on(name, listener) {
    this.#listeners[name].add(listener);
    return () => this.#listeners[name].delete(listener);
  }

  // What a listener throws is its own affair.
  /** @param {keyof Listeners} name  @param {any} news */
  _tell(name, news) {
    for (const listener of [...this.#listeners[name]]) {
      try {
        listener(news);
      } catch (error) {
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }
}

/** Something that is asked of the server anew on each connection, until it is over. At most one request is under way. */
class Standing extends Teller {
  #over = false;
  /** @type {object | undefined} */
  #request; // the one under way; answers to others are too late
  #unanswered = 0; // in a row
  #next = { from: now(), wait: Infinity }; // when to speak again
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** @type {Array<() => void>} */
  #subscriptions = [];
  /** @protected */ _failures = 0; // in a row

  /** @param {Socket} socket */
  constructor(socket) {
    super();
    /** @protected */ this._socket = socket;
    /** @type {Status} */ this.status = "offline";
  }

  // What the kinds of it do: say what is due, forget what was true of the last connection, take back what was not
  // answered, and forget everything.
  /** @protected */ _speak() {}
  /** @protected */ _reset() {}
  /** @protected */ _takeBack() {}
  /** @protected */ _forget() {}

  // Every occasion to look whether something is due. Timers alone do not do: a browser lets those of a hidden tab wait
  // for a minute, and nobody's run while the machine sleeps. The ping is the server's, every 25 s.
  /** @protected */
  _begin() {
    const { document } = globalThis;
    keeperOf(this._socket).add(this);
    this._listen(this._socket, "connect", () => this.#connected());
    this._listen(this._socket, "disconnect", () => this.#disconnected());
    this._listen(this._socket, "presence:expired", () => this._become("expired"));
    this._listen(this._socket.io, "ping", this.#tick);
    if ("addEventListener" in globalThis) for (const name of ["online", "pageshow"]) this._listen(globalThis, name, this.#tick);
    if (document) for (const name of ["visibilitychange", "resume"]) this._listen(document, name, this.#tick);
    if (this._socket.connected) this.#connected();
  }

  /** @protected  @param {any} source  @param {string} name  @param {(...args: any[]) => void} listener */
  _listen(source, name, listener) {
    this.#subscriptions.push(listen(source, name, listener));
  }

  #connected() {
    this.#request = undefined;
    this._failures = this.#unanswered = 0;
    this._reset();
    this._become("joining");
    this._speakIn(0);
  }

  #disconnected() {
    this.#stopWaiting();
    this.#request = undefined;
    this._reset();
    if (this.status !== "expired") this._become("offline");
  }

  /** The server does not let the socket connect.
   * @param {Refusal} refusal */
  shutOut(refusal) {
    if (refusal.code === "unauthorized") this._become("expired");
    this._tell("error", refusal);
  }

  /** @protected  @param {Status} status  @returns {boolean} whether it was not over yet */
  _end(status) {
    if (this.#over) return false;
    this.#over = true;
    this.#stopWaiting();
    for (const unsubscribe of this.#subscriptions.splice(0)) unsubscribe();
    keeperOf(this._socket).delete(this);
    this.#request = undefined;
    this._reset();
    this.status = status;
    this._forget();
    this._tell("status", status);
    return true;
  }

  /** @protected */
  get _busy() {
    return this.#request !== undefined;
  }

  /** @protected  @param {number} wait  milliseconds; Infinity for never */
  _speakIn(wait) {
    if (this.#over) return;
    this.#next = { from: now(), wait };
    this.#tick();
  }

  #stopWaiting() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  #tick = () => {
    this.#stopWaiting();
    const { from, wait } = this.#next;
    if (this.#request || wait === Infinity || !this._socket.connected) return;
    const left = wait - since(from);
    if (left > 0) this.#timer = setTimeout(this.#due, left);
    else this.#due();
  };

  #due = () => {
    this.#timer = undefined;
    this.#next = { from: now(), wait: Infinity };
    this._speak();
  };

  /**
   * @protected
   * @param {string} event
   * @param {object} payload
   * @param {(ack: any) => void} answered
   */
  _ask(event, payload, answered) {
    const request = (this.#request = {});
    const done = (/** @type {unknown} */ failure, /** @type {any} */ ack) => {
      if (request !== this.#request) return; // of a connection before, or over
      this.#request = undefined;
      if (failure) this.#notAnswered();
      else answered(ack);
    };
    const refusal = refusalOf(this._socket, event, payload);
    if (refusal) queueMicrotask(() => done(undefined, refusal));
    else this._socket.timeout(ANSWER_WITHIN_MS).emit(event, payload, done);
  }

  // A laptop that wakes up takes an answer that waits for it as late, so one is no proof of a dead connection.
  #notAnswered() {
    this._takeBack();
    if (++this.#unanswered >= UNANSWERED) this._reconnect();
    else this._speakIn(0);
  }

  // Without a goodbye, so that socket.io-client comes back by itself.
  /** @protected */
  _reconnect() {
    this._socket.io.engine?.close();
  }

  /** @protected */
  _succeeded() {
    this._failures = this.#unanswered = 0;
    this._become("joined");
  }

  // Asks again later, unless that is no use.
  /** @protected  @param {any} ack */
  _failed(ack) {
    const hopeless = HOPELESS.has(ack.code);
    if (hopeless) this._become("refused");
    this._refused(ack, hopeless ? Infinity : this._backOff());
  }

  /** @protected  @param {any} ack  @param {number} wait */
  _refused({ code, error }, wait) {
    this._tell("error", { code, error, retrying: wait < Infinity });
    this._speakIn(wait);
  }

  /** @protected */
  _backOff() {
    return backOff(this._failures++);
  }

  /** @protected  @param {Status} status */
  _become(status) {
    if (status === this.status || this.#over) return;
    this.status = status;
    this._tell("status", status);
  }
}

/**
 * A view of one room: a snapshot, or its pages, and the events after it. Every member has the revision of what told of it
 * last. An event that is older than that is in it already, and so is a page that is older than an event.
 */
class RoomView extends Standing {
  /** @type {Set<SharedView>} */
  #holders = new Set();
  #hears = false; // the view follows the room's events
  #folds = false; // it has members
  #size = { count: 0, users: 0 }; // as the server said last
  /** @type {Map<string, Member>} */
  #members = new Map();
  /** @type {Map<string, Map<string, Member>>} */
  #users = new Map();
  /** @type {Map<string, number>} */
  #gone = new Map(); // who left while pages are loaded, and at which revision: an older page does not bring them back
  /** @type {{ timer?: ReturnType<typeof setTimeout> } | undefined} */
  #load; // of the next page; answers to others are too late

  #endEvent;

  /** @param {Socket} socket  @param {RoomWish} wish  @param {string} endEvent  tells the server of the end */
  constructor(socket, { roomId, events, limit }, endEvent) {
    super(socket);
    this.#endEvent = endEvent;
    /** @readonly */ this.roomId = idOf(roomId);
    keeperOf(socket).rooms.set(this.roomId, this);
    /** @protected what is asked of the server in any case */
    this._telling = telling(this.roomId, events, limit);
    /** @protected what was asked of it last */
    this._asked = this._telling;
    /** the revision of the view */ this.rev = 0;
    /** whether pages of it are missing */ this.loading = false;
    this._listen(socket, "presence:event", (event) => this.#heard(event));
    this._listen(socket, "presence:batch", (batch) => this.#collected(batch));
    this._listen(socket, "presence:count", (count) => this.#counted(count));
  }

  /** The connections in the room, by connId. It stays as it was last seen while the socket is offline.
   * @returns {ReadonlyMap<string, Member>} */
  get members() {
    return this.#members;
  }

  /** The users in the room, each with its connections by connId.
   * @returns {ReadonlyMap<string, ReadonlyMap<string, Member>>} */
  get users() {
    return this.#users;
  }

  /** How many connections are in the room, those included that are not in the view. */
  get count() {
    return this.#whole ? this.#members.size : this.#size.count;
  }

  /** How many users are in the room, those included that are not in the view. */
  get userCount() {
    return this.#whole ? this.#users.size : this.#size.users;
  }

  get #whole() {
    return this.#folds && !this.loading;
  }

  /** Another one of these is wanted.
   * @param {SharedView} holder */
  hold(holder) {
    this.#holders.add(holder);
    if (this.#hears) queueMicrotask(() => this.#show(holder));
    if (this.status === "refused" && !this._busy) this._speakIn(0); // it may be well by now
  }

  // As it would have been told, had it been the first.
  /** @param {SharedView} holder */
  #show(holder) {
    if (!this.#hears || !this.#holders.has(holder)) return;
    holder._tell("change", { type: "snapshot" });
    holder._tell("status", this.status);
  }

  /** @param {SharedView} holder  @returns {boolean} whether it was the last */
  release(holder) {
    this.#holders.delete(holder);
    return this.#holders.size === 0;
  }

  /** Ends it for good. It resolves when the server has taken note, or cannot be reached any more.
   * @returns {Promise<void>} */
  async quit() {
    const { _socket: socket, roomId } = this;
    const isBack = () => keeperOf(socket).rooms.get(roomId)?.constructor === this.constructor;
    if (this._end("left")) await sayEnd(socket, this.#endEvent, () => (isBack() ? undefined : { roomId }));
  }

  /** Has the server tell more, where that is asked for.
   * @param {RoomWish} wish */
  widen({ events = "all", limit }) {
    if (MODES.indexOf(events) <= MODES.indexOf(this._telling.events ?? "all")) return;
    this._telling = telling(this.roomId, events, limit);
    if (!this._busy && this._socket.connected) this._speakIn(0);
  }

  /** @param {keyof Listeners} name  @param {any} news */
  _tell(name, news) {
    for (const holder of [...this.#holders]) holder._tell(name, news);
  }

  /** Is told of each event that is not older than the view.
   * @protected  @param {PresenceEvent} _event */
  _followed(_event) {}

  /** @protected */
  _reset() {
    this.#hears = false;
    this.#stopLoading();
  }

  /** @protected */
  _forget() {
    keeperOf(this._socket).rooms.delete(this.roomId);
    this.#size = { count: 0, users: 0 };
    this.#adopt([], this.rev);
  }

  /** Begins the view with the answer to a join or a watch.
   * @protected  @param {any} ack */
  _welcome({ snapshot, rev, cursor, count, users }) {
    this.#hears = true;
    this.#folds = folds(this._asked);
    this.#size = { count, users };
    this.#adopt(this.#folds ? snapshot : [], rev, this.#folds ? cursor : undefined);
  }

  /** @param {any[]} snapshot  @param {number} rev  @param {string} [cursor] */
  #adopt(snapshot, rev, cursor) {
    this.#stopLoading();
    this.#members.clear();
    this.#users.clear();
    this.#gone.clear();
    for (const entry of snapshot) this.#put(memberOf(entry, rev));
    this.rev = rev;
    this.loading = cursor !== undefined;
    if (cursor !== undefined) this.#loadFrom(cursor, 0);
    this._tell("change", { type: "snapshot" });
  }

  /** @param {string} cursor  @param {number} failures  of the same page before */
  #loadFrom(cursor, failures) {
    /** @type {{ timer?: ReturnType<typeof setTimeout> }} */
    const load = (this.#load = {});
    const { roomId, limit } = this._asked;
    this._socket.timeout(ANSWER_WITHIN_MS).emit("presence:get", { roomId, cursor, limit }, (/** @type {unknown} */ failure, /** @type {any} */ ack) => {
      if (load !== this.#load) return;
      if (ack?.ok) return this.#addPage(ack);
      if (!failure) this._tell("error", { code: ack.code, error: ack.error, retrying: !HOPELESS.has(ack.code) });
      if (failure || !HOPELESS.has(ack.code)) load.timer = setTimeout(() => this.#loadFrom(cursor, failures + 1), backOff(failures));
    });
  }

  #stopLoading() {
    clearTimeout(this.#load?.timer);
    this.#load = undefined;
  }

  /** @param {any} page */
  #addPage({ snapshot, rev, cursor, count, users }) {
    const members = [];
    for (const entry of snapshot) {
      const known = this.#members.get(entry.connId)?.rev ?? this.#gone.get(entry.connId) ?? -1;
      if (known >= rev) continue;
      const member = memberOf(entry, rev);
      members.push(member);
      this.#put(member);
    }
    this.#size = { count, users };
    if (cursor !== undefined) {
      this.#loadFrom(cursor, 0);
    } else {
      this.#load = undefined;
      this.loading = false;
      this.#gone.clear();
    }
    this._tell("change", { type: "page", members });
  }

  /** @param {PresenceEvent} event */
  #heard(event) {
    if (event.roomId !== this.roomId || !this.#hears || event.rev < this.rev) return; // several may share a revision
    if (this.#folds) this.#apply(event);
    this._followed(event);
  }

  /** @param {{ roomId: string, rev: number, count: number, users: number, events: PresenceEvent[] }} batch */
  #collected({ roomId, rev, count, users, events }) {
    if (roomId !== this.roomId || !this.#hears) return;
    this.#size = { count, users };
    for (const event of events) this.#heard(event);
    if (this.#hears) this.rev = Math.max(this.rev, rev);
  }

  /** @param {{ roomId: string, rev: number, count: number, users: number }} news */
  #counted({ roomId, rev, count, users }) {
    if (roomId !== this.roomId || !this.#hears) return;
    this.#size = { count, users };
    this.rev = rev;
    this._tell("change", { type: "count" });
  }

  /** @param {PresenceEvent} event */
  #apply(event) {
    const { type, connId, userId, state, deviceId, epoch, rev } = event;
    this.rev = rev;
    const before = this.#members.get(connId);
    if (before && rev < before.rev) return; // a page came before it
    if (type === "leave") {
      if (this.loading) this.#gone.set(connId, rev);
      if (!before) return;
      this.#drop(connId);
      this._tell("change", { type, member: before, event });
    } else {
      if (type === "join" && before?.rev === rev && before.epoch === epoch) return; // the snapshot, or a page, has it
      const member = { connId, userId, state: state ?? {}, ...(deviceId !== undefined && { deviceId }), epoch, rev };
      this.#put(member);
      this._tell("change", { type, member, event });
    }
  }

  /** @param {Member} member */
  #put(member) {
    const before = this.#members.get(member.connId);
    if (before && before.userId !== member.userId) this.#drop(member.connId);
    this.#members.set(member.connId, member);
    const conns = this.#users.get(member.userId);
    if (conns) conns.set(member.connId, member);
    else this.#users.set(member.userId, new Map([[member.connId, member]]));
  }

  /** @param {string} connId */
  #drop(connId) {
    const { userId } = /** @type {Member} */ (this.#members.get(connId));
    const conns = /** @type {Map<string, Member>} */ (this.#users.get(userId));
    this.#members.delete(connId);
    conns.delete(connId);
    if (conns.size === 0) this.#users.delete(userId);
  }
}

/** What is asked of the server of a room in any case.
 * @param {string} roomId  @param {Mode} [events]  @param {number} [limit] */
function telling(roomId, events, limit) {
  return { roomId, events, limit: folds({ events }) ? limit : 1 };
}

/** Whether a view in this mode has members.
 * @param {{ events?: Mode }} telling */
function folds({ events }) {
  return events !== "count" && events !== "none";
}

// When somebody was last heard of is not told with each heartbeat, so a view cannot say it.
/** @param {any} entry  of a snapshot  @param {number} rev  @returns {Member} */
function memberOf({ lastSeenMs, ...entry }, rev) {
  return { ...entry, rev };
}

/** A socket's membership of one room, and its view of the room. */
class Membership extends RoomView {
  /** @type {State} */
  #state = {}; // as it shall be: JSON, as the others will have it
  /** @type {State} */
  #stored = {}; // as the server has it, as far as is known
  /** @type {State | undefined} */
  #pending; // what has yet to be sent
  /** @type {State | undefined} */
  #sent; // what is under way
  #isMember = false; // as far as is known, so that heartbeats are due and not a join
  #removedSince = false; // the latest heartbeat: that one may have come too early
  /** @type {number | undefined} */
  #epoch;
  #periodMs = 10_000;
  #sentAt = { steady: -Infinity, wall: -Infinity };
  #draining = false; // the node takes no joins: another one has to be found
  #blamed = ""; // the refusal for which the state was dropped, since the last join
  /** @type {string | null | undefined} */
  #givenDevice; // by the application; null for none, undefined for the socket's own
  /** @type {string | undefined} */
  #device; // of the last join

  /**
   * @param {Socket} socket
   * @param {RoomWish & { userId: Id, state?: State, deviceId?: Id | null }} wish
   */
  constructor(socket, { userId, state, deviceId, ...wish }) {
    super(socket, wish, "presence:leave");
    /** @readonly */ this.userId = idOf(userId);
    this.#givenDevice = deviceId && idOf(deviceId);
    /** @type {string | undefined} */ this.connId = undefined;
    this.begin(state);
    this._begin();
  }

  get state() {
    return this.#state;
  }

  /** Takes the state that joinRoom is called with. Who called it has no listener yet.
   * @param {State | null} [state] */
  begin(state) {
    const refusal = this.#merge(state);
    if (refusal) queueMicrotask(() => this.#dropped(refusal));
  }

  /** @param {State | null} [patch] */
  patch(patch) {
    const refusal = this.#merge(patch);
    if (refusal) this.#dropped(refusal);
  }

  /** @param {State | null} [patch]  @returns {{ code: string, error: string } | undefined} why it cannot be sent */
  #merge(patch) {
    try {
      const said = sayable(patch ?? {});
      if (Object.keys(said).length > 0) this.#take(said);
    } catch (error) {
      return refusalFor(error);
    }
  }

  /** @param {State} patch  @throws {Unsendable} */
  #take(patch) {
    const state = { ...this.#state, ...patch };
    checkSize(this._socket, "presence:join", this.#joinPayload(state));
    this.#state = state;
    this.#pending = { ...this.#pending, ...patch };
    if (this._busy || !this.#isMember || this._failures > 0) return; // it goes with what comes next
    this._speakIn(this.#patchWait());
  }

  /** @param {{ code: string, error: string }} refusal  of a state or a patch that is not sent again */
  #dropped({ code, error }) {
    this._tell("error", { code, error, retrying: false });
  }

  /** @protected */
  _reset() {
    super._reset();
    this.#isMember = this.#draining = this.#removedSince = false;
    this.#blamed = "";
  }

  /** @protected */
  _speak() {
    if (this.#draining) this._reconnect();
    else if (this.#isMember && this._asked === this._telling) this.#heartbeat();
    else this.#join();
  }

  /** @param {State} state */
  #joinPayload(state) {
    const device = this.#givenDevice === undefined ? keeperOf(this._socket).device : (this.#givenDevice ?? undefined);
    return { ...this._telling, userId: this.userId, deviceId: device, state };
  }

  #join() {
    const state = this.#state;
    this.#pending = this.#sent = undefined; // they are in the state
    this._asked = this._telling;
    const payload = this.#joinPayload(state);
    this.#device = payload.deviceId;
    this._ask("presence:join", payload, (ack) => {
      if (!ack.ok) return this.#joinFailed(ack);
      this.#blamed = "";
      this.#stored = state;
      this.#epoch = ack.self.epoch;
      this.#periodMs = Math.min(ack.ttlMs / 3, LONGEST_PERIOD_MS);
      this.#isMember = true;
      this.#removedSince = false;
      this.connId = ack.self.connId;
      this._welcome(ack);
      this._succeeded();
    });
  }

  /** @param {any} ack */
  #joinFailed(ack) {
    this.#draining = ack.code === "shutting_down";
    if (BAD_STATE.has(ack.code) && this.#goBack()) return this.#joinWithout(ack);
    if (ack.error !== this.#blamed) return this._failed(ack);
    this._become("refused"); // it was not for the state, and that has been told
  }

  // To the state that the server had last, or to none, with what was patched since.
  /** @returns {boolean} whether that is another one */
  #goBack() {
    const before = JSON.stringify(this.#state);
    if (before === JSON.stringify(this.#stored)) this.#stored = {};
    this.#state = { ...this.#stored, ...this.#pending };
    return before !== "{}";
  }

  /** @param {any} refusal */
  #joinWithout(refusal) {
    const told = refusal.error === this.#blamed;
    this.#blamed = refusal.error;
    if (!told) this.#dropped(refusal);
    this._speakIn(0);
  }

  #heartbeat() {
    const patchState = (this.#sent = this.#pending);
    this.#pending = undefined;
    this.#sentAt = now();
    this.#removedSince = false;
    this._ask("presence:heartbeat", { roomId: this.roomId, epoch: this.#epoch, patchState }, (ack) => {
      if (!ack.ok) return this.#heartbeatFailed(ack);
      this.#stored = { ...this.#stored, ...patchState };
      this.#sent = undefined;
      this._succeeded();
    });
  }

  /** @param {any} ack */
  #heartbeatFailed(ack) {
    switch (ack.code) {
      case "stale_epoch":
        this._takeBack();
        this.#epoch = ack.epoch;
        return this._speakIn(this._failures++ === 0 ? 0 : this._backOff());
      case "not_joined":
        this.#isMember = false;
        this._become("joining");
        return this._speakIn(0);
      case "invalid_payload":
      case "state_too_large":
        return this.#patchFailed(ack);
      default:
        this._takeBack();
        this._refused(ack, this._backOff());
    }
  }

  // The patch is lost, what came after it is not.
  /** @param {any} ack */
  #patchFailed(ack) {
    if (!this.#sent) return this._refused(ack, this._backOff());
    this.#sent = undefined;
    this.#state = { ...this.#stored, ...this.#pending };
    this.#dropped(ack);
    this._speakIn(this._backOff());
  }

  // Whether it was stored is unknown, and repeating it is safe. Later patches win.
  /** @protected */
  _takeBack() {
    if (this.#sent) this.#pending = { ...this.#sent, ...this.#pending };
    this.#sent = undefined;
  }

  /** @protected */
  _succeeded() {
    super._succeeded();
    if (this._asked !== this._telling) return this._speakIn(0);
    // A third of the TTL, less up to a fifth, so that clients who came together do not stay in step.
    const period = this.#periodMs * (1 - Math.random() / 5);
    this._speakIn(this.#pending ? this.#patchWait() : this.#removedSince ? period / 4 : period);
  }

  #patchWait() {
    return Math.max(0, PATCH_EVERY_MS - since(this.#sentAt));
  }

  // When this connection was removed by the server, and not on purpose, a heartbeat brings it back.
  /** @protected  @param {PresenceEvent} event */
  _followed({ type, connId, epoch, reason }) {
    if (type !== "leave" || connId !== this.connId || epoch < (this.#epoch ?? 0)) return;
    if (reason === "kicked") return void this._end("kicked");
    if (reason === "replaced") {
      if (this.#givenDevice !== undefined) return void this._end("replaced");
      keeperOf(this._socket).notOnlyDevice(this.#device);
      this.#isMember = false;
    }
    this.#removedSince = true;
    this._become("joining");
    if (!this._busy) this._speakIn(0);
  }
}

/** A view of a room that the socket is not in. */
class Watch extends RoomView {
  /** @param {Socket} socket  @param {RoomWish} wish */
  constructor(socket, wish) {
    super(socket, wish, "presence:unwatch");
    this._begin();
  }

  /** @protected */
  _speak() {
    this._asked = this._telling;
    this._ask("presence:watch", this._telling, (ack) => {
      if (!ack.ok) return this._failed(ack);
      this._welcome(ack);
      this._succeeded();
      if (this._asked !== this._telling) this._speakIn(0);
    });
  }
}

/** @type {ReadonlyMap<string, any>} */
const NOBODY = new Map();

/** One of those who share a view. It ends for itself, and with the last of them the view ends. */
class SharedView extends Teller {
  #view;
  /** @type {Promise<void> | undefined} */
  #ended;

  /** @param {RoomView} view */
  constructor(view) {
    super();
    this.#view = view;
    view.hold(this);
  }

  get roomId() {
    return this.#view.roomId;
  }

  /** @returns {Status} */
  get status() {
    return this.#ended ? "left" : this.#view.status;
  }

  /** The revision of the view. */
  get rev() {
    return this.#view.rev;
  }

  /** Whether pages of the view are missing. */
  get loading() {
    return !this.#ended && this.#view.loading;
  }

  /** The connections in the room, by connId. It stays as it was last seen while the socket is offline.
   * @returns {ReadonlyMap<string, Member>} */
  get members() {
    return this.#ended ? NOBODY : this.#view.members;
  }

  /** The users in the room, each with its connections by connId.
   * @returns {ReadonlyMap<string, ReadonlyMap<string, Member>>} */
  get users() {
    return this.#ended ? NOBODY : this.#view.users;
  }

  /** How many connections are in the room, those included that are not in the view. */
  get count() {
    return this.#ended ? 0 : this.#view.count;
  }

  /** How many users are in the room, those included that are not in the view. */
  get userCount() {
    return this.#ended ? 0 : this.#view.userCount;
  }

  /** @protected  @returns {Promise<void>} */
  _quit() {
    if (this.#ended) return this.#ended;
    if (this.#view.status === "kicked" || this.#view.status === "replaced") return Promise.resolve();
    this.#ended = this.#view.release(this) ? this.#view.quit() : Promise.resolve();
    this._tell("change", { type: "snapshot" });
    this._tell("status", "left");
    return this.#ended;
  }
}

/** A socket's place in one room, and its view of the room. */
export class Room extends SharedView {
  #membership;

  /** Use joinRoom.
   * @param {Membership} membership */
  constructor(membership) {
    super(membership);
    this.#membership = membership;
  }

  get userId() {
    return this.#membership.userId;
  }

  /** The id of this connection in the view. */
  get connId() {
    return this.#membership.connId;
  }

  /** This connection's own state as the others will have it, with every patch, sent or not.
   * @returns {Readonly<State>} */
  get state() {
    return this.#membership.state;
  }

  /**
   * Replaces these keys of the own state. What cannot be sent at once is merged and sent later, offline included. The patch
   * is taken as `JSON.stringify` says it. One that it cannot say, that holds binary data, a Map or a Set, or that makes the
   * state too large, changes nothing but is an `error`.
   *
   * @param {State} patch
   */
  patch(patch) {
    if (this.status !== "left") this.#membership.patch(patch);
  }

  /** Leaves the room for good: no timer, no listener and no view remain. It resolves when the server has taken note, or
   * cannot be reached any more, and at once while others share the membership.
   * @returns {Promise<void>} */
  leave() {
    return this._quit();
  }
}

/** A view of a room that the socket is not in. */
export class WatchedRoom extends SharedView {
  /** Ends it for good, as Room.leave does.
   * @returns {Promise<void>} */
  stop() {
    return this._quit();
  }
}

/** Whether users are online. */
export class WatchedUsers extends Standing {
  /** @type {Set<string>} */
  #wanted = new Set();
  /** @type {Set<string>} */
  #watched = new Set(); // of those, whom the server tells of on this connection
  /** @type {Map<string, boolean>} */
  #online = new Map();
  /** @type {Map<string, number>} */
  #lastSeen = new Map();

  /** Use watchUsers.
   * @param {Socket} socket
   * @param {Iterable<Id>} userIds
   */
  constructor(socket, userIds) {
    super(socket);
    this._listen(socket, "presence:user", (user) => this.#learn(user));
    this.#want(userIds);
    this._begin();
  }

  /** Whether each user is online, once that is known. It stays as it was last seen while the socket is offline.
   * @returns {ReadonlyMap<string, boolean>} */
  get online() {
    return this.#online;
  }

  /** When the last connection of each user who is offline went, milliseconds since 1970, as far as the server knows.
   * @returns {ReadonlyMap<string, number>} */
  get lastSeen() {
    return this.#lastSeen;
  }

  /** Watches more users.
   * @param {...Id} userIds */
  add(...userIds) {
    if (this.status === "left") return;
    this.#want(userIds);
    if (!this._busy) this._speakIn(0);
  }

  /** @param {Iterable<Id>} userIds */
  #want(userIds) {
    const counts = keeperOf(this._socket).users;
    for (const user of Array.from(userIds, idOf)) {
      if (this.#wanted.has(user)) continue;
      this.#wanted.add(user);
      counts.set(user, (counts.get(user) ?? 0) + 1);
    }
  }

  /** Watches these users no more.
   * @param {...Id} userIds
   * @returns {Promise<void>} resolves as Room.leave does */
  async remove(...userIds) {
    const counts = keeperOf(this._socket).users;
    const known = userIds.map(idOf).filter((user) => this.#wanted.delete(user));
    for (const user of known) {
      const others = (counts.get(user) ?? 1) - 1;
      if (others > 0) counts.set(user, others);
      else counts.delete(user);
      this.#watched.delete(user);
      this.#online.delete(user);
      this.#lastSeen.delete(user);
    }
    await Promise.all(portions(this._socket, known).map((users) => unwatchUsers(this._socket, users)));
    if (this.status === "refused" && !this._busy) this._speakIn(0); // it may have been one of those
  }

  /** Ends it for good. It resolves as Room.leave does.
   * @returns {Promise<void>} */
  stop() {
    this._end("left");
    return this.remove(...this.#wanted);
  }

  /** @protected */
  _reset() {
    this.#watched.clear();
  }

  /** @protected */
  _speak() {
    const [userIds] = portions(this._socket, [...this.#wanted].filter((user) => !this.#watched.has(user)));
    if (!userIds) return this._succeeded();
    this._ask("presence:watch", { userIds }, (ack) => {
      if (!ack.ok) return this._failed(ack);
      for (const user of ack.users) {
        if (this.#wanted.has(user.userId)) this.#watched.add(user.userId);
        this.#learn(user);
      }
      this._speakIn(0); // there may be more
    });
  }

  /** @param {UserChange} user */
  #learn({ userId, online, lastSeenMs }) {
    if (!this.#watched.has(userId)) return;
    if (lastSeenMs) this.#lastSeen.set(userId, lastSeenMs);
    else this.#lastSeen.delete(userId);
    if (this.#online.get(userId) === online) return;
    this.#online.set(userId, online);
    this._tell("change", { userId, online, ...(lastSeenMs && { lastSeenMs }) });
  }
}

/** @param {Socket} socket  @param {string[]} users */
function unwatchUsers(socket, users) {
  return sayEnd(socket, "presence:unwatch", () => {
    const userIds = users.filter((user) => !keeperOf(socket).users.has(user));
    return userIds.length > 0 ? { userIds } : undefined;
  });
}

/** Divides users so that each part fits into a request.
 * @param {Socket} socket  @param {string[]} users  @returns {string[][]} */
function portions(socket, users) {
  /** @type {string[][]} */
  const parts = [];
  const room = messageLimit(socket) - 100; // without the rest of the request
  let left = 0;
  for (const user of users) {
    const bytes = bytesOf(user) + 1;
    if (bytes > left || parts.at(-1)?.length === USERS_AT_ONCE) {
      parts.push([]);
      left = room;
    }
    parts.at(-1)?.push(user);
    left -= bytes;
  }
  return parts;
}

/**
 * Says that something is over until the server has taken note, or the connection is another one.
 *
 * @param {Socket} socket
 * @param {string} event
 * @param {() => object | undefined} payload  undefined once it is not to be said any more
 */
async function sayEnd(socket, event, payload) {
  const connection = socket.id;
  for (let failures = 0; socket.connected && socket.id === connection; failures++) {
    const said = payload();
    if (!said || refusalOf(socket, event, said)) return;
    try {
      const ack = await socket.timeout(ANSWER_WITHIN_MS).emitWithAck(event, said);
      if (ack.ok || ack.code === "unavailable") return; // then the server repeats it by itself
    } catch {
      return; // no answer: with the connection it ends as well
    }
    await new Promise((resolve) => setTimeout(resolve, backOff(failures)));
  }
}

/** Milliseconds to wait after so many failures before: twice as long each time, less up to a half.
 * @param {number} failures */
function backOff(failures) {
  return Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** Math.min(failures, 10)) * (1 - Math.random() / 2);
}

// What is sent

/** An id as the server takes it. What can be none becomes null, which the server refuses.
 * @param {unknown} id  @returns {string} */
function idOf(id) {
  if (typeof id === "string") return id;
  return typeof id === "bigint" || Number.isFinite(id) ? String(id) : /** @type {any} */ (null);
}

/** Something cannot be sent. It has the code that the server's refusal would have. */
class Unsendable extends Error {
  /** @param {string} code  @param {string} message */
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** @param {any} error  @returns {{ code: string, error: string }} */
function refusalFor(error) {
  const code = error instanceof Unsendable ? error.code : "invalid_payload";
  return { code, error: `it cannot be sent: ${error?.message ?? error}` };
}

/** Why a request cannot be sent on this connection, if so.
 * @param {Socket} socket  @param {string} event  @param {object} payload */
function refusalOf(socket, event, payload) {
  try {
    sayable(payload);
    checkSize(socket, event, payload);
  } catch (error) {
    return { ok: false, ...refusalFor(error) };
  }
}

/**
 * A copy of an object as JSON.stringify says it: that is what the others will have.
 *
 * @param {object} value
 * @returns {State}
 * @throws what JSON.stringify throws, what a toJSON of the object throws, and Unsendable
 */
function sayable(value) {
  const text = JSON.stringify(value, refuseLoss);
  const said = text === undefined ? undefined : JSON.parse(text);
  if (typeof said !== "object" || said === null || Array.isArray(said)) throw new Unsendable("invalid_payload", "it is no JSON object");
  checkLevels(said);
  return said;
}

/** Kinds of objects of which JSON.stringify says something else than what is in them, most often "{}". */
const UNSAYABLE = new Set(["ArrayBuffer", "SharedArrayBuffer", "Blob", "File", "FileList", "Map", "Set", "WeakMap", "WeakSet", "Promise"]);

// Kinds go by name, because an object may come from another frame. A replacer gets what toJSON has made of a value; Node.js'
// Buffer has one, and is binary data all the same.
/** @this {any}  @param {string} key  @param {any} value  @throws {Unsendable} */
function refuseLoss(key, value) {
  const data = ArrayBuffer.isView(this[key]) ? this[key] : value;
  const kind = Object.prototype.toString.call(data).slice(8, -1);
  if (ArrayBuffer.isView(data) || UNSAYABLE.has(kind)) {
    throw new Unsendable("invalid_payload", `${key === "" ? "it" : JSON.stringify(key)} is a ${kind}, which JSON does not have`);
  }
  return value;
}

/** @param {object} value  @throws {Unsendable} */
function checkLevels(value) {
  const isObject = (/** @type {unknown} */ v) => typeof v === "object" && v !== null;
  /** @type {any[]} */
  let level = [value];
  for (let levels = 0; level.length > 0; levels++) {
    if (levels > STATE_LEVELS) throw new Unsendable("invalid_payload", `it is nested more than ${STATE_LEVELS} levels deep`);
    level = level.flatMap(Object.values).filter(isObject);
  }
}

/** @param {Socket} socket  @param {string} event  @param {any} payload  @throws {Unsendable} */
function checkSize(socket, event, { state, patchState, ...payload }) {
  const limit = messageLimit(socket) - MESSAGE_FRAME_BYTES;
  const rest = bytesOf([event, { ...payload, state: {}, patchState: {} }]);
  if (rest > limit) throw new Unsendable("invalid_payload", `${rest} bytes are more than the ${limit} that the server takes`);
  const all = rest + bytesOf(state ?? patchState ?? {});
  if (all > limit) throw new Unsendable("state_too_large", `${all} bytes are more than the ${limit} that the server takes`);
}

/** The bytes of a value as JSON, in UTF-8.
 * @param {unknown} value */
function bytesOf(value) {
  return new TextEncoder().encode(JSON.stringify(value)).length;
}

/** How many bytes a message may have, Infinity as long as no server has been asked. The handshake of Engine.IO announces
 * it, and socket.io-client keeps it to itself.
 * @param {Socket} socket  @returns {number} */
function messageLimit(socket) {
  const engine = /** @type {any} */ (socket.io.engine);
  const announced = engine?._maxPayload ?? engine?.maxPayload;
  if (announced > 0) return announced;
  return socket.connected ? MESSAGE_BYTES : Infinity;
}

// Devices

const DEVICE_KEY = "presence:device";

/** Where a tab keeps its id, undefined outside of pages and where it is forbidden.
 * @type {Storage | undefined} */
const tabStorage = (() => {
  try {
    return globalThis.document && globalThis.sessionStorage;
  } catch {
    return undefined;
  }
})();

/** The id of this tab. The storage has it only while no page of the tab is shown: a browser copies the storage when somebody
 * duplicates the tab, and the copy is to be another device. */
let tabDevice = newDevice();
let sockets = 0; // of this page so far

if (tabStorage) {
  takeDevice();
  globalThis.addEventListener("pagehide", storeDevice);
  globalThis.addEventListener("pageshow", ({ persisted }) => persisted && takeDevice());
}

function newDevice() {
  return [Math.random(), Math.random()].map((n) => n.toString(36).slice(2, 12)).join("");
}

function takeDevice() {
  try {
    const kept = tabStorage?.getItem(DEVICE_KEY);
    if (kept && kept.length <= 100) tabDevice = kept; // the server refuses what is too long
    tabStorage?.removeItem(DEVICE_KEY);
  } catch {
    // The storage is broken: each page is another device.
  }
}

function storeDevice() {
  try {
    tabStorage?.setItem(DEVICE_KEY, tabDevice);
  } catch {
    // The storage is full: the next page is another device.
  }
}

// Sockets

/** @type {WeakMap<Socket, Keeper>} */
const keepers = new WeakMap();

/** @param {Socket} socket  @returns {Keeper} */
function keeperOf(socket) {
  let keeper = keepers.get(socket);
  if (!keeper) keepers.set(socket, (keeper = new Keeper(socket)));
  return keeper;
}

/** What all that is asked of the server on one socket has in common. It sees to the connection where socket.io-client does
 * not: when the page is left and shown again, and when the server does not let the socket in. */
class Keeper {
  #socket;
  /** @type {Map<string, RoomView>} */
  rooms = new Map();
  /** @type {Map<string, number>} how many watch each user */
  users = new Map();
  /** @type {Set<Standing>} */
  #standings = new Set();
  /** @type {Array<() => void>} */
  #subscriptions = [];
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #failures = 0; // to be let in, in a row
  #expired = false;
  #away = false; // the page was left while it was connected
  #device = sockets++; // which of the tab's it is

  /** @param {Socket} socket */
  constructor(socket) {
    this.#socket = socket;
  }

  /** The deviceId of this socket. */
  get device() {
    return this.#device === 0 ? tabDevice : `${tabDevice}.${this.#device}`;
  }

  /** Makes the tab another device: a connection elsewhere has this one, as that of a duplicate of the tab.
   * @param {string | undefined} device */
  notOnlyDevice(device) {
    if (device === this.device) tabDevice = newDevice();
  }

  /** @param {Standing} standing */
  add(standing) {
    if (this.#standings.size === 0) this.#listen();
    this.#standings.add(standing);
  }

  /** @param {Standing} standing */
  delete(standing) {
    this.#standings.delete(standing);
    if (this.#standings.size > 0) return;
    clearTimeout(this.#timer);
    for (const unsubscribe of this.#subscriptions.splice(0)) unsubscribe();
    this.#expired = this.#away = false;
  }

  #listen() {
    const on = (/** @type {any} */ source, /** @type {string} */ name, /** @type {(...args: any[]) => void} */ listener) =>
      this.#subscriptions.push(listen(source, name, listener));
    on(this.#socket, "connect", () => this.#letIn());
    on(this.#socket, "connect_error", (error) => this.#shutOut(error));
    on(this.#socket, "presence:expired", () => (this.#expired = true));
    on(this.#socket, "disconnect", () => this.#expired && this.#asksAuth && this.#connectLater());
    if (!("addEventListener" in globalThis)) return;
    on(globalThis, "pagehide", () => this.#leavePage());
    on(globalThis, "pageshow", ({ persisted }) => persisted && this.#showPage());
  }

  #letIn() {
    clearTimeout(this.#timer);
    this.#failures = 0;
    this.#expired = false;
  }

  // A refusal of the server has a code. What else fails is tried again by socket.io-client.
  /** @param {Error & { data?: { code?: string } }} error */
  #shutOut({ message, data }) {
    const code = data?.code;
    if (!code) return;
    const retrying = code === "unauthorized" ? this.#asksAuth : !HOPELESS.has(code);
    if (retrying) this.#connectLater();
    for (const standing of [...this.#standings]) standing.shutOut({ code, error: message, retrying });
  }

  // A function gives a token that is good by now, perhaps. Another one is the application's affair.
  get #asksAuth() {
    return typeof this.#socket.auth === "function";
  }

  #connectLater() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#socket.connect(), backOff(this.#failures++));
  }

  // A page that may be shown again keeps its connection open and answers nothing, and of one that is gone the server may not
  // learn while it uses polling.
  #leavePage() {
    if (!this.#socket.connected) return;
    this.#away = true;
    hangUp(this.#socket.io);
  }

  #showPage() {
    if (this.#away) this.#socket.connect();
    this.#away = false;
  }
}

/**
 * Ends the connection at once, also where the page does not live on. It is no goodbye: the server may hold the members back for
 * a while, as those of every connection that breaks, so that a reload is not seen.
 *
 * @param {any} manager  the socket's
 */
function hangUp(manager) {
  const url = pollingURL(manager.engine);
  if (url) globalThis.navigator?.sendBeacon?.(url, ENGINE_CLOSE);
  manager.disconnect?.();
}

const ENGINE_CLOSE = "1";

/** Where a session takes packets by POST, if it began with polling. One whose upgrade has just been under way may not be upgraded
 * for the server yet, which refuses the packet otherwise.
 * @param {any} engine  @returns {string | undefined} */
function pollingURL(engine) {
  const address = engine?.transport?.uri?.();
  if (!address) return;
  const url = new URL(address.replace(/^ws/, "http"));
  if (!url.searchParams.has("sid")) return;
  url.searchParams.set("transport", "polling");
  return url.href;
}

/** Listens until the function that is returned is called.
 * @param {any} source  @param {string} name  @param {(...args: any[]) => void} listener  @returns {() => void} */
function listen(source, name, listener) {
  const [on, off] = source.addEventListener ? ["addEventListener", "removeEventListener"] : ["on", "off"];
  source[on](name, listener);
  return () => source[off](name, listener);
}

// Time

/** A moment, by the clock that nobody can set, and by the one that goes on while the machine sleeps. */
function now() {
  return { steady: performance.now(), wall: Date.now() };
}

/** The milliseconds since a moment: by the clock that says more, and endless if one was set back meanwhile. Then something is
 * done too early at most, which does no harm.
 * @param {{ steady: number, wall: number }} moment */
function since({ steady, wall }) {
  const byWall = Date.now() - wall;
  return byWall < 0 ? Infinity : Math.max(performance.now() - steady, byWall);
}
