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

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.trustlens = { showRidgelines };
})();
