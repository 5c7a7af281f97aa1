// Keeps a socket.io-client socket in rooms of the presence server, and shows who else is there.
//
//   const room = joinRoom(socket, { roomId: "room-1", userId: "u-42", state: { mic: true } });
//   room.on("change", () => console.log([...room.users.keys()]));
//   room.patch({ mic: false });
//   await room.leave();
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
 * @property {"snapshot" | "join" | "update" | "leave"} type  "snapshot": the whole view is another one
 * @property {Member} [member]  who joined, changed or left
 * @property {PresenceEvent} [event]
 *
 * @typedef {object} Refusal
 * @property {string} code   stable, see the server's error codes
 * @property {string} error  a sentence for a person
 * @property {boolean} retrying  the room tries again by itself
 *
 * @typedef {"joining" | "joined" | "offline" | "expired" | "refused" | "kicked" | "left"} Status
 *
 * @typedef {object} RoomListeners
 * @property {(change: Change) => void} change  after the view has changed
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

/** Refusals of a join that repeating does not mend. */
const HOPELESS = new Set(["invalid_payload", "state_too_large", "unauthorized", "forbidden"]);

/** @type {WeakMap<Socket, Map<string, Room>>} */
const roomsOfSockets = new WeakMap();

/** @param {Socket} socket */
function roomsOf(socket) {
  let rooms = roomsOfSockets.get(socket);
  if (!rooms) roomsOfSockets.set(socket, (rooms = new Map()));
  return rooms;
}

/**
 * Joins a room, again after each reconnection, until `leave` is called. A socket may be in several rooms.
 *
 * @param {Socket} socket  connected or not
 * @param {{ roomId: string, userId: string, state?: State }} wish
 * @returns {Room}
 */
export function joinRoom(socket, wish) {
  return new Room(socket, wish);
}

/** A socket's place in one room, and its view of the room. */
export class Room {
  #socket;
  #state; // as it shall be
  /** @type {State} */
  #stored = {}; // as the server has it, as far as is known
  /** @type {State | undefined} */
  #pending; // what has yet to be sent
  /** @type {State | undefined} */
  #sent; // what is under way
  /** @type {object | undefined} */
  #request; // the one under way; answers to others are too late
  #over = false; // left or kicked
  #isMember = false; // as far as is known, so that heartbeats are due and not a join
  #hears = false; // the view follows the room's events
  /** @type {number | undefined} */
  #epoch;
  #periodMs = 10_000;
  #sentAt = 0;
  #failures = 0; // in a row
  #unanswered = 0; // in a row
  #draining = false; // the node takes no joins: another one has to be found
  #next = { at: Infinity, wait: 0 }; // when the room has to speak again
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #snapshotRev = 0;
  /** @type {Map<string, Member>} */
  #members = new Map();
  /** @type {Map<string, Map<string, Member>>} */
  #users = new Map();
  #listeners = { change: new Set(), status: new Set(), error: new Set() };
  /** @type {Array<() => void>} */
  #subscriptions = [];
  #leaving = Promise.resolve();

  /** Use joinRoom.
   * @param {Socket} socket
   * @param {{ roomId: string, userId: string, state?: State }} wish
   */
  constructor(socket, { roomId, userId, state = {} }) {
    if (roomsOf(socket).has(roomId)) throw new Error(`this socket is in room ${roomId} already`);
    roomsOf(socket).set(roomId, this);
    /** @readonly */ this.roomId = roomId;
    /** @readonly */ this.userId = userId;
    /** @type {Status} */ this.status = "offline";
    /** @type {string | undefined} the id of this connection in the view */ this.connId = undefined;
    /** the revision of the view */ this.rev = 0;
    this.#socket = socket;
    this.#state = { ...state };
    this.#subscribe();
    if (socket.connected) this.#connected();
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
    if (this.#request || !this.#isMember || this.#failures > 0) return; // it goes with what comes next
    this.#speakIn(this.#patchWait());
  }

  /**
   * Calls the listener until the function that is returned is called.
   *
   * @template {keyof RoomListeners} Name
   * @param {Name} name
   * @param {RoomListeners[Name]} listener
   * @returns {() => void}
   */
  on(name, listener) {
    this.#listeners[name].add(listener);
    return () => this.#listeners[name].delete(listener);
  }

  /** Leaves the room for good: no timer, no listener and no view remain. It resolves when the server has taken note, or
   * cannot be reached any more.
   * @returns {Promise<void>} */
  leave() {
    if (!this.#over) {
      this.#end("left");
      this.#leaving = sayLeave(this.#socket, this.roomId);
    }
    return this.#leaving;
  }

  // Every occasion to look whether a heartbeat is due. Timers alone do not do: a browser lets those of a hidden tab wait
  // for a minute, and nobody's run while the machine sleeps. The ping is the server's, every 25 s.
  #subscribe() {
    const { document } = globalThis;
    this.#listen(this.#socket, "connect", () => this.#connected());
    this.#listen(this.#socket, "disconnect", () => this.#disconnected());
    this.#listen(this.#socket, "presence:event", (event) => this.#heard(event));
    this.#listen(this.#socket, "presence:expired", () => this.#become("expired"));
    this.#listen(this.#socket.io, "ping", this.#tick);
    if ("addEventListener" in globalThis) for (const name of ["online", "pageshow"]) this.#listen(globalThis, name, this.#tick);
    if (document) for (const name of ["visibilitychange", "resume"]) this.#listen(document, name, this.#tick);
  }

  /** @param {any} source  @param {string} name  @param {(...args: any[]) => void} listener */
  #listen(source, name, listener) {
    const [on, off] = source.addEventListener ? ["addEventListener", "removeEventListener"] : ["on", "off"];
    source[on](name, listener);
    this.#subscriptions.push(() => source[off](name, listener));
  }

  #connected() {
    this.#request = undefined;
    this.#isMember = this.#draining = false;
    this.#failures = this.#unanswered = 0;
    this.#become("joining");
    this.#speakIn(0);
  }

  #disconnected() {
    clearTimeout(this.#timer);
    this.#request = undefined;
    this.#isMember = this.#hears = false;
    if (this.status !== "expired") this.#become("offline");
  }

  /** @param {Status} status */
  #end(status) {
    if (this.#over) return;
    this.#over = true;
    clearTimeout(this.#timer);
    for (const unsubscribe of this.#subscriptions.splice(0)) unsubscribe();
    roomsOf(this.#socket).delete(this.roomId);
    this.#request = undefined;
    this.#isMember = this.#hears = false;
    this.status = status;
    this.#adopt([], this.rev);
    this.#tell("status", status);
  }

  // Speaking: at most one request is under way.

  /** @param {number} wait  milliseconds; Infinity for never */
  #speakIn(wait) {
    if (this.#over) return;
    wait = Math.ceil(wait); // fractions would not survive the addition
    this.#next = { at: Date.now() + wait, wait };
    this.#tick();
  }

  #tick = () => {
    clearTimeout(this.#timer);
    const { at, wait } = this.#next;
    if (this.#request || at === Infinity || !this.#socket.connected) return;
    const left = at - Date.now();
    if (left > 0 && left <= wait) this.#timer = setTimeout(this.#tick, left);
    else this.#speak(); // also when the clock was set back
  };

  #speak() {
    this.#next = { at: Infinity, wait: 0 };
    if (this.#draining) this.#reconnect();
    else if (this.#isMember) this.#heartbeat();
    else this.#join();
  }

  #join() {
    const state = this.#state;
    this.#pending = this.#sent = undefined; // they are in the state
    this.#ask("presence:join", { roomId: this.roomId, userId: this.userId, state }, (ack) => {
      if (!ack.ok) return this.#joinFailed(ack);
      this.#stored = state;
      this.#epoch = ack.self.epoch;
      this.#periodMs = ack.ttlMs / 3;
      this.#isMember = this.#hears = true;
      this.#snapshotRev = ack.rev;
      this.connId = ack.self.connId;
      this.#adopt(ack.snapshot, ack.rev);
      this.#succeeded();
    });
  }

  /** @param {any} ack */
  #joinFailed(ack) {
    const hopeless = HOPELESS.has(ack.code);
    this.#draining = ack.code === "shutting_down";
    if (hopeless) this.#become("refused");
    this.#refused(ack, hopeless ? Infinity : this.#backOff());
  }

  #heartbeat() {
    const patchState = (this.#sent = this.#pending);
    this.#pending = undefined;
    this.#sentAt = Date.now();
    this.#ask("presence:heartbeat", { roomId: this.roomId, epoch: this.#epoch, patchState }, (ack) => {
      if (!ack.ok) return this.#heartbeatFailed(ack);
      this.#stored = { ...this.#stored, ...patchState };
      this.#sent = undefined;
      this.#succeeded();
    });
  }

  /** @param {any} ack */
  #heartbeatFailed(ack) {
    switch (ack.code) {
      case "stale_epoch":
        this.#takeBack();
        this.#epoch = ack.epoch;
        return this.#speakIn(this.#failures++ === 0 ? 0 : this.#backOff());
      case "not_joined":
        this.#isMember = false;
        this.#become("joining");
        return this.#speakIn(0);
      case "invalid_payload":
      case "state_too_large": // the patch is lost
        this.#sent = undefined;
        this.#state = { ...this.#stored, ...this.#pending };
        return this.#refused(ack, this.#backOff());
      default:
        this.#takeBack();
        this.#refused(ack, this.#backOff());
    }
  }

  // Whether it was stored is unknown, and repeating it is safe. Later patches win.
  #takeBack() {
    if (this.#sent) this.#pending = { ...this.#sent, ...this.#pending };
    this.#sent = undefined;
  }

  #succeeded() {
    this.#failures = this.#unanswered = 0;
    this.#become("joined");
    // A third of the TTL, less up to a fifth, so that clients who came together do not stay in step.
    const period = this.#periodMs * (1 - Math.random() / 5);
    const patient = this.connId !== undefined && this.#members.has(this.connId); // else it was removed just now
    this.#speakIn(this.#pending ? this.#patchWait() : patient ? period : period / 4);
  }

  /** @param {any} ack  @param {number} wait */
  #refused({ code, error }, wait) {
    this.#tell("error", { code, error, retrying: wait < Infinity });
    this.#speakIn(wait);
  }

  #patchWait() {
    return Math.max(0, this.#sentAt + PATCH_EVERY_MS - Date.now());
  }

  #backOff() {
    return backOff(this.#failures++);
  }

  /**
   * @param {string} event
   * @param {object} payload
   * @param {(ack: any) => void} answered
   */
  #ask(event, payload, answered) {
    const request = (this.#request = {});
    this.#socket.timeout(ANSWER_WITHIN_MS).emit(event, payload, (/** @type {unknown} */ failure, /** @type {any} */ ack) => {
      if (request !== this.#request) return; // of a connection before, or of a room that was left
      this.#request = undefined;
      if (failure) this.#notAnswered();
      else answered(ack);
    });
  }

  // A laptop that wakes up takes an answer that waits for it as late, so one is no proof of a dead connection.
  #notAnswered() {
    this.#takeBack();
    if (++this.#unanswered >= UNANSWERED) this.#reconnect();
    else this.#speakIn(0);
  }

  // Without a goodbye, so that socket.io-client comes back by itself.
  #reconnect() {
    this.#socket.io.engine?.close();
  }

  // Hearing.

  /** @param {PresenceEvent} event */
  #heard(event) {
    if (event.roomId !== this.roomId || !this.#hears || event.rev < this.rev) return; // several may share a revision
    const own = event.connId === this.connId;
    if (own && event.type === "join" && event.rev === this.#snapshotRev && this.#members.has(event.connId)) return;
    this.#apply(event);
    if (own && event.type === "leave" && event.epoch >= (this.#epoch ?? 0)) this.#removed(event.reason);
  }

  // This connection was removed by the server. Unless that was on purpose, a heartbeat brings it back.
  /** @param {string} [reason] */
  #removed(reason) {
    if (reason === "kicked") return this.#end("kicked");
    this.#become("joining");
    if (!this.#request) this.#speakIn(0);
  }

  /** @param {PresenceEvent} event */
  #apply(event) {
    const { type, connId, userId, state, ts, epoch } = event;
    this.rev = event.rev;
    const before = this.#members.get(connId);
    if (type === "leave") {
      if (!before) return;
      this.#drop(connId);
      this.#tell("change", { type, member: before, event });
    } else {
      const member = { connId, userId, state: state ?? {}, lastSeenMs: ts, epoch };
      this.#put(member);
      this.#tell("change", { type, member, event });
    }
  }

  /** @param {Member[]} snapshot  @param {number} rev */
  #adopt(snapshot, rev) {
    this.#members.clear();
    this.#users.clear();
    for (const member of snapshot) this.#put(member);
    this.rev = rev;
    this.#tell("change", { type: "snapshot" });
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

  /** @param {Status} status */
  #become(status) {
    if (status === this.status || this.#over) return;
    this.status = status;
    this.#tell("status", status);
  }

  // What a listener throws is its own affair.
  /** @param {keyof RoomListeners} name  @param {any} news */
  #tell(name, news) {
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
 * Says leave until the server has taken note, the connection is another one, or the room is joined anew.
 *
 * @param {Socket} socket
 * @param {string} roomId
 */
async function sayLeave(socket, roomId) {
  const connection = socket.id;
  for (let failures = 0; socket.connected && socket.id === connection && !roomsOf(socket).has(roomId); failures++) {
    try {
      const ack = await socket.timeout(ANSWER_WITHIN_MS).emitWithAck("presence:leave", { roomId });
      if (ack.ok || ack.code === "unavailable") return; // then the server repeats it by itself
    } catch {
      return; // no answer: with the connection the membership ends as well
    }
    await new Promise((resolve) => setTimeout(resolve, backOff(failures)));
  }
}

/** Milliseconds to wait after so many failures before: twice as long each time, less up to a half.
 * @param {number} failures */
function backOff(failures) {
  return Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** Math.min(failures, 10)) * (1 - Math.random() / 2);
}
