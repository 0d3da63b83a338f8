// What makes an open page live. Everything else works without JavaScript.
(() => {
  // -- refresh when the server says that something changed ------------------------------------------
  // A refresh that is slow for the server is asked for less often: at most a tenth of the time.
  let startedAt = 0;
  let restUntil = 0;
  let waiting = null;

  const live = () => document.getElementById("live");

  const refresh = () => {
    if (waiting !== null || live() === null) return;
    waiting = setTimeout(() => {
      waiting = null;
      if (document.hidden) {
        document.addEventListener("visibilitychange", refresh, { once: true });
        return;
      }
      startedAt = performance.now();
      htmx.trigger(live(), "changed");
    }, Math.max(0, restUntil - performance.now()));
  };

  let open = new Set();
  let ticked = new Set();
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (event.target.id !== "live") return;
    open = new Set([...event.target.querySelectorAll("details[open]")].map((details) => details.id));
    ticked = new Set([...event.target.querySelectorAll("input:checked")].map((input) => input.id));
  });
  document.addEventListener("htmx:afterSwap", () => {
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    for (const id of ticked) if (document.getElementById(id)) document.getElementById(id).checked = true;
    if (startedAt) restUntil = performance.now() + 10 * (performance.now() - startedAt);
    tick();
  });

  // -- what is chosen while a part of the form is fetched stays chosen ----------------------------------
  // The server renders the part from what it was sent, which was before that.
  const fields = (form) => [...form.querySelectorAll("[data-shape] input")];
  let chosen = new Map();
  document.addEventListener("htmx:beforeSwap", (event) => {
    const form = event.target.closest("form");
    const given = form === null ? [] : fields(form).filter((field) => field.type !== "radio" || field.checked);
    chosen = new Map(given.map((field) => [field.name, field.value]));
  });
  document.addEventListener("htmx:afterSwap", (event) => {
    const form = event.target.closest("form");
    if (form === null) return;
    for (const field of fields(form)) {
      const value = chosen.get(field.name);
      if (field.type !== "radio") field.value ||= value ?? "";
      else if (field.value === value && !form.querySelector(`[name="${field.name}"]:checked`)) field.checked = true;
    }
  });

  // The browser connects again by itself after a broken connection, but not after an answer that is no
  // stream: a restart behind a proxy, or a session that has ended (the refresh then leads to sign-in).
  let stream = null;
  const listen = () => {
    if (live() === null) return;
    stream = new EventSource(`${live().dataset.live}?seen=${live().dataset.seen}`);
    stream.addEventListener("changed", refresh);
    stream.addEventListener("error", () => {
      if (stream.readyState !== EventSource.CLOSED) return;
      refresh();
      setTimeout(listen, 10000);
    });
  };
  listen();
  window.addEventListener("pagehide", () => stream?.close());
  window.addEventListener("pageshow", (event) => event.persisted && location.reload());

  // -- copy buttons ---------------------------------------------------------------------------------
  // A browser gives the clipboard to pages over https only (and on this machine); elsewhere the old way works.
  const copy = async (text, button) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const box = document.createElement("textarea");
    box.value = text;
    box.className = "visually-hidden";
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
    button.focus();
  };
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-copy]");
    if (button === null) return;
    await copy(button.dataset.copy, button);
    button.classList.add("good");
    setTimeout(() => button.classList.remove("good"), 1500);
  });

  // -- "/" goes to the search box ---------------------------------------------------------------------
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, textarea, select, [contenteditable]")) return;
    const boxes = [...document.querySelectorAll("input[data-search]")];
    const box = boxes.find((each) => each.offsetParent !== null);
    if (!box) return;
    event.preventDefault();
    box.focus();
    box.select();
  });

  // -- a menu of acts closes as menus do --------------------------------------------------------------
  document.addEventListener("keydown", (event) => {
    const menu = event.key === "Escape" && event.target.closest?.("details.more-acts[open]");
    if (!menu) return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll("details.more-acts[open]")) {
      if (!menu.contains(event.target)) menu.open = false;
    }
  });

  // -- "12 s ago" keeps counting --------------------------------------------------------------------
  // Only what the server wrote as relative; the words are the server's, the number is counted on.
  const units = JSON.parse(document.body.dataset.ageUnits ?? "[]");
  const tick = () => {
    for (const time of document.querySelectorAll("time[data-relative]")) {
      const seconds = Math.floor((Date.now() - Date.parse(time.dateTime)) / 1000);
      const pattern = time.dataset.relative;
      if (!pattern || seconds < 1 || seconds >= 86400) continue;
      const [size, said] = units.find(([size]) => seconds >= size);
      time.textContent = pattern.replace("{}", said.replace("{}", Math.floor(seconds / size)));
    }
  };
  setInterval(tick, 5000);
})();
