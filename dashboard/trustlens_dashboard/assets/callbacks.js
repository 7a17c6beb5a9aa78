/* Clientside callbacks: what would be too slow by way of the server. */
"use strict";

(() => {
  const SETTLE_MS = 180;
  let settling = 0;

  /** Draws the ridgelines; the table of the chosen step follows once the slider rests. */
  function showRidgelines(payload, step) {
    const element = document.getElementById("ridgelines");
    if (!element) return;
    if (payload) window.trustlens.ridgelines.show(element, payload, step);
    clearTimeout(settling);
    settling = setTimeout(() => {
      if (document.getElementById("ridgelines") && payload) {
        window.dash_clientside.set_props("step", { data: step });
      }
    }, SETTLE_MS);
  }

  /** The browser's window is named after the page. */
  function nameWindow(path) {
    const name = {
      "/": "Runs",
      "/ridgelines": "Ridgelines",
      "/training": "Training",
      "/layers": "Layers",
      "/smoothing": "Debias & smoothing",
    }[path];
    document.title = name ? `${name} · trustlens` : "trustlens";
  }

  /** Light or dark, now and whenever it changes: the server draws the figures in it. */
  function followTheme() {
    const root = document.documentElement;
    const theme = () => root.dataset.mantineColorScheme || "light";
    new MutationObserver(() => window.dash_clientside.set_props("theme", { data: theme() })).observe(
      root,
      { attributes: true, attributeFilter: ["data-mantine-color-scheme"] },
    );
    return theme();
  }

  // The first address names no runs; the one that does takes its place, or "back" would lead nowhere.
  const push = history.pushState.bind(history);
  history.pushState = (state, title, url) => {
    const next = new URL(url, location.href);
    const named = new URLSearchParams(location.search).has("a");
    if (named || next.pathname !== location.pathname) push(state, title, url);
    else history.replaceState(state, title, url);
  };

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.trustlens = { showRidgelines, nameWindow, followTheme };
})();
