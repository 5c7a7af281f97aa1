// The demo page in a real browser, used as people use it, told what to do as in client.mjs. Elements are found by their
// role and name, as assistive technology finds them, where a command has such a selector.
//
//   node page.mjs <path of Chromium>
import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';

const tell = (...what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const args = ['--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--disable-quic'];
const browser = await chromium.launch({ executablePath: process.argv[2], headless: true, chromiumSandbox: false, args });
const contexts = {};
const pages = {};

function watch(client, page) {
  page.setDefaultTimeout(14_000);
  page.on('pageerror', (error) => tell(client, 'complaint', String(error)));
  page.on('console', (message) => {
    if (message.type() === 'error' && !message.text().includes('WebSocket connection')) tell(client, 'complaint', message.text());
  });
}

/** Runs in the page: every text whose contrast is below what WCAG 2 AA asks of text of any size. */
function faintTexts() {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const background = (e) => {
    const colour = rgb(getComputedStyle(e).backgroundColor);
    return colour[3] === 255 || !e.parentElement ? colour : background(e.parentElement);
  };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const text = [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent.trim()).join('');
    if (!text || !e.checkVisibility() || e.disabled) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(background(e))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) found.push(`${text}: ${contrast.toFixed(2)}`);
  }
  return found;
}

const commands = {
  async open({ client, url, options = {} }) {
    contexts[client] = await browser.newContext(options);
    const page = (pages[client] = await contexts[client].newPage());
    watch(client, page);
    await page.goto(url);
    tell(client, 'opened');
  },
  async fill({ client, what, text }) {
    await pages[client].fill(what, text);
  },
  async press({ client, what, key }) {
    await pages[client].press(what, key);
  },
  async click({ client, what }) {
    await pages[client].click(what);
  },
  /** Chooses as a keyboard does: the labels lie above the radio buttons. */
  async choose({ client, what }) {
    await pages[client].focus(what);
    await pages[client].press(what, 'Space');
  },
  async newTab({ client, what, as }) {
    const [page] = await Promise.all([contexts[client].waitForEvent('page'), pages[client].click(what)]);
    pages[as] = page;
    watch(as, page);
    tell(client, 'opened');
  },
  async text({ client, what }) {
    tell(client, 'text', await pages[client].locator(what).allInnerTexts());
  },
  async faint({ client }) {
    tell(client, 'faint', await pages[client].evaluate(faintTexts));
  },
  /** How much wider than the window the page is. */
  async overflow({ client }) {
    tell(client, 'overflow', await pages[client].evaluate(() => document.documentElement.scrollWidth - innerWidth));
  },
  async shot({ client, path }) {
    await pages[client].screenshot({ path, fullPage: true });
    tell(client, 'shot');
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
