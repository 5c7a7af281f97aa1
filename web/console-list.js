// A list of any length: only the rows in sight are in the document. Arrow keys, Home and End move the choice, Enter makes it.

const rowHeight = 40; // px, as in console.css
const beyond = 5; // rows above and below what is in sight

export class VirtualList {
  #box;
  #how;
  #items = [];
  #chosen = null;
  #at = -1; // where the keyboard is
  #spacer = document.createElement("div");

  // how has key(item), fill(row, item) and choose(item).
  constructor(box, how) {
    this.#box = box;
    this.#how = how;
    box.append(this.#spacer);
    box.addEventListener("scroll", () => this.#draw(), { passive: true });
    box.addEventListener("keydown", (event) => this.#press(event));
    box.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) this.#choose(Number(row.dataset.index));
    });
  }

  // show replaces the items. chosen is the key of the one that is marked, null = none.
  show(items, chosen) {
    this.#items = items;
    this.#chosen = chosen;
    this.#at = items.findIndex((item) => this.#how.key(item) === chosen);
    this.#spacer.style.height = `${items.length * rowHeight}px`;
    this.#draw();
  }

  #choose(index) {
    if (index < 0 || index >= this.#items.length) return;
    this.#at = index;
    this.#chosen = this.#how.key(this.#items[index]);
    this.#draw();
    this.#how.choose(this.#items[index]);
  }

  #press(event) {
    const last = this.#items.length - 1;
    const page = Math.max(1, Math.floor(this.#box.clientHeight / rowHeight) - 1);
    const to = {
      ArrowDown: this.#at + 1,
      ArrowUp: this.#at - 1,
      PageDown: this.#at + page,
      PageUp: this.#at - page,
      Home: 0,
      End: last,
    }[event.key];
    if (event.key === "Enter") {
      this.#choose(this.#at);
    } else if (to !== undefined && last >= 0) {
      this.#at = Math.min(Math.max(to, 0), last);
      this.#chosen = this.#how.key(this.#items[this.#at]);
      const top = this.#at * rowHeight;
      if (top < this.#box.scrollTop) this.#box.scrollTop = top;
      if (top + rowHeight > this.#box.scrollTop + this.#box.clientHeight) this.#box.scrollTop = top + rowHeight - this.#box.clientHeight;
      this.#draw();
    } else {
      return;
    }
    event.preventDefault();
  }

  #draw() {
    const first = Math.max(0, Math.floor(this.#box.scrollTop / rowHeight) - beyond);
    const end = Math.min(this.#items.length, Math.ceil((this.#box.scrollTop + this.#box.clientHeight) / rowHeight) + beyond);
    const rows = [];
    for (let i = first; i < end; i++) {
      const row = document.createElement("div");
      row.className = "row";
      row.id = `${this.#box.id}-${i}`;
      row.setAttribute("role", "option");
      row.setAttribute("aria-posinset", i + 1);
      row.setAttribute("aria-setsize", this.#items.length);
      row.setAttribute("aria-selected", this.#how.key(this.#items[i]) === this.#chosen);
      row.dataset.index = i;
      row.style.top = `${i * rowHeight}px`;
      this.#how.fill(row, this.#items[i]);
      rows.push(row);
    }
    this.#box.replaceChildren(this.#spacer, ...rows);
    if (this.#at >= first && this.#at < end) this.#box.setAttribute("aria-activedescendant", `${this.#box.id}-${this.#at}`);
    else this.#box.removeAttribute("aria-activedescendant");
  }
}
