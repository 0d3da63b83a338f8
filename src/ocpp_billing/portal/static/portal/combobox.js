// Fields that offer what the server finds while one types: an editable combobox with a list, after the
// pattern of the ARIA authoring practices. Without this script each is a plain field with a "Find" button.
(() => {
  const PAUSE_MS = 200;
  const SHAPE_AFTER_MS = 300;
  let number = 0;

  const enhance = (box) => {
    const input = box.querySelector("input");
    if (input === null || box.dataset.ready) return;
    box.dataset.ready = "yes";
    number += 1;
    const list = document.createElement("ul");
    list.id = `options-${number}`;
    list.className = "options";
    list.hidden = true;
    list.setAttribute("role", "listbox");
    list.setAttribute("aria-label", box.querySelector("label").textContent.trim());
    const says = document.createElement("p");
    says.className = "visually-hidden";
    says.setAttribute("role", "status");
    input.after(list);
    list.after(says);
    input.removeAttribute("list");
    for (const [name, value] of [
      ["role", "combobox"], ["aria-autocomplete", "list"], ["aria-expanded", "false"], ["aria-controls", list.id],
    ]) input.setAttribute(name, value);

    let waiting = null;
    let slow = null;
    const options = () => [...list.querySelectorAll("[role=option]")];
    const current = () => list.querySelector("[aria-selected=true]");
    const close = () => {
      clearTimeout(waiting);
      clearTimeout(slow);
      list.hidden = true;
      input.setAttribute("aria-expanded", "false");
      input.removeAttribute("aria-activedescendant");
    };
    const mark = (option) => {
      current()?.removeAttribute("aria-selected");
      input.removeAttribute("aria-activedescendant");
      if (!option) return;
      option.setAttribute("aria-selected", "true");
      option.scrollIntoView({ block: "nearest" });
      input.setAttribute("aria-activedescendant", option.id);
    };
    const open = async () => {
      const asked = input.value;
      const name = input.name;
      // Nothing is waited for before it is slow; then the list stands there in its shape.
      clearTimeout(slow);
      slow = setTimeout(() => {
        if (!list.hidden || document.activeElement !== input) return;
        list.innerHTML = '<li class="shape" role="presentation"><span></span><span></span><span></span></li>';
        list.hidden = false;
      }, SHAPE_AFTER_MS);
      await htmx.ajax("GET", box.dataset.combobox, { target: list, swap: "innerHTML", values: { [name]: asked } });
      clearTimeout(slow);
      if (list.querySelector(".shape")) return close(); // no answer came
      if (document.activeElement !== input || input.value !== asked) return;
      says.textContent = list.querySelector(".options-says")?.textContent ?? "";
      list.hidden = false;
      input.setAttribute("aria-expanded", "true");
      mark(null);
    };
    let told = null;
    const choose = (option) => {
      input.value = told = option.dataset.value;
      close();
      input.dispatchEvent(new Event("change", { bubbles: true }));
    };

    // The browser says it again when the field is left, and the answer would draw anew what was chosen since.
    input.addEventListener("change", (event) => {
      if (event.isTrusted && input.value === told) event.stopImmediatePropagation();
    }, true);
    input.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(open, PAUSE_MS);
    });
    input.addEventListener("click", () => list.hidden && open());
    input.addEventListener("blur", close);
    input.addEventListener("keydown", async (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (step) {
        event.preventDefault();
        if (list.hidden) await open();
        const all = options();
        if (all.length === 0) return;
        const at = all.indexOf(current());
        mark(all[at < 0 ? (step > 0 ? 0 : all.length - 1) : (at + step + all.length) % all.length]);
      } else if (event.key === "Enter" && !list.hidden && current()) {
        event.preventDefault();
        choose(current());
      } else if (event.key === "Escape" && !list.hidden) {
        event.preventDefault();
        close();
      }
    });
    // Before the field loses focus to the list.
    list.addEventListener("mousedown", (event) => {
      event.preventDefault();
      const option = event.target.closest("[role=option]");
      if (option) choose(option);
    });
  };

  const enhanceAll = () => document.querySelectorAll("[data-combobox]").forEach(enhance);
  document.addEventListener("htmx:afterSwap", enhanceAll);
  enhanceAll();
})();
