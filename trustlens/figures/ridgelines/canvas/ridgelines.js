/* The component: linked 3D ridgelines on 2D canvases. surface.js draws the ridges.
 *
 * window.trustlens.ridgelines.show(element, payload, step) fills the element with one canvas per run. All
 * canvases share a camera, the axes and the scale of the heights. payload.py creates the payload. Dragging
 * and the arrow keys turn the view, the wheel, + and - zoom, a double click and 0 reset it.
 */
"use strict";

(() => {
  const SLOW_MS = 28; // if a frame takes longer, frames in motion have a lower resolution
  const REST_MS = 150; // after the last motion, redraw in full resolution
  const shown = new Map(); // element -> group

  function colorScheme() {
    return document.documentElement.dataset.mantineColorScheme === "dark" ? "dark" : "light";
  }

  /** Returns the style of a ridge of a colour; the colour of its foot is mixed with the fraction
   *  `pale` of the background colour `paper`. Colours are [r, g, b]. */
  function ridgeStyle(color, paper, pale, line, lineWidth) {
    const { mix, packed, shades } = window.trustlens.surface;
    return { color, shades: shades(mix(color, paper, pale), color), line: packed(line), lineWidth };
  }

  function append(name, className, parent) {
    const node = document.createElement(name);
    node.className = className;
    parent.append(node);
    return node;
  }

  /** The canvas of one run, with its caption and readout. */
  class Panel {
    constructor(group, parent) {
      this.group = group;
      this.figure = append("figure", "ridgelines-panel", parent);
      const caption = append("figcaption", "ridgelines-caption", this.figure);
      this.dot = append("span", "ridgelines-dot", caption);
      this.name = append("span", "ridgelines-name", caption);
      this.note = append("span", "ridgelines-note", caption);
      this.canvas = append("canvas", "ridgelines-canvas", this.figure);
      this.canvas.tabIndex = 0;
      this.canvas.setAttribute("role", "img");
      this.readout = append("div", "ridgelines-readout", this.figure);
      this.readout.setAttribute("aria-hidden", "true");
      this.readout.hidden = true;
      this.context = this.canvas.getContext("2d", { willReadFrequently: true });
      this.observer = new ResizeObserver(() => group.refresh());
      this.observer.observe(this.canvas);
      window.trustlens.listen(this);
    }

    fill(run) {
      this.run = window.trustlens.surface.unpack(run, this.group.payload);
      this.name.textContent = run.label;
      this.note.textContent = run.note;
      this.canvas.setAttribute("aria-label", run.summary);
      this.canvas.dataset.run = run.id;
      this.styles = null;
    }

    /** Returns the default style of each ridge. */
    makeStyles(scheme, colors) {
      const { rgb, mix } = window.trustlens.surface;
      const [paper, crest] = [colors.paper, colors.crest].map(rgb);
      const [pale, light] = scheme === "dark" ? [0.62, 0.6] : [0.5, 0.55];
      return this.run.ridgeColors[scheme].map((hex) => {
        const color = rgb(hex);
        return ridgeStyle(color, paper, pale, mix(color, crest, light), 1);
      });
    }

    draw(ratio) {
      const { payload, camera, hover } = this.group;
      const box = this.canvas.getBoundingClientRect();
      if (!this.run || box.width < 2 || box.height < 2) return;
      const [width, height] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
      if (this.canvas.width !== width || this.canvas.height !== height) {
        this.canvas.width = width;
        this.canvas.height = height;
      }
      const scheme = colorScheme();
      const colors = payload.colors[scheme];
      if (!this.styles || this.scheme !== scheme) {
        this.styles = this.makeStyles(scheme, colors);
        this.scheme = scheme;
        this.dot.style.background = this.run.color[scheme];
      }
      const { surface, box: scene } = window.trustlens;
      const buckets = payload.axis.buckets;
      const context = this.context;
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.fillStyle = colors.paper;
      context.fillRect(0, 0, width, height);
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      this.view = window.trustlens.camera.look(camera, box.width, box.height);
      scene.back(context, this.view, payload, colors);
      scene.outOfView(context, this.view, this.run, colors, false);
      this.geometry = surface.place(this.run, this.view, buckets);
      const chosen = this.ridgeOf(this.group.step);
      const styles = this.highlighted(chosen, hover, colors);
      surface.paint(context, this.geometry, this.run, this.view, buckets, styles, ratio);
      if (chosen !== null && styles.length > 1) {
        surface.trace(context, this.geometry, this.run, chosen, buckets, colors.ink + "55", 1.25);
      }
      scene.outOfView(context, this.view, this.run, colors, true);
      const step = chosen === null ? null : this.run.steps[chosen];
      scene.labels(context, this.view, payload, colors, this.run, step);
      this.canvas.dataset.chosen = step ?? "";
      if (this.run.empty) scene.message(context, this.run.empty, box.width, box.height, colors);
    }

    /** Returns the styles with the chosen ridge and the ridge under the pointer highlighted. */
    highlighted(chosen, hover, colors) {
      const special = [];
      if (hover) special.push([this.ridgeOf(hover.step), 1.6]);
      if (chosen !== null) special.push([chosen, 2.4]);
      if (special.length === 0) return this.styles;
      const [paper, ink] = [colors.paper, colors.ink].map(window.trustlens.surface.rgb);
      const styles = this.styles.slice();
      for (const [s, lineWidth] of special) {
        if (s === null) continue;
        styles[s] = ridgeStyle(this.styles[s].color, paper, 0.25, ink, lineWidth);
      }
      return styles;
    }

    /** Returns the index of the ridge nearest to a step, or null. */
    ridgeOf(step) {
      const { steps } = this.run;
      if (step === null || step === undefined || steps.length === 0) return null;
      let best = 0;
      for (let s = 1; s < steps.length; s++) {
        if (Math.abs(steps[s] - step) < Math.abs(steps[best] - step)) best = s;
      }
      return best;
    }
  }

  /** The panels of one element. They share the camera and the chosen step. */
  class Group {
    constructor(element) {
      this.element = element;
      this.camera = window.trustlens.camera.makeCamera();
      this.panels = [];
      this.step = null;
      this.hover = null;
      this.pending = 0;
      this.frameMs = []; // durations of the last frames in ms
      this.slow = false; // whether the last frame in full resolution took longer than SLOW_MS
      this.moving = false;
      this.rest = 0;
    }

    show(payload, step) {
      if (payload !== this.payload) {
        this.payload = payload;
        while (this.panels.length > payload.runs.length) this.drop(this.panels.pop());
        while (this.panels.length < payload.runs.length) this.panels.push(new Panel(this, this.element));
        payload.runs.forEach((run, i) => this.panels[i].fill(run));
        this.hover = null;
      }
      this.step = step ?? null;
      this.refresh();
    }

    drop(panel) {
      panel.observer.disconnect();
      panel.figure.remove();
    }

    /** Redraws in the next frame; in a lower resolution while moving if frames are slow. */
    refresh(moving = false) {
      this.moving = moving;
      if (this.pending) return;
      this.pending = requestAnimationFrame(() => {
        this.pending = 0;
        this.drawAll(window.devicePixelRatio || 1);
      });
    }

    drawAll(full) {
      const coarse = this.moving && this.slow && full > 1;
      const start = performance.now();
      for (const panel of this.panels) panel.draw(coarse ? 1 : full);
      const took = performance.now() - start;
      this.frameMs.push(took);
      if (this.frameMs.length > 120) this.frameMs.shift();
      if (!coarse) this.slow = took > SLOW_MS;
      clearTimeout(this.rest);
      if (coarse) this.rest = setTimeout(() => this.refresh(), REST_MS);
      const { yaw, pitch, zoom } = this.camera;
      this.element.dataset.camera = [yaw, pitch, zoom].map((v) => v.toFixed(4)).join(" ");
    }
  }

  /** Shows a payload in an element and highlights a step, which may be null. */
  function show(element, payload, step) {
    for (const [old, group] of shown) {
      if (old.isConnected) continue;
      group.panels.forEach((panel) => group.drop(panel));
      shown.delete(old);
    }
    if (!shown.has(element)) shown.set(element, new Group(element));
    shown.get(element).show(payload, step);
  }

  new MutationObserver(() => shown.forEach((group) => group.refresh())).observe(
    document.documentElement,
    { attributes: true, attributeFilter: ["data-mantine-color-scheme"] },
  );

  window.trustlens.ridgelines = { show, group: (element) => shown.get(element) };
})();
