// Sockets that are in rooms, or watch them and users, by web/presence.js, told what to do as in client.mjs.
//
//   node rooms.mjs
//
// It tells what happens to each room, and what is wrong with a view: [client, 'wrong', …].
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { io } from 'socket.io-client';

const text = readFileSync(new URL('../../web/presence.js', import.meta.url), 'utf8');
const { joinRoom, watchRoom, watchUsers } = await import(`data:text/javascript,${encodeURIComponent(text)}`);

const tell = (...what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const sockets = {};
const rooms = {};
const friends = {};
const tokens = {};

const large = (letter, bytes) => ({ v: letter.repeat(bytes / Buffer.byteLength(letter)) });
/** States that no JSON message has, or that the server does not take. */
const unsendable = {
  large: () => large('x', 70_000),
  'large in UTF-8': () => large('€', 66_000),
  'over the limit of states': () => large('x', 20_000),
  binary: () => ({ v: new Uint8Array(10) }),
  file: () => ({ v: new File(['abc'], 'a.txt') }),
  bigint: () => ({ v: 1n }),
  throwing: () => ({ v: { toJSON: () => { throw new Error('mine'); } } }),
  deep: () => JSON.parse(`${'{"v":'.repeat(5_000)}1${'}'.repeat(5_000)}`),
  circular: () => {
    const state = {};
    return (state.v = state);
  },
};

/** Tells of an event that the view does not bear out. One that is not loaded wholly bears out little. */
function check(client, room, { event }) {
  if (!event || room.loading) return;
  const conns = room.users.get(event.userId)?.size ?? 0;
  if (conns !== event.userConns) tell(client, 'wrong', event, `${conns} connections of the user in the view`);
  if (room.members.has(event.connId) !== (event.type !== 'leave')) tell(client, 'wrong', event, 'the member in the view');
}

function follow(client, room) {
  rooms[client][room.roomId] = room;
  room.on('change', (change) => check(client, room, change));
  room.on('status', (status) => tell(client, status, room.roomId, room.connId));
  room.on('error', ({ code }) => tell(client, 'error', room.roomId, code));
}

const commands = {
  open({ client, url }) {
    const auth = (use) => use({ token: tokens[client] });
    const socket = (sockets[client] = io(url, { auth, forceNew: true, transports: ['websocket'], reconnectionDelay: 20, reconnectionDelayMax: 200 }));
    rooms[client] = {};
    socket.on('connect', () => tell(client, 'connect'));
  },
  join({ client, room: roomId, state, wish }) {
    follow(client, joinRoom(sockets[client], { roomId, userId: client, state, ...wish }));
  },
  /** The token that the client gives from now on. */
  token({ client, token }) {
    tokens[client] = token;
  },
  /** Patches with each state that cannot be sent, one at a time, and tells the codes. */
  async patchUnsendable({ client, room: roomId }) {
    const room = rooms[client][roomId];
    const told = {};
    for (const [name, make] of Object.entries(unsendable)) {
      const refused = new Promise((refuse) => room.on('error', refuse));
      room.patch(make());
      told[name] = (await refused).code;
    }
    tell(client, 'refused', told);
  },
  /** Joins with each state that cannot be sent. */
  joinUnsendable({ client }) {
    for (const [name, make] of Object.entries(unsendable)) commands.join({ client, room: name, state: make() });
  },
  watch({ client, room: roomId, wish }) {
    follow(client, watchRoom(sockets[client], { roomId, ...wish }));
  },
  watchUsers({ client, users }) {
    friends[client] = watchUsers(sockets[client], users);
  },
  online({ client }) {
    tell(client, 'online', Object.fromEntries(friends[client].online));
  },
  patch({ client, room, patch }) {
    rooms[client][room].patch(patch);
  },
  /** Loses the connection, and patches before it is back, if that is wanted. */
  cut({ client, room, patch }) {
    sockets[client].io.engine.transport.ws.terminate();
    if (patch) sockets[client].once('disconnect', () => rooms[client][room].patch(patch));
  },
  view({ client, room }) {
    const { members, status, connId, rev, count, loading } = rooms[client][room];
    tell(client, 'view', { status, connId, rev, count, loading, members: [...members.values()] });
  },
  async leave({ client, room }) {
    await rooms[client][room].leave();
    tell(client, 'gone');
  },
  async stop({ client, room }) {
    await Promise.all([rooms[client][room].stop(), friends[client]?.stop()]);
    tell(client, 'gone');
  },
  /** After this and the end of its input nothing may keep the process alive. */
  close({ client }) {
    sockets[client].disconnect();
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  commands[command.do](command);
}
