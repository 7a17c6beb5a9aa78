/* The ridges: geometry, hidden lines and painting.
 *
 * Each ridge is a vertical curtain from its crest down to the floor. The ridges are processed from the
 * nearest to the farthest; a horizon per column of pixels stores the highest point of nearer ridges, and
 * the parts below it are not painted (the floating horizon algorithm, exact because each column shows one
 * vertical plane, see camera.js).
 * The visible parts are painted from the farthest to the nearest into the pixels, column by column, with
 * an antialiased crest line. This is several times faster than filling one path per ridge.
 */
"use strict";

(() => {
  const { DEPTH, HEIGHT } = window.trustlens.camera;
  const FLAT = 0.004; // fraction of the highest crest; lower parts are not drawn
  const SHADES = 64;

  /** Unpacks one run of the payload: heights as fractions (0..1) of the axis, and the parts to draw. */
  function unpack(run, payload) {
    const buckets = payload.axis.buckets;
    const raw = Uint8Array.from(atob(run.heights), (c) => c.charCodeAt(0));
    const packed = new Uint16Array(raw.buffer);
    const heights = new Float32Array(packed.length);
    const factor = run.factor / payload.height.top;
    for (let i = 0; i < packed.length; i++) heights[i] = Math.min(1, packed[i] * factor);
    const span = Math.max(1, payload.steps.hi - payload.steps.lo);
    return {
      ...run,
      heights,
      y: run.steps.map((s) => DEPTH * (1 - (2 * (s - payload.steps.lo)) / span)),
      pieces: run.steps.map((_, s) => risingParts(heights, s * buckets, buckets)),
    };
  }

  /** Returns the ranges [from, to] of buckets in which one ridge is higher than FLAT. */
  function risingParts(heights, start, buckets) {
    const pieces = [];
    let from = -1;
    for (let i = 0; i < buckets; i++) {
      if (heights[start + i] > FLAT) {
        if (from < 0) from = Math.max(0, i - 1);
      } else if (from >= 0) {
        pieces.push([from, i]);
        from = -1;
      }
    }
    if (from >= 0) pieces.push([from, buckets - 1]);
    return pieces;
  }

  /** Projects all points of a run's ridges and sorts the ridges from the nearest to the farthest. */
  function place(run, view, buckets) {
    const count = run.steps.length * buckets;
    const [sx, crest, base] = [0, 0, 0].map(() => new Float32Array(count));
    const { cosYaw, sinYaw, sinPitch, scale, perspective, left, top } = view;
    const lift = HEIGHT * view.cosPitch;
    run.y.forEach((y, s) => {
      for (let b = 0, i = s * buckets; b < buckets; b++, i++) {
        const x = (2 * (b + 0.5)) / buckets - 1;
        const away = x * sinYaw + y * cosYaw;
        const shrink = scale / (1 + perspective * away);
        base[i] = top - shrink * away * sinPitch;
        sx[i] = left + shrink * (x * cosYaw - y * sinYaw);
        crest[i] = base[i] - shrink * lift * run.heights[i];
      }
    });
    const order = run.y.map((_, s) => s);
    order.sort((a, b) => Math.abs(run.y[a] - view.eyeY) - Math.abs(run.y[b] - view.eyeY));
    return { sx, crest, base, order };
  }

  /** Returns crest and foot of one part of a ridge in each column of pixels; null if it is off screen. */
  function columnsOf(geometry, start, [from, to], ratio, width) {
    const { sx, crest, base } = geometry;
    const [a, b] = [start + from, start + to];
    const step = sx[b] >= sx[a] ? 1 : -1;
    const [first, last] = step > 0 ? [a, b] : [b, a];
    const [left, right] = [sx[first] * ratio, sx[last] * ratio];
    const begin = Math.max(0, Math.floor(left));
    const end = Math.min(width - 1, Math.floor(right));
    if (end < begin) return null;
    const tops = new Float32Array(end - begin + 1).fill(1e9);
    const feet = new Float32Array(end - begin + 1).fill(-1e9);
    const strip = { begin, end, left, right, tops, feet };
    if (right - left < to - from) sampleDense(geometry, strip, a, b, ratio);
    else sampleSparse(sx, crest, base, strip, first, last, step, ratio);
    return strip;
  }

  /** With more points than columns (a ridge seen from its end): takes the highest point in each column. */
  function sampleDense({ sx, crest, base }, { begin, end, tops, feet }, a, b, ratio) {
    for (let i = a; i <= b; i++) {
      const c = Math.floor(sx[i] * ratio);
      if (c < begin || c > end) continue;
      tops[c - begin] = Math.min(tops[c - begin], crest[i] * ratio);
      feet[c - begin] = Math.max(feet[c - begin], base[i] * ratio);
    }
    for (let c = 1; c <= end - begin; c++) {
      if (tops[c] < 1e9) continue;
      tops[c] = tops[c - 1];
      feet[c] = feet[c - 1];
    }
  }

  /** With more columns than points: interpolates crest and foot at the centre of each column. */
  function sampleSparse(sx, crest, base, { begin, end, left, right, tops, feet }, first, last, step, ratio) {
    let i = first;
    for (let c = begin; c <= end; c++) {
      const x = Math.min(right, Math.max(left, c + 0.5)) / ratio;
      while (i !== last - step && i !== last && sx[i + step] < x) i += step;
      const j = i === last ? i : i + step;
      const part = sx[j] > sx[i] ? (x - sx[i]) / (sx[j] - sx[i]) : 0;
      tops[c - begin] = ratio * (crest[i] + part * (crest[j] - crest[i]));
      feet[c - begin] = ratio * (base[i] + part * (base[j] - base[i]));
    }
  }

  /** Returns the visible strips, nearest first. A strip is one range of a ridge in columns of pixels; `bottoms`
   *  is the lowest visible pixel in each column. */
  function visibleStrips(geometry, run, buckets, ratio, width) {
    const horizon = new Float32Array(width).fill(1e9);
    const strips = [];
    for (const s of geometry.order) {
      for (const piece of run.pieces[s]) {
        const strip = columnsOf(geometry, s * buckets, piece, ratio, width);
        if (!strip) continue;
        const { begin, end, left, right, tops, feet } = strip;
        const bottoms = new Float32Array(tops.length);
        let seen = false;
        for (let c = begin, k = 0; c <= end; c++, k++) {
          bottoms[k] = Math.min(feet[k], horizon[c] + 1);
          if (tops[k] < bottoms[k]) seen = true;
        }
        for (let c = begin, k = 0; c <= end; c++, k++) {
          const whole = c >= left && c + 1 <= right;
          if (whole && tops[k] < horizon[c]) horizon[c] = tops[k];
        }
        if (seen) strips.push({ ...strip, s, bottoms });
      }
    }
    return strips;
  }

  /** Returns red, green and blue (0 to 255) of a colour such as "#2b5fd0". */
  function rgb(hex) {
    return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  }

  /** Mixes a colour with the fraction `part` (0 to 1) of another; both are [red, green, blue]. */
  function mix(a, b, part) {
    return a.map((v, i) => Math.round(v + (b[i] - v) * part));
  }

  /** Returns a colour as one pixel of image data, opaque. */
  function packed([red, green, blue]) {
    return (0xff000000 | (blue << 16) | (green << 8) | red) >>> 0;
  }

  /** Returns the shades of one ridge from its foot upwards, as pixels; both colours are [red, green, blue]. */
  function shades(foot, fill) {
    return Uint32Array.from({ length: SHADES }, (_, i) =>
      packed(mix(foot, fill, Math.min(1, i / (SHADES * 0.62)))),
    );
  }

  /** Mixes a pixel with the fraction `part` (0 to 1) of another. */
  function blend(under, over, part) {
    const q = (part * 256) | 0;
    const p = 256 - q;
    const rb = ((under & 0xff00ff) * p + (over & 0xff00ff) * q) >>> 8;
    const g = ((under & 0xff00) * p + (over & 0xff00) * q) >>> 8;
    return (0xff000000 | (rb & 0xff00ff) | (g & 0xff00)) >>> 0;
  }

  /** Paints the ridges over the content of the canvas. `styles[s]` has shades, line and lineWidth. */
  function paint(context, geometry, run, view, buckets, styles, ratio) {
    const [width, height] = [context.canvas.width, context.canvas.height];
    const strips = visibleStrips(geometry, run, buckets, ratio, width);
    const image = context.getImageData(0, 0, width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const lift = HEIGHT * view.cosPitch * view.scale * ratio;
    for (let k = strips.length - 1; k >= 0; k--) {
      const strip = strips[k];
      const style = styles[strip.s];
      const away = run.y[strip.s] * view.cosYaw;
      paintStrip(pixels, width, height, strip, style, (style.lineWidth * ratio) / 2,
        (SHADES - 1) / (lift / (1 + view.perspective * away)));
    }
    context.putImageData(image, 0, 0);
  }

  /** Paints a strip. Each column has, from the top down: the upper half of the crest line, its lower
   *  half mixed with the shades, and the shades. */
  function paintStrip(pixels, width, height, strip, style, half, shadesPerPixel) {
    const { begin, end, left, right, tops, feet, bottoms } = strip;
    const { shades: table, line } = style;
    const reach = half + 0.5;
    for (let c = begin, k = 0; c <= end; c++, k++) {
      const y = tops[k];
      const stop = Math.min(height, Math.ceil(bottoms[k]));
      const before = k > 0 ? tops[k - 1] : y;
      const after = c < end ? tops[k + 1] : y;
      // The vertical extent of the line in this column grows with its slope to the neighbours.
      const rise = Math.max(0, y - before, y - after);
      const fall = Math.max(0, before - y, after - y);
      const up = Math.sqrt(1 + rise * rise);
      const down = Math.sqrt(1 + fall * fall);
      const start = Math.max(0, Math.floor(y - reach * up));
      if (start >= stop) continue;
      const whole = c >= left && c + 1 <= right;
      const cover = whole ? 1 : Math.min(right, c + 1) - Math.max(left, c);
      let row = start;
      let at = start * width + c;
      for (const crest = Math.min(stop, Math.round(y)); row < crest; row++, at += width) {
        const part = Math.min(1, reach - (y - row - 0.5) / up);
        if (part > 0) pixels[at] = blend(pixels[at], line, part * cover);
      }
      const plain = Math.min(stop, Math.ceil(y + reach * down));
      let shade = (feet[k] - row) * shadesPerPixel;
      for (; row < stop; row++, at += width, shade -= shadesPerPixel) {
        let color = table[shade >= SHADES ? SHADES - 1 : shade > 0 ? shade | 0 : 0];
        if (row < plain) {
          const part = reach - (row + 0.5 - y) / down;
          if (part > 0) color = blend(color, line, part < 1 ? part : 1);
        }
        pixels[at] = whole ? color : blend(pixels[at], color, cover);
      }
    }
  }

  /** Draws the crest of one ridge over all others, so that hidden parts are visible too. */
  function trace(context, geometry, run, s, buckets, color, width) {
    context.strokeStyle = color;
    context.lineWidth = width;
    for (const [from, to] of run.pieces[s]) {
      context.beginPath();
      for (let i = s * buckets + from; i <= s * buckets + to; i++) {
        context.lineTo(geometry.sx[i], geometry.crest[i]);
      }
      context.stroke();
    }
  }

  /** Returns ridge and bucket of the nearest curtain at a point of the canvas, or null. */
  function hit(geometry, run, buckets, x, y) {
    for (const s of geometry.order) {
      for (const [from, to] of run.pieces[s]) {
        for (let i = s * buckets + from; i < s * buckets + to; i++) {
          const [a, b] = [geometry.sx[i], geometry.sx[i + 1]];
          if ((x - a) * (x - b) > 0) continue;
          const part = a === b ? 0 : (x - a) / (b - a);
          const along = (v) => v[i] + part * (v[i + 1] - v[i]);
          if (y > along(geometry.crest) - 3 && y < along(geometry.base) + 1) {
            return { ridge: s, bucket: Math.round(i - s * buckets + part) };
          }
        }
      }
    }
    return null;
  }

  window.trustlens.surface = { unpack, place, paint, rgb, mix, packed, shades, trace, hit };
})();
