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
    const socket = (sockets[client] = io(url, { forceNew: true, transports: ['websocket'], reconnectionDelay: 20, reconnectionDelayMax: 200 }));
    rooms[client] = {};
    socket.on('connect', () => tell(client, 'connect'));
  },
  join({ client, room: roomId, state, wish }) {
    follow(client, joinRoom(sockets[client], { roomId, userId: client, state, ...wish }));
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
