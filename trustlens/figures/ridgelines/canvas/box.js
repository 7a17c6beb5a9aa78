/* The box around the ridgelines: floor, back walls with a grid, axes with labels, marks at the edges. */
"use strict";

(() => {
  const { DEPTH, HEIGHT, project } = window.trustlens.camera;
  const LABEL = "12px";
  const TITLE = "600 12.5px";
  const LABEL_GAP = 24; // minimum distance between two labels of an axis, in pixels

  /** Sets the font of the context to that of the page. */
  function setFont(context, weightAndSize) {
    context.font = `${weightAndSize} ${getComputedStyle(context.canvas).fontFamily}`;
  }

  /** Returns the coordinates of the sides of the box that are far from the camera, and near to it. */
  function sides(view) {
    const farX = view.eyeX > 0 ? -1 : 1;
    const farY = view.eyeY > 0 ? -DEPTH : DEPTH;
    return { farX, farY, nearX: -farX, nearY: -farY };
  }

  function addLine(context, view, a, b) {
    const [ax, ay] = project(view, ...a);
    const [bx, by] = project(view, ...b);
    context.moveTo(ax, ay);
    context.lineTo(bx, by);
  }

  /** Returns the ticks of the three axes in the coordinates of the box. */
  function ticks(payload) {
    const span = Math.max(1, payload.steps.hi - payload.steps.lo);
    return {
      x: payload.axis.ticks.map((t) => ({ at: 2 * t.at - 1, label: t.label })),
      y: payload.steps.ticks.map((t) => ({
        at: DEPTH * (1 - (2 * (t.at - payload.steps.lo)) / span),
        label: t.label,
      })),
      z: payload.height.ticks.map((t) => ({ at: (HEIGHT * t.at) / payload.height.top, label: t.label })),
    };
  }

  /** Draws the floor and the back walls; call it before the ridges are painted over them. */
  function back(context, view, payload, colors) {
    const { farX, farY, nearX, nearY } = sides(view);
    const marks = ticks(payload);
    const corners = [[-1, -DEPTH], [1, -DEPTH], [1, DEPTH], [-1, DEPTH]];
    context.beginPath();
    for (const [x, y] of corners) context.lineTo(...project(view, x, y, 0));
    context.closePath();
    context.fillStyle = colors.panel;
    context.fill();
    context.beginPath();
    for (const { at } of marks.x) {
      addLine(context, view, [at, nearY, 0], [at, farY, 0]);
      addLine(context, view, [at, farY, 0], [at, farY, HEIGHT]);
    }
    for (const { at } of marks.y) {
      addLine(context, view, [nearX, at, 0], [farX, at, 0]);
      addLine(context, view, [farX, at, 0], [farX, at, HEIGHT]);
    }
    for (const at of [...marks.z.map((t) => t.at), HEIGHT]) {
      addLine(context, view, [-1, farY, at], [1, farY, at]);
      addLine(context, view, [farX, -DEPTH, at], [farX, DEPTH, at]);
    }
    addLine(context, view, [farX, farY, 0], [farX, farY, HEIGHT]);
    context.strokeStyle = colors.grid;
    context.lineWidth = 1;
    context.stroke();
    context.beginPath();
    addLine(context, view, [-1, farY, 0], [1, farY, 0]);
    addLine(context, view, [farX, -DEPTH, 0], [farX, DEPTH, 0]);
    addLine(context, view, [-1, nearY, 0], [1, nearY, 0]);
    addLine(context, view, [nearX, -DEPTH, 0], [nearX, DEPTH, 0]);
    context.strokeStyle = colors.axis;
    context.stroke();
  }

  /** Draws ticks and labels along one edge. `at` returns a tick's position in the box, `out` a point further
   *  outward. `gap` is the space in pixels for marks between the edge and the labels; labels near the
   *  position `taken` are omitted. */
  function edge(context, view, marks, { at, out, title, gap = 0, taken = null }, colors) {
    setFont(context, LABEL);
    context.textBaseline = "middle";
    context.fillStyle = colors.muted;
    context.strokeStyle = colors.axis;
    const kept = taken === null ? [] : [project(view, ...at(taken))];
    let deepest = 0;
    context.beginPath();
    for (const mark of marks) {
      const [x, y] = project(view, ...at(mark.at));
      const [nx, ny] = outward(view, at(mark.at), out(mark.at));
      const room = labelRoom(context, mark.label);
      if (kept.some(([kx, ky]) => Math.abs(x - kx) < room && Math.abs(y - ky) < 16)) continue;
      kept.push([x, y]);
      context.moveTo(x, y);
      context.lineTo(x + nx * 5, y + ny * 5);
      drawText(context, mark.label, x + nx * (10 + gap), y + ny * (12 + gap), nx);
      deepest = Math.max(deepest, Math.abs(nx) * context.measureText(mark.label).width);
    }
    context.lineWidth = 1;
    context.stroke();
    if (title) axisTitle(context, view, { at, out, title }, colors, 24 + gap + deepest);
  }

  function labelRoom(context, label) {
    return Math.max(LABEL_GAP, context.measureText(label).width + 8);
  }

  /** Returns the unit vector on the screen from a point of an edge to a point outside the box. */
  function outward(view, inner, outer) {
    const [ax, ay] = project(view, ...inner);
    const [bx, by] = project(view, ...outer);
    const length = Math.hypot(bx - ax, by - ay) || 1;
    return [(bx - ax) / length, (by - ay) / length];
  }

  /** Draws a text beside a point, aligned by the horizontal direction `nx` away from the box. */
  function drawText(context, text, x, y, nx) {
    context.textAlign = nx > 0.35 ? "left" : nx < -0.35 ? "right" : "center";
    context.fillText(text, x, y);
  }

  function axisTitle(context, view, { at, out, title }, colors, distance) {
    const [from, to, middle] = [-0.999, 0.999, 0].map((t) => at(t));
    const [ax, ay] = project(view, ...from);
    const [bx, by] = project(view, ...to);
    const [mx, my] = project(view, ...middle);
    const [nx, ny] = outward(view, middle, out(0));
    let angle = Math.atan2(by - ay, bx - ax);
    if (angle > Math.PI / 2) angle -= Math.PI;
    if (angle < -Math.PI / 2) angle += Math.PI;
    if (Math.hypot(bx - ax, by - ay) < 60) return;
    // Perpendicular to the edge on the screen, on the outer side.
    const side = Math.sign(-Math.sin(angle) * nx + Math.cos(angle) * ny) || 1;
    context.save();
    context.translate(mx - Math.sin(angle) * side * distance, my + Math.cos(angle) * side * distance);
    context.rotate(angle);
    setFont(context, TITLE);
    context.fillStyle = colors.ink;
    context.textAlign = "center";
    context.fillText(title, 0, 0);
    context.restore();
  }

  /** Draws the labels of the three axes, and a label at the chosen step unless it is null. */
  function labels(context, view, payload, colors, run, step) {
    const { farX, farY, nearX, nearY } = sides(view);
    const marks = ticks(payload);
    const along = (at, out, more) => ({ at, out, ...more });
    const value = along((t) => [t, nearY, 0], (t) => [t, nearY * 1.2, 0], { title: payload.axis.title });
    edge(context, view, marks.x, value, colors);
    const any = (counts) => counts.some((n) => n > 0);
    const gap = nearX > 0 && any(run.nonfinite) ? 20 : any(nearX > 0 ? run.above : run.below) ? 12 : 0;
    const span = Math.max(1, payload.steps.hi - payload.steps.lo);
    const taken = step === null ? null : DEPTH * (1 - (2 * (step - payload.steps.lo)) / span);
    const time = along((t) => [nearX, t, 0], (t) => [nearX * 1.2, t, 0], { title: "step", gap, taken });
    edge(context, view, marks.y, time, colors);
    const left = project(view, farX, nearY, 0)[0] < project(view, nearX, farY, 0)[0];
    const [x, y] = left ? [farX, nearY] : [nearX, farY];
    const height = along((t) => [x, y, t], (t) => [x * 1.2, y * 1.2, t], { title: "" });
    edge(context, view, marks.z.filter((t) => t.at > 0), height, colors);
    const [zx, zy] = project(view, x, y, HEIGHT);
    drawText(context, "layers", zx + (left ? -10 : 10), zy - 12, left ? 0 : 1);
    if (step !== null) chosenLabel(context, view, step, [nearX, taken, 0], gap, colors);
  }

  function chosenLabel(context, view, step, at, gap, colors) {
    const [x, y] = project(view, ...at);
    const [nx, ny] = outward(view, at, [at[0] * 1.2, at[1], 0]);
    const text = step.toLocaleString("en").replaceAll(",", "\u202f");
    setFont(context, TITLE);
    const width = context.measureText(text).width + 10;
    const near = x + nx * (7 + gap);
    const left = nx >= 0 ? near : near - width;
    const middle = y + ny * (12 + gap);
    context.fillStyle = colors.ink;
    context.beginPath();
    context.roundRect(left, middle - 9, width, 18, 4);
    context.fill();
    context.fillStyle = colors.paper;
    context.textAlign = "left";
    context.textBaseline = "middle";
    context.fillText(text, left + 5, middle + 0.5);
  }

  /** Draws a message in the centre of the canvas. */
  function message(context, text, width, height, colors) {
    setFont(context, TITLE);
    context.fillStyle = colors.ink;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(text, width / 2, height / 2, width - 32);
  }

  /** Draws arrowheads at steps with layers beyond an end of the value axis, and crosses at steps with layers
   *  that are not finite: those on the near side of the box if `near`, else those on the far side. */
  function outOfView(context, view, run, colors, near) {
    const { nearX } = sides(view);
    run.y.forEach((y, s) => {
      for (const [counts, x] of [[run.below, -1], [run.above, 1]]) {
        if (counts[s] > 0 && (x === nearX) === near) arrow(context, view, x, y, colors.alert);
      }
      if (run.nonfinite[s] > 0 && (nearX === 1) === near) cross(context, view, y, colors.alert);
    });
  }

  function arrow(context, view, x, y, color) {
    const [ax, ay] = project(view, x * 1.015, y, 0);
    const [bx, by] = project(view, x * 1.05, y, 0);
    const [cx, cy] = project(view, x * 1.015, y + 0.012, 0);
    context.fillStyle = color;
    context.beginPath();
    const size = 2 + Math.hypot(cx - ax, cy - ay) / 4;
    const length = Math.hypot(bx - ax, by - ay) || 1;
    const [ux, uy] = [(bx - ax) / length, (by - ay) / length];
    context.moveTo(ax - uy * size, ay + ux * size);
    context.lineTo(ax + ux * 7, ay + uy * 7);
    context.lineTo(ax + uy * size, ay - ux * size);
    context.fill();
  }

  function cross(context, view, y, color) {
    const [x0, y0] = project(view, 1.08, y, 0);
    context.strokeStyle = color;
    context.lineWidth = 1.5;
    context.beginPath();
    context.moveTo(x0 - 2.5, y0 - 2.5);
    context.lineTo(x0 + 2.5, y0 + 2.5);
    context.moveTo(x0 - 2.5, y0 + 2.5);
    context.lineTo(x0 + 2.5, y0 - 2.5);
    context.stroke();
  }

  window.trustlens.box = { back, labels, outOfView, message };
})();
