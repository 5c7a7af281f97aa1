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
// Nothing is needed beside this file. It runs in browsers, in workers and in Node.js. License: MIT.

/**
 * @typedef {Record<string, any>} State  a JSON object
 *
 * @typedef {object} Member  one connection in the room; never changed, always replaced
 * @property {string} connId
 * @property {string} userId
 * @property {State} state
 * @property {number} lastSeenMs  milliseconds since 1970
 * @property {number} epoch
 * @property {number} rev  the room's revision when it was so
 *
 * @typedef {"all" | "batch" | "count" | "none"} Mode  how to be told of a room: of each change at once, of those of a
 *   while together, only of how many there are, or not at all
 *
 * @typedef {object} RoomWish
 * @property {string} roomId
 * @property {Mode} [events]  "all" if missing; with "count" and "none" the view has no members
 * @property {number} [limit]  so many members at once, 1 to 1000: the others are loaded page by page; all if missing
 *
 * @typedef {object} PresenceEvent  as the server sends it
 * @property {"join" | "update" | "leave"} type
 * @property {string} roomId
 * @property {string} userId
 * @property {string} connId
 * @property {State | null} state
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
 *
 * @typedef {object} Refusal
 * @property {string} code   stable, see the server's error codes
 * @property {string} error  a sentence for a person
 * @property {boolean} retrying  it is tried again by itself
 *
 * @typedef {"joining" | "joined" | "offline" | "expired" | "refused" | "kicked" | "left"} Status  for those who watch,
 *   "joined" means that the view is live, and "left" that they have stopped
 *
 * @typedef {object} Listeners
 * @property {(change: any) => void} change  a Change, or a UserChange, after the view has changed
 * @property {(status: Status) => void} status
 * @property {(refusal: Refusal) => void} error  the server refused a request
 *
 * @typedef {import("socket.io-client").Socket} Socket
 */

const ANSWER_WITHIN_MS = 10_000; // the server needs 2 s at most
const UNANSWERED = 2; // so many times in a row, and the connection counts as dead
const PATCH_EVERY_MS = 50; // patches in between are sent together
const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 15_000;
const USERS_AT_ONCE = 100; // in one request, which must not be too long

/** Refusals that repeating does not mend. */
const HOPELESS = new Set(["invalid_payload", "state_too_large", "unauthorized", "forbidden"]);

/** @type {WeakMap<Socket, Map<string, RoomView>>} */
const roomsOfSockets = new WeakMap();
/** @type {WeakMap<Socket, Map<string, number>>} how many watch each user */
const usersOfSockets = new WeakMap();

/** @template V  @param {WeakMap<Socket, Map<string, V>>} ofSockets  @param {Socket} socket  @returns {Map<string, V>} */
function of(ofSockets, socket) {
  let map = ofSockets.get(socket);
  if (!map) ofSockets.set(socket, (map = new Map()));
  return map;
}

/**
 * Joins a room, again after each reconnection, until `leave` is called. A socket may be in several rooms.
 *
 * @param {Socket} socket  connected or not
 * @param {RoomWish & { userId: string, state?: State }} wish
 * @returns {Room}
 */
export function joinRoom(socket, wish) {
  return new Room(socket, wish);
}

/**
 * Shows a room without being in it, again after each reconnection, until `stop` is called. A room that the socket is in
 * has its view already.
 *
 * @param {Socket} socket  connected or not
 * @param {RoomWish} wish
 * @returns {WatchedRoom}
 */
export function watchRoom(socket, wish) {
  return new WatchedRoom(socket, wish);
}

/**
 * Shows whether users are online, in whatever rooms they are, again after each reconnection, until `stop` is called.
 *
 * @param {Socket} socket  connected or not
 * @param {Iterable<string>} [userIds]  more may be added later
 * @returns {WatchedUsers}
 */
export function watchUsers(socket, userIds = []) {
  return new WatchedUsers(socket, userIds);
}

/** Something that is asked of the server anew on each connection, until it is over. At most one request is under way. */
class Standing {
  #over = false;
  /** @type {object | undefined} */
  #request; // the one under way; answers to others are too late
  #unanswered = 0; // in a row
  #next = { at: Infinity, wait: 0 }; // when to speak again
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #listeners = { change: new Set(), status: new Set(), error: new Set() };
  /** @type {Array<() => void>} */
  #subscriptions = [];
  /** @protected */ _failures = 0; // in a row

  /** @param {Socket} socket */
  constructor(socket) {
    /** @protected */ this._socket = socket;
    /** @type {Status} */ this.status = "offline";
  }

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
    const [on, off] = source.addEventListener ? ["addEventListener", "removeEventListener"] : ["on", "off"];
    source[on](name, listener);
    this.#subscriptions.push(() => source[off](name, listener));
  }

  #connected() {
    this.#request = undefined;
    this._failures = this.#unanswered = 0;
    this._reset();
    this._become("joining");
    this._speakIn(0);
  }

  #disconnected() {
    clearTimeout(this.#timer);
    this.#request = undefined;
    this._reset();
    if (this.status !== "expired") this._become("offline");
  }

  /** @protected  @param {Status} status  @returns {boolean} whether it was not over yet */
  _end(status) {
    if (this.#over) return false;
    this.#over = true;
    clearTimeout(this.#timer);
    for (const unsubscribe of this.#subscriptions.splice(0)) unsubscribe();
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
    wait = Math.ceil(wait); // fractions would not survive the addition
    this.#next = { at: Date.now() + wait, wait };
    this.#tick();
  }

  #tick = () => {
    clearTimeout(this.#timer);
    const { at, wait } = this.#next;
    if (this.#request || at === Infinity || !this._socket.connected) return;
    const left = at - Date.now();
    if (left > 0 && left <= wait) this.#timer = setTimeout(this.#tick, left);
    else this.#due(); // also when the clock was set back
  };

  #due() {
    this.#next = { at: Infinity, wait: 0 };
    this._speak();
  }

  /**
   * @protected
   * @param {string} event
   * @param {object} payload
   * @param {(ack: any) => void} answered
   */
  _ask(event, payload, answered) {
    const request = (this.#request = {});
    this._socket.timeout(ANSWER_WITHIN_MS).emit(event, payload, (/** @type {unknown} */ failure, /** @type {any} */ ack) => {
      if (request !== this.#request) return; // of a connection before, or over
      this.#request = undefined;
      if (failure) this.#notAnswered();
      else answered(ack);
    });
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

  // What a listener throws is its own affair.
  /** @protected  @param {keyof Listeners} name  @param {any} news */
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

/**
 * A view of one room: a snapshot, or its pages, and the events after it. Every member has the revision of what told of it
 * last. An event that is older than that is in it already, and so is a page that is older than an event.
 */
class RoomView extends Standing {
  #hears = false; // the view follows the room's events
  #folds; // it has members
  #size = { count: 0, users: 0 }; // as the server said last
  /** @type {Map<string, Member>} */
  #members = new Map();
  /** @type {Map<string, Map<string, Member>>} */
  #users = new Map();
  /** @type {Map<string, number>} */
  #gone = new Map(); // who left while pages are loaded, and at which revision: an older page does not bring them back
  /** @type {{ timer?: ReturnType<typeof setTimeout> } | undefined} */
  #load; // of the next page; answers to others are too late

  /** @param {Socket} socket  @param {RoomWish} wish */
  constructor(socket, { roomId, events, limit }) {
    super(socket);
    const rooms = of(roomsOfSockets, socket);
    if (rooms.has(roomId)) throw new Error(`this socket is in room ${roomId} already, or watches it`);
    rooms.set(roomId, this);
    this.#folds = events !== "count" && events !== "none";
    /** @protected what is asked of the server in any case */
    this._telling = { roomId, events, limit: this.#folds ? limit : 1 };
    /** @readonly */ this.roomId = roomId;
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
    of(roomsOfSockets, this._socket).delete(this.roomId);
    this.#size = { count: 0, users: 0 };
    this.#adopt([], this.rev);
  }

  /** Begins the view with the answer to a join or a watch.
   * @protected  @param {any} ack */
  _welcome({ snapshot, rev, cursor, count, users }) {
    this.#hears = true;
    this.#size = { count, users };
    this.#adopt(this.#folds ? snapshot : [], rev, this.#folds ? cursor : undefined);
  }

  /** @param {Member[]} snapshot  @param {number} rev  @param {string} [cursor] */
  #adopt(snapshot, rev, cursor) {
    this.#stopLoading();
    this.#members.clear();
    this.#users.clear();
    this.#gone.clear();
    for (const entry of snapshot) this.#put({ ...entry, rev });
    this.rev = rev;
    this.loading = cursor !== undefined;
    if (cursor !== undefined) this.#loadFrom(cursor, 0);
    this._tell("change", { type: "snapshot" });
  }

  /** @param {string} cursor  @param {number} failures  of the same page before */
  #loadFrom(cursor, failures) {
    /** @type {{ timer?: ReturnType<typeof setTimeout> }} */
    const load = (this.#load = {});
    const { roomId, limit } = this._telling;
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
      members.push({ ...entry, rev });
      this.#put({ ...entry, rev });
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
    const { type, connId, userId, state, ts, epoch, rev } = event;
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
      const member = { connId, userId, state: state ?? {}, lastSeenMs: ts, epoch, rev };
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

/** A socket's place in one room, and its view of the room. */
export class Room extends RoomView {
  #state; // as it shall be
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
  #sentAt = 0;
  #draining = false; // the node takes no joins: another one has to be found
  #leaving = Promise.resolve();

  /** Use joinRoom.
   * @param {Socket} socket
   * @param {RoomWish & { userId: string, state?: State }} wish
   */
  constructor(socket, { userId, state = {}, ...wish }) {
    super(socket, wish);
    /** @readonly */ this.userId = userId;
    /** @type {string | undefined} the id of this connection in the view */ this.connId = undefined;
    this.#state = { ...state };
    this._begin();
  }

  /** This connection's own state, with every patch, sent or not.
   * @returns {Readonly<State>} */
  get state() {
    return this.#state;
  }

  /**
   * Replaces these keys of the own state. What cannot be sent at once is merged and sent later, offline included.
   *
   * @param {State} patch
   */
  patch(patch) {
    this.#state = { ...this.#state, ...patch };
    this.#pending = { ...this.#pending, ...patch };
    if (this._busy || !this.#isMember || this._failures > 0) return; // it goes with what comes next
    this._speakIn(this.#patchWait());
  }

  /** Leaves the room for good: no timer, no listener and no view remain. It resolves when the server has taken note, or
   * cannot be reached any more.
   * @returns {Promise<void>} */
  leave() {
    if (this._end("left")) this.#leaving = sayEnd(this._socket, "presence:leave", unlessBack(this._socket, this));
    return this.#leaving;
  }

  /** @protected */
  _reset() {
    super._reset();
    this.#isMember = this.#draining = this.#removedSince = false;
  }

  /** @protected */
  _speak() {
    if (this.#draining) this._reconnect();
    else if (this.#isMember) this.#heartbeat();
    else this.#join();
  }

  #join() {
    const state = this.#state;
    this.#pending = this.#sent = undefined; // they are in the state
    this._ask("presence:join", { ...this._telling, userId: this.userId, state }, (ack) => {
      if (!ack.ok) return this.#joinFailed(ack);
      this.#stored = state;
      this.#epoch = ack.self.epoch;
      this.#periodMs = ack.ttlMs / 3;
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
    this._failed(ack);
  }

  #heartbeat() {
    const patchState = (this.#sent = this.#pending);
    this.#pending = undefined;
    this.#sentAt = Date.now();
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
      case "state_too_large": // the patch is lost
        this.#sent = undefined;
        this.#state = { ...this.#stored, ...this.#pending };
        return this._refused(ack, this._backOff());
      default:
        this._takeBack();
        this._refused(ack, this._backOff());
    }
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
    // A third of the TTL, less up to a fifth, so that clients who came together do not stay in step.
    const period = this.#periodMs * (1 - Math.random() / 5);
    this._speakIn(this.#pending ? this.#patchWait() : this.#removedSince ? period / 4 : period);
  }

  #patchWait() {
    return Math.max(0, this.#sentAt + PATCH_EVERY_MS - Date.now());
  }

  // When this connection was removed by the server, and not on purpose, a heartbeat brings it back.
  /** @protected  @param {PresenceEvent} event */
  _followed({ type, connId, epoch, reason }) {
    if (type !== "leave" || connId !== this.connId || epoch < (this.#epoch ?? 0)) return;
    if (reason === "kicked") return void this._end("kicked");
    this.#removedSince = true;
    this._become("joining");
    if (!this._busy) this._speakIn(0);
  }
}

/** A view of a room that the socket is not in. */
export class WatchedRoom extends RoomView {
  #stopping = Promise.resolve();

  /** Use watchRoom.
   * @param {Socket} socket
   * @param {RoomWish} wish
   */
  constructor(socket, wish) {
    super(socket, wish);
    this._begin();
  }

  /** Ends it for good, as Room.leave does.
   * @returns {Promise<void>} */
  stop() {
    if (this._end("left")) this.#stopping = sayEnd(this._socket, "presence:unwatch", unlessBack(this._socket, this));
    return this.#stopping;
  }

  /** @protected */
  _speak() {
    this._ask("presence:watch", this._telling, (ack) => {
      if (!ack.ok) return this._failed(ack);
      this._welcome(ack);
      this._succeeded();
    });
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

  /** Use watchUsers.
   * @param {Socket} socket
   * @param {Iterable<string>} userIds
   */
  constructor(socket, userIds) {
    super(socket);
    this._listen(socket, "presence:user", ({ userId, online }) => this.#learn(userId, online));
    this.#want(userIds);
    this._begin();
  }

  /** Whether each user is online, once that is known. It stays as it was last seen while the socket is offline.
   * @returns {ReadonlyMap<string, boolean>} */
  get online() {
    return this.#online;
  }

  /** Watches more users.
   * @param {...string} userIds */
  add(...userIds) {
    if (this.status === "left") return;
    this.#want(userIds);
    if (!this._busy) this._speakIn(0);
  }

  /** @param {Iterable<string>} userIds */
  #want(userIds) {
    const counts = of(usersOfSockets, this._socket);
    for (const user of userIds) {
      if (this.#wanted.has(user)) continue;
      this.#wanted.add(user);
      counts.set(user, (counts.get(user) ?? 0) + 1);
    }
  }

  /** Watches these users no more.
   * @param {...string} userIds
   * @returns {Promise<void>} resolves as Room.leave does */
  async remove(...userIds) {
    const counts = of(usersOfSockets, this._socket);
    const known = userIds.filter((user) => this.#wanted.delete(user));
    for (const user of known) {
      const others = (counts.get(user) ?? 1) - 1;
      if (others > 0) counts.set(user, others);
      else counts.delete(user);
      this.#watched.delete(user);
      this.#online.delete(user);
    }
    const parts = [];
    for (let i = 0; i < known.length; i += USERS_AT_ONCE) parts.push(unwatchUsers(this._socket, known.slice(i, i + USERS_AT_ONCE)));
    await Promise.all(parts);
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
    const userIds = [...this.#wanted].filter((user) => !this.#watched.has(user)).slice(0, USERS_AT_ONCE);
    if (userIds.length === 0) return this._succeeded();
    this._ask("presence:watch", { userIds }, (ack) => {
      if (!ack.ok) return this._failed(ack);
      for (const { userId, online } of ack.users) {
        if (this.#wanted.has(userId)) this.#watched.add(userId);
        this.#learn(userId, online);
      }
      this._speakIn(0); // there may be more
    });
  }

  /** @param {string} userId  @param {boolean} online */
  #learn(userId, online) {
    if (!this.#watched.has(userId) || this.#online.get(userId) === online) return;
    this.#online.set(userId, online);
    this._tell("change", { userId, online });
  }
}

/** @param {Socket} socket  @param {RoomView} view  @returns {() => object | undefined} */
function unlessBack(socket, { roomId, constructor }) {
  return () => (of(roomsOfSockets, socket).get(roomId)?.constructor === constructor ? undefined : { roomId });
}

/** @param {Socket} socket  @param {string[]} users */
function unwatchUsers(socket, users) {
  return sayEnd(socket, "presence:unwatch", () => {
    const userIds = users.filter((user) => !of(usersOfSockets, socket).has(user));
    return userIds.length > 0 ? { userIds } : undefined;
  });
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
    if (!said) return;
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
