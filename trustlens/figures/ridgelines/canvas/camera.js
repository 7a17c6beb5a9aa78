/* The camera of the ridgelines: projects points of the box to the canvas and back.
 *
 * The box: x is the value axis in [-1, 1], y is time in [-DEPTH, DEPTH] with the first step at +DEPTH
 * (the far end in the initial view), z is the height in [0, HEIGHT].
 *
 * The projection is that of a camera with a shifted lens: straight lines stay straight, and objects shrink
 * with the distance along the floor, but vertical lines stay vertical on the screen. Each column of pixels
 * therefore shows one vertical plane: the parts of a ridge that nearer ridges hide are found
 * exactly by storing the highest point so far of each column (its horizon).
 */
"use strict";

(() => {
  const DEPTH = 1.2;
  const HEIGHT = 0.95;
  const PERSPECTIVE = 0.17;
  const HOME = { yaw: -0.62, pitch: 0.5, zoom: 1, panX: 0, panY: 0 };
  const PITCH = [0.04, 1.45];
  const MARGIN = { left: 46, right: 58, top: 10, bottom: 46 };

  /** Returns a camera in the initial view. Linked canvases share a camera. */
  function makeCamera() {
    return { ...HOME };
  }

  /** Turns the camera by two angles in radians; the pitch stays in the range PITCH. */
  function turn(camera, yaw, pitch) {
    camera.yaw = Math.atan2(Math.sin(camera.yaw + yaw), Math.cos(camera.yaw + yaw));
    camera.pitch = Math.min(PITCH[1], Math.max(PITCH[0], camera.pitch + pitch));
  }

  /** Zooms around a point, given relative to the centre of the canvas. Returns false at the limits. */
  function zoom(camera, factor, x, y) {
    const next = Math.min(8, Math.max(1, camera.zoom * factor));
    if (next === camera.zoom) return false;
    const ratio = next / camera.zoom;
    camera.panX = next === 1 ? 0 : x - (x - camera.panX) * ratio;
    camera.panY = next === 1 ? 0 : y - (y - camera.panY) * ratio;
    camera.zoom = next;
    return true;
  }

  /** Returns the view of a camera on a canvas, whose size is in CSS pixels. At zoom 1 the whole box
   *  is visible. */
  function look(camera, width, height) {
    const view = {
      cosYaw: Math.cos(camera.yaw),
      sinYaw: Math.sin(camera.yaw),
      cosPitch: Math.cos(camera.pitch),
      sinPitch: Math.sin(camera.pitch),
      perspective: PERSPECTIVE,
      scale: 1,
      left: 0,
      top: 0,
      width,
      height,
    };
    let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const x of [-1, 1]) {
      for (const y of [-DEPTH, DEPTH]) {
        for (const z of [0, HEIGHT]) {
          const [sx, sy] = project(view, x, y, z);
          x0 = Math.min(x0, sx);
          x1 = Math.max(x1, sx);
          y0 = Math.min(y0, sy);
          y1 = Math.max(y1, sy);
        }
      }
    }
    const innerWidth = Math.max(40, width - MARGIN.left - MARGIN.right);
    const innerHeight = Math.max(40, height - MARGIN.top - MARGIN.bottom);
    view.scale = Math.min(innerWidth / (x1 - x0), innerHeight / (y1 - y0)) * camera.zoom;
    view.left = MARGIN.left + innerWidth / 2 + camera.panX - (view.scale * (x0 + x1)) / 2;
    view.top = MARGIN.top + innerHeight / 2 + camera.panY - (view.scale * (y0 + y1)) / 2;
    // The position of the eye in the coordinates of the box; it determines which sides are near.
    view.eyeX = -view.sinYaw / view.perspective;
    view.eyeY = -view.cosYaw / view.perspective;
    return view;
  }

  /** Returns the point of the canvas at which a point of the box is seen. */
  function project(view, x, y, z) {
    const across = x * view.cosYaw - y * view.sinYaw;
    const away = x * view.sinYaw + y * view.cosYaw;
    const shrink = view.scale / (1 + view.perspective * away);
    return [
      view.left + shrink * across,
      view.top - shrink * (z * view.cosPitch + away * view.sinPitch),
    ];
  }

  /** Returns the point [x, y] of the floor that is seen at a point of the canvas. */
  function floorAt(view, sx, sy) {
    const up = (view.top - sy) / view.scale;
    const away = up / (view.sinPitch - up * view.perspective);
    const across = ((sx - view.left) / view.scale) * (1 + view.perspective * away);
    return [
      across * view.cosYaw + away * view.sinYaw,
      -across * view.sinYaw + away * view.cosYaw,
    ];
  }

  window.trustlens = window.trustlens || {};
  window.trustlens.camera = { DEPTH, HEIGHT, HOME, makeCamera, turn, zoom, look, project, floorAt };
})();
