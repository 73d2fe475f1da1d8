// Makes the pages livelier; without it everything works as well, with a click or a reload more.
"use strict";

(() => {
  const TYPING_MS = 250; // after the last key: a search for each letter would be wasted

  const say = (text) => {
    document.getElementById("announcement").textContent = text;
  };

  const fetchPage = async (url, signal) => {
    const answer = await fetch(url, { cache: "no-cache", signal, headers: { Accept: "text/html" } });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    return new DOMParser().parseFromString(await answer.text(), "text/html");
  };

  // Copy buttons: shown only to those who can use them.
  const copy = async (text) => {
    if (navigator.clipboard && window.isSecureContext) {
      await navigator.clipboard.writeText(text);
      return;
    }
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "hidden";
    area.setAttribute("readonly", "");
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) throw new Error("not allowed");
  };

  const offerCopies = (root) => {
    for (const button of root.querySelectorAll("button[data-copy]")) {
      button.hidden = false;
      const title = button.closest("div").previousElementSibling;
      if (title && !button.hasAttribute("aria-label")) {
        button.setAttribute("aria-label", `Copy ${title.textContent.trim()}`);
      }
    }
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-copy]");
    if (!button) return;
    const text = document.getElementById(button.dataset.copy).textContent;
    try {
      await copy(text);
      button.textContent = "Copied";
      say("Copied");
    } catch {
      button.textContent = "Select it";
      say("Copying is not allowed here: select the text");
    }
    setTimeout(() => {
      button.textContent = "Copy";
    }, 2000);
  });

  // Search while typing.
  const form = document.querySelector("form[data-search]");
  if (form) {
    let timer = 0;
    let running = null;
    const address = () => {
      const values = new URLSearchParams(new FormData(form));
      for (const [name, value] of [...values]) {
        if (value === "" || (name === "sort" && value === "name")) values.delete(name);
      }
      return `${form.getAttribute("action")}?${values}`.replace(/\?$/, "");
    };
    const search = async () => {
      if (running) running.abort();
      running = new AbortController();
      const { signal } = running;
      const url = address();
      const results = document.getElementById("results");
      results.setAttribute("aria-busy", "true");
      try {
        const page = await fetchPage(url, signal);
        if (signal.aborted) return;
        results.replaceChildren(...page.getElementById("results").childNodes);
        results.removeAttribute("aria-busy");
        history.replaceState(null, "", url);
        say(document.getElementById("count").textContent);
      } catch {
        if (!signal.aborted) results.removeAttribute("aria-busy");
      }
    };
    form.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(search, TYPING_MS);
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      clearTimeout(timer);
      search();
    });
  }

  // Parts that change by themselves, as long as somebody looks; each says after how many seconds.
  const refreshLater = () => {
    const parts = [...document.querySelectorAll("[data-live]")];
    const waits = parts.map((part) => Number(part.dataset.live));
    if (waits.length) setTimeout(refresh, 1000 * Math.min(...waits), parts);
  };

  const refresh = async (parts) => {
    if (!document.hidden) {
      const pages = new Map();
      for (const part of parts) {
        const { source } = part.dataset;
        try {
          if (!pages.has(source)) pages.set(source, await fetchPage(source));
          const fresh = pages.get(source).getElementById(part.id);
          const isSame = fresh && fresh.outerHTML === part.outerHTML;
          if (fresh && !isSame && !part.contains(document.activeElement)) {
            const now = fresh.querySelector("[aria-current=step] .step-title");
            const before = part.querySelector("[aria-current=step] .step-title");
            part.replaceWith(fresh);
            if (now && (!before || before.textContent !== now.textContent)) say(now.textContent);
            if (before && !now) say("Done");
          }
        } catch {
          // the service is away for a moment: what is shown stays, and is asked for again
        }
      }
    }
    refreshLater();
  };

  offerCopies(document);
  refreshLater();
})();
