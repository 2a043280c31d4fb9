// What the pages do better with JavaScript. Every one of them works without it.
"use strict";

// The list, live: the same page is fetched again and changed rows are put in
// place, one by one, so that neither focus nor selection is lost.
(() => {
  const card = document.querySelector("[data-live]");
  if (!card) return;
  const live = document.getElementById("live"), stale = document.getElementById("stale");
  const every = 2000;
  let failures = 0;

  const rows = (root) => new Map([...root.querySelectorAll("[data-row]")].map((row) => [row.dataset.row, row]));

  const merge = (page) => {
    const now = rows(document), next = rows(page);
    // A first or a last row changes more than the rows.
    if ((now.size === 0) !== (next.size === 0) || document.querySelectorAll(".gone li").length !== page.querySelectorAll(".gone li").length) {
      location.reload();
      return;
    }
    const said = [];
    const body = document.getElementById("rows");
    for (const [name, row] of now) {
      if (!next.has(name)) {
        said.push(row.dataset.label + ": disconnected");
        row.remove();
      }
    }
    let before = null;
    for (const [name, row] of next) {
      const old = now.get(name);
      if (!old) {
        said.push(row.dataset.label + ": " + row.dataset.state);
        row.classList.add("fresh");
        body.insertBefore(row, before ? before.nextSibling : body.firstChild);
        before = row;
        continue;
      }
      before = old;
      if (old.dataset.shown === row.outerHTML || old.contains(document.activeElement)) continue;
      if (old.dataset.state !== row.dataset.state) {
        said.push(row.dataset.label + ": " + row.dataset.state);
        row.classList.add("fresh");
      }
      const html = row.outerHTML;
      row.dataset.shown = html;
      old.replaceWith(row);
      before = row;
    }
    const summary = document.getElementById("summary"), fresh = page.getElementById("summary");
    if (summary && fresh && summary.innerHTML !== fresh.innerHTML) summary.replaceWith(fresh);
    if (said.length && live) live.textContent = said.join(". ");
  };

  const look = async () => {
    if (!document.hidden) {
      try {
        const answer = await fetch(card.dataset.live + "?rows", { headers: { Accept: "text/html" }, signal: AbortSignal.timeout(10000) });
        if (answer.status === 401) return location.reload();
        if (!answer.ok) throw new Error(answer.status);
        merge(new DOMParser().parseFromString(await answer.text(), "text/html"));
        failures = 0;
      } catch {
        failures++;
      }
      if (stale) stale.hidden = failures < 2; // one may be a worker that is replaced
    }
    setTimeout(look, every * Math.min(2 ** failures, 15));
  };
  document.addEventListener("visibilitychange", () => { failures = 0; });
  setTimeout(look, every);
})();

// The name follows the nickname until somebody writes it.
(() => {
  const nickname = document.getElementById("nickname"), name = document.getElementById("name"), shown = document.getElementById("name-shown");
  if (!nickname || !name) return;
  const derive = (text) => text.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 63).replace(/^-+|-+$/g, "");
  let own = name.value !== "" && name.value !== derive(nickname.value);
  const show = () => { if (shown) shown.textContent = name.value || "name"; };
  nickname.addEventListener("input", () => {
    if (!own) name.value = derive(nickname.value);
    show();
  });
  name.addEventListener("input", () => {
    own = name.value !== "";
    show();
  });
})();

// Copy a link.
for (const button of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) continue;
  button.hidden = false;
  button.addEventListener("click", async () => {
    const field = document.getElementById(button.dataset.copy);
    field.select();
    await navigator.clipboard.writeText(field.value);
    button.textContent = "Copied";
    const said = document.getElementById("copied");
    if (said) said.textContent = "The link is copied";
  });
}

// A form is sent once.
for (const form of document.querySelectorAll("form[method=post]")) {
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) return event.preventDefault();
    form.dataset.sent = "yes";
    for (const button of form.querySelectorAll("button")) button.setAttribute("aria-disabled", "true");
  });
}
addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) {
    delete form.dataset.sent;
    for (const button of form.querySelectorAll("button")) button.removeAttribute("aria-disabled");
  }
});
addEventListener("load", () => document.getElementById("faults")?.focus());
