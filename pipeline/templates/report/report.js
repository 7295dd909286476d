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
  // Returns the index that an arrow key, Home or End leads to; null for other keys.
  const moved = (key, index, count) => {
    const to = { ArrowLeft: index - 1, ArrowUp: index - 1, ArrowRight: index + 1,
      ArrowDown: index + 1, Home: 0, End: count - 1 }[key];
    return to === undefined ? null : (to + count) % count;
  };

  // Tables: a click on a heading sorts, numbers from the highest, text from A; a second click
  // reverses the order.
  for (const table of all(document, "table.sortable")) {
    // Where a table has several bodies, each holds a family and its seeds, which move together.
    const parts = Array.from(table.tBodies.length > 1 ? table.tBodies : table.tBodies[0].rows);
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
        const value = (part) => {
          const cell = (part.rows?.[0] ?? part).cells[column];
          if (!cell || cell.dataset.value === "") return null;
          return head.dataset.sort === "text" ? cell.textContent.trim() : Number(cell.dataset.value);
        };
        const rows = parts.map((part) => [value(part), part]);
        rows.sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null);
          return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
        });
        parts[0].parentNode.append(...rows.map(([, part]) => part));
      });
    });
  }

  // Tabs: without this script, their panels are shown one below the other.
  all(document, "[data-tabs]").forEach((group, number) => {
    const panels = all(group, ":scope > [data-tab]");
    if (panels.length < 2) return;
    const list = make("div");
    list.className = "tabs";
    list.setAttribute("role", "tablist");
    list.setAttribute("aria-label", group.dataset.tabs);
    const buttons = panels.map((panel, index) => {
      const button = make("button", panel.dataset.tab);
      panel.id = `panel-${number}-${index}`;
      button.id = `tab-${number}-${index}`;
      button.setAttribute("role", "tab");
      button.setAttribute("aria-controls", panel.id);
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", button.id);
      button.addEventListener("click", () => show(index));
      button.addEventListener("keydown", (event) => {
        const to = moved(event.key, index, panels.length);
        if (to === null) return;
        event.preventDefault();
        show(to);
        buttons[to].focus();
      });
      return button;
    });
    const show = (index) => panels.forEach((panel, each) => {
      panel.hidden = each !== index;
      buttons[each].setAttribute("aria-selected", String(each === index));
      buttons[each].tabIndex = each === index ? 0 : -1;
    });
    list.append(...buttons);
    group.prepend(list);
    show(0);
  });

  // The chooser: shows one of the images that match the filters. A reader picks it by thumbnail or
  // name, or steps through them. The address holds the image and the filters.
  const chooser = document.querySelector(".chooser");
  const cards = chooser ? all(chooser, ".card") : [];
  if (cards.length) {
    const section = chooser.closest("section");
    const picker = section.querySelector(".picker");
    const filters = new Map(all(picker, "[data-filter]").map((filter) => [filter.dataset.filter, filter]));
    const select = picker.querySelector("[data-images]");
    const position = picker.querySelector("[aria-live]");
    const meaning = picker.querySelector(".meaning");
    const strip = section.querySelector(".thumbs");
    const noMatch = chooser.querySelector(".nothing");
    const unknown = chooser.querySelector(".unknown");
    const models = JSON.parse(chooser.dataset.models);
    let matching = cards;
    let chosen = cards[0];

    const thumbs = new Map(cards.flatMap((card) => {
      const picture = card.querySelector("img");
      if (!picture) return [];
      const button = make("button");
      const small = new Image();
      small.src = picture.src;
      small.alt = "";
      button.append(small);
      button.setAttribute("aria-label", card.dataset.name);
      button.title = card.dataset.name;
      if (Number(card.dataset.turned)) {
        const badge = make("b", models.length > 1 ? `\u2715${card.dataset.turned}` : "\u2715");
        badge.setAttribute("aria-hidden", "true");
        button.append(badge);
      }
      button.addEventListener("click", () => go(card));
      button.addEventListener("keydown", (event) => {
        const to = moved(event.key, matching.indexOf(card), matching.length);
        if (to === null) return;
        event.preventDefault();
        go(matching[to]);
        thumbs.get(matching[to]).focus();
      });
      return [[card, button]];
    }));

    const chosenIn = (name) => filters.get(name)?.value ?? "";
    const fits = (card) => {
      if (chosenIn("class") && chosenIn("class") !== card.dataset.class) return false;
      const patterns = card.dataset.patterns.split("|").map((names) => names.split(" "));
      const model = models.indexOf(chosenIn("model"));
      const considered = model < 0 ? patterns : [patterns[model]];
      return !chosenIn("pattern") || considered.some((names) => names.includes(chosenIn("pattern")));
    };
    const address = () => `#${chosen.id}${Array.from(filters)
      .filter(([, filter]) => filter.value)
      .map(([name, filter]) => `&${name}=${encodeURIComponent(filter.value)}`).join("")}`;

    const answersOf = (card) => all(card, ".marks tr:not([hidden]) td");
    const choose = (card) => {
      // The grid of answers stays open from image to image, and opens for a chosen model.
      const grid = card.querySelector(".more");
      if (grid) grid.open = chosen.querySelector(".more").open || Boolean(chosenIn("model"));
      chosen = card;
      for (const each of cards) {
        each.hidden = each !== chosen || !matching.length;
        each.open = each === chosen;
      }
      // Of the grid of answers, one cell is reached with Tab, and the others with arrow keys.
      answersOf(chosen).forEach((cell, index) => { cell.tabIndex = index ? -1 : 0; });
      chosen.querySelector(".permalink").href = address();
      select.value = chosen.id;
      position.textContent = matching.length ? `${matching.indexOf(chosen) + 1} of ${matching.length} on this page` : "none";
      thumbs.forEach((thumb, each) => {
        thumb.tabIndex = each === chosen ? 0 : -1;
        if (each === chosen) thumb.setAttribute("aria-current", "true");
        else thumb.removeAttribute("aria-current");
      });
      const thumb = thumbs.get(chosen);
      if (thumb) {
        strip.scrollTo({
          left: thumb.offsetLeft - strip.offsetLeft - (strip.clientWidth - thumb.clientWidth) / 2,
          top: thumb.offsetTop - strip.offsetTop - (strip.clientHeight - thumb.clientHeight) / 2,
        });
      }
    };
    const filter = () => {
      matching = cards.filter(fits);
      noMatch.hidden = matching.length > 0;
      const means = filters.get("pattern")?.selectedOptions[0].dataset.means;
      meaning.textContent = means ?? "";
      meaning.hidden = !means;
      thumbs.forEach((thumb, card) => { thumb.hidden = !matching.includes(card); });
      select.replaceChildren(...matching.map((card, index) => {
        const option = make("option", `${index + 1}. ${card.dataset.name}`);
        option.value = card.id;
        return option;
      }));
      const model = chosenIn("model");
      for (const answer of all(chooser, "[data-model]")) {
        answer.hidden = Boolean(model) && answer.dataset.model !== model;
      }
      choose(matching.includes(chosen) || !matching.length ? chosen : matching[0]);
    };
    // Keeps the reader's choice in the address, which a page embedded in another may not change.
    const keep = () => {
      unknown.hidden = true;
      try {
        history.replaceState(null, "", address());
      } catch { /* The link beside the image has it, too. */ }
    };
    const go = (card) => {
      choose(card);
      keep();
    };
    const clear = () => filters.forEach((filter) => { filter.value = ""; });
    const follow = () => {
      const wanted = new URLSearchParams(location.hash.slice(1));
      const key = wanted.get("image");
      if (key === null && !Array.from(filters.keys()).some((name) => wanted.has(name))) return;
      const card = cards.find((each) => new URLSearchParams(each.id).get("image") === key);
      unknown.hidden = Boolean(card) || key === null;
      unknown.textContent = `No image ${key} is on this page.`;
      filters.forEach((filter, name) => {
        filter.value = wanted.get(name) ?? "";
        if (filter.selectedIndex < 0) filter.value = "";
      });
      if (card) {
        chosen = card;
        if (!fits(card)) clear();
      }
      filter();
      section.scrollIntoView();
    };

    filters.forEach((each) => each.addEventListener("change", () => {
      filter();
      keep();
    }));
    chooser.addEventListener("keydown", (event) => {
      const cells = answersOf(chosen);
      const across = chosen.querySelectorAll(".versions > figure").length;
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
      const to = cells.includes(event.target) && cells[cells.indexOf(event.target) + step];
      if (!to) return;
      event.preventDefault();
      event.target.tabIndex = -1;
      to.tabIndex = 0;
      to.focus();
    });
    noMatch.querySelector("button").addEventListener("click", () => {
      clear();
      filter();
      keep();
    });
    select.addEventListener("change", () => go(cards.find((card) => card.id === select.value)));
    for (const step of all(picker, "[data-step]")) {
      step.addEventListener("click", () => {
        const to = matching.indexOf(chosen) + Number(step.dataset.step);
        if (matching.length) go(matching[(to + matching.length) % matching.length]);
      });
    }
    if (thumbs.size) {
      strip.append(...thumbs.values());
      strip.hidden = false;
    }
    picker.hidden = false;
    for (const card of cards) {
      card.querySelector("summary").tabIndex = -1;
      card.querySelector("summary").addEventListener("click", (event) => event.preventDefault());
    }
    filter();
    follow();
    addEventListener("hashchange", follow);
  }

  // Marks the section that is being read in the navigation.
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
