/* Input of the ridgelines: drag, wheel, keys, and the readout at the pointer. */
"use strict";

(() => {
  const TURN = 0.007; // radians per pixel
  const KEY_TURN = 0.08; // radians per key press

  /** Adds the event listeners of a panel. */
  function listen(panel) {
    const { canvas, group } = panel;
    let drag = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      drag = [event.clientX, event.clientY];
      canvas.setPointerCapture(event.pointerId);
      canvas.classList.add("turning");
      updateReadout(panel, null);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!drag) return updateReadout(panel, event);
      const [dx, dy] = [event.clientX - drag[0], event.clientY - drag[1]];
      drag = [event.clientX, event.clientY];
      window.trustlens.camera.turn(group.camera, dx * TURN, dy * TURN);
      group.refresh(true);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, () => {
        drag = null;
        canvas.classList.remove("turning");
      });
    }
    canvas.addEventListener("pointerleave", () => updateReadout(panel, null));
    canvas.addEventListener("wheel", (event) => wheel(panel, event), { passive: false });
    canvas.addEventListener("dblclick", () => reset(group));
    canvas.addEventListener("keydown", (event) => key(group, event));
  }

  function reset(group) {
    Object.assign(group.camera, window.trustlens.camera.HOME);
    group.refresh();
  }

  /** Zooms. At the limits of the zoom the wheel scrolls the page. */
  function wheel({ canvas, group }, event) {
    const box = canvas.getBoundingClientRect();
    const x = event.clientX - box.left - box.width / 2;
    const y = event.clientY - box.top - box.height / 2;
    const lines = event.deltaMode === 1 ? 24 : 1;
    if (!window.trustlens.camera.zoom(group.camera, Math.exp(-event.deltaY * lines * 0.0015), x, y)) return;
    event.preventDefault();
    group.refresh(true);
  }

  function key(group, event) {
    const { turn, zoom } = window.trustlens.camera;
    const moves = {
      ArrowLeft: () => turn(group.camera, -KEY_TURN, 0),
      ArrowRight: () => turn(group.camera, KEY_TURN, 0),
      ArrowUp: () => turn(group.camera, 0, -KEY_TURN),
      ArrowDown: () => turn(group.camera, 0, KEY_TURN),
      "+": () => zoom(group.camera, 1.15, 0, 0),
      "=": () => zoom(group.camera, 1.15, 0, 0),
      "-": () => zoom(group.camera, 1 / 1.15, 0, 0),
      0: () => reset(group),
    };
    if (!moves[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    moves[event.key]();
    group.refresh(true);
  }

  /** Returns the value at an edge of a bucket, given by its index (0..buckets). */
  function valueAt(axis, edge) {
    const part = edge / axis.buckets;
    if (axis.scale === "log") return axis.lo * (axis.hi / axis.lo) ** part;
    return axis.lo + (axis.hi - axis.lo) * part;
  }

  function formatNumber(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e+", "e");
    return String(Number(value.toPrecision(3)));
  }

  /** Shows the readout for the position of a pointer event; hides it if the event is null. */
  function updateReadout(panel, event) {
    const { group, readout, canvas } = panel;
    const box = canvas.getBoundingClientRect();
    const found = event && pick(panel, event.clientX - box.left, event.clientY - box.top);
    const before = group.hover && group.hover.step;
    group.hover = found ? { step: panel.run.steps[found.ridge] } : null;
    readout.hidden = !found;
    if (found) {
      fillReadout(panel, found);
      const x = event.clientX - box.left;
      const y = event.clientY - box.top + canvas.offsetTop;
      const flip = x > box.width - readout.offsetWidth - 24;
      readout.style.left = `${flip ? x - readout.offsetWidth - 14 : x + 14}px`;
      readout.style.top = `${Math.max(0, y - readout.offsetHeight - 12)}px`;
    }
    if (before !== (group.hover && group.hover.step)) group.refresh();
  }

  /** Returns the ridge and bucket at a point of the canvas: those of the curtain that is visible
   *  there, or those nearest to the point of the floor that is visible there; null outside the box. */
  function pick(panel, x, y) {
    if (!panel.view || !panel.run || panel.run.steps.length === 0) return null;
    const buckets = panel.group.payload.axis.buckets;
    const hit = window.trustlens.surface.hit(panel.geometry, panel.run, buckets, x, y);
    if (hit) return hit;
    const [fx, fy] = window.trustlens.camera.floorAt(panel.view, x, y);
    const { DEPTH } = window.trustlens.camera;
    if (!(Math.abs(fx) <= 1 && Math.abs(fy) <= DEPTH)) return null;
    const { lo, hi } = panel.group.payload.steps;
    const ridge = panel.ridgeOf(lo + ((1 - fy / DEPTH) / 2) * (hi - lo));
    return { ridge, bucket: Math.min(buckets - 1, Math.floor(((fx + 1) / 2) * buckets)) };
  }

  /** Writes the step, the range of values around the pointer and the number of layers in this range. */
  function fillReadout({ group, run, readout }, { ridge, bucket }) {
    const { axis } = group.payload;
    const reach = Math.max(1, Math.round(axis.buckets / 40));
    const from = Math.max(0, bucket - reach);
    const to = Math.min(axis.buckets - 1, bucket + reach);
    let layers = 0;
    for (let b = from; b <= to; b++) layers += run.heights[ridge * axis.buckets + b];
    layers *= group.payload.height.top;
    const lines = [
      `step ${run.steps[ridge].toLocaleString("en").replaceAll(",", "\u202f")}`,
      `${axis.symbol} ${formatNumber(valueAt(axis, from))} … ${formatNumber(valueAt(axis, to + 1))}`,
      `${layers < 0.05 ? "0" : layers.toFixed(1)} of ${run.layers} layers`,
    ];
    if (run.below[ridge]) lines.push(`${run.below[ridge]} below the axis`);
    if (run.above[ridge]) lines.push(`${run.above[ridge]} above the axis`);
    if (run.nonfinite[ridge]) lines.push(`${run.nonfinite[ridge]} not finite`);
    readout.replaceChildren(
      ...lines.map((text) => {
        const row = document.createElement("div");
        row.textContent = text;
        return row;
      }),
    );
  }

  window.trustlens.listen = listen;
})();
