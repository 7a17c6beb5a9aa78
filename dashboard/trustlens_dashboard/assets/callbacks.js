/* Clientside callbacks: updates that would be too slow with a request to the server. */
"use strict";

(() => {
  const STEP_DELAY_MS = 180;
  let stepTimer = 0;

  /** Draws the ridgelines in an element. Stores the step when the slider has not moved for STEP_DELAY_MS. */
  function showRidgelines(payload, step, elementId, storeId) {
    const element = document.getElementById(elementId);
    if (!element) return;
    if (payload) window.trustlens.ridgelines.show(element, payload, step);
    clearTimeout(stepTimer);
    stepTimer = setTimeout(() => {
      if (document.getElementById(elementId) && payload) {
        window.dash_clientside.set_props(storeId, { data: step });
      }
    }, STEP_DELAY_MS);
  }

  /** Sets the title of the browser window to the page's title; `titles` maps paths to titles. */
  function setWindowTitle(path, titles) {
    document.title = titles[path] ? `${titles[path]} · trustlens` : "trustlens";
  }

  /** Returns the colour scheme, and stores it when it changes: figures are drawn in this theme. */
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

  // A page opened without runs in its URL gets a URL with the default runs. Replace the history entry:
  // otherwise "back" would return to the URL without runs, which forwards to this one again.
  const push = history.pushState.bind(history);
  history.pushState = (state, title, url) => {
    const next = new URL(url, location.href);
    const hasRuns = new URLSearchParams(location.search).has("a");
    if (hasRuns || next.pathname !== location.pathname) push(state, title, url);
    else history.replaceState(state, title, url);
  };

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.trustlens = { showRidgelines, setWindowTitle, followTheme };
})();
