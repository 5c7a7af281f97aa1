// Many clients in one room, some of which change their state often. Tells in one line of JSON how often each of them got
// each change.
//
//   node flood.mjs <room> <clients> <changes> <URL of a node>…
import { io } from 'socket.io-client';

const [room, clientCount, changeCount, ...urls] = process.argv.slice(2);
const SENDERS = 10;
const TRANSPORTS = [['websocket'], ['websocket'], ['polling', 'websocket'], ['websocket'], ['polling']];

const clients = Array.from({ length: Number(clientCount) }, (_, i) => {
  const socket = io(urls[i % urls.length], { forceNew: true, transports: TRANSPORTS[i % TRANSPORTS.length] });
  const client = { socket, changes: new Map(), disorder: 0, rev: 0 };
  client.over = new Promise((resolve) => {
    socket.on('presence:event', ({ type, connId, state, rev }) => {
      if (rev <= client.rev && connId !== socket.id) client.disorder++;
      client.rev = rev;
      if (state?.over) resolve();
      if (type === 'update' && !state.over) client.changes.set(`${connId} ${state.n}`, (client.changes.get(`${connId} ${state.n}`) ?? 0) + 1);
    });
  });
  return client;
});

async function ok(client, event, payload) {
  const ack = await client.socket.timeout(10_000).emitWithAck(event, payload);
  if (!ack.ok) throw new Error(`${event}: ${JSON.stringify(ack)}`);
}

await Promise.all(clients.map((client, i) => ok(client, 'presence:join', { roomId: room, userId: `user ${i}` })));
const senders = clients.slice(0, SENDERS);
await Promise.all(senders.map(async (client) => {
  for (let n = 0; n < changeCount / SENDERS; n++) await ok(client, 'presence:heartbeat', { patchState: { n } });
}));
await ok(clients[0], 'presence:heartbeat', { patchState: { over: true } });
await Promise.all(clients.map((client) => client.over));

const times = clients.flatMap(({ changes }) => [...changes.values()]);
console.log(JSON.stringify({
  clients: clients.length,
  fewest: Math.min(...clients.map(({ changes }) => changes.size)),
  most: Math.max(...clients.map(({ changes }) => changes.size)),
  total: times.reduce((a, b) => a + b, 0),
  twice: times.filter((n) => n > 1).length,
  disorder: clients.reduce((sum, { disorder }) => sum + disorder, 0),
}));
process.exit();
