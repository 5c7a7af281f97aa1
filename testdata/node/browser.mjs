// Clients in pages of a real browser, told what to do as in client.mjs.
//
//   node browser.mjs <path of Chromium>
//
// Each page has an origin of its own server, so the browser's rules for other origins hold.
import { createServer } from 'node:http';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';

const tell = (...what) => process.stdout.write(`${JSON.stringify(what)}\n`);

const read = (path) => readFileSync(new URL(path, import.meta.url));
const scripts = {
  '/socket.io.min.js': read('node_modules/socket.io-client/dist/socket.io.min.js'),
  '/presence.js': read('../../web/presence.js'),
};
const html = '<!doctype html><title>client</title><script src="/socket.io.min.js"></script>';

/** A page that joins a room by the helper as it is loaded, and says so. The query says which, and how often it is to reload itself,
 * each time a little later in its life: then the last one says so. */
const room = `${html}<script type="module">
  import { joinRoom } from "/presence.js";
  const { client, url, options, wish, reloads = 0, laterMs } = JSON.parse(new URLSearchParams(location.search).get("of"));
  const room = (window.room = joinRoom(io(url, options), wish));
  const reloaded = Number(sessionStorage.reloaded ?? 0);
  sessionStorage.reloaded = reloaded + 1;
  if (reloaded < reloads) setTimeout(() => location.reload(), reloaded * laterMs);
  else room.on("status", (status) => window.tell(client, status, room.connId));
  addEventListener("pageshow", ({ persisted }) => window.tell(client, "shown", persisted));
</script>`;

const site = createServer(({ url }, answer) => {
  const script = scripts[url];
  answer.setHeader('content-type', script ? 'text/javascript' : 'text/html');
  answer.end(script ?? (url.startsWith('/room?') ? room : html));
});
await new Promise((listening) => site.listen(0, '127.0.0.1', listening));
const address = `http://127.0.0.1:${site.address().port}/`;

const args = ['--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--disable-quic'];
const browser = await chromium.launch({
  executablePath: process.argv[2],
  headless: true,
  chromiumSandbox: false,
  args,
  ignoreDefaultArgs: ['--disable-back-forward-cache'], // playwright's, but people have that cache
});
const pages = {};

/** Runs in the page. */
function openInPage({ client, url, options, join }) {
  const socket = (window.socket = io(url, { forceNew: true, ...options }));
  socket.io.on('open', () => socket.io.engine.on('upgrade', ({ name }) => tell(client, 'upgrade', name)));
  socket.on('connect', () => {
    tell(client, 'connect', socket.id);
    socket.emit('presence:join', join, (ack) => tell(client, 'joined', ack));
  });
  socket.on('connect_error', ({ message }) => tell(client, 'connect_error', message));
  socket.on('disconnect', (reason) => tell(client, 'disconnect', reason));
  socket.on('presence:event', (event) => tell(client, 'event', event));
}

const commands = {
  async open(command) {
    const page = (pages[command.client] = await browser.newPage());
    await page.exposeFunction('tell', tell);
    await page.goto(address);
    await page.evaluate(openInPage, command);
  },
  /** Opens a page that joins a room by the helper. */
  async visit({ client, ...of }) {
    const context = await browser.newContext();
    await context.exposeFunction('tell', tell);
    const page = (pages[client] = await context.newPage());
    await page.goto(`${address}room?${new URLSearchParams({ of: JSON.stringify({ client, ...of }) })}`);
  },
  /** Opens the page once more in another tab, which begins with a copy of this one's session storage. */
  async duplicate({ client }) {
    const [copy] = await Promise.all([pages[client].waitForEvent('popup'), pages[client].evaluate(() => void window.open(location.href))]);
    pages[`copy of ${client}`] = copy;
  },
  /** Goes to another page in the same tab. */
  async goAway({ client }) {
    await pages[client].goto(address);
    tell(client, 'away');
  },
  async goBack({ client }) {
    await pages[client].goBack({ waitUntil: 'commit' });
  },
  async emit({ client, event, payload }) {
    await pages[client].evaluate(([client, event, payload]) => window.socket.emit(event, payload, (ack) => tell(client, 'ack', ack)), [client, event, payload]);
  },
  async reload({ client }) {
    await pages[client].reload();
    tell(client, 'reloaded');
  },
  async close({ client }) {
    await pages[client].close();
    tell(client, 'closed');
  },
  async quit() {
    await browser.close();
    process.exit();
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  await commands[command.do](command);
}
await commands.quit();
