/* Clientside callbacks: what would be too slow by way of the server. */
"use strict";

(() => {
  const SETTLE_MS = 180;
  let settling = 0;

  /** Draws the ridgelines in an element; the store of the step is set once the slider rests. */
  function showRidgelines(payload, step, elementId, storeId) {
    const element = document.getElementById(elementId);
    if (!element) return;
    if (payload) window.trustlens.ridgelines.show(element, payload, step);
    clearTimeout(settling);
    settling = setTimeout(() => {
      if (document.getElementById(elementId) && payload) {
        window.dash_clientside.set_props(storeId, { data: step });
      }
    }, SETTLE_MS);
  }

  /** The browser's window is named after the page; titles are by path. */
  function nameWindow(path, titles) {
    document.title = titles[path] ? `${titles[path]} · trustlens` : "trustlens";
  }

  /** Light or dark, now and whenever it changes: the server draws the figures in it. */
  function followTheme(storeId) {
    const root = document.documentElement;
    const theme = () => root.dataset.mantineColorScheme || "light";
    const report = () => window.dash_clientside.set_props(storeId, { data: theme() });
    new MutationObserver(report).observe(root, {
      attributes: true,
      attributeFilter: ["data-mantine-color-scheme"],
    });
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
