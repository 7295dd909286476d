"use strict";
(() => {
  document.documentElement.classList.add("js");
  const all = (where, selector) => Array.from(where.querySelectorAll(selector));
  const make = (name, text) => {
    const element = document.createElement(name);
    if (name === "button") element.type = "button";
    if (text) element.textContent = text;
    return element;
  };
  // Which place an arrow, Home or End leads to; null for other keys.
  const moved = (key, place, count) => {
    const to = { ArrowLeft: place - 1, ArrowUp: place - 1, ArrowRight: place + 1,
      ArrowDown: place + 1, Home: 0, End: count - 1 }[key];
    return to === undefined ? null : (to + count) % count;
  };

  // Tables: a click on a heading sorts, most first; another one turns the order round.
  for (const table of all(document, "table.sortable")) {
    const body = table.tBodies[0];
    const heads = all(table.tHead, "th");
    heads.forEach((head, column) => {
      const button = make("button");
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = head.dataset.sort === "text" ? "ascending" : "descending";
        const other = first === "ascending" ? "descending" : "ascending";
        const order = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const value = (row) => {
          const cell = row.cells[column];
          if (!cell || cell.dataset.value === "") return null;
          return head.dataset.sort === "text" ? cell.textContent.trim() : Number(cell.dataset.value);
        };
        const rows = Array.from(body.rows).map((row) => [value(row), row]);
        rows.sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null);
          return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
        });
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  // Tabs of sections that stand one below the other without this script.
  all(document, "[data-tabs]").forEach((group, number) => {
    const panels = all(group, ":scope > [data-tab]");
    if (panels.length < 2) return;
    const list = make("div");
    list.className = "tabs";
    list.setAttribute("role", "tablist");
    list.setAttribute("aria-label", group.dataset.tabs);
    const buttons = panels.map((panel, place) => {
      const button = make("button", panel.dataset.tab);
      panel.id = `panel-${number}-${place}`;
      button.id = `tab-${number}-${place}`;
      button.setAttribute("role", "tab");
      button.setAttribute("aria-controls", panel.id);
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", button.id);
      button.addEventListener("click", () => show(place));
      button.addEventListener("keydown", (event) => {
        const to = moved(event.key, place, panels.length);
        if (to === null) return;
        event.preventDefault();
        show(to);
        buttons[to].focus();
      });
      return button;
    });
    const show = (place) => panels.forEach((panel, each) => {
      panel.hidden = each !== place;
      buttons[each].setAttribute("aria-selected", String(each === place));
      buttons[each].tabIndex = each === place ? 0 : -1;
    });
    list.append(...buttons);
    group.prepend(list);
    show(0);
  });

  // The chooser: one image at a time, by its small picture, by name, or one after the other.
  const chooser = document.querySelector(".chooser");
  const cards = chooser ? all(chooser, ".card") : [];
  if (cards.length) {
    const picker = chooser.querySelector(".picker");
    const select = picker.querySelector("select");
    const said = picker.querySelector("[aria-live]");
    const strip = chooser.querySelector(".thumbs");
    let chosen = 0;
    const options = cards.map((card, place) => {
      const option = make("option", card.dataset.name);
      option.value = String(place);
      return option;
    });
    const thumbs = cards.map((card, place) => {
      const picture = card.querySelector("img");
      if (!picture) return null;
      const button = make("button");
      const small = new Image();
      small.src = picture.src;
      small.alt = "";
      button.append(small);
      button.setAttribute("aria-label", card.dataset.name);
      if (Number(card.dataset.turned)) {
        const badge = make("b", `\u2715${card.dataset.turned}`);
        badge.setAttribute("aria-hidden", "true");
        button.append(badge);
      }
      button.addEventListener("click", () => choose(place));
      button.addEventListener("keydown", (event) => {
        const to = moved(event.key, place, cards.length);
        if (to === null) return;
        event.preventDefault();
        choose(to);
        thumbs[to].focus();
      });
      return button;
    });
    const choose = (place) => {
      chosen = (place + cards.length) % cards.length;
      cards.forEach((card, each) => {
        card.hidden = each !== chosen;
        card.open = each === chosen;
      });
      select.value = String(chosen);
      said.textContent = `${chosen + 1} of ${cards.length}`;
      thumbs.forEach((thumb, each) => {
        if (!thumb) return;
        thumb.tabIndex = each === chosen ? 0 : -1;
        if (each === chosen) thumb.setAttribute("aria-current", "true");
        else thumb.removeAttribute("aria-current");
      });
      const thumb = thumbs[chosen];
      if (thumb) {
        const middle = thumb.offsetLeft - (strip.clientWidth - thumb.clientWidth) / 2;
        strip.scrollTo({ left: middle - strip.offsetLeft });
      }
    };
    select.append(...options);
    select.addEventListener("change", () => choose(Number(select.value)));
    for (const step of all(picker, "[data-step]")) {
      step.addEventListener("click", () => choose(chosen + Number(step.dataset.step)));
    }
    if (thumbs[0]) {
      strip.append(...thumbs);
      strip.hidden = false;
    }
    picker.hidden = false;
    for (const card of cards) {
      card.querySelector("summary").tabIndex = -1;
      card.querySelector("summary").addEventListener("click", (event) => event.preventDefault());
    }
    choose(0);
  }

  // The section that is being read, in the navigation.
  const links = new Map(all(document, "nav a").map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-30% 0px -65% 0px" });
  all(document, "main > section").forEach((section) => watcher.observe(section));
})();
